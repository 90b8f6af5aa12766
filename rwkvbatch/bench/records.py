"""What a benchmark found."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


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
        share: time at the limit's rate over time taken, by the medians.
        best_share: the same for the best round, against the best that the limits showed.
        package: the `rwkv` package's median, in the same unit, measured in turn with ours.
        ratio: how many times faster than that, by the medians.
    """

    name: str
    unit: str
    median: float
    best: float
    limit: str | None = None
    share: float | None = None
    best_share: float | None = None
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
