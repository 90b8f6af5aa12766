"""Files of named tensors (`.pth`, `.safetensors`): what is in them, and their tensors one by one.

Nothing is read but the table of contents until a tensor is asked for, and what a table says is checked against the
size of the file before anything of that size is made. The kind of a file is told by its first bytes, not its name.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model import pth as pth_file
from rwkvbatch.model import safetensors as safetensors_file
from rwkvbatch.model.stored_bytes import StoredBytes

MAX_OVERLAP = 4
"""Tensors may share storage (tied weights), but not be more than this many times the file's size altogether."""

_HASH_PIECE = 1 << 22
_LARGE = 1 << 20


Kind = Literal["pth", "legacy pth", "safetensors"]


class TensorFile:
    """An open file of named tensors. Also hashes the file, in a thread of its own once asked to."""

    def __init__(
        self,
        path: Path,
        descriptor: int,
        entries: Mapping[str, StoredBytes],
        metadata: Mapping[str, str],
        *,
        kind: Kind,
    ) -> None:
        self.kind = kind
        self.path = path
        self.entries = entries
        self.metadata = metadata
        self._descriptor = descriptor
        self._before = os.fstat(descriptor)
        self._hash = hashlib.sha256()
        self._hashing: threading.Thread | None = None
        self._hash_error: OSError | None = None
        self._closing = False

    @property
    def num_bytes(self) -> int:
        return self._before.st_size

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name`, read into memory of its own.

        Raises:
            KeyError: there is none of that name.
            CheckpointError: the file cannot be read, or was cut off since it was opened.
        """
        entry = self.entries[name]
        flat = _memory(entry.span)
        read_into(self._descriptor, flat, entry.start, self.path)
        return flat.view(entry.dtype).as_strided(entry.shape, entry.strides)

    def start_hashing(self) -> None:
        """Begin to compute `sha256` beside whatever is done meanwhile."""
        self._hashing = threading.Thread(target=self._hash_all, name="checkpoint-hash", daemon=True)
        self._hashing.start()

    def sha256(self) -> str:
        """Hash of the whole file, in hex.

        Raises:
            CheckpointError: the file cannot be read, or was changed since it was opened.
        """
        if self._hashing is None:
            self.start_hashing()
        assert self._hashing is not None
        self._hashing.join()
        now = os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise CheckpointError("the file was changed while it was being read", path=self.path)
        if self._hash_error is not None:
            raise CheckpointError(f"cannot read it: {self._hash_error.strerror}", path=self.path)
        return self._hash.hexdigest()

    def _hash_all(self) -> None:
        position = 0
        try:
            while not self._closing and (piece := os.pread(self._descriptor, _HASH_PIECE, position)):
                self._hash.update(piece)
                position += len(piece)
        except OSError as error:
            self._hash_error = error

    def close(self) -> None:
        self._closing = True
        if self._hashing is not None:
            self._hashing.join()
        os.close(self._descriptor)


def _memory(num_bytes: int) -> torch.Tensor:
    """Uninitialised bytes; large ones go back to the system when they are freed, which `malloc` may not do."""
    if num_bytes < _LARGE:
        return torch.empty(num_bytes, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)


def read_into(descriptor: int, target: torch.Tensor, start: int, path: Path) -> None:
    """Fill the bytes of `target` from `start` on; not mapped, so that a file cut off meanwhile is only an error."""
    view = memoryview(target.numpy())  # pyright: ignore[reportArgumentType]
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done : done + (1 << 30)]], start + done)
        except OSError as error:
            raise CheckpointError(f"cannot read it: {error.strerror}", path=path) from error
        if count == 0:
            raise CheckpointError("the file was cut off while it was being read", path=path)
        done += count


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a `.pth` or `.safetensors` file.

    Raises:
        CheckpointError: there is no such file, it is none of these, or its table of contents cannot be right.
    """
    descriptor = open_regular(path)
    try:
        head = os.pread(descriptor, 16, 0)
        kind: Kind
        metadata: Mapping[str, str] = {}
        if pth_file.is_zip(head):
            kind, entries = "pth", pth_file.zip_entries(descriptor, path)
        elif pth_file.is_legacy(head):
            kind, entries = "legacy pth", pth_file.legacy_entries(descriptor, path)
        elif safetensors_file.is_safetensors(head):
            kind = "safetensors"
            entries, metadata = safetensors_file.read_header(descriptor, path)
        else:
            raise CheckpointError(
                "not a checkpoint: neither a .pth file (torch.save) nor .safetensors, by its first bytes",
                path=path,
                hint="is it a download's error page, or a Git LFS pointer?" if head.isascii() and head else None,
            )
        _check_sizes(entries, os.fstat(descriptor).st_size, path)
        file = TensorFile(path, descriptor, entries, metadata, kind=kind)
    except BaseException:  # whatever it is, nobody else would close the file
        os.close(descriptor)
        raise
    try:
        yield file
    finally:
        file.close()


def open_regular(path: Path) -> int:
    """A descriptor for reading; only of a regular file, since others (a FIFO) can block for ever."""
    try:
        # Without O_NONBLOCK, opening a FIFO that replaced the file since would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        reason = "it is a symbolic link to a file that is not there" if path.is_symlink() else "there is no such file"
        raise CheckpointError(reason, path=path) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"cannot open it: {reason}", path=path) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise CheckpointError(f"expected a regular file, this is {kind}", path=path)
    if os.fstat(descriptor).st_size == 0:
        os.close(descriptor)
        raise CheckpointError("the file is empty", path=path)
    return descriptor


def _check_sizes(entries: Mapping[str, StoredBytes], file_size: int, path: Path) -> None:
    total = 0
    for name, entry in entries.items():
        if entry.start + entry.span > file_size:
            raise CheckpointError(f"the tensor {name!r} lies beyond the end of the file; cut off?", path=path)
        total += max(entry.num_bytes, entry.span)
        if total > MAX_OVERLAP * file_size:
            raise CheckpointError(
                f"its tensors are said to have more than {MAX_OVERLAP} times as many bytes as the file itself",
                path=path,
            )
