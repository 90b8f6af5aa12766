"""Makes a corpus of damaged and malicious weights files: what each is, and what its message must say.

`python -m tests.model.hostile.corpus FOLDER` writes it; `... FOLDER --check` also opens every file and prints
one JSON line a file: the message, the CPU time in seconds and the growth of the peak memory in MiB.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.model.hostile.archives import zips
from tests.model.hostile.case import Case
from tests.model.hostile.directories import directories
from tests.model.hostile.gguf_headers import gguf
from tests.model.hostile.other_files import not_checkpoints, not_files, truncated
from tests.model.hostile.programs import programs
from tests.model.hostile.safetensors_headers import safetensors
from tests.model.hostile.wrong_tensors import wrong_tensors


def corpus() -> Iterator[Case]:
    yield from not_files()
    yield from not_checkpoints()
    yield from truncated()
    yield from wrong_tensors()
    yield from programs()
    yield from zips()
    yield from safetensors()
    yield from directories()
    yield from gguf()


def main(arguments: list[str]) -> None:
    """Write the corpus, and with `--check` open every file."""
    folder = Path(arguments[0])
    cases = list(corpus())
    for case in cases:
        case.write(folder / case.name)
    if "--check" in arguments:
        os.chdir(folder)
        for case in cases:
            sys.stdout.write(json.dumps(_opened(case, folder / case.name)) + "\n")
            sys.stdout.flush()


def _opened(case: Case, path: Path) -> dict[str, Any]:
    from rwkvbatch.errors import CheckpointError
    from rwkvbatch.model.load import load_model

    before, started = _peak_mib(), time.process_time()
    try:
        load_model(path, "cpu fp32", "auto")
        error, message = None, ""
    except CheckpointError as refusal:
        error, message = "CheckpointError", f"{refusal} {refusal.hint or ''}"
    except BaseException as other:
        error, message = type(other).__name__, str(other)
    return {
        "name": case.name,
        "expected": case.message,
        "error": error,
        "message": message,
        "cpu_s": time.process_time() - started,
        "memory_mib": _peak_mib() - before,
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(sys.argv[1:])
