"""The metrics, one family a file, in the order in which tables show them."""

from __future__ import annotations

from typing import Final

from rwkvbatch.compare.metrics import (
    checks,
    finish,
    length,
    likelihood,
    loops,
    reference,
    timing,
    variety,
)
from rwkvbatch.compare.metrics.base import Metric, RawRow
from rwkvbatch.compare.metrics.repeats import pass_metrics, pass_values

TURN_METRICS: Final[tuple[Metric, ...]] = (
    *checks.METRICS,
    *reference.METRICS,
    *finish.METRICS,
    *length.METRICS,
    *likelihood.METRICS,
    *variety.METRICS,
    *loops.METRICS,
    *timing.METRICS,
)
"""All metrics that every single turn has."""

__all__ = ["TURN_METRICS", "Metric", "RawRow", "pass_metrics", "pass_values"]
