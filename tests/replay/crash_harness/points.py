"""Kills runs over a fake engine at every call that changes the disk, or at random times."""

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
from rwkvbatch.replay.judging.recheck import recheck
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row import RowKey
from rwkvbatch.results.row_codec import BadLineError, decode_row
from rwkvbatch.script.reader import read_scripts
from rwkvbatch.script.records import Check, Conversation
from tests.replay.disks import CountedFiles, KillingFiles
from tests.replay.fakes import FakeLoader, LongerThan, make_conversation, make_plan

DONE_NAME = "rows-reported-as-done"
ADAPTING_CALLS = 32
"""A number of calls after which a command that extends a run has adapted its rows."""


class Reporter:
    """Writes the number of rows reported as done to a file outside the run directory."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._last = -1

    def moved(self, progress: Progress) -> None:
        if progress.rows_done != self._last:
            self._last = progress.rows_done
            os.write(self._descriptor, b"%d\n" % progress.rows_done)

    started = ended = moved


def small_plan(batch_size: int = 3) -> Plan:
    return make_plan(4, batch_size=batch_size, seed=5)


def in_child(work: Callable[[], None]) -> int:
    """The exit code of a child that does `work`, or minus the signal."""
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
    execute(small_plan(), loader, RunOptions(out=directory, observers=[reporter], files=files))


def problems_after_kill(directory: Path) -> list[str]:
    """Whether rows that were reported as done are missing, or rows are duplicated."""
    reported = directory.with_name(directory.name + DONE_NAME)
    counts = [int(line) for line in reported.read_text().split()] if reported.exists() else []
    results = directory / "results.jsonl"
    keys = [row.key for row in read_results(results)] if results.exists() else []
    problems: list[str] = []
    if len(keys) < max(counts, default=0):
        problems.append(f"{directory}: {max(counts)} rows were reported as done, {len(keys)} exist")
    if len(set(keys)) < len(keys):
        problems.append(f"{directory}: a row is duplicated")
    return problems


def compare(directory: Path, expected: bytes) -> list[str]:
    """Differences from a run that was not interrupted."""
    if (directory / "results.jsonl").read_bytes() != expected:
        return [f"{directory}: the rows differ from those of an uninterrupted run"]
    leftovers = [path.name for path in directory.iterdir() if path.name.endswith(".tmp")]
    return [f"{directory}: temporary files were left: {leftovers}"] if leftovers else []


def every_point(root: Path, expected: bytes) -> dict[str, Any]:
    """Kill a run at every call that changes the disk, in and after it; resume it; kill the resumed run too."""
    counted = CountedFiles()
    run_once(root / "counted", counted)
    kills, problems = 0, list[str]()
    for at, name in enumerate(counted.calls):
        for moment in ("half", "after"):  # before a call is after the previous one
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
                problems.append(f"{directory}: could not be resumed")
            problems += compare(directory, expected)
            shutil.rmtree(directory)
    return {"points": len(counted.calls), "kills": kills, "problems": problems}


def random_times(root: Path, expected: bytes, seed: int, min_kills: int) -> dict[str, Any]:
    """Kill runs at random times until each is done, and until there were `min_kills` kills."""
    generator = random.Random(seed)
    kills, problems = 0, list[str]()
    number = 0
    while kills < min_kills:
        number += 1
        directory = root / f"random-{number}"
        for attempt in range(200):
            child = os.fork()
            if child == 0:
                run_once(directory, pause_s=0.001)
                os._exit(0)
            time.sleep(generator.uniform(0.0, 0.03 + 0.003 * attempt))
            os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status == 0:
                break
            kills += 1
            problems += problems_after_kill(directory)
        else:
            problems.append(f"{directory}: never completed")
            continue
        problems += compare(directory, expected)
    return {"runs": number, "kills": kills, "problems": problems}


def first_plan() -> Plan:
    return make_plan(conversations=script(5), repeats=1, batch_size=3, seed=5)


def extended_plan() -> Plan:
    """More repeats, one conversation removed, one added, one changed, and other checks."""
    old = script(5, minimum=20)
    turns = old[3].turns
    changed = replace(old[3], turns=(*turns[:-1], replace(turns[-1], user="Something else")))
    return make_plan(
        conversations=[make_conversation("new", 2), *old[1:3], changed, old[4]], repeats=2, batch_size=3, seed=5
    )


def script(number: int, minimum: int = 12) -> list[Conversation]:
    check = Check("longer", minimum, LongerThan(minimum))
    return [make_conversation(f"c{n}", 1 + n % 3, checks=[check] if n % 2 else []) for n in range(number)]


def run_plan(directory: Path, plan: Plan, files: Files = OS_FILES) -> None:
    execute(plan, FakeLoader(), RunOptions(out=directory, files=files))


def extend_at_every_point(root: Path) -> dict[str, Any]:
    """Kill a command that extends a run at every call; then run it again, or first the original command."""
    for name, plan in (("first", first_plan()), ("extended", extended_plan())):
        run_plan(root / name, plan)
    expected = {name: (root / name / "results.jsonl").read_bytes() for name in ("first", "extended")}
    counted = CountedFiles()
    shutil.copytree(root / "first", root / "counted")
    run_plan(root / "counted", extended_plan(), counted)
    kills, problems = 0, list[str]()
    plans = {"first": first_plan, "extended": extended_plan}
    for at, name in enumerate(counted.calls):
        if at > ADAPTING_CALLS and at % 5:  # rows are generated: `every_point` covers these calls
            continue
        for moment in ("half", "after"):
            if moment == "half" and name != "write":
                continue
            killed = root / f"{at}-{moment}"
            shutil.copytree(root / "first", killed)
            for point in (at, (at * 7 + 3) % len(counted.calls)):
                status = in_child(lambda d=killed, p=point, m=moment: run_plan(d, extended_plan(), KillingFiles(p, m)))
                kills += status == -signal.SIGKILL
                if status not in (0, -signal.SIGKILL):
                    problems.append(f"{killed}: ended with {status}")
            problems += lost_replies(killed, root / "first")
            for then in (("extended",), ("first", "extended")):
                directory = root / f"{at}-{moment}-{len(then)}"
                shutil.copytree(killed, directory)
                for wanted in then:
                    if in_child(lambda d=directory, p=plans[wanted]: run_plan(d, p())) != 0:
                        problems.append(f"{directory}: {wanted} could not be resumed")
                    problems += compare(directory, expected[wanted])
                shutil.rmtree(directory)
            shutil.rmtree(killed)
    return {"points": len(counted.calls), "kills": kills, "problems": problems}


def lost_replies(directory: Path, before: Path) -> list[str]:
    """Rows of the earlier run that are neither in the results nor among the kept rows."""
    earlier = {row.key: row.reply_ids for row in read_results(before / "results.jsonl")}
    found: dict[RowKey, set[tuple[int, ...]]] = {}
    for name in ("results.jsonl", "kept.jsonl"):
        for line in (directory / name).read_bytes().splitlines(keepends=True) if (directory / name).exists() else ():
            with suppress(BadLineError):
                row = decode_row(line)
                found.setdefault(row.key, set()).add(row.reply_ids)
    return [f"{directory}: lost {key.in_words()}" for key, ids in earlier.items() if ids not in found.get(key, set())]


def check_at_every_point(root: Path) -> dict[str, Any]:
    """Kill `rwkvbatch check` at every call; then run it again, or the command of the run."""
    scripts: dict[str, Path] = {}
    for name, expected in (("old", "elm"), ("new", "fir")):
        messages = [{"role": "user", "content": f"Say {turn}", "expect": {"contains": expected}} for turn in range(2)]
        scripts[name] = root / f"{name}.jsonl"
        scripts[name].write_text("".join(json.dumps({"id": f"c{n}", "messages": messages}) + "\n" for n in range(3)))
        run_plan(root / name, checked_plan(scripts[name]))
    results = {name: (root / name / "results.jsonl").read_bytes() for name in scripts}
    counted = CountedFiles()
    shutil.copytree(root / "old", root / "counted")
    recheck(root / "counted", [str(scripts["new"])], files=counted)
    kills, problems = 0, list[str]()
    for at, call in enumerate(counted.calls):
        for moment in ("half", "after"):
            if moment == "half" and call != "write":
                continue
            killed = root / f"check-{at}-{moment}"
            shutil.copytree(root / "old", killed)
            files = KillingFiles(at, moment)
            status = in_child(lambda d=killed, f=files: recheck(d, [str(scripts["new"])], files=f) and None)
            kills += status == -signal.SIGKILL
            if status not in (0, -signal.SIGKILL):
                problems.append(f"{killed}: ended with {status}")
            if (killed / "results.jsonl").read_bytes() not in results.values():
                problems.append(f"{killed}: only some of the verdicts are new")
            for then in ("check", "old", "new"):
                directory = root / f"check-{at}-{moment}-{then}"
                shutil.copytree(killed, directory)
                if then == "check":
                    recheck(directory, [str(scripts["new"])])
                else:
                    run_plan(directory, checked_plan(scripts[then]))
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
