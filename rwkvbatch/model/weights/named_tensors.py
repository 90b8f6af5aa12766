"""`NamedTensors`: the tensors of a checkpoint of one or more files, each of which is read when it is accessed."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.ops import StoredRows
from rwkvbatch.model.weights.tensor_file import TensorFile, TensorType


@dataclass(frozen=True)
class Entry(TensorType):
    """A tensor of a checkpoint: its type and shape, and `load`, which reads it into new memory.

    `rows`: the location of the same numbers in a file, if they are a matrix in row-major order.
    """

    load: Callable[[], torch.Tensor]
    rows: StoredRows | None = None

    def bytes(self) -> memoryview:
        """The bytes of its numbers, in the order of a contiguous tensor."""
        tensor = self.load().detach().to("cpu").contiguous()
        if tensor.dtype != self.dtype or tuple(tensor.shape) != self.shape:
            raise ValueError(f"expected {self.dtype} {self.shape}, got {tensor.dtype} {tuple(tensor.shape)}")
        return memoryview(tensor.flatten().view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]

    def transposed(self) -> Entry:
        """The matrix or stack of matrices, with the last two axes swapped; contiguous."""
        *stack, rows, columns = self.shape
        return Entry(self.dtype, (*stack, columns, rows), lambda: self.load().transpose(-1, -2).contiguous())

    def reshaped(self, shape: tuple[int, ...], path: Path) -> Entry:
        """The same numbers with another shape.

        Raises:
            CheckpointError: the shape has another number of elements.
        """
        if math.prod(shape) != self.num_elements:
            raise CheckpointError(
                f"a tensor of shape {self.shape} does not have {math.prod(shape):,} numbers", path=path
            )
        return Entry(self.dtype, shape, lambda: self.load().reshape(shape))

    def column(self, index: int) -> Entry:
        """One column of a matrix."""
        return Entry(self.dtype, self.shape[:1], lambda: self.load()[:, index].clone())

    def select(self, index: int) -> Entry:
        """The sub-tensor at `index` of the first axis."""
        return Entry(self.dtype, self.shape[1:], lambda: self.load()[index].clone())


class TensorSource(Protocol):
    """Tensors with a hash: a `TensorFile`, or tensors in memory (`state_dict`). See `TensorFile` for the members."""

    path: Path
    choice: str
    num_bytes: int

    def is_same_file(self, other: object) -> bool: ...
    def check_checksums(self) -> None: ...
    def start_hashing(self) -> threading.Thread: ...
    def sha256(self) -> str: ...


OnWritten = Callable[[int], None]
"""Called with the number of bytes of all tensors written so far."""


def ignored(num_bytes: int) -> None:
    """An `OnWritten` that does nothing."""


@dataclass(frozen=True)
class NamedTensors:
    """The tensors of a checkpoint or state, of one file, of several, or in memory.

    Attributes:
        path: the opened file or directory.
        kind: the kind of its files, as `model info` shows it.
        files: the open files, or the tensors in memory.
        entries: the tensors by name.
        metadata: the texts that the files store with the tensors.
        config: the `config.json` of a directory; empty without one.
        vocabulary_file: the World vocabulary in a directory; None without one.
        form: the naming of the tensors in the files, see `forms`.
        undone: the conversions from the files' tensors to `entries`, a phrase each.
        recipe: the inputs of `entries` other than the files' bytes, for the hash.
        is_rescaled: whether `entries` has matrices that are multiples of those in the files. An adapter for the files'
            matrices cannot be merged into them.
    """

    path: Path
    kind: str
    files: tuple[TensorSource, ...]
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
        """Size of all files."""
        return sum(file.num_bytes for file in self.files)

    def changed(self, entries: Mapping[str, Entry], *undone: str, form: str | None = None) -> NamedTensors:
        """The same files with converted `entries`.

        Args:
            undone: the conversions, a phrase each.
            form: the new `form`; None keeps it.
        """
        return replace(self, entries=entries, undone=(*self.undone, *undone), form=form or self.form)

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name`, in new memory; raises as `TensorFile.read`."""
        return self.entries[name].load()

    def check_checksums(self) -> None:
        """Compare all files with their checksums; raises as `TensorFile.check_checksums`."""
        for file in self.files:
            file.check_checksums()

    def start_hashing(self) -> threading.Thread:
        """Start to hash all files in background threads; returns the thread of the last file."""
        return [file.start_hashing() for file in self.files][-1]

    def sha256(self) -> str:
        """Hash, in hex, of everything that the tensors depend on.

        It is the hash of the file if there is one file and no `recipe`, else the hash of the files' hashes and
        `recipe`. Raises as `TensorFile.sha256`.
        """
        hashes = [*(file.sha256() for file in self.files), *self.recipe]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def named_tensors(path: Path, files: Sequence[TensorFile]) -> NamedTensors:
    """The tensors of all `files`, of which there is at least one.

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
_CHECKED_CHUNK = 1 << 18


def check_finite(tensor: torch.Tensor, name: str, path: Path) -> None:
    """Raise `CheckpointError` when `tensor` (fp32, bf16 or fp16) contains NaN or infinity."""
    # With numpy, in one thread: torch's threads would wait for each other on a busy machine, for chunks this small.
    bits = tensor.detach().view(_BITS[tensor.dtype]).contiguous().flatten().numpy()
    mask = bits.dtype.type(_EXPONENT_MASK[tensor.dtype])
    for start in range(0, len(bits), _CHECKED_CHUNK):
        if np.bitwise_and(bits[start : start + _CHECKED_CHUNK], mask).max() == mask:
            count = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"the tensor {name!r} contains NaN or infinity ({count:,} of {tensor.numel():,} numbers)", path=path
            )
