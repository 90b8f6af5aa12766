"""A run directory: made or continued, locked, and told apart from one that holds something else."""

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

from rwkvbatch.errors import RunDirectoryError, RunLockedError, StorageError
from rwkvbatch.files import OS_FILES, Files, make_directory, replace_file
from rwkvbatch.prompt.escaping import file_name
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.row_index import Shard, write_members
from rwkvbatch.results.manifest import read_manifest, refuse_other_run, write_manifest
from rwkvbatch.results.recovery import DAMAGED_NAME
from rwkvbatch.results.store import RESULTS_NAME, RowStore

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
        with contextlib.suppress(OSError):  # who holds it is a courtesy; on a full disk the run's own files say so
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


SKIPPED_NAME = "skipped.jsonl"

_log = logging.getLogger(__name__)


class RunDirectory:
    """Holds the lock on a directory from construction to `close`.

    Args:
        path: made if it is not there; may only hold a run, or nothing.
        command: what others are told who want the directory.

    Raises:
        RunDirectoryError: it cannot be made or written, or holds other files.
        RunLockedError: another process has it.
        RunDamagedError: results without a manifest.
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
                self._refuse_strangers()
        except BaseException:  # Ctrl-C too: who is not made cannot be closed
            self._lock.release()
            raise

    @property
    def continued(self) -> bool:
        """Whether a run is there already."""
        return self.manifest is not None

    def claim(
        self,
        identity: Mapping[str, Any],
        make_about: Callable[[], Mapping[str, Any]],
        shard: Mapping[str, Any] | None = None,
    ) -> None:
        """Make sure that the directory is this run's, or this part's of it: compare the manifest, or write it.

        A run that failed before its first row (a state file that cannot be read, say) has no claim any more.

        Raises:
            RunMismatchError: it is another run's; says in what they differ.
            StorageError: the manifest could not be written.
        """
        if self.manifest is not None and self._files.size(self.path / RESULTS_NAME):
            refuse_other_run(self.path, self.manifest, identity, shard)
        else:
            write_manifest(self._files, self.path, identity, make_about(), shard)
        self._is_new = False

    def open_rows(self, plan: Plan, *, repair: bool = False) -> RowStore:
        """The rows so far, see `RowStore`; what had to be set aside is logged."""
        store = RowStore(self.path, plan.num_rows, plan.row_number, repair=repair, files=self._files)
        found = store.opening
        if found.torn_bytes:
            _log.warning(
                "%s: the last write was cut off; its %d bytes are set aside in %s",
                self.path / RESULTS_NAME,
                found.torn_bytes,
                found.torn_name,
            )
        if found.repaired_lines:
            _log.warning(
                "%s: %d damaged lines are set aside in %s; their rows run again",
                self.path / RESULTS_NAME,
                found.repaired_lines,
                DAMAGED_NAME,
            )
        return store

    def keep_members(self, plan: Plan) -> None:
        """Keep which conversations the plan's part of a run has, in `shard.jsonl`, for `merge`.

        Raises:
            StorageError: the file could not be written.
        """
        write_members(self._files, self.path, plan.members())

    def keep_skipped(self, lines: Iterable[bytes]) -> None:
        """Keep the script's bad lines, as they were, in `skipped.jsonl`.

        Raises:
            StorageError: the file could not be written.
        """
        path = self.path / SKIPPED_NAME
        try:
            replace_file(self._files, path, (line + b"\n" for line in lines))
        except OSError as error:
            raise StorageError(f"{path}: write failed: {error.strerror or error}") from error

    def close(self) -> None:
        """Let go of the directory; one that was made for nothing goes away."""
        if self._is_new:
            with contextlib.suppress(OSError):
                (self.path / LOCK_NAME).unlink()
                self.path.rmdir()
        self._lock.release()

    def _refuse_strangers(self) -> None:
        names = {entry.name for entry in os.scandir(self.path)}
        if RESULTS_NAME in names:
            raise RunDirectoryError(
                f"has {RESULTS_NAME} but no manifest, so nobody can say what run it is of",
                path=self.path,
                hint="give another directory with --out, or move the file away",
            )
        strangers = sorted(name for name in names if name != LOCK_NAME and not name.endswith(".tmp"))
        if strangers:
            raise RunDirectoryError(
                f"is not empty and holds no run (there is {strangers[0]!r})",
                path=self.path,
                hint="give a new directory with --out",
            )


def default_directory(scripts: Sequence[str], parent: Path = Path("runs"), *, shard: Shard | None = None) -> Path:
    """`runs/NAME`, of the first script's name, the time and the part; never one that exists."""
    stem = "stdin" if scripts[0] == "-" else file_name(Path(scripts[0]).stem)
    part = "" if shard is None else f"-part-{shard.part}-of-{shard.parts}"
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}{part}"
    path, count = parent / name, 1
    while path.exists():
        count += 1
        path = parent / f"{name}-{count}"
    return path
