"""A GPU's two limits: copying memory and multiplying matrices, measured with torch; and a clock that waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch

from rwkvbatch.bench.limits import best_rate
from rwkvbatch.bench.records import Limits, median
from rwkvbatch.bench.workloads import WALL, Clock

_COPIED_BYTES = 512 << 20
"""More than any cache."""
_MATRIX_SIZE = 8192
_MATRIX_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DeviceWork(Protocol):
    """What a device is timed at. Both may return before it is done: the clock waits."""

    name: str
    copy_bytes: float
    product_operations: float

    def copy(self) -> None:
        """Move `copy_bytes`, those read and those written counted."""
        ...

    def multiply(self) -> None:
        """Do `product_operations` floating-point operations in one matrix product."""
        ...


class TorchWork:
    """Copies and products by torch on `device`, in the model's dtype (`fp32`, `bf16` or `fp16`)."""

    copy_bytes = 2.0 * _COPIED_BYTES
    product_operations = 2.0 * _MATRIX_SIZE**3

    def __init__(self, device: str, dtype: str) -> None:
        self.name = f"{torch.cuda.get_device_name(device)}, {dtype} products"
        self._source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)
        shape = (_MATRIX_SIZE, _MATRIX_SIZE)
        # Random, because a GPU that multiplies zeros needs less power and runs faster.
        self._left = torch.randn(shape, device=device).to(_MATRIX_DTYPES[dtype])
        self._right = torch.randn(shape, device=device).to(_MATRIX_DTYPES[dtype])
        self._product = torch.empty_like(self._left)

    def copy(self) -> None:
        self._target.copy_(self._source)

    def multiply(self) -> None:
        torch.mm(self._left, self._right, out=self._product)


@dataclass
class GpuMeter:
    """Takes one measurement of each limit a round; see `LimitMeter`.

    Args:
        clock: has to wait for the device, see `device_clock`.
    """

    work: DeviceWork
    clock: Clock
    copies: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)

    def measure(self) -> None:
        self.copies.append(best_rate(self.work.copy, self.work.copy_bytes, self.clock))
        self.products.append(best_rate(self.work.multiply, self.work.product_operations, self.clock))

    def found(self) -> Limits:
        return Limits(
            isa=self.work.name,
            read_gb_s=median(self.copies) / 1e9,
            best_read_gb_s=max(self.copies) / 1e9,
            fma_gflop_s=median(self.products) / 1e9,
            best_fma_gflop_s=max(self.products) / 1e9,
            arithmetic="products",
        )


def device_clock(device: str) -> Clock:
    """The wall's time once `device` has done what it was asked for. Can be sent to another process."""
    return partial(_time_when_done, device)


def _time_when_done(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
    return WALL()
