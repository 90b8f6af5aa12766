"""The machine's limits: memory bandwidth and arithmetic throughput, measured in turn with the workloads."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from rwkvbatch.bench.workloads import WALL, Clock
from rwkvbatch.model.base import Model
from rwkvbatch.model.rwkv7 import Rwkv7Model
from rwkvbatch.model.strategy import DTYPES

if TYPE_CHECKING:
    from rwkvbatch.model.ops.cpu import CpuOps

_READ_FLOATS = 64 << 20
"""256 MiB: more than any cache."""
_ROUNDS_PER_PEAK = 60_000


@dataclass(frozen=True)
class Rates:
    """One measurement: bytes of memory per second, operations per second; see `Limits`."""

    read: float
    fma: float
    arithmetic: str = "fma"


@dataclass(frozen=True)
class Limits:
    """The limits of a machine: medians over the rounds, and the best round.

    Attributes:
        isa: the instruction set that is used, or the GPU's name and the precision of the products.
        read_gb_s: memory read by all threads, 10^9 bytes per second; on a GPU bytes read and written in a copy.
        fma_gflop_s: fp32 operations in fused multiply-adds, two each; on a GPU operations of a large matrix product
            in the model's precision.
        arithmetic: which of these `fma_gflop_s` is: `fma` or `products`.
    """

    isa: str
    read_gb_s: float
    best_read_gb_s: float
    fma_gflop_s: float
    best_fma_gflop_s: float
    arithmetic: str = "fma"


class Meter(Protocol):
    """Measures the limits of a machine."""

    def measure(self) -> Rates | None:
        """Measure both limits once; None if they cannot be measured."""
        ...

    def found(self) -> Limits | None:
        """The result; None if nothing could be measured."""
        ...


@dataclass
class LimitMeter:
    """`Meter` of a CPU. The limits change with the load of the machine, so each call measures them again.

    Args:
        model: its threads and instruction set are used; measures nothing unless its backend is native.
    """

    model: Model
    clock: Clock = WALL
    _measured: list[Rates] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._kernels = native_ops(self.model)
        self._memory = np.ones(_READ_FLOATS if self._kernels else 0, dtype=np.float32)

    def measure(self) -> Rates | None:
        if self._kernels is None:
            return None
        kernels, memory = self._kernels, self._memory
        operations = kernels.operations(_ROUNDS_PER_PEAK)
        rates = Rates(
            read=best_rate(lambda: kernels.read_all(memory), memory.nbytes, self.clock),
            fma=best_rate(lambda: kernels.multiply_add(_ROUNDS_PER_PEAK), operations, self.clock),
        )
        self._measured.append(rates)
        return rates

    def found(self) -> Limits | None:
        if self._kernels is None:
            return None
        return limits_from(self._kernels.isa, self._measured)


def limits_from(name: str, measured: Sequence[Rates]) -> Limits:
    """Medians and best of `measured`, which may not be empty; `name` is the `Limits.isa`."""
    reads, peaks = [rates.read for rates in measured], [rates.fma for rates in measured]
    return Limits(
        isa=name,
        read_gb_s=median(reads) / 1e9,
        best_read_gb_s=max(reads) / 1e9,
        fma_gflop_s=median(peaks) / 1e9,
        best_fma_gflop_s=max(peaks) / 1e9,
        arithmetic=measured[0].arithmetic,
    )


def best_rate(once: Callable[[], object], amount: float, clock: Clock) -> float:
    """The amount per second, the best of three calls."""
    best = float("inf")
    for _ in range(3):
        start = clock()
        once()
        best = min(best, clock() - start)
    return amount / best


def native_ops(model: Model) -> CpuOps | None:
    """The native operations that `model` runs on, or None."""
    if not isinstance(model, Rwkv7Model) or model.ops.name != "cpu":
        return None
    from rwkvbatch.model.ops.cpu import CpuOps

    return model.ops if isinstance(model.ops, CpuOps) else None


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


_COPIED_BYTES = 512 << 20
"""More than any cache."""
_MATRIX_SIZE = 8192


class DeviceWork(Protocol):
    """Work that measures a device. Both functions may return before the device is done: the clock waits for it."""

    name: str
    copy_bytes: float
    product_operations: float

    def copy(self) -> None:
        """Copy memory; `copy_bytes` counts bytes read and bytes written."""
        ...

    def multiply(self) -> None:
        """Compute one matrix product of `product_operations` floating-point operations."""
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
        precision = DTYPES[dtype]  # pyright: ignore[reportArgumentType]
        self._left = torch.randn(shape, device=device).to(precision)
        self._right = torch.randn(shape, device=device).to(precision)
        self._product = torch.empty_like(self._left)

    def copy(self) -> None:
        self._target.copy_(self._source)

    def multiply(self) -> None:
        torch.mm(self._left, self._right, out=self._product)


@dataclass
class GpuMeter:
    """`Meter` of a GPU; `clock` must wait for the device, see `device_clock`."""

    work: DeviceWork
    clock: Clock
    _measured: list[Rates] = field(default_factory=list)

    def measure(self) -> Rates:
        work = self.work
        rates = Rates(
            read=best_rate(work.copy, work.copy_bytes, self.clock),
            fma=best_rate(work.multiply, work.product_operations, self.clock),
            arithmetic="products",
        )
        self._measured.append(rates)
        return rates

    def found(self) -> Limits:
        return limits_from(self.work.name, self._measured)


def device_clock(device: str) -> Clock:
    """Wall time after `device` has finished its work. Can be sent to another process."""
    return partial(_time_when_done, device)


def _time_when_done(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
    return WALL()
