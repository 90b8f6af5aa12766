"""Killed at every write point, at random times, while resuming: the same rows as a run that was never interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def fast_directory() -> Iterator[Path]:
    """In memory where there is such a file system: a killed process needs no disk, and flushes cost nothing."""
    parent = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=parent if os.access(parent, os.W_OK) else None) as name:
        yield Path(name)


def harness(*arguments: str) -> dict[str, Any]:
    # Not measured when coverage is: that takes its time and writes files where the kills should meet the run.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.replay.crash_harness", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_killed_at_every_write_point_and_again_while_resuming(fast_directory: Path) -> None:
    found = harness(str(fast_directory), "every-point")
    assert found["problems"] == []
    assert found["points"] > 30
    assert found["kills"] > found["points"] * 2


@pytest.mark.slow
def test_killed_at_random_times_under_load(fast_directory: Path) -> None:
    found = harness(str(fast_directory), "random", "20261123")
    assert found["problems"] == []
    assert found["kills"] >= 40


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["extend", "check"])
def test_killed_at_every_point_while_rows_are_adapted_and_judged_again(fast_directory: Path, mode: str) -> None:
    found = harness(str(fast_directory), mode)
    assert found["problems"] == []
    assert found["points"] > 20
    assert found["kills"] > found["points"]


@pytest.mark.slow
def test_whole_commands_killed_at_random_moments(fast_directory: Path) -> None:
    found = harness(str(fast_directory), "choices,convert", "20261128", "--kills", "4")
    assert found["problems"] == []
    assert found["by_kind"].keys() == {"choices", "convert"}
    assert min(found["by_kind"].values()) >= 4
