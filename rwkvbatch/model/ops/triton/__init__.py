"""Triton kernels of the operations on an NVIDIA GPU, and the functions that launch them.

Only these modules import Triton, and only `cuda.py` imports them. With `TRITON_INTERPRET=1` in the environment before
the first import they run on CPU tensors; tests without a GPU use this.
"""

from __future__ import annotations

import triton

MIN_VERSION = (3, 4)
"""The first version that compiles kernels with tuples of constants."""

if tuple(int(number) for number in triton.__version__.split(".")[:2]) < MIN_VERSION:
    raise ImportError(f"Triton 3.4 or newer is needed, found {triton.__version__}")
