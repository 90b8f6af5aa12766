"""How likely the model finds its own reply, in nats per token."""

from __future__ import annotations

import math

from rwkvbatch.compare.metrics.base import Metric, RawRow, replied


def _logprob(row: RawRow) -> float | None:
    return row["logprob"]["mean"] if replied(row) else None


METRICS = (
    Metric(
        "logprob",
        "own log-probability",
        "none",
        unit="nats/token",
        of=_logprob,
        lowest=-math.inf,
        highest=0.0,
    ),
)
