"""Atomic and private writes, what a command may overwrite, bounded reads of regular files, and the system calls.

Written data is durable once `write` and then `sync` have returned; a replaced file once `rename` and then
`sync_directory` have. Writing follows no symbolic link and reuses no temporary file. Tests make the system calls fail.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from rwkvbatch.errors import StorageError, TargetExistsError, UsageError

BLOCK_BYTES = 1 << 20
FILE_MODE = 0o644
DIRECTORY_MODE = 0o755
"""Results are readable by others where the umask allows it, and writable by their owner only, whatever the umask."""
PRIVATE_MODE = 0o600
PRIVATE_DIRECTORY_MODE = 0o700
ABANDONED_S = 600.0
"""Age at which a temporary file that no process holds is one that a killed process left."""
_TEMPORARY = ".rwkvbatch-"


_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _refuse_special(descriptor: int) -> int:
    """The descriptor of a regular file; another one is closed and raises `OSError`."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a special file")
    raise OSError(errno.EINVAL, f"it is {kind}, not a regular file")


def open_to_append(path: Path | str, mode: int, flags: int = 0, *, at: int | None = None) -> int:
    """A descriptor for writing to the end of a regular file, which is created if missing; raises as `open_regular`."""
    flags |= os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return _refuse_special(os.open(path, flags, mode, dir_fd=at))
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, "it is a FIFO or a socket, not a regular file") from None
        raise


def open_regular(path: Path | str, *, at: int | None = None) -> int:
    """A descriptor for reading a regular file; never waits, as opening a FIFO does.

    Args:
        at: an open directory in which the file of that name is opened, wherever the path leads to now.

    Raises:
        OSError: it cannot be opened, or is a directory, a FIFO, a device or a socket; `strerror` says which.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return _refuse_special(os.open(_place(path, at), flags, dir_fd=at))
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error)) from None


def open_file(path: Path | str, max_bytes: int | None = None, *, at: int | None = None) -> BufferedReader:
    """A regular file, open for reading.

    Raises:
        OSError: as `open_regular`, or it is larger than `max_bytes`.
    """
    file = os.fdopen(open_regular(path, at=at), "rb")
    if max_bytes is not None and os.fstat(file.fileno()).st_size > max_bytes:
        file.close()
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes:,} bytes, the most for this file")
    return file


def read_file(path: Path | str, max_bytes: int, *, at: int | None = None) -> bytes:
    """The content of a regular file of at most `max_bytes`; raises as `open_file`."""
    with open_file(path, max_bytes, at=at) as file:
        return file.read(max_bytes)


def _place(path: Path | str, at: int | None) -> Path | str:
    return path if at is None else Path(path).name


class Files:
    """System calls, one a method; each may raise `OSError`.

    With `at`, an open directory, a path's last part is taken in that directory, wherever the path leads to now.
    """

    def open_append(self, path: Path, at: int | None = None) -> int:
        """A descriptor whose writes go to the end of `path`, a regular file, which is created if missing."""
        try:
            return open_to_append(_place(path, at), FILE_MODE, os.O_NOFOLLOW, at=at)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed when writing") from None
            raise

    def create(self, path: Path, mode: int = FILE_MODE, at: int | None = None) -> int:
        """A descriptor of `path`, a new file, which takes the place of any other one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_place(path, at), dir_fd=at)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(_place(path, at), flags, mode, dir_fd=at)

    def write(self, descriptor: int, data: bytes) -> int:
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, source: Path, target: Path, at: int | None = None) -> None:
        os.replace(_place(source, at), _place(target, at), src_dir_fd=at, dst_dir_fd=at)

    def sync_directory(self, directory: Path, at: int | None = None) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if at is None else at
        try:
            os.fsync(descriptor)
        finally:
            if at is None:
                os.close(descriptor)

    def size(self, path: Path, at: int | None = None) -> int:
        """Bytes in `path`; 0 when there is no such file."""
        try:
            return os.stat(_place(path, at), dir_fd=at, follow_symlinks=at is None).st_size
        except FileNotFoundError:
            return 0


OS_FILES = Files()


def write_all(files: Files, descriptor: int, data: bytes) -> None:
    """Write `data` in one call; a short write is continued, so that its cause is raised as an error."""
    written = files.write(descriptor, data)
    while written < len(data):
        more = files.write(descriptor, data[written:])
        if more == 0:
            raise OSError(f"only {written} of {len(data)} bytes could be written")
        written += more


def make_directory(path: Path, mode: int = DIRECTORY_MODE) -> None:
    """Make `path` and its missing parents, to which `Path.mkdir` would give wider rights."""
    for directory in reversed([path, *path.parents]):
        if not directory.is_dir():
            directory.mkdir(mode, exist_ok=True)


@contextlib.contextmanager
def replacing(
    path: Path,
    *,
    mode: int = FILE_MODE,
    durable: bool = True,
    unique: bool = True,
    files: Files = OS_FILES,
    at: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Generator[Path]:
    """Yields an empty temporary file beside `path`, which takes its name when the block ends without an exception.

    At every moment, also after a crash, `path` has the old content or the new one.

    Args:
        mode: the file's permissions, less the umask.
        durable: wait until the new content would survive a power cut; otherwise only the switch is atomic.
        unique: give the temporary file a name of its own, for directories that other processes may write to; what
            killed processes left there is removed. In a locked directory the name is always the same, so that what a
            crash leaves is replaced.
        at: the open directory to write in, whose path is that of `path`'s parent or was.
        check: called before the switch; an exception leaves `path` as it is.

    Raises:
        OSError: a call failed; `path` is unchanged.
    """
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}.tmp" if unique else path.name + ".tmp")
    if unique:
        _remove_abandoned(path.parent)
    held = files.create(temporary, mode, at)
    try:
        if unique:
            with contextlib.suppress(OSError):  # no locks in this file system: then nothing is removed there either
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            files.close(held)
        yield temporary
        if durable:
            descriptor = files.open_append(temporary, at)
            try:
                files.sync(descriptor)
            finally:
                files.close(descriptor)
        check()
        files.rename(temporary, path, at)
    except BaseException:  # Ctrl-C too must not leave half a file behind
        with contextlib.suppress(OSError):
            os.unlink(_place(temporary, at), dir_fd=at)
        raise
    finally:
        if unique:
            files.close(held)
    if durable:
        files.sync_directory(path.parent, at)


def _remove_abandoned(directory: Path) -> None:
    """Remove temporary files of processes that were killed: those that nobody holds and that are not new."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if not (entry.name.startswith(_TEMPORARY) and entry.name.endswith(".tmp")):
                continue
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if found.st_uid != os.geteuid() or time.time() - found.st_mtime < ABANDONED_S:
                    continue
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    Path(entry.path).unlink()
                finally:
                    os.close(descriptor)


def replace_file(
    files: Files,
    path: Path,
    chunks: Iterable[bytes],
    *,
    mode: int = FILE_MODE,
    durable: bool = True,
    unique: bool = False,
    at: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Make `path` hold `chunks`, atomically; the options are those of `replacing`.

    Raises:
        OSError: a call failed; `path` is unchanged.
    """
    with replacing(path, mode=mode, durable=durable, unique=unique, files=files, at=at, check=check) as temporary:
        descriptor = files.open_append(temporary, at)
        try:
            for chunk in chunks:
                write_all(files, descriptor, chunk)
        finally:
            files.close(descriptor)


def save_file(
    path: Path,
    chunks: Iterable[bytes],
    *,
    private: bool = False,
    files: Files = OS_FILES,
    at: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Replace a file that the user needs, durably.

    Args:
        private: only the owner may read it, and the directory may have other writers.
        at, check: as of `replacing`.

    Raises:
        StorageError: it could not be written; `path` is unchanged.
    """
    try:
        mode = PRIVATE_MODE if private else FILE_MODE
        replace_file(files, path, chunks, mode=mode, unique=private, at=at, check=check)
    except OSError as error:
        raise StorageError(f"{path}: write failed: {error.strerror or error}") from error


def read_spans(reader: BinaryIO, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of a file from each span's start to its end, in pieces of at most `BLOCK_BYTES`."""
    for start, end in spans:
        reader.seek(start)
        while start < end and (piece := reader.read(min(end - start, BLOCK_BYTES))):
            yield piece
            start += len(piece)


def in_blocks(pieces: Iterable[bytes], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The same bytes in pieces of about `size`: a write for each row would take longer than the rows."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        if len(waiting) >= size:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


HEAD_BYTES = 4096
MANIFEST_NAME = "manifest.json"
RESULTS_NAME = "results.jsonl"
RUN_FILE_NAMES = frozenset(
    {
        MANIFEST_NAME,
        RESULTS_NAME,
        "results.damaged",
        "results.torn",
        "results.aside",
        "summary.json",
        "status.json",
        "skipped.jsonl",
    }
    | {"verify.json", "shard.jsonl", "script.jsonl", ".lock", "verdicts.jsonl", "preferences.jsonl"}
)
"""Files of a run directory, which only `run` and `merge` write."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file that a command writes.

    Attributes:
        name: for messages, with an article, such as `a saved session`.
        matches: whether the file at a path is of this kind; may raise `OSError` or `ValueError` for no.
    """

    name: str
    matches: Callable[[Path], bool]


def file_head(path: Path) -> str:
    """At most `HEAD_BYTES` of a file, without a byte order mark; bytes that are not UTF-8 are replaced."""
    with open_file(path) as file:
        return file.read(HEAD_BYTES).decode("utf-8", "replace").lstrip("\ufeff")


def check_target(
    path: Path, kind: FileKind, *, option: str = "", replace: bool = False, append: bool = False, how: str | None = None
) -> None:
    """Raise unless a command may write a file of `kind` to `path`.

    It may write a new file, or into an empty one. Another file is replaced only if it is of the same kind and `replace`
    says so. A file of another kind, or of a run, is never touched.

    Args:
        option: the option or command that named the file, for messages.
        append: the command adds to an existing file of its kind. Devices and pipes can be appended to as well.
        how: the hint for an existing file of the same kind.

    Raises:
        UsageError: it is a directory, a file of another kind, or of a run.
        TargetExistsError: it is a file of the same kind, which needs `replace`.
    """
    place = f"{option} {path}" if option else str(path)
    another = "choose another name, or move that file away first"
    if path.is_dir():
        raise UsageError(f"{place}: is a directory; expected a file name", hint="add a file name")
    target = path.resolve()
    directory = target.parent
    is_run = (directory / MANIFEST_NAME).exists() and (directory / RESULTS_NAME).exists()
    if is_run and target.name in RUN_FILE_NAMES:
        raise UsageError(
            f"{place}: is a file of the run in {directory}, which no other command writes to",
            hint="choose another name",
        )
    if not os.path.lexists(target):
        return
    if not target.is_file():
        if append:
            return
        raise UsageError(f"{place}: is not a regular file", hint=another)
    try:
        if target.stat().st_size == 0:
            return
        same = kind.matches(target)
    except (OSError, ValueError):
        same = False
    if not same:
        verb = "added to" if append else "replaced"
        raise UsageError(f"{place}: already exists and is not {kind.name}, so it is not {verb}", hint=another)
    if not (replace or append):
        raise TargetExistsError(f"{place}: already exists ({kind.name})", hint=how or another)
