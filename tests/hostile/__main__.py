"""`python -m tests.hostile [N] [SEED] [READER...]`: N refused files for each reader, in this process; a JSON line each.

Each file must be read or refused with one message that names it, in bounded time and memory, and leave no file open.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rwkvbatch.cli.exits import ExitCode, _explain
from rwkvbatch.errors import InputError, RowError, RwkvBatchError, UsageError
from tests.hostile.mutations import changed_files
from tests.hostile.reader import Reader
from tests.hostile.readers import READERS

MAX_CPU_S = 5.0
MAX_MIB = 300.0
MAX_MESSAGE = 1200
TRIES_FOR_ONE = 50
"""Most changed files for each that is refused: many changes do no harm."""


def main() -> None:
    arguments = sys.argv[1:]
    wanted, seed = int(arguments[0]) if arguments else 200, int(arguments[1]) if len(arguments) > 1 else 0
    for name in arguments[2:] or READERS:
        print(json.dumps({"reader": name, **outcome(name, READERS[name], wanted, seed)}), flush=True)  # noqa: T201


def outcome(name: str, reader: Reader, wanted: int, seed: int) -> dict[str, Any]:
    """How many files were refused and read, by exit code, the worst costs, and the problems."""
    chance = random.Random(f"{seed} {name}")
    counts, problems, worst_s, worst_mib = Counter[str](), list[str](), 0.0, 0.0
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "files" / reader.file
        path.parent.mkdir(parents=True)
        reader.prepare(path.parent)
        seeds = reader.seeds()
        for data in seeds:
            path.write_bytes(data)
            reader.read(path)  # sound files, and modules are imported
        open_before = num_open_files()
        files = [*reader.made.values()]
        changed = changed_files(seeds, reader.changes, chance)
        for number in range(wanted * TRIES_FOR_ONE):
            if counts["refused"] >= wanted:
                break
            data = files[number] if number < len(files) else next(changed)
            path.write_bytes(data)
            before, started = peak_mib(), time.process_time()
            problem = problem_of(reader, path, counts)
            spent, grown = time.process_time() - started, peak_mib() - before
            worst_s, worst_mib = max(worst_s, spent), max(worst_mib, grown)
            if spent > MAX_CPU_S or grown > MAX_MIB:
                problem = problem or f"took {spent:.1f} s and {grown:.0f} MiB"
            if problem:
                kept = Path(tempfile.gettempdir()) / f"hostile-{name}-{number}"
                kept.write_bytes(data)
                problems.append(f"file {number}, kept as {kept}: {problem}")
        if (opened := num_open_files() - open_before) > 0:
            problems.append(f"{opened} files stay open")
    costs = {"cpu_s": round(worst_s, 2), "memory_mib": round(worst_mib)}
    return {**counts, **costs, "problems": problems[:20], "num_problems": len(problems)}


def problem_of(reader: Reader, path: Path, counts: Counter[str]) -> str | None:
    """Read one file; what is wrong with how that ended."""
    try:
        reader.read(path)
    except RwkvBatchError as error:
        counts["refused"] += 1
        code, shown = _explain(error)
        counts[f"exit code {int(code)}"] += 1
        message = error.message
        is_refusal = isinstance(error, InputError | UsageError | RowError)
        if not is_refusal or code not in (ExitCode.USAGE, ExitCode.BAD_INPUT, ExitCode.INTERNAL):
            return f"is no refusal: {type(error).__name__}: {error}"
        if reader.has_file and path.name not in shown and path.parent.name not in shown:
            return f"does not name the file: {error}"
        if "\n" in message or len(message) > MAX_MESSAGE:
            return f"is not one short line: {str(error)[:3000]!r}"
        return None
    except BaseException as error:
        counts["refused"] += 1
        return f"{type(error).__name__}: {str(error)[:300]}"
    counts["read"] += 1
    return None


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
