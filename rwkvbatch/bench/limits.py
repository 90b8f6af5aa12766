"""Measurement of a machine's limits: memory bandwidth and arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from rwkvbatch.bench.workloads import PROCESSOR, WALL, Clock, device_clock, native_ops, timed
from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import Model
from rwkvbatch.model.strategy import DTYPES

if TYPE_CHECKING:
    from rwkvbatch.model.ops.cpu import CpuOps

_LEAST_READ_BYTES = 256 << 20
_PROCESSORS = Path("/sys/devices/system/cpu")
_COPIED_BYTES = 512 << 20
_MATRIX_SIZE = 8192
_ROUNDS_PER_PEAK = 60_000


@dataclass(frozen=True)
class Rates:
    """One measurement: bytes of memory per second, and operations per second; see `Limits`."""

    read: float
    fma: float
    arithmetic: str = "fma"


@dataclass(frozen=True)
class Limits:
    """The limits of a machine: medians over the rounds, and the best round.

    Attributes:
        isa: the instruction set in use, or the GPU's name and the precision of the products.
        read_gb_s: memory read by all threads, in 10^9 bytes per second; on a GPU, bytes read and written by a copy.
        fma_gflop_s: 10^9 fp32 operations per second in fused multiply-adds, which count as two; on a GPU, operations of
            a large matrix product in the model's precision.
        arithmetic: which of the two `fma_gflop_s` is: `fma` or `products`.
    """

    isa: str
    read_gb_s: float
    best_read_gb_s: float
    fma_gflop_s: float
    best_fma_gflop_s: float
    arithmetic: str = "fma"


@dataclass(frozen=True)
class DeviceWork:
    """Work that measures a device. Both functions may return before the device is done, because the clock waits for it.

    Attributes:
        name: the `Limits.isa`.
        arithmetic: the `Limits.arithmetic`.
        copy_bytes: number of bytes that `copy` reads and writes.
        product_operations: number of floating-point operations of `multiply`.
    """

    name: str
    arithmetic: str
    copy: Callable[[], object]
    copy_bytes: float
    multiply: Callable[[], object]
    product_operations: float


def native_work(ops: CpuOps) -> DeviceWork:
    """Memory reads and multiply-adds with the threads and instruction set of native operations."""
    memory = np.ones(bytes_beyond_caches(_PROCESSORS) // 4, dtype=np.float32)
    read, multiply = partial(ops.native.read_all, memory), partial(ops.native.multiply_add, _ROUNDS_PER_PEAK)
    return DeviceWork(ops.isa, "fma", read, memory.nbytes, multiply, ops.native.operations(_ROUNDS_PER_PEAK))


def bytes_beyond_caches(processors: Path) -> int:
    """A number of bytes of which the last-level caches of the processors hold at most half; 256 MiB or more.

    Args:
        processors: the folder in which Linux describes processors and their caches, see
            Documentation/ABI/stable/sysfs-devices-system-cpu. Without it, caches are taken to be smaller than 128 MiB
            together.
    """
    sizes: dict[str, int] = {}
    for cache in processors.glob("cpu[0-9]*/cache/index3"):
        with suppress(OSError, ValueError):
            shared_by = (cache / "shared_cpu_list").read_text()
            sizes[shared_by] = int((cache / "size").read_text().strip().removesuffix("K")) << 10
    return max(_LEAST_READ_BYTES, 2 * sum(sizes.values()))


def torch_work(device: str, dtype: str) -> DeviceWork:
    """Copies and matrix products by torch on `device`, in the model's dtype (`fp32`, `bf16` or `fp16`)."""
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    # The matrices are random, because a GPU that multiplies zeros needs less power and runs faster.
    precision = DTYPES[dtype]  # pyright: ignore[reportArgumentType]
    left, right = (torch.randn((_MATRIX_SIZE, _MATRIX_SIZE), device=device).to(precision) for _ in range(2))
    multiply = partial(torch.mm, left, right, out=torch.empty_like(left))
    name = f"{torch.cuda.get_device_name(device)}, {dtype} products"
    return DeviceWork(name, "products", copy, 2.0 * _COPIED_BYTES, multiply, 2.0 * _MATRIX_SIZE**3)


@dataclass
class Meter:
    """Measures both limits in each call of `measure`, because they change with the load of the machine.

    Args:
        work: None for a backend whose limits cannot be measured.
        clock: a clock that waits for the device, see `device_clock`.
    """

    work: DeviceWork | None
    clock: Clock = WALL
    _measured: list[Rates] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model, *, processor_time: bool = False) -> Meter:
        """The meter and clock for the backend and device of `model`.

        Raises:
            UsageError: processor time is requested for a model on a GPU.
        """
        ops, spec = native_ops(model), model.spec
        if spec.device != "cpu" and processor_time:
            raise UsageError("--cpu-time measures the time of a CPU thread, but the model is on a GPU")
        clock = PROCESSOR if processor_time else device_clock(spec.device)
        if spec.backend.startswith("cuda"):
            return cls(torch_work(spec.device, spec.dtype), clock)
        return cls(None if ops is None else native_work(ops), clock)

    def measure(self) -> Rates | None:
        """Measure both limits once; None if they cannot be measured."""
        if (work := self.work) is None:
            return None
        read = best_rate(work.copy, work.copy_bytes, self.clock)
        self._measured.append(
            Rates(read, best_rate(work.multiply, work.product_operations, self.clock), work.arithmetic)
        )
        return self._measured[-1]

    def limits(self) -> Limits | None:
        """Medians and maxima of the measurements; None if there are none."""
        if self.work is None or not self._measured:
            return None
        reads = [rates.read / 1e9 for rates in self._measured]
        peaks = [rates.fma / 1e9 for rates in self._measured]
        return Limits(self.work.name, median(reads), max(reads), median(peaks), max(peaks), self.work.arithmetic)


def best_rate(once: Callable[[], object], amount: float, clock: Clock) -> float:
    """`amount` per second in the fastest of three calls."""
    return amount / min(timed(clock, once) for _ in range(3))
