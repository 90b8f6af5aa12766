"""Weights files: the tensors of an RWKV network, each read and checked when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.architecture import Architecture, inspect
from rwkvbatch.model.tensor_file import TensorFile, open_tensors

_EXPONENT_MASK = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
_PIECE = 1 << 18


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of a weights file. Each is read, and checked for NaN and infinity, when it is asked for.

    Args:
        file: the open file.
        architecture: as `inspect` found it.
        dtype: what to round tensors to when they are read, None for as they are.
    """

    def __init__(
        self, file: TensorFile, architecture: Architecture, dtype: torch.dtype | None = None
    ) -> None:
        self.file = file
        self.architecture = architecture
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self.file.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.entries)

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor `name`.

        Raises:
            KeyError: there is none.
            CheckpointError: it holds NaN or infinity, or would after rounding.
        """
        tensor = self.check(name)
        # fp32 holds every bf16 and fp16 number, so widening would cost memory and change nothing.
        if self.dtype is None or self.dtype == tensor.dtype or self.dtype == torch.float32:
            return tensor
        rounded = tensor.to(self.dtype)
        if self.dtype == torch.float16 and not bool(torch.isfinite(rounded).all()):
            raise CheckpointError(
                f"the tensor {name!r} has numbers too large for fp16",
                path=self.file.path,
                hint='use --strategy "cpu bf16", "cpu fp32" or "auto"',
            )
        return rounded

    def check(self, name: str) -> torch.Tensor:
        """The tensor `name` as it is in the file; errors as above."""
        tensor = self.file.read(name)
        check_finite(tensor, name, self.file.path)
        return tensor


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Open a weights file and check names and shapes (values are checked as they are read).

    Raises:
        CheckpointError: not a checkpoint of RWKV, or a tensor is missing, surplus or misshapen.
    """
    with open_tensors(path) as file:
        yield Checkpoint(file, inspect(file))


def check_finite(tensor: torch.Tensor, name: str, path: Path) -> None:
    """Raise `CheckpointError` when `tensor` (fp32, bf16 or fp16) holds NaN or infinity."""
    # In numpy and thus in one thread: in pieces this small, threads of a busy machine would wait for each other.
    bits = tensor.detach().view(_BITS[tensor.dtype]).contiguous().flatten().numpy()
    mask = bits.dtype.type(_EXPONENT_MASK[tensor.dtype])
    for start in range(0, len(bits), _PIECE):
        if np.bitwise_and(bits[start : start + _PIECE], mask).max() == mask:
            count = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"the tensor {name!r} holds NaN or infinity ({count:,} of {tensor.numel():,} numbers)",
                path=path,
            )
