"""Runs that are killed at every call that changes the disk, or at random times, over a model that answers at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rwkvbatch.files import OS_FILES, Files
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.recheck import recheck
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row import BadLineError, RowKey, decode_row
from rwkvbatch.script.reader import read_scripts
from rwkvbatch.script.records import Check, Conversation
from tests.replay.disks import CountedFiles, KillingFiles
from tests.replay.fakes import FakeLoader, Longer, make_conversation, make_plan

DONE_NAME = "rows-reported-as-done"
ADAPTING_CALLS = 32
"""Calls after which a command that extends a run has adapted its rows, at the least."""


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


def random_times(root: Path, expected: bytes, seed: int, wanted_kills: int) -> dict[str, Any]:
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


def first_plan() -> Plan:
    return make_plan(conversations=script(5), repeats=1, batch_size=3, seed=5)


def extended_plan() -> Plan:
    """More repeats, one conversation less, one more, one changed, and other checks."""
    old = script(5, minimum=20)
    turns = old[3].turns
    changed = replace(old[3], turns=(*turns[:-1], replace(turns[-1], user="Something else")))
    return make_plan(
        conversations=[make_conversation("new", 2), *old[1:3], changed, old[4]], repeats=2, batch_size=3, seed=5
    )


def script(number: int, minimum: int = 12) -> list[Conversation]:
    check = Check("longer", minimum, Longer(minimum))
    return [make_conversation(f"c{n}", 1 + n % 3, checks=[check] if n % 2 else []) for n in range(number)]


def extending(directory: Path, plan: Plan, files: Files = OS_FILES) -> None:
    execute(plan, FakeLoader(), RunOptions(out=directory, files=files))


def extend_at_every_point(root: Path) -> dict[str, Any]:
    """Kill a command that extends a run at every call; then it is given again, or the first command is, and then it."""
    for name, plan in (("first", first_plan()), ("extended", extended_plan())):
        extending(root / name, plan)
    expected = {name: (root / name / "results.jsonl").read_bytes() for name in ("first", "extended")}
    counted = CountedFiles()
    shutil.copytree(root / "first", root / "counted")
    extending(root / "counted", extended_plan(), counted)
    kills, problems = 0, list[str]()
    plans = {"first": first_plan, "extended": extended_plan}
    for at, name in enumerate(counted.calls):
        if at > ADAPTING_CALLS and at % 5:  # then rows are generated: `every_point` kills at all of these
            continue
        for moment in ("half", "after"):
            if moment == "half" and name != "write":
                continue
            killed = root / f"{at}-{moment}"
            shutil.copytree(root / "first", killed)
            for point in (at, (at * 7 + 3) % len(counted.calls)):
                status = in_child(lambda d=killed, p=point, m=moment: extending(d, extended_plan(), KillingFiles(p, m)))
                kills += status == -signal.SIGKILL
                if status not in (0, -signal.SIGKILL):
                    problems.append(f"{killed}: ended with {status}")
            problems += lost_replies(killed, root / "first")
            for then in (("extended",), ("first", "extended")):
                directory = root / f"{at}-{moment}-{len(then)}"
                shutil.copytree(killed, directory)
                for wanted in then:
                    if in_child(lambda d=directory, p=plans[wanted]: extending(d, p())) != 0:
                        problems.append(f"{directory}: {wanted} could not be continued")
                    problems += compare(directory, expected[wanted])
                shutil.rmtree(directory)
            shutil.rmtree(killed)
    return {"points": len(counted.calls), "kills": kills, "problems": problems}


def lost_replies(directory: Path, before: Path) -> list[str]:
    """Rows of the run before that are neither in the results nor among the kept rows."""
    there = {row.key: row.reply_ids for row in read_results(before / "results.jsonl")}
    found: dict[RowKey, set[tuple[int, ...]]] = {}
    for name in ("results.jsonl", "kept.jsonl"):
        for line in (directory / name).read_bytes().splitlines(keepends=True) if (directory / name).exists() else ():
            with suppress(BadLineError):
                row = decode_row(line)
                found.setdefault(row.key, set()).add(row.reply_ids)
    return [f"{directory}: lost {key.in_words()}" for key, ids in there.items() if ids not in found.get(key, set())]


def check_at_every_point(root: Path) -> dict[str, Any]:
    """Kill `rwkvbatch check` at every call; then it is given again, or the run's own command is."""
    made: dict[str, Path] = {}
    for name, expected in (("old", "elm"), ("new", "fir")):
        asked = [{"role": "user", "content": f"Say {turn}", "expect": {"contains": expected}} for turn in range(2)]
        made[name] = root / f"{name}.jsonl"
        made[name].write_text("".join(json.dumps({"id": f"c{n}", "messages": asked}) + "\n" for n in range(3)))
        extending(root / name, checked_plan(made[name]))
    results = {name: (root / name / "results.jsonl").read_bytes() for name in made}
    counted = CountedFiles()
    shutil.copytree(root / "old", root / "counted")
    recheck(root / "counted", [str(made["new"])], files=counted)
    kills, problems = 0, list[str]()
    for at, call in enumerate(counted.calls):
        for moment in ("half", "after"):
            if moment == "half" and call != "write":
                continue
            killed = root / f"check-{at}-{moment}"
            shutil.copytree(root / "old", killed)
            files = KillingFiles(at, moment)
            status = in_child(lambda d=killed, f=files: recheck(d, [str(made["new"])], files=f) and None)
            kills += status == -signal.SIGKILL
            if status not in (0, -signal.SIGKILL):
                problems.append(f"{killed}: ended with {status}")
            if (killed / "results.jsonl").read_bytes() not in results.values():
                problems.append(f"{killed}: half of the verdicts are new")
            for then in ("check", "old", "new"):
                directory = root / f"check-{at}-{moment}-{then}"
                shutil.copytree(killed, directory)
                if then == "check":
                    recheck(directory, [str(made["new"])])
                else:
                    extending(directory, checked_plan(made[then]))
                problems += compare(directory, results["old" if then == "old" else "new"])
                shutil.rmtree(directory)
            shutil.rmtree(killed)
    return {"points": len(counted.calls), "kills": kills, "problems": problems}


def checked_plan(path: Path) -> Plan:
    return make_plan(conversations=read_scripts([str(path)]).conversations)


def uninterrupted(root: Path) -> bytes:
    run_once(root / "expected")
    return (root / "expected" / "results.jsonl").read_bytes()


KINDS: Mapping[str, Callable[[Path, int, int], dict[str, Any]]] = {
    "every-point": lambda root, seed, kills: every_point(root, uninterrupted(root)),
    "random": lambda root, seed, kills: random_times(root, uninterrupted(root), seed, kills),
    "extend": lambda root, seed, kills: extend_at_every_point(root),
    "check": lambda root, seed, kills: check_at_every_point(root),
}
"""By name: with the directory to work in, a seed, and the number of kills, where these are random."""
