"""What a benchmark found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rwkvbatch.bench.workloads import WALL, Clock
from rwkvbatch.model.base import Model
from rwkvbatch.model.rwkv7 import Rwkv7Model

if TYPE_CHECKING:
    from rwkvbatch.model.ops.cpu import CpuOps

_READ_FLOATS = 64 << 20
"""256 MiB: more than any cache."""
_ROUNDS_PER_PEAK = 60_000


class Meter(Protocol):
    """Measures a machine's limits."""

    def measure(self) -> Rates | None:
        """Take one measurement of each; None where nothing can be."""
        ...

    def found(self) -> Limits | None:
        """What was measured; None where nothing could be."""
        ...


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
        operations = kernels.operations(_ROUNDS_PER_PEAK)
        rates = Rates(
            read=best_rate(lambda: kernels.read_all(memory), memory.nbytes, self.clock),
            fma=best_rate(lambda: kernels.multiply_add(_ROUNDS_PER_PEAK), operations, self.clock),
        )
        self._measured.append(rates)
        return rates

    def found(self) -> Limits | None:
        """None for a backend that is not native."""
        if self._kernels is None:
            return None
        return limits_from(self._kernels.isa, self._measured)


def limits_from(name: str, measured: Sequence[Rates]) -> Limits:
    """Medians and best of what was `measured`, at least once; `name` is the `Limits.isa`."""
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


@dataclass(frozen=True)
class Rates:
    """What the machine could do at one moment: bytes of memory a second, operations a second; see `Limits`."""

    read: float
    fma: float
    arithmetic: str = "fma"


@dataclass(frozen=True)
class Limits:
    """What the machine can do at best, medians over the rounds and the best round.

    Attributes:
        isa: the instruction set that is used, or the GPU's name and the precision of the products.
        read_gb_s: memory read by all threads together, 10^9 bytes a second; on a GPU bytes read and written in a copy.
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


@dataclass(frozen=True)
class Figure:
    """One measured quantity.

    Attributes:
        name: such as `decode, 64 rows`.
        unit: of `median` and `best`: `tokens/s`, `ms/row`, `MB/s`.
        median, best: over the rounds.
        limit: what bounds it, `memory` or arithmetic (`fma`, `products`); None where neither does.
        share: time at the limit's rate over time taken, the limit measured right before; median over the rounds.
        package: the `rwkv` package's median, in the same unit, measured in turn with ours.
        ratio: how many times faster than that, by the medians.
    """

    name: str
    unit: str
    median: float
    best: float
    limit: str | None = None
    share: float | None = None
    package: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Loading:
    """Attributes:
    seconds: from the file to a model that can run.
    checkpoint_mb: size of the file.
    resident_mb: growth of the process's resident memory by the loaded model, 10^6 bytes.
    resident_share: `resident_mb` over `checkpoint_mb`.
    """

    seconds: float
    checkpoint_mb: float
    resident_mb: float | None
    resident_share: float | None


@dataclass(frozen=True)
class Report:
    """One run of the benchmark; `clock` is `wall`, or `processor` for the time of one thread on it."""

    model: str
    parameters: int
    dtype: str
    backend: str
    threads: int
    rounds: int
    clock: str
    version: str
    torch: str
    machine: str
    load_average_before: float | None
    loading: Loading
    limits: Limits | None
    figures: tuple[Figure, ...]
    against: str | None


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
