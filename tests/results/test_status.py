"""The status file: reasons why a run is unfinished, and how it is written."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.files import FILE_MODE, Files
from rwkvbatch.replay.progress import Progress
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.status import STATUS_NAME, State, StatusFile, why_unfinished
from tests.results.stores import Clock

PROGRESS = Progress(
    rows_done=5, rows_total=2000, failures=0, failed_checks=0, active=1, reply_tokens=9, elapsed_s=1.0,
    seconds_left=None,
)  # fmt: skip


def write_status(directory: Path, state: State, **changes: Any) -> Path:
    StatusFile(Folder(directory)).update(PROGRESS.as_dict(), state, "no room" if state == "failed" else None)
    path = directory / STATUS_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def id_of_an_ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_finished_run_has_no_reason(tmp_path: Path) -> None:
    assert why_unfinished(write_status(tmp_path, "done"), 2000) is None


def test_a_run_whose_process_ended_is_not_running(tmp_path: Path) -> None:
    directory = write_status(tmp_path, "running", pid=id_of_an_ended_process())
    reason = why_unfinished(directory, 1106)
    assert reason == "it has 1,106 of 2,000 rows; its process ended early; run the same command again to continue"


def test_the_reason_of_a_running_run_names_its_process(tmp_path: Path) -> None:
    assert f"still running, as process {os.getpid()}" in str(why_unfinished(write_status(tmp_path, "running"), 7))


def test_a_process_of_another_machine_is_not_said_to_have_ended(tmp_path: Path) -> None:
    other = f"not-{socket.gethostname()}"
    directory = write_status(tmp_path, "running", host=other, pid=id_of_an_ended_process())
    reason = str(why_unfinished(directory, 7))
    assert f"it was running on {other} at 20" in reason
    assert "ended" not in reason


@pytest.mark.parametrize(("state", "reason"), [("interrupted", "was interrupted"), ("failed", "failed (no room)")])
def test_the_reason_of_an_interrupted_or_failed_run_is_its_state(state: State, reason: str, tmp_path: Path) -> None:
    assert reason in str(why_unfinished(write_status(tmp_path, state), 7))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state": "running", "rows_total": null}'])
def test_an_invalid_or_missing_status_gives_no_reason(content: str, tmp_path: Path) -> None:
    (tmp_path / STATUS_NAME).write_text(content)
    assert why_unfinished(tmp_path, 7) is None
    assert why_unfinished(tmp_path / "nowhere", 7) is None


class FullDisk(Files):
    def create(self, path: Path, mode: int = FILE_MODE, at: int | None = None) -> int:
        raise OSError(28, "No space left on device")


def test_the_status_is_written_every_two_seconds_and_at_the_end(tmp_path: Path) -> None:
    clock = Clock()
    status = StatusFile(Folder(tmp_path), clock=clock, wall_clock=lambda: 0.0)
    path = tmp_path / STATUS_NAME
    written: list[int] = []
    for second in range(7):
        status.update(replace(PROGRESS, rows_done=second).as_dict())
        written.append(json.loads(path.read_text())["rows_done"])
        clock.now += 1
    assert written == [0, 0, 2, 2, 4, 4, 6]
    status.update(replace(PROGRESS, rows_done=99).as_dict(), "failed", "the reason")
    content = json.loads(path.read_text())
    assert (content["state"], content["error"], content["rows_done"]) == ("failed", "the reason", 99)
    assert content["started"] == "1970-01-01T00:00:00Z"


def test_the_status_is_written_after_a_clock_is_set_back(tmp_path: Path) -> None:
    clock = Clock()
    status = StatusFile(Folder(tmp_path), clock=clock)
    status.update(PROGRESS.as_dict())
    clock.now -= 1e6
    status.update(replace(PROGRESS, rows_done=31).as_dict())
    assert json.loads((tmp_path / STATUS_NAME).read_text())["rows_done"] == 31


def test_a_full_disk_leaves_no_status_and_raises_nothing(tmp_path: Path) -> None:
    StatusFile(Folder(tmp_path, FullDisk())).update(PROGRESS.as_dict())
    assert list(tmp_path.iterdir()) == []


def test_on_a_full_disk_the_status_is_written_in_place_unless_it_is_a_hard_link(tmp_path: Path) -> None:
    path = tmp_path / STATUS_NAME
    StatusFile(Folder(tmp_path)).update(PROGRESS.as_dict(), "running")
    StatusFile(Folder(tmp_path, FullDisk())).update(PROGRESS.as_dict(), "failed", "no room")
    content = json.loads(path.read_text())
    assert (content["state"], content["error"]) == ("failed", "no room")  # in place
    (tmp_path / "backup").hardlink_to(path)
    StatusFile(Folder(tmp_path, FullDisk())).update(PROGRESS.as_dict(), "running")
    assert json.loads((tmp_path / "backup").read_text())["state"] == "failed"


def test_a_new_total_is_written_at_once(tmp_path: Path) -> None:
    """A run with --until-ci gets further rounds."""
    status = StatusFile(Folder(tmp_path), clock=lambda: 1.0)
    for done, total in ((1, 10), (2, 10), (10, 10), (11, 20)):
        status.update({"rows_done": done, "rows_total": total})
        found = json.loads((tmp_path / STATUS_NAME).read_text())
        assert (found["rows_done"], found["rows_total"]) == ((1, 10) if total == 10 else (11, 20))
