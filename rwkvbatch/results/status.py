"""`status.json`: how the run is going, for whoever looks at the directory from outside; and looking at it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from rwkvbatch.files import OS_FILES, Files, replace_file
from rwkvbatch.replay.progress import Progress
from rwkvbatch.results.summary import SUMMARY_NAME

STATUS_NAME = "status.json"
EVERY_S = 2.0

State = Literal["running", "done", "interrupted", "failed"]


class StatusFile:
    """Replaces the file every two seconds at most. It is a courtesy: failing to write it stops nothing.

    Args:
        directory: the run directory.
        clock: seconds that never jump. wall_clock: seconds since 1970, shown and not compared.
    """

    def __init__(
        self,
        directory: Path,
        *,
        files: Files = OS_FILES,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = directory / STATUS_NAME
        self._files = files
        self._clock = clock
        self._wall_clock = wall_clock
        self._started = wall_clock()
        self._written_s: float | None = None

    def update(self, progress: Progress, state: State = "running", error: str | None = None) -> None:
        """Write the figures, unless that was done a moment ago; an end of the run is always written."""
        now = self._clock()
        if state == "running" and self._written_s is not None and 0 <= now - self._written_s < EVERY_S:
            return
        self._written_s = now
        content = {
            "state": state,
            "error": error,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self._iso(self._started),
            "updated": self._iso(self._wall_clock()),
            "rows_done": progress.rows_done,
            "rows_total": progress.rows_total,
            "failures": progress.failures,
            "failed_checks": progress.failed_checks,
            "active": progress.active,
            "reply_tokens": progress.reply_tokens,
            "elapsed_s": round(progress.elapsed_s, 3),
            "tokens_per_s": round(progress.tokens_per_s, 3),
            "workers": [vars(worker) for worker in progress.workers],
            "lost_workers": progress.lost_workers,
            "seconds_left": None if progress.seconds_left is None else round(progress.seconds_left, 1),
        }
        data = json.dumps(content, indent=2).encode() + b"\n"
        with contextlib.suppress(OSError):
            replace_file(self._files, self._path, [data], durable=False)

    @staticmethod
    def _iso(seconds: float) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def why_unfinished(directory: Path, rows_there: int) -> str | None:
    """Why a run has not all of its rows, for its reader; None where it has, or where nothing says so.

    A process that is killed cannot write that it was: a `running` whose process is gone from this machine is one.

    Args:
        rows_there: rows that are in the directory now; the file may be older.
    """
    try:
        status: Any = json.loads((directory / STATUS_NAME).read_bytes())
        state, total = status["state"], int(status["rows_total"])
        process, host, updated = int(status["pid"]), str(status["host"]), str(status["updated"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    count = f"{rows_there:,} of {total:,} rows are there"
    match state:
        case "running" if host != socket.gethostname():
            return f"{count}; it was running on {host} at {updated}"
        case "running" if _is_alive(process):
            return f"{count}; it is still running, as process {process}"
        case "running":
            return f"{count}; its process is gone, and the same command goes on with it"
        case "interrupted":
            return f"{count}; it was interrupted, and the same command goes on with it"
        case "failed":
            return f"{count}; it failed ({status.get('error')})"
        case _:
            return None


def planned_rows(directory: Path) -> int | None:
    """How many rows the run is to have: of `status.json`, else of `summary.json`; None where neither says so."""
    for name, key in ((STATUS_NAME, "rows_total"), (SUMMARY_NAME, "planned")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            return int(json.loads((directory / name).read_bytes())[key])
    return None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
