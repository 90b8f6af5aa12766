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


class DeviceWork(Protocol):
    """Work that measures a device. Both functions may return before the device is done: the clock waits for it.

    Attributes:
        name: the `Limits.isa`. arithmetic: the `Limits.arithmetic`.
        copy_bytes: bytes that `copy` reads, and writes if it does.
        product_operations: floating-point operations of `multiply`.
    """

    name: str
    arithmetic: str
    copy_bytes: float
    product_operations: float

    def copy(self) -> None: ...
    def multiply(self) -> None: ...


class NativeWork:
    """Reads memory and computes multiply-adds with the threads and instruction set of native operations."""

    arithmetic = "fma"

    def __init__(self, ops: CpuOps) -> None:
        self.name: str = ops.isa
        self._ops = ops
        self._memory = np.ones(_READ_FLOATS, dtype=np.float32)
        self.copy_bytes: float = self._memory.nbytes
        self.product_operations: float = ops.native.operations(_ROUNDS_PER_PEAK)

    def copy(self) -> None:
        self._ops.native.read_all(self._memory)

    def multiply(self) -> None:
        self._ops.native.multiply_add(_ROUNDS_PER_PEAK)


_COPIED_BYTES = 512 << 20
"""More than any cache."""
_MATRIX_SIZE = 8192


class TorchWork:
    """Copies and products by torch on `device`, in the model's dtype (`fp32`, `bf16` or `fp16`)."""

    copy_bytes = 2.0 * _COPIED_BYTES
    product_operations = 2.0 * _MATRIX_SIZE**3
    arithmetic = "products"

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
class Meter:
    """Measures both limits. They change with the load of the machine, so each call of `measure` measures them again.

    Args:
        work: None for a backend whose limits cannot be measured.
        clock: must wait for the device, see `device_clock`.
    """

    work: DeviceWork | None
    clock: Clock = WALL
    _measured: list[Rates] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model, clock: Clock = WALL) -> Meter:
        """The meter for the backend of `model`: native, CUDA, or none."""
        ops, spec = native_ops(model), model.spec
        if spec.backend.startswith("cuda"):
            return cls(TorchWork(spec.device, spec.dtype), clock)
        return cls(None if ops is None else NativeWork(ops), clock)

    def measure(self) -> Rates | None:
        """Measure both limits once; None if they cannot be measured."""
        work = self.work
        if work is None:
            return None
        rates = Rates(
            read=best_rate(work.copy, work.copy_bytes, self.clock),
            fma=best_rate(work.multiply, work.product_operations, self.clock),
            arithmetic=work.arithmetic,
        )
        self._measured.append(rates)
        return rates

    def found(self) -> Limits | None:
        """Medians and best of the measurements; None if there are none."""
        if self.work is None or not self._measured:
            return None
        reads, peaks = [rates.read for rates in self._measured], [rates.fma for rates in self._measured]
        return Limits(
            isa=self.work.name,
            read_gb_s=median(reads) / 1e9,
            best_read_gb_s=max(reads) / 1e9,
            fma_gflop_s=median(peaks) / 1e9,
            best_fma_gflop_s=max(peaks) / 1e9,
            arithmetic=self.work.arithmetic,
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


def device_clock(device: str) -> Clock:
    """Wall time after `device` has finished its work. Can be sent to another process."""
    return partial(_time_when_done, device)


def _time_when_done(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
    return WALL()
