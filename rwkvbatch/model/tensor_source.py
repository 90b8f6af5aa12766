"""`TensorSource`: the tensors of a checkpoint, stored in any form, and `TensorFile`, those of one file."""

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
from typing import Protocol

import torch

from rwkvbatch.errors import CheckpointError

_HASH_PIECE = 1 << 22
_LARGE = 1 << 20


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of a stored tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


class TensorSource(Protocol):
    """Named tensors that are read one by one.

    Every form of checkpoint is read through this interface: what inspects, loads and converts checkpoints knows nothing
    else about files.
    """

    @property
    def path(self) -> Path:
        """What error messages name."""
        ...

    @property
    def kind(self) -> str:
        """The name of the form, as `model info` shows it."""
        ...

    @property
    def entries(self) -> Mapping[str, TensorInfo]:
        """Names, types and shapes of all tensors."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """Texts stored beside the tensors."""
        ...

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name`, in memory of its own.

        Raises:
            KeyError: there is none of that name.
            CheckpointError: the file cannot be read, or was cut off since it was opened.
        """
        ...

    def start_hashing(self) -> None:
        """Start to compute `sha256` in the background."""
        ...

    def sha256(self) -> str:
        """Hash of the stored bytes, in hex.

        Raises:
            CheckpointError: the file cannot be read, or was changed since it was opened.
        """
        ...


@dataclass(frozen=True)
class StoredBytes(TensorInfo):
    """A tensor in a file: `span` bytes from `start`, viewed with `shape` and `strides` (in elements)."""

    strides: tuple[int, ...]
    start: int
    span: int


@dataclass(frozen=True)
class Contents:
    """The table of contents of a file: its tensors, and texts stored beside them."""

    entries: Mapping[str, StoredBytes]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


def span_of(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last one of a view, both included; 0 for an empty one."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


class TensorFile:
    """`TensorSource` of one open file, hashed in a thread of its own."""

    def __init__(self, path: Path, descriptor: int, contents: Contents, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.entries = contents.entries
        self.metadata = contents.metadata
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
        entry = self.entries[name]
        flat = _memory(entry.span)
        read_into(self._descriptor, flat, entry.start, self.path)
        return flat.view(entry.dtype).as_strided(entry.shape, entry.strides)

    def start_hashing(self) -> None:
        self._hashing = threading.Thread(target=self._hash_all, name="checkpoint-hash", daemon=True)
        self._hashing.start()

    def sha256(self) -> str:
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
    """Uninitialised bytes; large blocks return to the system when freed, which `malloc` does not guarantee."""
    if num_bytes < _LARGE:
        return torch.empty(num_bytes, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)


def read_into(descriptor: int, target: torch.Tensor, start: int, path: Path) -> None:
    """Fill `target` with the bytes from `start`; without mapping, so that a file cut off meanwhile is only an error."""
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
