"""Reply length."""

from __future__ import annotations

from rwkvbatch.compare.metrics.base import Metric, RawRow, replied


def _tokens(row: RawRow) -> float | None:
    return float(row["tokens"]["reply"]) if replied(row) else None


METRICS = (Metric("tokens", "reply length", "none", unit="tokens", digits=1, of=_tokens),)
