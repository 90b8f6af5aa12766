"""`status.json`: the progress of a run for other processes, and the reason why a run is unfinished."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

from rwkvbatch.files import read_file
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.manifest import JsonObject
from rwkvbatch.results.summary import MAX_SUMMARY_BYTES, SUMMARY_NAME

STATUS_NAME = "status.json"
STATUS_EVERY_S = 2.0
STATUS_BYTES = 4096
MAX_STATUS_BYTES = 2**20

State = Literal["running", "done", "interrupted", "failed"]


@dataclass
class StatusFile:
    """Replaces `status.json` about every two seconds. A failure to write it does not stop the run.

    Args:
        clock: monotonic seconds.
        wall_clock: seconds since 1970, which are only displayed.
    """

    folder: Folder
    _: KW_ONLY
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._started = self.wall_clock()
        self._written_s: float | None = None
        self._written_total: Any = None

    def update(self, figures: JsonObject, state: State = "running", error: str | None = None) -> None:
        """Write the run's figures; while it is running, every `STATUS_EVERY_S` seconds and when its total changes.

        Args:
            figures: JSON values, including `rows_total`.
        """
        now, total = self.clock(), figures.get("rows_total")
        is_recent = self._written_s is not None and 0 <= now - self._written_s < STATUS_EVERY_S
        if state == "running" and is_recent and total == self._written_total:
            return
        self._written_s, self._written_total = now, total
        content = {
            "state": state,
            "error": error,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": _iso(self._started),
            "updated": _iso(self.wall_clock()),
            **figures,
        }
        # The padding leaves room to overwrite the file in place on a full disk, where no new file can be written.
        text = json.dumps(content, indent=2).encode() + b"\n"
        data = text.ljust(-(-len(text) // STATUS_BYTES) * STATUS_BYTES)
        if not self.folder.is_ours:
            return
        try:
            self.folder.replace(STATUS_NAME, [data], durable=False)
        except OSError:
            with contextlib.suppress(OSError):
                self._overwrite(text)

    def _overwrite(self, text: bytes) -> None:
        """Overwrite the existing file in place; a reader may see part of the new content."""
        handle = self.folder.handle
        path = self.folder.path / STATUS_NAME if handle is None else STATUS_NAME
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=handle)
        try:
            existing = os.fstat(descriptor)
            if stat.S_ISREG(existing.st_mode) and existing.st_nlink == 1 and existing.st_size >= len(text):
                os.pwrite(descriptor, text.ljust(existing.st_size), 0)
        finally:
            os.close(descriptor)


def planned_rows(directory: Path) -> int | None:
    """The number of rows of the finished run, from `status.json` or `summary.json`; None if neither has it."""
    for name, key in ((STATUS_NAME, "rows_total"), (SUMMARY_NAME, "planned")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            return int(json.loads(read_file(directory / name, MAX_SUMMARY_BYTES))[key])
    return None


def why_unfinished(directory: Path, num_rows: int) -> str | None:
    """Why a run does not have all of its rows; None if it has, or if the file does not say.

    A killed process leaves the state `running`. That state without such a process on this machine means that it ended
    early.

    Args:
        num_rows: the present number of rows in the directory; the file may be older.
    """
    try:
        status: Any = json.loads(read_file(directory / STATUS_NAME, MAX_STATUS_BYTES))
        state, total = status["state"], int(status["rows_total"])
        process, host, updated = int(status["pid"]), str(status["host"]), str(status["updated"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    count = f"it has {num_rows:,} of {total:,} rows"
    match state:
        case "running" if host != socket.gethostname():
            return f"{count}; it was running on {host} at {updated}"
        case "running" if _is_alive(process):
            return f"{count}; it is still running, as process {process}"
        case "running":
            return f"{count}; its process ended early; run the same command again to continue"
        case "interrupted":
            return f"{count}; it was interrupted; run the same command again to continue"
        case "failed":
            return f"{count}; it failed ({status.get('error')})"
        case _:
            return None


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
