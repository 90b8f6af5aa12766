"""`TensorFile`, the tensors of an open file, and `NamedTensors`, those of a checkpoint of one or more files.

A tensor is read when it is asked for.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rwkvbatch.errors import CheckpointError

_HASH_PIECE = 1 << 18
_LARGE = 1 << 20


@dataclass(frozen=True)
class StoredBytes:
    """A tensor in a file: `span` bytes from `start`, viewed with `shape` and `strides` (in elements).

    `negative`: the numbers stand for their negatives (torch's negative bit).
    `decode`: makes the tensor of the bytes, where they are not plain numbers.
    `rounding`: what the rows of a matrix of a quantised file are rounded to, see `quantised`; None for plain numbers.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    span: int
    negative: bool = False
    decode: Callable[[torch.Tensor], torch.Tensor] | None = None
    rounding: str | None = None

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize

    @property
    def has_plain_rows(self) -> bool:
        """Whether it is a matrix whose rows lie one after the other, as numbers or rounded ones."""
        rows_follow = len(self.shape) == 2 and self.strides == (self.shape[1], 1)
        return rows_follow and not self.negative and (self.decode is None or self.rounding is not None)


@dataclass(frozen=True)
class Contents:
    """The table of contents of a file: its tensors, texts stored beside them, and what was undone to find them."""

    entries: Mapping[str, StoredBytes]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    undone: tuple[str, ...] = ()


class TensorFile:
    """An open checkpoint or state file, hashed in a thread of its own.

    Attributes:
        kind: the kind of file, as `model info` shows it.
        entries: the stored tensors by name.
        metadata: texts stored beside the tensors.
        undone: what was undone to find the tensors, a phrase each.
        num_bytes: size of the file.
    """

    def __init__(self, path: Path, descriptor: int, contents: Contents, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.entries = contents.entries
        self.metadata = contents.metadata
        self.undone = contents.undone
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
        if entry.decode is not None:
            return entry.decode(flat)
        tensor = flat.view(entry.dtype).as_strided(entry.shape, entry.strides)
        return tensor.neg() if entry.negative else tensor

    def rows_of(self, name: str) -> StoredRows | None:
        """Where the rows of the matrix `name` lie; None if they do not lie one after the other."""
        stored = self.entries[name]
        if not stored.has_plain_rows:
            return None
        return StoredRows(self._descriptor, stored.start, stored.dtype, stored.rounding, *stored.shape)

    def is_same_file(self, other: TensorFile) -> bool:
        """Whether both are one file, by device and number."""
        return os.path.samestat(self._before, other._before)

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
        # One buffer that stays in the processor's cache.
        position, buffer = 0, memoryview(bytearray(_HASH_PIECE))
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


@dataclass(frozen=True)
class StoredRows:
    """A matrix [outputs, inputs] in an open file, row after row, for a backend that reads it by itself.

    `rounding`: what its rows are rounded to in a quantised file, see `quantised`; None for numbers of type `dtype`.
    """

    descriptor: int
    start: int
    dtype: torch.dtype
    rounding: str | None
    outputs: int
    inputs: int


@dataclass(frozen=True)
class Entry:
    """A tensor of a checkpoint: its type and shape, and `load`, which reads it into memory of its own.

    `rows`: where the same numbers lie in a file, if it is a matrix that lies there row after row.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]
    rows: StoredRows | None = None

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize

    def bytes(self) -> memoryview:
        """Its numbers as a file has them, in the order of a contiguous tensor."""
        tensor = self.load().detach().to("cpu").contiguous()
        if tensor.dtype != self.dtype or tuple(tensor.shape) != self.shape:
            raise ValueError(f"expected {self.dtype} {self.shape}, got {tensor.dtype} {tuple(tensor.shape)}")
        return memoryview(tensor.flatten().view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]

    def transposed(self) -> Entry:
        """The matrix, or stack of matrices, with its last two axes exchanged, contiguous."""
        *stack, rows, columns = self.shape
        return Entry(self.dtype, (*stack, columns, rows), lambda: self.load().transpose(-1, -2).contiguous())

    def reshaped(self, shape: tuple[int, ...], path: Path) -> Entry:
        """The same numbers in the same order with another shape; raises `CheckpointError` unless it has as many."""
        if math.prod(shape) != self.num_elements:
            raise CheckpointError(f"a tensor of shape {self.shape} has not {math.prod(shape):,} numbers", path=path)
        return Entry(self.dtype, shape, lambda: self.load().reshape(shape))

    def column(self, index: int) -> Entry:
        """One column of a matrix."""
        return Entry(self.dtype, self.shape[:1], lambda: self.load()[:, index].clone())

    def part(self, index: int) -> Entry:
        """One element along the first axis."""
        return Entry(self.dtype, self.shape[1:], lambda: self.load()[index].clone())


OnWritten = Callable[[int], None]
"""Receives the number of bytes of the tensors that are written so far."""


def ignored(num_bytes: int) -> None:
    """The `OnWritten` of one who does not look."""


@dataclass(frozen=True)
class NamedTensors:
    """The tensors of a checkpoint or state, of one file or of several.

    Attributes:
        path: what was opened: a file, or a directory.
        kind: the kind of its files, as `model info` shows it.
        files: the open files.
        entries: the tensors by name.
        metadata: texts stored beside the tensors.
        config: the `config.json` of a directory; empty for others.
        vocabulary_file: the World vocabulary in a directory, if it has one.
        form: how the tensors were named, see `forms`.
        undone: what was changed to get from the files' tensors to `entries`, a phrase each.
        recipe: what `entries` depend on beside the files' bytes.
        is_rescaled: whether matrices are multiples of those in the files, so that no adapter of these belongs to them.
    """

    path: Path
    kind: str
    files: tuple[TensorFile, ...]
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    vocabulary_file: Path | None = None
    form: str = "official"
    undone: tuple[str, ...] = ()
    recipe: tuple[str, ...] = ()
    is_rescaled: bool = False

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.num_bytes for file in self.files)

    def changed(self, entries: Mapping[str, Entry], *undone: str, form: str | None = None) -> NamedTensors:
        """The same files with other `entries`, and what was undone to get them; `form` as it is unless given."""
        return replace(self, entries=entries, undone=(*self.undone, *undone), form=form or self.form)

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name`, in memory of its own; raises `KeyError`, or `CheckpointError` as `TensorFile.read`."""
        return self.entries[name].load()

    def start_hashing(self) -> threading.Thread:
        """Start to compute `sha256` in the background; returns the thread that ends last."""
        return [file.start_hashing() for file in self.files][-1]

    def sha256(self) -> str:
        """Hash in hex: of the only file, or of the hashes of all files in their order and of `recipe`.

        The tensors depend on nothing else. Raises as `TensorFile.sha256`.
        """
        hashes = [*(file.sha256() for file in self.files), *self.recipe]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def named_tensors(path: Path, files: Sequence[TensorFile]) -> NamedTensors:
    """The tensors of `files`, at least one, together.

    Raises:
        CheckpointError: two files have a tensor of the same name.
    """
    entries: dict[str, Entry] = {}
    for file in files:
        for name, stored in file.entries.items():
            if name in entries:
                raise CheckpointError(
                    f"the tensor {name[:80]!r} is in {file.path.name!r} and in another file too", path=path
                )
            entries[name] = Entry(stored.dtype, stored.shape, partial(file.read, name), file.rows_of(name))
    metadata = {key: text for file in files for key, text in file.metadata.items()}
    undone = tuple(dict.fromkeys(phrase for file in files for phrase in file.undone))
    return NamedTensors(path, files[0].kind, tuple(files), entries, metadata, undone=undone)


_EXPONENT_MASK = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
_CHECKED_PIECE = 1 << 18


def check_finite(tensor: torch.Tensor, name: str, path: Path) -> None:
    """Raise `CheckpointError` when `tensor` (fp32, bf16 or fp16) holds NaN or infinity."""
    # With numpy, in one thread: for pieces this small, several threads on a busy machine would wait for each other.
    bits = tensor.detach().view(_BITS[tensor.dtype]).contiguous().flatten().numpy()
    mask = bits.dtype.type(_EXPONENT_MASK[tensor.dtype])
    for start in range(0, len(bits), _CHECKED_PIECE):
        if np.bitwise_and(bits[start : start + _CHECKED_PIECE], mask).max() == mask:
            count = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"the tensor {name!r} holds NaN or infinity ({count:,} of {tensor.numel():,} numbers)", path=path
            )


def _memory(num_bytes: int) -> torch.Tensor:
    """Uninitialised bytes; large blocks return to the system when freed, which `malloc` does not guarantee."""
    if num_bytes < _LARGE:
        return torch.empty(num_bytes, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file; others (a FIFO) are refused, since they can block for ever.

    Raises:
        CheckpointError: it is not there, cannot be opened, is empty, or is not a regular file.
    """
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
