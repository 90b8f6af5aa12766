"""`python -m tests.hostile [N] [SEED] [READER...]`: reads hostile files until each reader has refused N; JSON lines.

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
MAX_TRIES_PER_REFUSAL = 50
"""Limit of changed files for each refused one; many changes leave a file valid."""


def main() -> None:
    arguments = sys.argv[1:]
    num_refusals, seed = int(arguments[0]) if arguments else 200, int(arguments[1]) if len(arguments) > 1 else 0
    for name in arguments[2:] or READERS:
        print(json.dumps({"reader": name, **outcome(name, READERS[name], num_refusals, seed)}), flush=True)  # noqa: T201


def outcome(name: str, reader: Reader, num_refusals: int, seed: int) -> dict[str, Any]:
    """Numbers of refused and read files, exit codes, the largest costs, and problems."""
    generator = random.Random(f"{seed} {name}")
    counts, problems, worst_s, worst_mib = Counter[str](), list[str](), 0.0, 0.0
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "files" / reader.file
        path.parent.mkdir(parents=True)
        reader.prepare(path.parent)
        seeds = reader.seeds()
        for data in seeds:
            path.write_bytes(data)
            reader.read(path)  # valid files; also imports modules
        open_before = num_open_files()
        written_by_hand = [*reader.written_by_hand.values()]
        changed = changed_files(seeds, reader.changes, generator)
        for number in range(num_refusals * MAX_TRIES_PER_REFUSAL):
            if counts["refused"] >= num_refusals:
                break
            data = written_by_hand[number] if number < len(written_by_hand) else next(changed)
            path.write_bytes(data)
            before, started = peak_mib(), time.process_time()
            problem = problem_of(reader, path, counts)
            cpu_s, grown_mib = time.process_time() - started, peak_mib() - before
            worst_s, worst_mib = max(worst_s, cpu_s), max(worst_mib, grown_mib)
            if cpu_s > MAX_CPU_S or grown_mib > MAX_MIB:
                problem = problem or f"took {cpu_s:.1f} s and {grown_mib:.0f} MiB"
            if problem:
                kept = Path(tempfile.gettempdir()) / f"hostile-{name}-{number}"
                kept.write_bytes(data)
                problems.append(f"file {number}, kept as {kept}: {problem}")
        if (opened := num_open_files() - open_before) > 0:
            problems.append(f"{opened} files stay open")
    costs = {"cpu_s": round(worst_s, 2), "memory_mib": round(worst_mib)}
    return {**counts, **costs, "problems": problems[:20], "num_problems": len(problems)}


def problem_of(reader: Reader, path: Path, counts: Counter[str]) -> str | None:
    """Read one file; returns the problem with the outcome, or None."""
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
