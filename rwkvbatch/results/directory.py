"""A run directory: made or continued, locked, refused when it holds another run or other files.

`status.json` in it says how far the run is, for readers in other processes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, RunLockedError, RunReplacedError, StorageError
from rwkvbatch.files import (
    OS_FILES,
    Files,
    in_blocks,
    make_directory,
    open_file,
    read_file,
    replace_file,
    save_file,
    write_all,
)
from rwkvbatch.prompt.escaping import file_name
from rwkvbatch.results.manifest import (
    DAMAGED_MANIFEST_NAME,
    FORMER,
    MANIFEST_NAME,
    JsonObject,
    read_manifest,
    refuse_other_run,
    write_manifest,
)
from rwkvbatch.results.opinions import VERDICTS_NAME
from rwkvbatch.results.recovery import keep_bytes
from rwkvbatch.results.row import RowDigest, RowKey
from rwkvbatch.results.script_copy import COMPRESSED_NAME, SCRIPT_NAME, write_script
from rwkvbatch.results.store import RESULTS_NAME, RowStore
from rwkvbatch.results.summary import MAX_SUMMARY_BYTES, SUMMARY_NAME
from rwkvbatch.script.records import Conversation

LOCK_NAME = ".lock"
SKIPPED_NAME = "skipped.jsonl"
KEPT_NAME = "kept.jsonl"
"""Rows of earlier commands in a directory that the present command does not have; one that has them takes them back."""
STATUS_NAME = "status.json"
STATUS_EVERY_S = 2.0
STATUS_BYTES = 4096
MAX_STATUS_BYTES = 2**20

_log = logging.getLogger(__name__)

State = Literal["running", "done", "interrupted", "failed"]


class DirectoryLock:
    """Held from construction to `release`. The empty file stays: removing it would let two processes in.

    The directory itself is locked too, where its file system allows that, so that removing the file lets nobody in.

    Args:
        directory: an existing directory.
        command: shown to other processes that want the directory.

    Attributes:
        handle: the open directory.

    Raises:
        RunLockedError: another process holds it; names the process.
        RunDirectoryError: the lock file cannot be made, or is a link or a special file.
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
        except BaseException:  # Ctrl-C too: nobody can release an object whose construction failed
            self.release()
            raise
        about = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
        os.ftruncate(self._descriptor, 0)
        with contextlib.suppress(OSError):  # the lock holds without it; on a full disk the run's own files fail
            os.write(self._descriptor, json.dumps(about).encode())

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
        if os.fstat(self._descriptor).st_nlink > 1:  # writing to it would change its other names
            own = OS_FILES.create(self._path / LOCK_NAME, at=self.handle)
            os.close(own)
            os.close(self._descriptor)
            self._descriptor = OS_FILES.open_append(self._path / LOCK_NAME, self.handle)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def is_ours(self) -> bool:
        """Whether the lock file in the directory is still the one that this process holds."""
        try:
            found = os.stat(LOCK_NAME, dir_fd=self.handle, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self._descriptor))

    def lost(self) -> str | None:
        """Why the directory is not this process's any more; None while it is."""
        try:
            is_there = os.path.samestat(self._path.stat(), os.fstat(self.handle))
        except OSError:
            is_there = False
        if not is_there:
            return f"the directory was moved, removed or replaced during the run{self._whereabouts()}"
        return None if self.is_ours else f"{LOCK_NAME} was removed or replaced during the run"

    def _whereabouts(self) -> str:
        """Where a moved directory is now, on systems that tell."""
        try:
            where = Path(f"/proc/self/fd/{self.handle}").readlink()
        except OSError:
            return ""
        return f" (it is now {where})" if where.is_dir() else ""

    def release(self) -> None:
        """Release the lock; may be called again."""
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


class RunDirectory:
    """Holds the lock on a directory from construction to `close`.

    Args:
        path: made if missing; may only hold a run, or nothing.
        command: shown to other processes that want the directory.
        repair: accept a damaged manifest; `set_manifest_aside` follows.

    Attributes:
        manifest: of the run that the directory held before; None for a new run, and where it is damaged.
        damage: what is wrong with the manifest; None where nothing is.

    Raises:
        RunDirectoryError: it cannot be made or written, holds other files, or results without a manifest.
        RunLockedError: another process holds it.
        RunDamagedError: the manifest is damaged.
    """

    def __init__(self, path: Path, command: str, files: Files = OS_FILES, *, repair: bool = False) -> None:
        self.path = path
        self.damage: RunDamagedError | None = None
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
            self._remove_leftovers()
            try:
                self.manifest = read_manifest(path)
            except RunDamagedError as error:
                if not repair:
                    raise
                self.manifest, self.damage = None, error
            if self.manifest is None and self.damage is None:
                self._refuse_other_files()
        except BaseException:  # Ctrl-C too: nobody can close an object whose construction failed
            self._lock.release()
            raise

    @property
    def files(self) -> Files:
        """The system calls that it is written with."""
        return self._files

    @property
    def at(self) -> int:
        """The open directory, to write in wherever its path leads to now."""
        return self._lock.handle

    def may_write(self) -> bool:
        """Whether no other process can have taken the directory over."""
        return self._lock.is_ours

    def check(self) -> None:
        """Raises `RunReplacedError` when the path no longer leads to the directory, or its lock was removed."""
        if (problem := self._lock.lost()) is not None:
            raise RunReplacedError(f"{self.path}: {problem}", hint="run the command again with another --out")

    @property
    def continued(self) -> bool:
        """Whether the directory held a run before."""
        return self.manifest is not None

    def claim(
        self, identity: JsonObject, make_about: Callable[[], JsonObject], shard: JsonObject | None = None
    ) -> None:
        """Compare the manifest with this run (or this part of it), or write it where the directory has no rows yet.

        Raises:
            RunMismatchError: it is another run's; lists the differences.
            StorageError: the manifest could not be written.
        """
        if self.manifest is not None and self._files.size(self.path / RESULTS_NAME, self.at):
            refuse_other_run(self.path, self.manifest, identity, shard)
        else:
            write_manifest(self.path, identity, make_about(), shard, files=self._files, at=self.at)
        self._is_new = False

    def set_manifest_aside(self) -> None:
        """Keep the damaged manifest under another name; raises `StorageError`."""
        path = self.path / MANIFEST_NAME
        try:
            with open_file(path, at=self.at) as file:
                span = 0, os.fstat(file.fileno()).st_size
                kept = keep_bytes(self._files, file, span, self.path / DAMAGED_MANIFEST_NAME, self.at)
        except OSError as error:
            raise StorageError(f"{path}: cannot be set aside: {error.strerror or error}") from error
        self.damage = None
        _log.warning("%s: is damaged; it is set aside in %s and written anew", path, kept.name)

    @property
    def holds_rows(self) -> bool:
        """Whether rows of an earlier command may be in the directory, the kept ones included."""
        if self.manifest is None:
            return False
        names = (RESULTS_NAME, KEPT_NAME)
        return FORMER in self.manifest or any(self._files.size(self.path / name, self.at) for name in names)

    def begin_change(
        self, identity: JsonObject, about: JsonObject, shard: JsonObject | None = None, *, by: str = "run"
    ) -> None:
        """Write the manifest of another command before the rows are adapted to it; `end_change` follows.

        In between the manifest has the identity that rows without digests were made under as its `former`. Whoever
        finds it there adapts the rows again, which changes nothing where it was done. `by` is the command that does it.

        Raises:
            StorageError: the manifest could not be written.
        """
        assert self.manifest is not None
        former = self.manifest.get(FORMER) or {key: self.manifest.get(key) for key in ("identity", "about")}
        former = {**former, "by": by}
        write_manifest(self.path, identity, about, shard, former=former, files=self._files, at=self.at)

    def end_change(self, identity: JsonObject, about: JsonObject, shard: JsonObject | None = None) -> None:
        """Write the manifest of a command whose rows are adapted; raises `StorageError`."""
        write_manifest(self.path, identity, about, shard, files=self._files, at=self.at)

    def write_script(self, conversations: Sequence[Conversation]) -> None:
        """Write the script's copy, see `results.script_copy`; raises `StorageError`."""
        write_script(self.path, conversations, files=self._files, at=self.at)

    @contextlib.contextmanager
    def reading(self, name: str) -> Generator[BinaryIO]:
        """A file of the directory; empty where there is none. Raises `RunDirectoryError`."""
        path = self.path / name
        try:
            with open_file(path, at=self.at) if self._files.size(path, self.at) else io.BytesIO() as file:
                yield file
        except OSError as error:
            raise RunDirectoryError(f"cannot be read: {error.strerror or error}", path=path) from None

    def replace_rows(self, lines: Iterable[bytes]) -> None:
        """Replace `results.jsonl`, at once; raises `StorageError`."""
        save_file(self.path / RESULTS_NAME, in_blocks(lines), files=self._files, at=self.at, check=self.check)

    def set_aside(self, lines: Iterable[bytes]) -> None:
        """Append lines of rows to `kept.jsonl`, durably; raises `StorageError`."""
        path, files = self.path / KEPT_NAME, self._files
        try:
            descriptor = files.open_append(path, self.at)
            try:
                if (size := files.size(path, self.at)) > 0:
                    with open_file(path, at=self.at) as file:
                        file.seek(size - 1)
                        if file.read(1) != b"\n":  # a crash cut the last line off
                            write_all(files, descriptor, b"\n")
                for block in in_blocks(lines):
                    write_all(files, descriptor, block)
                files.sync(descriptor)
                files.sync_directory(self.path, self.at)
            finally:
                files.close(descriptor)
        except OSError as error:
            raise StorageError(f"{path}: write failed: {error.strerror or error}") from error

    def open_rows(
        self,
        num_rows: int,
        place: Callable[[RowKey], int | None],
        *,
        digest: Callable[[int], RowDigest] | None = None,
        repair: bool = False,
        vocab_size: Callable[[str], int | None] = lambda cell: None,
    ) -> RowStore:
        """The rows so far, see `RowStore`."""
        return RowStore(
            self.path,
            num_rows,
            place,
            digest=digest,
            repair=repair,
            vocab_size=vocab_size,
            files=self._files,
            at=self.at,
            lost=self._lock.lost,
        )

    def keep_skipped(self, lines: Iterable[bytes]) -> None:
        """Keep the script's bad lines, as they were, in `skipped.jsonl`.

        Raises:
            StorageError: the file could not be written.
        """
        save_file(self.path / SKIPPED_NAME, (line + b"\n" for line in lines), files=self._files, at=self.at)

    def close(self) -> None:
        """Release the lock; a directory that was made and not claimed is removed."""
        if self._is_new and self._lock.lost() is None:
            with contextlib.suppress(OSError):
                os.unlink(LOCK_NAME, dir_fd=self.at)
                self.path.rmdir()
        self._lock.release()

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of a process that was killed while it replaced one."""
        written = (MANIFEST_NAME, RESULTS_NAME, SCRIPT_NAME, COMPRESSED_NAME, SUMMARY_NAME, STATUS_NAME, VERDICTS_NAME)
        for name in written:
            with contextlib.suppress(OSError):
                os.unlink(f"{name}.tmp", dir_fd=self.at)

    def _refuse_other_files(self) -> None:
        names = set(os.listdir(self.at))  # noqa: PTH208 (a descriptor)
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
    paths = itertools.chain([parent / name], (parent / f"{name}-{count}" for count in itertools.count(2)))
    return next(path for path in paths if not path.exists())


@dataclass
class StatusFile:
    """Replaces `status.json` at most every two seconds. A failure to write it does not stop the run.

    Args:
        at: the open directory. may_write: whether it is still this process's.
        clock: monotonic seconds. wall_clock: seconds since 1970, shown and not compared.
    """

    directory: Path
    _: KW_ONLY
    files: Files = OS_FILES
    at: int | None = None
    may_write: Callable[[], bool] = lambda: True
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._started = self.wall_clock()
        self._written_s: float | None = None

    def update(self, figures: JsonObject, state: State = "running", error: str | None = None) -> None:
        """Write the run's figures, at most every `STATUS_EVERY_S` while it is running.

        Args:
            figures: JSON values; `rows_total` among them.
        """
        now = self.clock()
        if state == "running" and self._written_s is not None and 0 <= now - self._written_s < STATUS_EVERY_S:
            return
        self._written_s = now
        content = {
            "state": state,
            "error": error,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": _iso(self._started),
            "updated": _iso(self.wall_clock()),
            **figures,
        }
        # Padded, so that on a full disk, which has no room for a new file, it can be overwritten.
        text = json.dumps(content, indent=2).encode() + b"\n"
        data = text.ljust(-(-len(text) // STATUS_BYTES) * STATUS_BYTES)
        path = self.directory / STATUS_NAME
        if not self.may_write():
            return
        try:
            replace_file(self.files, path, [data], durable=False, at=self.at)
        except OSError:
            with contextlib.suppress(OSError):
                self._overwrite(path, text)

    def _overwrite(self, path: Path, text: bytes) -> None:
        """Write over the existing file; a reader may see half of it."""
        descriptor = os.open(
            path if self.at is None else path.name,
            os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            dir_fd=self.at,
        )
        try:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size >= len(text):
                os.pwrite(descriptor, text.ljust(found.st_size), 0)
        finally:
            os.close(descriptor)


def planned_rows(directory: Path) -> int | None:
    """The number of rows that the run is to have, from `status.json` or `summary.json`; None if neither says so."""
    for name, key in ((STATUS_NAME, "rows_total"), (SUMMARY_NAME, "planned")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            return int(json.loads(read_file(directory / name, MAX_SUMMARY_BYTES))[key])
    return None


def why_unfinished(directory: Path, num_rows: int) -> str | None:
    """Why a run does not have all of its rows; None where it has, or where the file does not say.

    A killed process cannot write that it was: `running` without such a process on this machine means that.

    Args:
        num_rows: rows in the directory now; the file may be older.
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
