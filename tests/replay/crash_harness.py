"""Runs that are killed, each in a process of its own; a program, so that it can fork without torch's threads.

    `python -m tests.replay.crash_harness DIRECTORY every-point|random [SEED]`

Prints a JSON object: how many processes were killed, and a list of what went wrong (empty when all is well).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwkvbatch.files import OS_FILES, Files
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.results.recovery import read_results
from tests.replay.disks import CountedFiles, KillingFiles
from tests.replay.fakes import FakeLoader, make_plan

DONE_NAME = "rows-reported-as-done"


class Reporter:
    """Writes down, outside the run directory, how many rows were reported as done."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._last = -1

    def moved(self, progress: Progress) -> None:
        if progress.rows_done != self._last:
            self._last = progress.rows_done
            os.write(self._descriptor, b"%d\n" % progress.rows_done)

    started = ended = moved


def make(batch: int = 3) -> Plan:
    return make_plan(4, batch_size=batch, seed=5)


def in_child(work: Callable[[], None]) -> int:
    """How a child that does `work` ended: 0, or minus the signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_once(directory: Path, files: Files = OS_FILES, pause_s: float = 0.0) -> None:
    loader = FakeLoader()
    if pause_s:
        loader.change = lambda request, reply: (time.sleep(pause_s), reply)[1]
    reporter = Reporter(directory.with_name(directory.name + DONE_NAME))
    execute(make(), loader, RunOptions(out=directory, observers=[reporter], files=files))


def problems_after_kill(directory: Path) -> list[str]:
    """Rows that were reported as done and are not there, or are there twice."""
    reported = directory.with_name(directory.name + DONE_NAME)
    counts = [int(line) for line in reported.read_text().split()] if reported.exists() else []
    results = directory / "results.jsonl"
    keys = [row.key for row in read_results(results)] if results.exists() else []
    problems: list[str] = []
    if len(keys) < max(counts, default=0):
        problems.append(f"{directory}: {max(counts)} rows were reported as done, {len(keys)} are there")
    if len(set(keys)) < len(keys):
        problems.append(f"{directory}: a row is there twice")
    return problems


def compare(directory: Path, expected: bytes) -> list[str]:
    """What differs from a run that was never interrupted: nothing may."""
    if (directory / "results.jsonl").read_bytes() != expected:
        return [f"{directory}: the rows differ from those of an uninterrupted run"]
    leftovers = [path.name for path in directory.iterdir() if path.name.endswith(".tmp")]
    return [f"{directory}: left behind {leftovers}"] if leftovers else []


def every_point(root: Path, expected: bytes) -> dict[str, Any]:
    """Kill at every call that changes the disk, in and after it; resume; kill the resuming run as well."""
    counted = CountedFiles()
    run_once(root / "counted", counted)
    kills, problems = 0, list[str]()
    for at, name in enumerate(counted.calls):
        for moment in ("half", "after"):  # just before a call is just after the one before it
            if moment == "half" and name != "write":
                continue
            directory = root / f"{at}-{moment}"
            for point in (at, (at * 7 + 3) % len(counted.calls)):
                status = in_child(lambda d=directory, p=point, m=moment: run_once(d, KillingFiles(p, m)))
                kills += status == -signal.SIGKILL
                if status not in (0, -signal.SIGKILL):
                    problems.append(f"{directory}: ended with {status}")
                problems += problems_after_kill(directory)
            if in_child(lambda d=directory: run_once(d)) != 0:
                problems.append(f"{directory}: could not be continued")
            problems += compare(directory, expected)
            shutil.rmtree(directory)
    return {"points": len(counted.calls), "kills": kills, "problems": problems}


def random_times(root: Path, expected: bytes, seed: int, wanted_kills: int = 40) -> dict[str, Any]:
    """Kill at random times, again and again, until the run is done; so many runs as it takes."""
    chance = random.Random(seed)
    kills, problems = 0, list[str]()
    number = 0
    while kills < wanted_kills:
        number += 1
        directory = root / f"random-{number}"
        for attempt in range(200):
            child = os.fork()
            if child == 0:
                run_once(directory, pause_s=0.001)
                os._exit(0)
            time.sleep(chance.uniform(0.0, 0.03 + 0.003 * attempt))
            os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status == 0:
                break
            kills += 1
            problems += problems_after_kill(directory)
        else:
            problems.append(f"{directory}: never came to its end")
            continue
        problems += compare(directory, expected)
    return {"runs": number, "kills": kills, "problems": problems}


def main() -> None:
    root, mode = Path(sys.argv[1]), sys.argv[2]
    root.mkdir(parents=True, exist_ok=True)
    run_once(root / "expected")
    expected = (root / "expected" / "results.jsonl").read_bytes()
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    found = every_point(root, expected) if mode == "every-point" else random_times(root, expected, seed)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
