"""One writer for a run directory: a lock that the kernel drops when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path

from rwkvbatch.errors import RunDirectoryError, RunLockedError

LOCK_NAME = ".lock"


class DirectoryLock:
    """Held from construction to `release`. The file stays behind, empty: removing it would let two in.

    Args:
        directory: an existing directory.
        command: what to tell others who want the directory.

    Raises:
        RunLockedError: another process holds it; says which.
        RunDirectoryError: the lock file cannot be made.
    """

    def __init__(self, directory: Path, command: str = "") -> None:
        path = directory / LOCK_NAME
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RunDirectoryError(
                f"cannot be written to: {error.strerror}",
                path=directory,
                hint="give another directory with --out",
            ) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _holder(self._descriptor)
            os.close(self._descriptor)
            raise RunLockedError(
                f"another process is writing there ({holder})",
                path=directory,
                hint="wait until it is done, stop it, or give another directory with --out",
            ) from None
        about = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
        os.ftruncate(self._descriptor, 0)
        with contextlib.suppress(
            OSError
        ):  # who holds it is a courtesy; on a full disk the run's own files say so
            os.pwrite(self._descriptor, json.dumps(about).encode(), 0)

    def release(self) -> None:
        """Let the next writer in. Harmless when called again."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def _holder(descriptor: int) -> str:
    try:
        about = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(about['pid'])} on {about['host']}: {about['command']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said who it is"
