"""Plug-ins whose C code ends the process, in a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.replay.pools.worker_processes import children_of, is_alive

PLUGIN = """
import ctypes, os, pathlib, sys, time
from rwkvbatch.script.checks import Verdict

log = open(os.environ["WAITING"] + ".log", "w")  # never closed

class Leaves:
    options = frozenset()

    def __init__(self, expected):
        self.where, self.code = expected

    @classmethod
    def parse(cls, expected, options):
        if expected[0] == "parse":
            ctypes.CDLL(None)._exit(expected[1])
        return cls(expected)

    def judge(self, facts):
        log.write("judged")
        if self.where == "judge":
            ctypes.CDLL(None)._exit(self.code)
        if self.where == "wait":
            pathlib.Path(os.environ["WAITING"]).touch()
            time.sleep(30)
        return Verdict(self.where == "passes", 0.5, None)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    packages = tmp_path / "packages"
    (packages / "leaving-1.dist-info").mkdir(parents=True)
    (packages / "leaving.py").write_text(PLUGIN)
    (packages / "leaving-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: leaving\nVersion: 1\n")
    (packages / "leaving-1.dist-info" / "entry_points.txt").write_text("[rwkvbatch.checks]\nleaves = leaving:Leaves\n")
    return {**os.environ, "PYTHONPATH": str(packages), "WAITING": str(tmp_path / "waiting")}


def command_with(expected: list[object], tmp_path: Path, *options: str) -> list[str]:
    """A run of one conversation without the check, and one with it."""
    lines: list[object] = [
        {"id": "a", "messages": [{"role": "user", "content": "Hi"}]},
        {"id": "b", "messages": [{"role": "user", "content": "Hi", "expect": {"leaves": expected}}]},
    ]
    script = tmp_path / "s.jsonl"
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    program = [sys.executable, "-m", "rwkvbatch", "run", str(script), "--out", str(tmp_path / "run")]
    return [*program, "--max-tokens", "4", "--batch-size", "1", *options]


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("where", "code"), [("judge", 0), ("judge", 3), ("parse", 1)])
def test_a_command_that_foreign_code_ends_is_unfinished(
    where: str, code: int, tmp_path: Path, environment: dict[str, str]
) -> None:
    found = run(command_with([where, code], tmp_path), environment)
    assert (found.returncode, found.stdout) == (5, "")
    assert f"foreign code ended the process, with exit code {code}" in found.stderr
    if (where, code) == ("judge", 0):
        found = run([sys.executable, "-m", "rwkvbatch", "show", str(tmp_path / "run")], environment)
        assert "it has 1 of 2 rows; its process ended early; run the same command again" in found.stderr


def test_in_a_worker_such_code_costs_its_conversation_only(tmp_path: Path, environment: dict[str, str]) -> None:
    assert run(command_with(["judge", 0], tmp_path, "--workers", "2"), environment).returncode == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [row["finish_reason"] == "error" for row in rows] == [False, True]


@pytest.mark.parametrize(("where", "code"), [("passes", 0), ("fails", 1)])
def test_a_command_that_comes_to_its_end_keeps_its_exit_code(
    where: str, code: int, tmp_path: Path, environment: dict[str, str]
) -> None:
    found = run([*command_with([where, 0], tmp_path), "--json"], environment)
    assert found.returncode == code
    assert json.loads(found.stdout)["rows"] == 2
    assert Path(environment["WAITING"] + ".log").read_text() == "judged"  # the interpreter has closed the file


def started(tmp_path: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A run in whose check nothing ends before a signal does it."""
    process = subprocess.Popen(
        command_with(["wait", 0], tmp_path), env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not Path(environment["WAITING"]).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_to_the_program_reach_the_command(
    number: signal.Signals, code: int, tmp_path: Path, environment: dict[str, str]
) -> None:
    process = started(tmp_path, environment)
    process.send_signal(number)
    time.sleep(0.2)  # later than signals that count as one
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert "stopping after this step; a second signal stops at once\nstopped at once; finished" in error


def test_the_command_ends_with_a_killed_program(tmp_path: Path, environment: dict[str, str]) -> None:
    process = started(tmp_path, environment)
    (command,) = children_of(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while is_alive(command):
        assert time.monotonic() < deadline
        time.sleep(0.02)
