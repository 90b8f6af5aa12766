"""Tensors in memory as a checkpoint: what `torch.load` of a `.pth` file, or a module's `state_dict()`, gives."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rwkvbatch.config import IN_MEMORY
from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.weights.named_tensors import Entry, NamedTensors
from rwkvbatch.model.weights.pth import unwrapped
from rwkvbatch.model.weights.tensor_file import new_memory


def named_tensors_of(tensors: Mapping[str, Any]) -> NamedTensors:
    """The tensors of a mapping of names to torch tensors, which may be wrapped as in files (`pth.WRAPPERS`).

    `files` is empty: see `hashed`. The tensors are never changed; `Entry.load` copies one of them to the CPU.

    Raises:
        CheckpointError: it is not such a mapping, or a tensor has no numbers here (`meta`, sparse, sharded).
    """
    path = Path(IN_MEMORY)
    found, undone, choice = unwrapped(dict(tensors), path)
    entries: dict[str, Entry] = {}
    for name, tensor in found.items():
        assert isinstance(tensor, torch.Tensor)
        _refuse_without_numbers(name, tensor, path)
        entries[name] = Entry(tensor.dtype, tuple(tensor.shape), partial(_copied, tensor))
    for device in {tensor.device for tensor in found.values() if tensor.is_cuda}:
        torch.cuda.synchronize(device)  # they are copied in other streams than the caller's
    return replace(NamedTensors(path, "state_dict", (), entries, undone=undone), recipe=(choice,) if choice else ())


def _refuse_without_numbers(name: str, tensor: torch.Tensor, path: Path) -> None:
    detached = tensor.detach()
    if tensor.is_meta or tensor.layout != torch.strided or type(detached) is not torch.Tensor:
        kind = "on the device 'meta'" if tensor.is_meta else f"a {type(detached).__name__} with {tensor.layout}"
        hint = "a module in shards has its whole tensors in get_model_state_dict(..., full_state_dict=True)"
        raise CheckpointError(
            f"the tensor {name[:80]!r} must be a whole, dense tensor; it is {kind}", path=path, hint=hint
        )


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU, which a model may keep, and whose memory returns to the system when it is freed."""
    target = new_memory(tensor.numel() * tensor.element_size()).view(tensor.dtype).reshape(tensor.shape)
    return target.copy_(tensor.detach())


@contextmanager
def hashed(tensors: NamedTensors) -> Iterator[NamedTensors]:
    """`tensors` (of `named_tensors_of`) with the hash of their names, types, shapes and numbers, inside the block."""
    source = _TensorsInMemory(tensors)
    try:
        yield replace(tensors, files=(source,), recipe=())
    finally:
        source.close()


class _TensorsInMemory:
    """A `TensorSource`. A background thread hashes the tensors.

    The hash is the SHA-256 of the tensors in the order of their names: of each, a line with its name, type and shape,
    and its numbers in row-major order. It depends neither on the order of the mapping nor on prefixes and devices.
    """

    def __init__(self, tensors: NamedTensors) -> None:
        self.path = tensors.path
        self.choice = "".join(tensors.recipe)
        self.num_bytes = sum(entry.num_bytes for entry in tensors.entries.values())
        self._entries = tensors.entries
        self._hash = hashlib.sha256()
        self._hashing: threading.Thread | None = None
        self._error: Exception | None = None
        self._closing = False

    def is_same_file(self, other: object) -> bool:
        return self is other

    def check_checksums(self) -> None:
        """There are none."""

    def start_hashing(self) -> threading.Thread:
        self._hashing = threading.Thread(target=self._hash_all, name="checkpoint-hash", daemon=True)
        self._hashing.start()
        return self._hashing

    def sha256(self) -> str:
        (self._hashing or self.start_hashing()).join()
        if self._error is not None:
            raise self._error
        return self._hash.hexdigest()

    def _hash_all(self) -> None:
        try:
            for name, entry in sorted(self._entries.items()):
                if self._closing:
                    return
                dtype = str(entry.dtype).removeprefix("torch.")
                self._hash.update(f"{name} {dtype} {list(entry.shape)}\n".encode())
                self._hash.update(entry.bytes())
        except Exception as error:
            self._error = error

    def close(self) -> None:
        self._closing = True
        if self._hashing is not None:
            self._hashing.join()
