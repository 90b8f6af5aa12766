"""The machine's two limits: reading memory and multiplying, measured with the backend's threads and instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rwkvbatch.bench.records import Limits, Rates, median
from rwkvbatch.bench.workloads import WALL, Clock
from rwkvbatch.model.base import Model
from rwkvbatch.model.rwkv7_model import Rwkv7Model

if TYPE_CHECKING:
    from rwkvbatch.model.ops.cpu import CpuOps

_READ_FLOATS = 64 << 20
"""256 MiB: more than any cache."""
_ROUNDS_PER_PEAK = 60_000


@dataclass
class LimitMeter:
    """Measures both limits, each time it is asked to: what a machine can do changes with what its neighbours do.

    Args:
        model: whose threads and instruction set are used; needs the native backend.
    """

    model: Model
    clock: Clock = WALL
    _measured: list[Rates] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._kernels = native_ops(self.model)
        self._memory = np.ones(_READ_FLOATS if self._kernels else 0, dtype=np.float32)

    def measure(self) -> Rates | None:
        """None for a backend that is not native."""
        if self._kernels is None:
            return None
        kernels, memory = self._kernels, self._memory
        rates = Rates(
            read=self._rate(lambda: kernels.read_all(memory), memory.nbytes),
            fma=self._rate(
                lambda: kernels.multiply_add(_ROUNDS_PER_PEAK), kernels.operations(_ROUNDS_PER_PEAK)
            ),
        )
        self._measured.append(rates)
        return rates

    def _rate(self, once: Callable[[], object], amount: float) -> float:
        """The best of three, an amount a second."""
        best = float("inf")
        for _ in range(3):
            start = self.clock()
            once()
            best = min(best, self.clock() - start)
        return amount / best

    def found(self) -> Limits | None:
        """None for a backend that is not native."""
        if self._kernels is None:
            return None
        reads, peaks = [rates.read for rates in self._measured], [rates.fma for rates in self._measured]
        return Limits(
            isa=self._kernels.isa,
            read_gb_s=median(reads) / 1e9,
            best_read_gb_s=max(reads) / 1e9,
            fma_gflop_s=median(peaks) / 1e9,
            best_fma_gflop_s=max(peaks) / 1e9,
        )


def native_ops(model: Model) -> CpuOps | None:
    """The native operations that `model` runs on, or None."""
    if not isinstance(model, Rwkv7Model) or model.ops.name != "cpu":
        return None
    from rwkvbatch.model.ops.cpu import CpuOps

    return model.ops if isinstance(model.ops, CpuOps) else None
