"""How replies end: of their own accord, or cut off; or in an error."""

from __future__ import annotations

from rwkvbatch.compare.metrics.base import Metric, RawRow, replied


def _stopped(row: RawRow) -> float | None:
    return float(row["finish"] in ("stop", "eos")) if replied(row) else None


def _failed(row: RawRow) -> float:
    return float(not replied(row))


METRICS = (
    Metric("stopped", "ended by itself", "higher", of=_stopped, highest=1.0),
    Metric("failed", "errors", "lower", of=_failed, highest=1.0),
)
