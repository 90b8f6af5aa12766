"""Triton kernels of the operations on an NVIDIA GPU, and the functions that launch them.

Triton is imported by these modules alone, and nothing imports them but `cuda.py`. With `TRITON_INTERPRET=1` in the
environment before the first import they run on CPU tensors, which is how they are tested without a GPU.
"""

from __future__ import annotations

import triton

OLDEST = (3, 4)
"""The first version that compiles kernels with tuples of constants."""

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
    raise ImportError(f"Triton 3.4 or newer is needed, found {triton.__version__}")
