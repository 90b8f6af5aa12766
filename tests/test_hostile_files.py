"""Hostile files of every reader of other programs' files are refused with one message, in bounded time and memory.

`python -m tests.hostile 200` tries more of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.readers import READERS

FILES_A_READER = 40


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """All files of all readers, read in one fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.hostile", str(FILES_A_READER), "20"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {row["reader"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("reader", READERS)
def test_hostile_files_are_refused_in_one_line_that_names_them(
    reader: str, outcomes: dict[str, dict[str, Any]]
) -> None:
    assert outcomes[reader]["problems"] == []
    assert outcomes[reader]["refused"] == FILES_A_READER
