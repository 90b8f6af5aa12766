"""torch's process-wide settings, set while we run and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def num_threads(count: int | None) -> Iterator[None]:
    """torch's thread count is `count` inside; None leaves it alone."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def tf32(allowed: bool, device: str = "cuda") -> Iterator[None]:
    """Whether a GPU may round the factors of fp32 matrix products to 10 bits, inside; nothing on the CPU."""
    if device == "cpu":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before  # pyright: ignore[reportAttributeAccessIssue]


_SUMS_IN_HALF = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")


@contextmanager
def fp32_sums(device: str) -> Iterator[None]:
    """A GPU adds up products of fp16 and bf16 in fp32 from beginning to end, inside; nothing on the CPU."""
    if device == "cpu":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = {name: getattr(matmul, name) for name in _SUMS_IN_HALF}
    for name in _SUMS_IN_HALF:
        setattr(matmul, name, False)
    try:
        yield
    finally:
        for name, allowed in before.items():
            setattr(matmul, name, allowed)
