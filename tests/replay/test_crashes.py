"""Runs killed at every write, at random times and while resuming have the rows of uninterrupted runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


def harness(*arguments: str) -> dict[str, Any]:
    # Without coverage, which would slow the program down and write files of its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    completed = subprocess.run(
        [sys.executable, "-m", "tests.replay.crash_harness", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)


@pytest.mark.slow
def test_a_run_killed_at_every_write_and_while_resuming_loses_nothing(tmp_path: Path) -> None:
    found = harness(str(tmp_path), "every-point")
    assert found["problems"] == []
    assert found["points"] > 30
    assert found["kills"] > found["points"] * 2


@pytest.mark.slow
def test_runs_killed_at_random_times_lose_nothing(tmp_path: Path) -> None:
    found = harness(str(tmp_path), "random", "20261123")
    assert found["problems"] == []
    assert found["kills"] >= 40


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["extend", "check"])
def test_extending_and_judging_again_killed_at_every_write_lose_nothing(tmp_path: Path, mode: str) -> None:
    found = harness(str(tmp_path), mode)
    assert found["problems"] == []
    assert found["points"] > 20
    assert found["kills"] > found["points"]


@pytest.mark.slow
def test_commands_killed_at_random_times_lose_nothing(tmp_path: Path) -> None:
    found = harness(str(tmp_path), "choices,convert", "20261128", "--kills", "4")
    assert found["problems"] == []
    assert found["by_kind"].keys() == {"choices", "convert"}
    assert min(found["by_kind"].values()) >= 4
