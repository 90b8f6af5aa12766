"""Several small numpy arrays to a device in one transfer that the host does not wait for, and results back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

_ALIGNMENT = 16
"""Bytes. Triton makes another kernel for pointers that are not aligned so."""

_DTYPES = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}

AnyArray = npt.NDArray[np.generic]


def pack(arrays: Sequence[AnyArray]) -> torch.Tensor:
    """The bytes of `arrays` one after the other, each aligned; uint8, on the host."""
    offsets = _offsets(arrays)
    packed = torch.zeros(offsets[-1], dtype=torch.uint8)
    content = packed.numpy()
    for array, offset in zip(arrays, offsets, strict=False):
        content[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return packed


def send(packed: torch.Tensor, target: torch.Tensor) -> None:
    """Copy `packed` into `target` on a device. The host goes on at once, from memory that the device can read."""
    source = packed.pin_memory() if target.device.type == "cuda" else packed
    target.copy_(source, non_blocking=True)


def unpack(target: torch.Tensor, arrays: Sequence[AnyArray]) -> list[torch.Tensor]:
    """Views of what `send` wrote, with the dtypes and lengths of `arrays`, all one-dimensional."""
    return [
        target[offset : offset + array.nbytes].view(_DTYPES[array.dtype])
        for array, offset in zip(arrays, _offsets(arrays), strict=False)
    ]


def upload(arrays: Sequence[AnyArray], device: str) -> list[torch.Tensor]:
    """`arrays`, one-dimensional, as tensors on `device`."""
    packed = pack(arrays)
    target = torch.empty_like(packed, device=device)
    send(packed, target)
    return unpack(target, arrays)


def download(results: torch.Tensor) -> AnyArray:
    """`results` on the host, which waits here until the device has computed them."""
    return results.cpu().numpy()


def _offsets(arrays: Sequence[AnyArray]) -> list[int]:
    """Where each array begins, and where the last one ends."""
    sizes = [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]
    return [0, *np.cumsum(sizes).tolist()]
