"""Atomic and private writes, what a command may overwrite, and the system calls that durability rests on.

Written data is durable once `write` and then `sync` have returned; a replaced file once `rename` and then
`sync_directory` have. Tests replace `Files` to make system calls fail.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rwkvbatch.errors import StorageError, TargetExistsError, UsageError

BLOCK_BYTES = 1 << 20
FILE_MODE = 0o644
DIRECTORY_MODE = 0o755
"""Results are readable by others where the umask allows it, and writable by their owner only, whatever the umask."""
PRIVATE_MODE = 0o600


class Files:
    """System calls, one a method; each may raise `OSError`."""

    def open_append(self, path: Path) -> int:
        """A descriptor whose writes go to the end of `path`, which is created if missing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)

    def create(self, path: Path, mode: int = FILE_MODE) -> int:
        """A descriptor of `path`, new or emptied."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)

    def write(self, descriptor: int, data: bytes) -> int:
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def sync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, path: Path) -> BinaryIO:
        return path.open("rb")

    def size(self, path: Path) -> int:
        """Bytes in `path`; 0 when there is no such file."""
        try:
            return path.stat().st_size
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


def make_directory(path: Path) -> None:
    """Make `path` and its missing parents, to which `Path.mkdir` would give wider rights."""
    for directory in reversed([path, *path.parents]):
        if not directory.is_dir():
            directory.mkdir(DIRECTORY_MODE, exist_ok=True)


@contextlib.contextmanager
def replacing(
    path: Path, *, mode: int = FILE_MODE, durable: bool = True, unique: bool = True, files: Files = OS_FILES
) -> Generator[Path]:
    """Yields an empty temporary file beside `path`, which takes its name when the block ends without an exception.

    At every moment, also after a crash, `path` has the old content or the new one.

    Args:
        mode: the file's permissions, less the umask.
        durable: wait until the new content would survive a power cut; otherwise only the switch is atomic.
        unique: give the temporary file a name of its own, for directories that other processes may write to. In a
            locked directory the name is always the same, so that what a crash leaves is overwritten.

    Raises:
        OSError: a call failed; `path` is unchanged.
    """
    temporary = path.with_name(f".rwkvbatch-{secrets.token_hex(8)}.tmp" if unique else path.name + ".tmp")
    files.close(files.create(temporary, mode))
    try:
        yield temporary
        if durable:
            descriptor = files.open_append(temporary)
            try:
                files.sync(descriptor)
            finally:
                files.close(descriptor)
        files.rename(temporary, path)
    except BaseException:  # Ctrl-C too must not leave half a file behind
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        files.sync_directory(path.parent)


def replace_file(
    files: Files,
    path: Path,
    chunks: Iterable[bytes],
    *,
    mode: int = FILE_MODE,
    durable: bool = True,
    unique: bool = False,
) -> None:
    """Make `path` hold `chunks`, atomically; the options are those of `replacing`.

    Raises:
        OSError: a call failed; `path` is unchanged.
    """
    with replacing(path, mode=mode, durable=durable, unique=unique, files=files) as temporary:
        descriptor = files.open_append(temporary)
        try:
            for chunk in chunks:
                write_all(files, descriptor, chunk)
        finally:
            files.close(descriptor)


def save_file(path: Path, chunks: Iterable[bytes], *, private: bool = False, files: Files = OS_FILES) -> None:
    """Replace a file that the user needs, durably.

    Args:
        private: only the owner may read it, and the directory may have other writers.

    Raises:
        StorageError: it could not be written; `path` is unchanged.
    """
    try:
        replace_file(files, path, chunks, mode=PRIVATE_MODE if private else FILE_MODE, unique=private)
    except OSError as error:
        raise StorageError(f"{path}: write failed: {error.strerror or error}") from error


def read_spans(files: Files, path: Path, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of `path` from each span's start to its end."""
    with files.read(path) as reader:
        for start, end in spans:
            reader.seek(start)
            yield reader.read(end - start)


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
    {MANIFEST_NAME, RESULTS_NAME, "results.damaged", "results.torn", "summary.json", "status.json", "skipped.jsonl"}
    | {"verify.json", "shard.jsonl", "script.jsonl", ".lock"}
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
    with path.open("rb") as file:
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
