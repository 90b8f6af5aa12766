"""Atomic and private writes, bounded reads of regular files, and the system calls.

Written data is durable when `write` and then `sync` have returned, a replaced file when `rename` and then
`sync_directory` have returned. Writing follows no symbolic link and reuses no temporary file. Tests replace `Files` to
make system calls fail.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from rwkvbatch.errors import StorageError

BLOCK_BYTES = 1 << 20
FILE_MODE = 0o644
DIRECTORY_MODE = 0o755
"""Others can read results if the umask allows it. Only the owner can write them, whatever the umask."""
PRIVATE_MODE = 0o600
PRIVATE_DIRECTORY_MODE = 0o700
ABANDONED_S = 600.0
"""Age from which an unlocked temporary file is treated as left by a killed process."""
_TEMPORARY = ".rwkvbatch-"


_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _refuse_special(descriptor: int) -> int:
    """Return the descriptor of a regular file; close any other one and raise `OSError`."""
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
    """A descriptor for reading a regular file. It never blocks, as opening a FIFO would.

    Args:
        at: the descriptor of an open directory. The path's last part is opened there, even if the path now leads to
            another directory.

    Raises:
        OSError: the file cannot be opened, or is a directory, a FIFO, a device or a socket; `strerror` says which.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return _refuse_special(os.open(_name_in(path, at), flags, dir_fd=at))
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


def user_path(name: str | os.PathLike[str]) -> Path:
    """The path that a user names: a leading `~` is a home directory, unless there is no such user."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 (`Path.expanduser` raises RuntimeError for unknown users)


def read_text(path: Path | str, max_bytes: int) -> str:
    """The content of a UTF-8 file that a user names, of at most `max_bytes`, without a byte order mark.

    Raises:
        ValueError: the file cannot be read, is too large, is not UTF-8 or has NUL bytes; the message says which.
    """
    try:
        # Not "utf-8-sig", whose errors do not count the bytes of the mark.
        text = read_file(user_path(path), max_bytes).decode("utf-8").removeprefix("\ufeff")
        if "\0" in text:  # UTF-16 of ASCII characters is valid UTF-8
            raise ValueError("it has NUL bytes; save it as UTF-8")
        return text
    except UnicodeDecodeError as error:
        byte, place = error.object[error.start], error.start + 1
        raise ValueError(f"cannot be read: not UTF-8: byte 0x{byte:02x} at place {place}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def file_ends_a_line(path: Path, *, at: int | None = None) -> bool:
    """Whether a file is empty or ends with a newline; `at` as in `open_regular`."""
    with open_file(path, at=at) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"", b"\n")


def _name_in(path: Path | str, at: int | None) -> Path | str:
    """The path for a system call: its last part if the directory `at` is given."""
    return path if at is None else Path(path).name


class Files:
    """System calls, one per method. Each may raise `OSError`.

    For `at` see `open_regular`.
    """

    def open_append(self, path: Path, at: int | None = None) -> int:
        """A descriptor that appends to the regular file `path`, which is created if missing."""
        try:
            return open_to_append(_name_in(path, at), FILE_MODE, os.O_NOFOLLOW, at=at)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed when writing") from None
            raise

    def create(self, path: Path, mode: int = FILE_MODE, at: int | None = None) -> int:
        """A descriptor of a new file at `path`; an existing file is removed first."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_name_in(path, at), dir_fd=at)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(_name_in(path, at), flags, mode, dir_fd=at)

    def write(self, descriptor: int, data: bytes) -> int:
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, source: Path, target: Path, at: int | None = None) -> None:
        os.replace(_name_in(source, at), _name_in(target, at), src_dir_fd=at, dst_dir_fd=at)

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
            return os.stat(_name_in(path, at), dir_fd=at, follow_symlinks=at is None).st_size
        except FileNotFoundError:
            return 0


OS_FILES = Files()


def write_all(files: Files, descriptor: int, data: bytes) -> None:
    """Write `data`, in one call if possible. Continuing after a short write raises its cause as an error."""
    num_written = files.write(descriptor, data)
    while num_written < len(data):
        count = files.write(descriptor, data[num_written:])
        if count == 0:
            raise OSError(f"only {num_written} of {len(data)} bytes could be written")
        num_written += count


def make_directory(path: Path, mode: int = DIRECTORY_MODE) -> list[Path]:
    """Make `path` and its missing parents, all with `mode`; `Path.mkdir` ignores the mode for parents.

    Returns the directories that were made, parents first; if one of them cannot be made, the others are removed.
    """
    made: list[Path] = []
    try:
        for directory in reversed([path, *path.parents]):
            if not directory.is_dir():
                directory.mkdir(mode, exist_ok=True)
                made.append(directory)
    except BaseException:  # KeyboardInterrupt too: no caller knows what was made
        remove_empty(made)
        raise
    return made


def remove_empty(directories: Sequence[Path]) -> None:
    """Remove directories that were made, parents first, unless something is in them."""
    with contextlib.suppress(OSError):
        for directory in reversed(directories):
            directory.rmdir()


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
    """Yield an empty temporary file, in the directory of `path`, that replaces `path` when the block ends.

    After an exception, `path` is unchanged and the temporary file is removed.
    At any time, even after a crash, `path` has either the old or the new content.

    Args:
        mode: the file's permissions, less the umask.
        durable: wait until the new content is on the disk. Without it, the replacement is atomic but not durable.
        unique: give the temporary file a unique name, for directories that other processes may write to, and remove
            files that killed processes left there. Without it, for locked directories, the name is fixed, so that a
            file left by a crash is replaced.
        at: see `open_regular`.
        check: called before the replacement; an exception leaves `path` unchanged.

    Raises:
        OSError: a call failed; `path` is unchanged.
    """
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}.tmp" if unique else path.name + ".tmp")
    if unique:
        _remove_abandoned(path.parent)
    lock = files.create(temporary, mode, at)
    try:
        if unique:
            # Without locks in this file system, `_remove_abandoned` removes nothing there either.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            files.close(lock)
        yield temporary
        if durable:
            descriptor = files.open_append(temporary, at)
            try:
                files.sync(descriptor)
            finally:
                files.close(descriptor)
        check()
        files.rename(temporary, path, at)
    except BaseException:  # KeyboardInterrupt included: no temporary file may remain
        with contextlib.suppress(OSError):
            os.unlink(_name_in(temporary, at), dir_fd=at)
        raise
    finally:
        if unique:
            files.close(lock)
    if durable:
        files.sync_directory(path.parent, at)


def _remove_abandoned(directory: Path) -> None:
    """Remove temporary files that killed processes left: unlocked files older than `ABANDONED_S`."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if not (entry.name.startswith(_TEMPORARY) and entry.name.endswith(".tmp")):
                continue
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if status.st_uid != os.geteuid() or time.time() - status.st_mtime < ABANDONED_S:
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
    """Replace the content of `path` by `chunks`, atomically; arguments as `replacing`.

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


def writing_hint(error: OSError) -> str | None:
    """A hint about a file that could not be written; None if the error needs no hint."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "make room on the disk, or choose another one"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return "choose a folder that you may write to"
        case errno.ENOENT | errno.ENOTDIR:
            return "the folder must exist"
        case _:
            return None


def save_file(
    path: Path,
    chunks: Iterable[bytes],
    *,
    private: bool = False,
    files: Files = OS_FILES,
    at: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Replace a file atomically and durably.

    Args:
        private: whether only the owner may read the file; its directory may have other writers.
        at, check: as `replacing`.

    Raises:
        StorageError: the file could not be written; `path` is unchanged.
    """
    try:
        mode = PRIVATE_MODE if private else FILE_MODE
        replace_file(files, path, chunks, mode=mode, unique=private, at=at, check=check)
    except OSError as error:
        raise StorageError(f"{path}: write failed: {error.strerror or error}", hint=writing_hint(error)) from error


def read_spans(reader: BinaryIO, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of a file from each span's start to its end, in pieces of at most `BLOCK_BYTES`."""
    for start, end in spans:
        reader.seek(start)
        while start < end and (piece := reader.read(min(end - start, BLOCK_BYTES))):
            yield piece
            start += len(piece)


def in_blocks(pieces: Iterable[bytes], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The same bytes in blocks of about `size` bytes, since a write for each row would be slow."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        if len(buffer) >= size:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)
