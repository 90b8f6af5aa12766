"""Where the GPU operations are tested: on a GPU where there is one, else on the CPU by Triton's interpreter."""

from __future__ import annotations

import math
import os

import pytest
import torch

# Functions that are compiled and functions that are interpreted are told apart when they are made: `conftest.py`
# imports this before any test can import Triton.
HAS_GPU = torch.cuda.is_available() and torch.version.hip is None and not os.environ.get("TRITON_INTERPRET")
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

DEVICE = "cuda" if HAS_GPU else "cpu"

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU, and there is none"),
]

BAND = 1024
GUARD = -7
"""Not NaN in the bands, since what is computed from NaN and written back is NaN again."""


def guarded(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    values: torch.Tensor | None = None,
    band: float = GUARD,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor full of NaN (integers: -1) or of `values`, between bands of a number; and the memory of all three."""
    size = math.prod(shape)
    memory = torch.full((BAND + size + BAND,), band, dtype=dtype, device=DEVICE)
    inner = memory[BAND : BAND + size].view(shape)
    if values is not None:
        inner.copy_(values)
    else:
        inner.fill_(float("nan") if dtype.is_floating_point else -1)
    return inner, memory


def untouched(memory: torch.Tensor) -> bool:
    """Whether the bands of `guarded` are as they were."""
    return bool((memory[:BAND] == GUARD).all() and (memory[-BAND:] == GUARD).all())


def normal(*shape: int, seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    """Normal numbers, on the CPU."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + mean
