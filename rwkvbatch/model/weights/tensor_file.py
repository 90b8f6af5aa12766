"""`TensorFile`: the tensors of an open file, each of which is read when it is accessed."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rwkvbatch.errors import CheckpointError, shown_name
from rwkvbatch.files import open_regular
from rwkvbatch.model.ops import StoredRows

_HASH_CHUNK = 1 << 18
_LARGE = 1 << 20


@dataclass(frozen=True)
class TensorType:
    """The type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True)
class StoredBytes(TensorType):
    """The location of a tensor in a file: `span` bytes from `start`, viewed with `shape` and `strides` (in elements).

    Attributes:
        negative: the tensor is the negative of the stored numbers (torch's negative bit).
        decode: converts the bytes to the tensor; None if they are plain numbers.
        rounding: the rounding of a matrix of a quantised file, see `quantised`; None for plain numbers.
    """

    strides: tuple[int, ...]
    start: int
    span: int
    negative: bool = False
    decode: Callable[[torch.Tensor], torch.Tensor] | None = None
    rounding: str | None = None

    @property
    def has_plain_rows(self) -> bool:
        """Whether it is a matrix in row-major order, of plain or of quantised numbers."""
        is_row_major = len(self.shape) == 2 and self.strides == (self.shape[1], 1)
        return is_row_major and not self.negative and (self.decode is None or self.rounding is not None)


@dataclass(frozen=True)
class Checksum:
    """The CRC-32 that a file gives for the `length` bytes of its record `name`, from `start`."""

    name: str
    start: int
    length: int
    crc32: int


@dataclass(frozen=True)
class Contents:
    """The table of contents of a file: its tensors, its metadata texts, and the conversions applied (a phrase each).

    `choice` says which of several networks in the file was chosen; empty if there is one. `checksums` are those that
    the file gives.
    """

    entries: Mapping[str, StoredBytes]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    undone: tuple[str, ...] = ()
    choice: str = ""
    checksums: tuple[Checksum, ...] = ()


class TensorFile:
    """An open checkpoint or state file. A background thread hashes it.

    Attributes:
        kind: the kind of file, as `model info` shows it.
        entries: the stored tensors by name.
        metadata: the texts that the file stores with its tensors.
        undone: the conversions applied to find the tensors, a phrase each.
        choice: which of several networks in the file was chosen; empty if there is one.
        num_bytes: size of the file.
    """

    def __init__(self, path: Path, descriptor: int, contents: Contents, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.entries = contents.entries
        self.metadata = contents.metadata
        self.undone = contents.undone
        self.choice = contents.choice
        self._checksums = contents.checksums
        self._descriptor = descriptor
        self._status = os.fstat(descriptor)
        self.num_bytes = self._status.st_size
        self._hash = hashlib.sha256()
        self._hashing: threading.Thread | None = None
        self._hash_error: OSError | None = None
        self._closing = False

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name`, in new memory.

        Raises:
            KeyError: there is no such tensor.
            CheckpointError: the file cannot be read, or was truncated since it was opened.
        """
        entry = self.entries[name]
        data = new_memory(entry.span)
        view = memoryview(data.numpy())  # pyright: ignore[reportArgumentType]
        num_read = 0
        # Read, not memory-mapped: reading a file that is truncated meanwhile is an error, not a SIGBUS.
        while num_read < entry.span:
            try:
                count = os.preadv(self._descriptor, [view[num_read : num_read + (1 << 30)]], entry.start + num_read)
            except OSError as error:
                raise CheckpointError(f"cannot read it: {error.strerror}", path=self.path) from error
            if count == 0:
                raise CheckpointError("the file was cut off while it was being read", path=self.path)
            num_read += count
        if entry.decode is not None:
            return entry.decode(data)
        tensor = data.view(entry.dtype).as_strided(entry.shape, entry.strides)
        return tensor.neg() if entry.negative else tensor

    def rows_of(self, name: str) -> StoredRows | None:
        """The location of the matrix `name`; None unless it is stored in row-major order."""
        stored = self.entries[name]
        if not stored.has_plain_rows:
            return None
        return StoredRows(self._descriptor, stored.start, stored.dtype, stored.rounding, *stored.shape)

    def is_same_file(self, other: object) -> bool:
        """Whether both are the same file, by device and inode."""
        return isinstance(other, TensorFile) and os.path.samestat(self._status, other._status)

    def check_checksums(self) -> None:
        """Compare the file with the checksums in it; without any, as in a `.safetensors` file, do nothing.

        Loading does not, because it would take longer.

        Raises:
            CheckpointError: a record is damaged, or the file cannot be read.
        """
        buffer = memoryview(bytearray(_HASH_CHUNK))
        for record in self._checksums:
            position, end, found = record.start, record.start + record.length, 0
            try:
                while count := os.preadv(self._descriptor, [buffer[: end - position]], position):
                    found = zlib.crc32(buffer[:count], found)
                    position += count
            except OSError as error:
                raise CheckpointError(f"cannot read it: {error.strerror}", path=self.path) from error
            if found != record.crc32:
                raise CheckpointError(
                    f"damaged: its record {record.name[:80]!r} does not have the CRC-32 that the file gives for it",
                    path=self.path,
                    hint="copy or download it again",
                )

    def start_hashing(self) -> threading.Thread:
        """Start to compute `sha256` in a background thread; returns the thread."""
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
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise CheckpointError("the file was changed while it was being read", path=self.path)
        if self._hash_error is not None:
            raise CheckpointError(f"cannot read it: {self._hash_error.strerror}", path=self.path)
        return self._hash.hexdigest()

    def _hash_all(self) -> None:
        # One small buffer, which stays in the processor's cache.
        position, buffer = 0, memoryview(bytearray(_HASH_CHUNK))
        try:
            while not self._closing and (count := os.preadv(self._descriptor, [buffer], position)):
                self._hash.update(buffer[:count])
                position += count
        except OSError as error:
            self._hash_error = error

    def close(self) -> None:
        self._closing = True
        if self._hashing is not None:
            self._hashing.join()
        os.close(self._descriptor)


def unread_type(name: str, dtype: str, path: Path) -> CheckpointError:
    """The error for a tensor whose type is not one that networks are read in."""
    hint = "save it as bf16"
    if dtype.lower().startswith(("float8", "f8_")):
        hint = "multiply it by its scale, if the checkpoint has scales, and save it as bf16"
    return CheckpointError(
        f"the tensor {name[:80]!r} must be bf16, fp16 or fp32, it is {shown_name(dtype)}", path=path, hint=hint
    )


def new_memory(num_bytes: int) -> torch.Tensor:
    """Uninitialised bytes. Large blocks return to the system when freed, which `malloc` does not guarantee."""
    if num_bytes < _LARGE:
        return torch.empty(num_bytes, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)


def open_weights(path: Path) -> int:
    """A descriptor for reading a weights file.

    Raises:
        CheckpointError: the file does not exist, cannot be opened, is empty, or is not a regular file.
    """
    try:
        descriptor = open_regular(path)
    except FileNotFoundError as error:
        reason = "it is a symbolic link to a file that does not exist" if path.is_symlink() else "there is no such file"
        raise CheckpointError(reason, path=path) from error
    except OSError as error:
        raise CheckpointError(f"cannot open it: {error.strerror}", path=path) from error
    if os.fstat(descriptor).st_size == 0:
        os.close(descriptor)
        raise CheckpointError("the file is empty", path=path)
    return descriptor
