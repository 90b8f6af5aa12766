"""`status.json`: how far the run in a directory is, for readers in other processes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from rwkvbatch.files import OS_FILES, Files, replace_file
from rwkvbatch.results.summary import SUMMARY_NAME

STATUS_NAME = "status.json"
EVERY_S = 2.0

State = Literal["running", "done", "interrupted", "failed"]


class StatusFile:
    """Replaces the file at most every two seconds. A failure to write it does not stop the run.

    Args:
        directory: the run directory.
        clock: monotonic seconds. wall_clock: seconds since 1970, shown and not compared.
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

    def update(self, figures: Mapping[str, Any], state: State = "running", error: str | None = None) -> None:
        """Write the run's figures unless it was done less than `EVERY_S` ago; the end of a run is always written.

        Args:
            figures: JSON values; `rows_total` among them.
        """
        now = self._clock()
        if state == "running" and self._written_s is not None and 0 <= now - self._written_s < EVERY_S:
            return
        self._written_s = now
        content = {
            "state": state,
            "error": error,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": _iso(self._started),
            "updated": _iso(self._wall_clock()),
            **figures,
        }
        data = json.dumps(content, indent=2).encode() + b"\n"
        with contextlib.suppress(OSError):
            replace_file(self._files, self._path, [data], durable=False)


def why_unfinished(directory: Path, num_rows: int) -> str | None:
    """Why a run does not have all of its rows; None where it has, or where the file does not say.

    A killed process cannot write that it was: `running` without such a process on this machine means that.

    Args:
        num_rows: rows in the directory now; the file may be older.
    """
    try:
        status: Any = json.loads((directory / STATUS_NAME).read_bytes())
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
