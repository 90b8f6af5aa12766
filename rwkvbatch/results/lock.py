"""The lock on a run directory, and the check that the directory at its path is still the locked one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from pathlib import Path

from rwkvbatch.errors import RunDirectoryError, RunLockedError
from rwkvbatch.files import OS_FILES, read_file

LOCK_NAME = ".lock"


class DirectoryLock:
    """An exclusive lock on a directory, held from construction to `release`.

    The lock file is not removed at the end, because two processes could then lock two files of this name. The directory
    itself is locked too if its file system allows that, so that a removed lock file lets no other process in.

    Args:
        directory: an existing directory.
        command: shown to other processes that try to lock the directory.

    Attributes:
        handle: descriptor of the open directory.

    Raises:
        RunLockedError: another process holds the lock; the message names the process.
        RunDirectoryError: the lock file cannot be created, or is a link or a special file.
    """

    def __init__(self, directory: Path, command: str = "") -> None:
        self._path = directory
        self._descriptor = self.handle = -1
        try:
            self.handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._descriptor = OS_FILES.open_append(directory / LOCK_NAME, self.handle)
            self._lock()
        except OSError as error:
            self.release()
            name = LOCK_NAME if error.errno in (errno.ELOOP, errno.EINVAL) else ""
            raise RunDirectoryError(
                f"cannot be written to: {error.strerror}",
                path=directory / name,
                hint="give another directory with --out",
            ) from None
        except BaseException:  # KeyboardInterrupt too: no caller can release an object whose construction failed
            self.release()
            raise
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
        os.ftruncate(self._descriptor, 0)
        with contextlib.suppress(OSError):  # the text is only for messages; a full disk is reported by later writes
            os.write(self._descriptor, json.dumps(holder).encode())

    def _lock(self) -> None:
        for descriptor in (self._descriptor, self.handle):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunLockedError(
                    f"is locked by another process ({_holder(self._path, self.handle)})",
                    path=self._path,
                    hint="wait until it ends, stop it, or give another directory with --out",
                ) from None
            except OSError:
                if descriptor == self._descriptor:
                    raise
        if os.fstat(self._descriptor).st_nlink > 1:  # writing would also change the file's other hard links
            os.close(OS_FILES.create(self._path / LOCK_NAME, at=self.handle))
            os.close(self._descriptor)
            self._descriptor = OS_FILES.open_append(self._path / LOCK_NAME, self.handle)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def is_ours(self) -> bool:
        """Whether the lock file in the directory is still the one that this process holds."""
        try:
            lock_file = os.stat(LOCK_NAME, dir_fd=self.handle, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(lock_file, os.fstat(self._descriptor))

    def lost(self) -> str | None:
        """Why the directory at the path is no longer the locked one; None while it is."""
        try:
            is_same = os.path.samestat(self._path.stat(), os.fstat(self.handle))
        except OSError:
            is_same = False
        if not is_same:
            return f"the directory was moved, removed or replaced during the run{self._new_location()}"
        return None if self.is_ours else f"{LOCK_NAME} was removed or replaced during the run"

    def _new_location(self) -> str:
        """A clause on the new path of a moved directory; empty on systems that do not tell it."""
        try:
            path = Path(f"/proc/self/fd/{self.handle}").readlink()
        except OSError:
            return ""
        return f" (it is now {path})" if path.is_dir() else ""

    def release(self) -> None:
        """Release the lock; further calls do nothing."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


def _holder(directory: Path, at: int) -> str:
    try:
        about = json.loads(read_file(directory / LOCK_NAME, 2**16, at=at))
        return f"process {int(about['pid'])} on {about['host']}: {about['command']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "unknown process"
