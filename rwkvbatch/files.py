"""The system calls that durability rests on, one method each, so that tests can make them fail.

A row is safe once `write` and then `sync` have returned; a replaced file once `rename` and then
`sync_directory` have.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 1 << 20
FILE_MODE = 0o644
DIRECTORY_MODE = 0o755
"""Results may be read by others where the umask allows it, and written by nobody else whatever the umask."""


class Files:
    """Plain calls; every one may raise `OSError`."""

    def open_append(self, path: Path) -> int:
        """A descriptor whose writes go to the end of `path`, which is created if missing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)

    def create(self, path: Path) -> int:
        """A descriptor of `path`, new or emptied."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)

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
    """Write `data` in one call; a short write is continued, so that its reason comes out as an error."""
    written = files.write(descriptor, data)
    while written < len(data):
        more = files.write(descriptor, data[written:])
        if more == 0:
            raise OSError(f"only {written} of {len(data)} bytes could be written")
        written += more


def make_directory(path: Path) -> None:
    """Make `path` and what is missing above it, to which `Path.mkdir` would give wider rights."""
    for directory in reversed([path, *path.parents]):
        if not directory.is_dir():
            directory.mkdir(DIRECTORY_MODE, exist_ok=True)


def replace_file(files: Files, path: Path, chunks: Iterable[bytes], *, durable: bool = True) -> None:
    """Make `path` hold `chunks`: at every moment, also after a crash, it has the old content or the new one.

    Args:
        durable: wait until the new content would survive a power cut; without it only the switch is atomic.
    """
    temporary = path.with_name(path.name + ".tmp")
    descriptor = files.create(temporary)
    try:
        try:
            for chunk in chunks:
                write_all(files, descriptor, chunk)
            if durable:
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


def read_spans(files: Files, path: Path, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of `path` from each span's start to its end."""
    with files.read(path) as reader:
        for start, end in spans:
            reader.seek(start)
            yield reader.read(end - start)


def in_blocks(pieces: Iterable[bytes], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The same bytes in fewer pieces: a write for each row would take longer than the rows."""
    waiting: list[bytes] = []
    waiting_bytes = 0
    for piece in pieces:
        waiting.append(piece)
        waiting_bytes += len(piece)
        if waiting_bytes >= size:
            yield b"".join(waiting)
            waiting, waiting_bytes = [], 0
    if waiting:
        yield b"".join(waiting)
