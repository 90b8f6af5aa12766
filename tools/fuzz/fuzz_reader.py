"""Coverage-guided fuzzing of one reader of foreign files: `python -m tools.fuzz.fuzz_reader READER [SECONDS] [FOLDER]`.

The readers are those of `tests/hostile`: weights, vocabularies, adapters, states, results, benchmarks, chats, answers
of servers and requests of clients. Every input must be read, or end in a refusal of one line that names the file.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path

from tools.fuzz.fuzzing import fuzz, instrumented

with instrumented("rwkvbatch"):
    from rwkvbatch.errors import InputError, RowError, RwkvBatchError, UsageError
    from tests.hostile.readers import READERS

MAX_BYTES = 1 << 14


def main() -> None:
    """Fuzz; see `fuzz`."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in READERS:
        sys.exit(f"give the name of a reader: {', '.join(READERS)}")
    reader = READERS[name]
    warnings.simplefilter("ignore")
    # In memory: a file of its own for each of thousands of inputs a second would be mostly waiting.
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else None
    target = Path(tempfile.mkdtemp(prefix=f"rwkvbatch-fuzz-{name}-", dir=parent)) / "files" / reader.file
    target.parent.mkdir(parents=True)
    reader.prepare(target.parent)
    with instrumented("rwkvbatch"):  # imports what the reader needs
        sound = list(reader.seeds())
        for data in sound:
            target.write_bytes(data)
            reader.read(target)

    def read_one(data: bytes) -> None:
        target.write_bytes(data)
        try:
            reader.read(target)
        except RwkvBatchError as error:
            if not isinstance(error, InputError | UsageError | RowError) or "\n" in error.message:
                raise AssertionError(f"this is no refusal of one line: {error}") from error
            shown = f"{error} {error.hint}"
            if reader.has_file and target.name not in shown and target.parent.name not in shown:
                raise AssertionError(f"the message does not name the file: {error}") from error

    seeds = {f"sound-{number}": data for number, data in enumerate(sound)}
    small = (data for data in reader.written_by_hand.values() if len(data) < MAX_BYTES)
    seeds |= {f"hand-{number}": data for number, data in enumerate(small)}
    largest = max(map(len, seeds.values()))
    fuzz(read_one, seeds, max_bytes=max(MAX_BYTES, largest), words=tuple(reader.words), seconds_an_input=10)


if __name__ == "__main__":
    main()
