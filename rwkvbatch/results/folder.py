"""`Folder`: reads and writes the files of a run directory by name."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from rwkvbatch.errors import RunReplacedError
from rwkvbatch.files import (
    OS_FILES,
    Files,
    file_ends_a_line,
    in_blocks,
    open_file,
    read_spans,
    replace_file,
    save_file,
    write_all,
)
from rwkvbatch.results.lock import DirectoryLock


@dataclass(frozen=True)
class Folder:
    """The files of a directory, by name. `RunDirectory` adds the manifest and the lock of a run.

    With a lock, they are the files of the locked directory, even if its path now leads to another one. All methods
    raise `OSError` unless they say otherwise.

    Attributes:
        path: the directory's path, when it was opened.
        files: the system calls for writing.
        lock: this process's lock on the directory; None for a directory that is not locked.
    """

    path: Path
    files: Files = OS_FILES
    lock: DirectoryLock | None = None

    @property
    def handle(self) -> int | None:
        """Descriptor of the locked directory."""
        return None if self.lock is None else self.lock.handle

    @property
    def is_ours(self) -> bool:
        """Whether the lock, if any, still excludes other processes."""
        return self.lock is None or self.lock.is_ours

    def lost(self) -> str | None:
        """Why the directory no longer belongs to the holder of the lock; None while it does."""
        return None if self.lock is None else self.lock.lost()

    def check(self) -> None:
        """Raise `RunReplacedError` if the directory no longer belongs to the holder of the lock."""
        if (problem := self.lost()) is not None:
            raise RunReplacedError(f"{self.path}: {problem}", hint="run the command again with another --out")

    def names(self) -> set[str]:
        return set(os.listdir(self.path if self.handle is None else self.handle))  # noqa: PTH208 (may be a descriptor)

    def size(self, name: str) -> int:
        """Bytes in a file; 0 if it does not exist."""
        return self.files.size(self.path / name, self.handle)

    def stat(self, name: str) -> os.stat_result:
        """The status of a file; that of a symbolic link itself."""
        return os.stat(self.path / name if self.handle is None else name, dir_fd=self.handle, follow_symlinks=False)

    def open(self, name: str, max_bytes: int | None = None) -> BufferedReader:
        """A file, open for reading; see `files.open_file`."""
        return open_file(self.path / name, max_bytes, at=self.handle)

    def remove(self, name: str) -> None:
        """Remove a file if that is possible."""
        with contextlib.suppress(OSError):
            os.unlink(self.path / name if self.handle is None else name, dir_fd=self.handle)

    def save(self, name: str, chunks: Iterable[bytes]) -> None:
        """Replace a file atomically and durably.

        Raises:
            StorageError: it could not be written.
            RunReplacedError: see `check`.
        """
        save_file(self.path / name, chunks, files=self.files, at=self.handle, check=self.check)

    def replace(
        self, name: str, chunks: Iterable[bytes], *, durable: bool = True, check: Callable[[], None] = lambda: None
    ) -> None:
        """Replace a file atomically; `check` is called before the replacement."""
        path = self.path / name
        replace_file(self.files, path, chunks, durable=durable, at=self.handle, check=check)

    def open_append(self, name: str) -> int:
        """A descriptor that appends to a file, which is created if missing."""
        return self.files.open_append(self.path / name, self.handle)

    def open_lines(self, name: str) -> int:
        """A descriptor that appends lines to a file; ends a last line that a crash cut off."""
        descriptor = self.open_append(name)
        try:
            if not file_ends_a_line(self.path / name, at=self.handle):
                write_all(self.files, descriptor, b"\n")
        except BaseException:  # KeyboardInterrupt too: no caller has the descriptor yet
            self.files.close(descriptor)
            raise
        return descriptor

    def append_lines(self, name: str, lines: Iterable[bytes]) -> None:
        """Append lines to a file, durably."""
        descriptor = self.open_lines(name)
        try:
            for block in in_blocks(lines):
                write_all(self.files, descriptor, block)
            self.files.sync(descriptor)
            self.sync()
        finally:
            self.files.close(descriptor)

    def sync(self) -> None:
        """Wait until the names of new files are on the disk."""
        self.files.sync_directory(self.path, self.handle)

    def keep(self, name: str, reader: BinaryIO, span: tuple[int, int]) -> Path:
        """Copy a span of an open file to a new file `name-N`; returns its path."""
        taken = self.names()
        copy = next(numbered for number in itertools.count(1) if (numbered := f"{name}-{number}") not in taken)
        self.replace(copy, read_spans(reader, [span]))
        return self.path / copy
