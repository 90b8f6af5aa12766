"""The device of GPU tests: a GPU if there is one, else Triton's interpreter on the CPU."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests.model.ops.interpreter import speed_up

# Functions that are compiled and functions that are interpreted are told apart when they are made: `conftest.py`
# imports this before any test can import Triton.
HAS_GPU = torch.cuda.is_available() and torch.version.hip is None and not os.environ.get("TRITON_INTERPRET")
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

DEVICE = "cuda" if HAS_GPU else "cpu"


if not HAS_GPU:
    speed_up()

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU, and there is none")]

BAND = 1024
GUARD = -7
"""Not NaN in the bands, since what is computed from NaN and written back is NaN again."""


def guarded(
    *shape: int, dtype: torch.dtype = torch.float32, values: torch.Tensor | None = None, band: float = GUARD
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


WAITING = {"cpu", "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "nonzero", "equal"}
"""Functions of a tensor that need its values on the host. `numpy` is not among them: on a GPU it is an error."""


class _Watch(TorchFunctionMode):
    def __init__(self, actual: list[str]) -> None:
        super().__init__()
        self.actual = actual
        self.in_kernel = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if not self.in_kernel and func.__name__ in WAITING:
            self.actual.append(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[list[str]]:
    """What makes the host wait for the device meanwhile, each time it does; complete at the end.

    Without a GPU: what would make it wait. Kernels do not count, which Triton's interpreter runs on copies.
    """
    actual: list[str] = []
    if HAS_GPU:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield actual
            finally:
                torch.cuda.set_sync_debug_mode("default")
        actual += [text for warning in caught if "synchroniz" in (text := str(warning.message))]
        return
    from triton.runtime.interpreter import GridExecutor

    watch, launch = _Watch(actual), GridExecutor.__call__

    def unwatched_launch(*args: Any, **kwargs: Any) -> None:
        watch.in_kernel = True
        launch(*args, **kwargs)
        watch.in_kernel = False

    with pytest.MonkeyPatch.context() as patch, watch:
        patch.setattr(GridExecutor, "__call__", unwatched_launch)
        yield actual
