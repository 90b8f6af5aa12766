"""The processor's two limits: reading memory and multiplying, with the backend's threads and instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rwkvbatch.bench.records import Limits, median
from rwkvbatch.bench.workloads import WALL, Clock
from rwkvbatch.model.base import Model
from rwkvbatch.model.rwkv7_model import Rwkv7Model

if TYPE_CHECKING:
    from rwkvbatch.model.ops.cpu import CpuOps

_READ_FLOATS = 64 << 20
"""256 MiB: more than any cache."""
_ROUNDS_PER_PEAK = 60_000


class Meter(Protocol):
    """Measures a machine's limits."""

    def measure(self) -> None:
        """Take one measurement of each."""
        ...

    def found(self) -> Limits | None:
        """What was measured; None where nothing could be."""
        ...


@dataclass
class LimitMeter:
    """Takes one measurement of each limit a round.

    Args:
        model: whose threads and instruction set are used; needs the native backend.
    """

    model: Model
    clock: Clock = WALL
    reads: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._kernels = native_ops(self.model)
        self._memory = np.ones(_READ_FLOATS if self._kernels else 0, dtype=np.float32)

    def measure(self) -> None:
        if self._kernels is None:
            return
        kernels, memory = self._kernels, self._memory
        self.reads.append(best_rate(lambda: kernels.read_all(memory), memory.nbytes, self.clock))
        operations = kernels.operations(_ROUNDS_PER_PEAK)
        self.peaks.append(best_rate(lambda: kernels.multiply_add(_ROUNDS_PER_PEAK), operations, self.clock))

    def found(self) -> Limits | None:
        """None for a backend that is not native."""
        if self._kernels is None:
            return None
        return Limits(
            isa=self._kernels.isa,
            read_gb_s=median(self.reads) / 1e9,
            best_read_gb_s=max(self.reads) / 1e9,
            fma_gflop_s=median(self.peaks) / 1e9,
            best_fma_gflop_s=max(self.peaks) / 1e9,
        )


def best_rate(once: Callable[[], object], amount: float, clock: Clock) -> float:
    """The best of three, an amount a second."""
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
