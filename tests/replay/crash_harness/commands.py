"""Kills the whole program at random times until each command completes; then compares the results."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from rwkvbatch.results.recovery import read_results
from tests.replay.crash_harness.kinds import KINDS, Job, without_timing
from tests.replay.crash_harness.points import lost_replies
from tests.replay.crash_harness.processes import import_everything, kill, run_program, start_program, wait, wait_until

FINISHED = (0, 1)
"""Exit codes of a completed command: done, or done with failed checks."""
HANGS_S = 120.0
MAX_ATTEMPTS = 300


def kill_kinds(root: Path, name: str, seed: int, kills: int) -> dict[str, Any]:
    """`kills` processes of each kind in the comma list `name` are killed, or of all kinds for `commands`.

    Raises:
        KeyError: there is no such kind.
    """
    import_everything()
    names = list(KINDS) if name == "commands" else name.split(",")
    counts, problems = dict[str, int](), list[str]()
    for each in names:
        folder = root / each
        folder.mkdir(parents=True)
        killed = _KilledJob(KINDS[each](folder), folder, random.Random(f"{seed} {each}"))
        killed.until(kills)
        counts[each] = killed.kills
        problems += killed.problems
        print(f"{each}: {killed.kills} kills, {len(killed.problems)} problems", file=sys.stderr, flush=True)  # noqa: T201
        _end_children()
        shutil.rmtree(folder)
    return {"kills": sum(counts.values()), "by_kind": counts, "problems": problems}


class _KilledJob:
    """A job that is started again until it completes.

    Attributes:
        kills: number of processes killed so far. problems: what was wrong after a kill.
    """

    def __init__(self, job: Job, folder: Path, generator: random.Random) -> None:
        self.job, self._folder, self._generator = job, folder, generator
        self.kills, self.problems = 0, list[str]()
        self._others = set(_children())
        self._server: int | None = None
        self._expected_at = self._prepare("expected")
        self._restart_server()
        started = time.monotonic()
        code = run_program(job.arguments(self._expected_at))
        self._seconds = time.monotonic() - started
        if code not in FINISHED:
            raise RuntimeError(f"{folder}: the command ends with {code} when nothing is killed")
        self._expected = job.result(self._expected_at)
        if not self._expected:
            raise RuntimeError(f"{folder}: the command has no result")

    def until(self, kills: int) -> None:
        number = 0
        while self.kills < kills:
            number += 1
            path = self._prepare(f"run-{number}")
            for attempt in range(MAX_ATTEMPTS):
                if self._completes(path, attempt):
                    break
            else:
                self.problems.append(f"{path}: never completed")
            self._compare(path)
            shutil.rmtree(path)

    def _prepare(self, name: str) -> Path:
        path = self._folder / name
        if self.job.before:
            shutil.copytree(self.job.before, path)
        return path

    def _completes(self, path: Path, attempt: int) -> bool:
        """Start the command, and kill it or its server; whether it completed."""
        # The next command removes old temporary files of killed ones.
        for leftover in path.glob(".rwkvbatch-*.tmp"):
            os.utime(leftover, (0, 0))
        child = start_program(self.job.arguments(path))
        # Later attempts last longer, so that a command that repeats all of its work completes.
        time.sleep(self._generator.uniform(0.0, self._seconds * (1.0 + 0.1 * attempt)))
        if self.job.serving is None:
            code = kill(child)
        else:
            self._kill_server()
            if self._generator.random() < 0.7:  # otherwise the run has to give up
                self._restart_server()
            code = wait(child, HANGS_S)
            if code is None:
                self.problems.append(f"{path}: the run hangs after its server was killed")
                kill(child)
            elif code not in (*FINISHED, 2, 5):
                self.problems.append(f"{path}: the run ended with {code} after its server was killed")
            if self._server is None:
                self._restart_server()
        self.kills += code == -signal.SIGKILL
        if code not in (*FINISHED, -signal.SIGKILL) and self.job.serving is None:
            self.problems.append(f"{path}: ended with {code}")
        self._check_after_kill(path)
        return code in FINISHED and not (self.job.serving and _failures(path))

    def _check_after_kill(self, path: Path) -> None:
        """Check that orphans ended, and that files and rows are whole."""
        if not wait_for_orphans(self._others | ({self._server} if self._server else set())):
            self.problems.append(f"{path}: processes continue after their parent was killed")
            self._others |= set(_children())
        if (path / "out.safetensors").exists():
            before = self.job.before
            allowed = [self._expected, *([self.job.result(before)] if before else [])]
            if self.job.result(path) not in allowed:
                self.problems.append(f"{path}: an incomplete file under the final name")
        elif (path / "results.jsonl").exists():
            self._check_rows(path)

    def _check_rows(self, path: Path) -> None:
        """Check that rows are unique, correct but for a torn last line, as many as reported, and that none was lost."""
        found = Counter(row.key for row in read_results(path / "results.jsonl"))
        if found.most_common(1) and found.most_common(1)[0][1] > 1:
            self.problems.append(f"{path}: a row is duplicated")
        with suppress(FileNotFoundError):
            num_reported = json.loads((path / "status.json").read_text())["rows_done"]
            if num_reported > len(found) and self.job.before is None:
                self.problems.append(f"{path}: {num_reported} rows were reported as done, {len(found)} exist")
        if self.job.before is None:
            for row in read_results(path / "results.jsonl"):
                if without_timing(row) != self._expected[row.key] and not (self.job.serving and row.error):
                    self.problems.append(f"{path}: the row {row.key.in_words()} is wrong")
        else:
            self.problems += lost_replies(path, self.job.before)

    def _compare(self, path: Path) -> None:
        found = self.job.result(path)
        in_order = list(found) if isinstance(found, dict) else None
        if found != self._expected or (in_order is not None and in_order != list(self._expected)):
            self.problems.append(f"{path}: the result differs from that of a command that was not killed")
        differing = {each.name for each in path.iterdir()} ^ {each.name for each in self._expected_at.iterdir()}
        if differing:
            self.problems.append(f"{path}: files in only one of the two: {sorted(differing)}")

    def _restart_server(self) -> None:
        if self.job.serving is not None:
            self._server = start_program(self.job.serving, ends_with_parent=True)
            self._others.add(self._server)
            wait_until(lambda: _answers(self.job.port), HANGS_S)

    def _kill_server(self) -> None:
        assert self._server is not None
        self._others.discard(self._server)
        self.kills += kill(self._server) == -signal.SIGKILL
        self._server = None


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


def _failures(path: Path) -> int:
    results = path / "results.jsonl"
    return sum(row.error is not None for row in read_results(results)) if results.exists() else 1


def _children() -> list[int]:
    return [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def wait_for_orphans(known: set[int], seconds: float = 30.0) -> bool:
    """Whether all children but `known` end by themselves within `seconds`."""
    until = time.monotonic() + seconds
    while True:
        others = [child for child in _children() if child not in known]
        for child in others:
            with suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)
        if not others:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.01)


def _end_children() -> None:
    for child in _children():
        with suppress(ProcessLookupError, ChildProcessError):
            kill(child)
