"""`TensorFile`: the tensors of an open file of any form, each read when it is asked for."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rwkvbatch.errors import CheckpointError

_HASH_PIECE = 1 << 22
_LARGE = 1 << 20


@dataclass(frozen=True)
class StoredBytes:
    """A tensor in a file: `span` bytes from `start`, viewed with `shape` and `strides` (in elements)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    span: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True)
class Contents:
    """The table of contents of a file: its tensors, and texts stored beside them."""

    entries: Mapping[str, StoredBytes]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


class TensorFile:
    """An open checkpoint or state file, hashed in a thread of its own.

    Attributes:
        kind: the name of the form, as `model info` shows it.
        entries: the stored tensors by name.
        metadata: texts stored beside the tensors.
        num_bytes: size of the file.
    """

    def __init__(self, path: Path, descriptor: int, contents: Contents, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.entries = contents.entries
        self.metadata = contents.metadata
        self._descriptor = descriptor
        self._before = os.fstat(descriptor)
        self.num_bytes = self._before.st_size
        self._hash = hashlib.sha256()
        self._hashing: threading.Thread | None = None
        self._hash_error: OSError | None = None
        self._closing = False

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name`, in memory of its own.

        Raises:
            KeyError: there is none of that name.
            CheckpointError: the file cannot be read, or was cut off since it was opened.
        """
        entry = self.entries[name]
        flat = _memory(entry.span)
        view = memoryview(flat.numpy())  # pyright: ignore[reportArgumentType]
        done = 0
        # Not mapped, so that a file cut off meanwhile is only an error.
        while done < entry.span:
            try:
                count = os.preadv(self._descriptor, [view[done : done + (1 << 30)]], entry.start + done)
            except OSError as error:
                raise CheckpointError(f"cannot read it: {error.strerror}", path=self.path) from error
            if count == 0:
                raise CheckpointError("the file was cut off while it was being read", path=self.path)
            done += count
        return flat.view(entry.dtype).as_strided(entry.shape, entry.strides)

    def start_hashing(self) -> threading.Thread:
        """Start to compute `sha256` in the background; returns the thread that does."""
        self._hashing = threading.Thread(target=self._hash_all, name="checkpoint-hash", daemon=True)
        self._hashing.start()
        return self._hashing

    def sha256(self) -> str:
        """Hash of the file, in hex.

        Raises:
            CheckpointError: the file cannot be read, or was changed since it was opened.
        """
        (self._hashing or self.start_hashing()).join()
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
    """Uninitialised bytes; large blocks return to the system when freed, which `malloc` does not guarantee."""
    if num_bytes < _LARGE:
        return torch.empty(num_bytes, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file; others (a FIFO) are refused, since they can block for ever."""
    try:
        # O_NONBLOCK: opening a FIFO would otherwise wait for a writer.
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
