"""What a run's directory says of a run that has not all of its rows."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.replay.progress import Progress
from rwkvbatch.results.status import STATUS_NAME, State, StatusFile, why_unfinished

PROGRESS = Progress(
    rows_done=5, rows_total=2000, failures=0, failed_checks=0, active=1, reply_tokens=9, elapsed_s=1.0,
    seconds_left=None,
)  # fmt: skip


def written(directory: Path, state: State, **changes: Any) -> Path:
    StatusFile(directory).update(PROGRESS.as_dict(), state, "no room" if state == "failed" else None)
    path = directory / STATUS_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def a_process_that_has_ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_that_is_done_has_no_reason(tmp_path: Path) -> None:
    assert why_unfinished(written(tmp_path, "done"), 2000) is None


def test_a_run_whose_process_is_gone_is_not_taken_for_one_that_goes_on(tmp_path: Path) -> None:
    directory = written(tmp_path, "running", pid=a_process_that_has_ended())
    reason = why_unfinished(directory, 1106)
    assert reason == "it has 1,106 of 2,000 rows; its process ended early; run the same command again to continue"


def test_a_run_that_goes_on_names_its_process(tmp_path: Path) -> None:
    assert f"still running, as process {os.getpid()}" in str(why_unfinished(written(tmp_path, "running"), 7))


def test_of_another_machine_s_process_nothing_is_claimed(tmp_path: Path) -> None:
    other = f"not-{socket.gethostname()}"
    directory = written(tmp_path, "running", host=other, pid=a_process_that_has_ended())
    reason = str(why_unfinished(directory, 7))
    assert f"it was running on {other} at 20" in reason
    assert "ended" not in reason


@pytest.mark.parametrize(("state", "said"), [("interrupted", "was interrupted"), ("failed", "failed (no room)")])
def test_an_end_before_the_last_row_is_told(state: State, said: str, tmp_path: Path) -> None:
    assert said in str(why_unfinished(written(tmp_path, state), 7))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state": "running", "rows_total": null}'])
def test_a_file_that_is_none_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / STATUS_NAME).write_text(content)
    assert why_unfinished(tmp_path, 7) is None
    assert why_unfinished(tmp_path / "nowhere", 7) is None


def test_a_status_with_another_name_is_not_written_over_where_it_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / STATUS_NAME
    StatusFile(tmp_path).update(PROGRESS.as_dict(), "running", None)
    monkeypatch.setattr("rwkvbatch.results.status.replace_file", full)
    StatusFile(tmp_path).update(PROGRESS.as_dict(), "done", None)
    assert json.loads(path.read_text())["state"] == "done"  # in place: a full disk takes no other file
    (tmp_path / "backup").hardlink_to(path)
    StatusFile(tmp_path).update(PROGRESS.as_dict(), "running", None)
    assert json.loads((tmp_path / "backup").read_text())["state"] == "done"
