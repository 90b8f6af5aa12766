"""A run directory: made or continued, locked, refused when it holds another run or other files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkvbatch.errors import RunDirectoryError, RunLockedError
from rwkvbatch.files import OS_FILES, Files, make_directory, save_file
from rwkvbatch.prompt.escaping import file_name
from rwkvbatch.results.manifest import read_manifest, refuse_other_run, write_manifest
from rwkvbatch.results.recovery import DAMAGED_NAME
from rwkvbatch.results.row import RowKey
from rwkvbatch.results.store import RESULTS_NAME, RowStore

LOCK_NAME = ".lock"
SKIPPED_NAME = "skipped.jsonl"

_log = logging.getLogger(__name__)


class DirectoryLock:
    """Held from construction to `release`. The empty file stays: removing it would let two processes in.

    Args:
        directory: an existing directory.
        command: shown to other processes that want the directory.

    Raises:
        RunLockedError: another process holds it; names the process.
        RunDirectoryError: the lock file cannot be made.
    """

    def __init__(self, directory: Path, command: str = "") -> None:
        try:
            self._descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RunDirectoryError(
                f"cannot be written to: {error.strerror}", path=directory, hint="give another directory with --out"
            ) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _holder(self._descriptor)
            os.close(self._descriptor)
            raise RunLockedError(
                f"is locked by another process ({holder})",
                path=directory,
                hint="wait until it ends, stop it, or give another directory with --out",
            ) from None
        about = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
        os.ftruncate(self._descriptor, 0)
        with contextlib.suppress(OSError):  # the lock holds without it; on a full disk the run's own files fail
            os.pwrite(self._descriptor, json.dumps(about).encode(), 0)

    def release(self) -> None:
        """Release the lock; may be called again."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def _holder(descriptor: int) -> str:
    try:
        about = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(about['pid'])} on {about['host']}: {about['command']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown process"


class RunDirectory:
    """Holds the lock on a directory from construction to `close`.

    Args:
        path: made if missing; may only hold a run, or nothing.
        command: shown to other processes that want the directory.

    Attributes:
        manifest: of the run that the directory held before; None for a new run.

    Raises:
        RunDirectoryError: it cannot be made or written, holds other files, or results without a manifest.
        RunLockedError: another process holds it.
        RunDamagedError: the manifest is damaged.
    """

    def __init__(self, path: Path, command: str, files: Files = OS_FILES) -> None:
        self.path = path
        self._files = files
        self._is_new = not path.exists()
        try:
            make_directory(path)
        except OSError as error:
            raise RunDirectoryError(
                f"cannot be made: {error.strerror}", path=path, hint="give another directory with --out"
            ) from None
        self._lock = DirectoryLock(path, command)
        try:
            self.manifest = read_manifest(path)
            if self.manifest is None:
                self._refuse_other_files()
        except BaseException:  # Ctrl-C too: nobody can close an object whose construction failed
            self._lock.release()
            raise

    @property
    def continued(self) -> bool:
        """Whether the directory held a run before."""
        return self.manifest is not None

    def claim(
        self,
        identity: Mapping[str, Any],
        make_about: Callable[[], Mapping[str, Any]],
        shard: Mapping[str, Any] | None = None,
    ) -> None:
        """Compare the manifest with this run (or this part of it), or write it where the directory has no rows yet.

        Raises:
            RunMismatchError: it is another run's; lists the differences.
            StorageError: the manifest could not be written.
        """
        if self.manifest is not None and self._files.size(self.path / RESULTS_NAME):
            refuse_other_run(self.path, self.manifest, identity, shard)
        else:
            write_manifest(self.path, identity, make_about(), shard, files=self._files)
        self._is_new = False

    def open_rows(self, num_rows: int, place: Callable[[RowKey], int | None], *, repair: bool = False) -> RowStore:
        """The rows so far, see `RowStore`; logs what was set aside."""
        store = RowStore(self.path, num_rows, place, repair=repair, files=self._files)
        found, path = store.opening, self.path / RESULTS_NAME
        if found.torn_bytes:
            _log.warning(
                "%s: the last write was cut off; its %d bytes are set aside in %s",
                path,
                found.torn_bytes,
                found.torn_name,
            )
        if found.repaired_lines:
            _log.warning(
                "%s: %d damaged lines are set aside in %s; their rows run again",
                path,
                found.repaired_lines,
                DAMAGED_NAME,
            )
        return store

    def keep_skipped(self, lines: Iterable[bytes]) -> None:
        """Keep the script's bad lines, as they were, in `skipped.jsonl`.

        Raises:
            StorageError: the file could not be written.
        """
        save_file(self.path / SKIPPED_NAME, (line + b"\n" for line in lines), files=self._files)

    def close(self) -> None:
        """Release the lock; a directory that was made and not claimed is removed."""
        if self._is_new:
            with contextlib.suppress(OSError):
                (self.path / LOCK_NAME).unlink()
                self.path.rmdir()
        self._lock.release()

    def _refuse_other_files(self) -> None:
        names = {entry.name for entry in os.scandir(self.path)}
        if RESULTS_NAME in names:
            raise RunDirectoryError(
                f"has {RESULTS_NAME} but no manifest, so it is unknown which run it is of",
                path=self.path,
                hint="give another directory with --out, or move the file away",
            )
        others = sorted(name for name in names if name != LOCK_NAME and not name.endswith(".tmp"))
        if others:
            raise RunDirectoryError(
                f"is not empty and holds no run (it has {others[0]!r})",
                path=self.path,
                hint="give a new directory with --out",
            )


def default_directory(scripts: Sequence[str], parent: Path = Path("runs"), *, part: str = "") -> Path:
    """`runs/NAME` from the first script's name and the time; never one that exists.

    Args:
        part: such as `2/8`, of a part of a run.
    """
    stem = "stdin" if scripts[0] == "-" else file_name(Path(scripts[0]).stem)
    suffix = part and "-part-" + part.replace("/", "-of-")
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}{suffix}"
    path, count = parent / name, 1
    while path.exists():
        count += 1
        path = parent / f"{name}-{count}"
    return path
