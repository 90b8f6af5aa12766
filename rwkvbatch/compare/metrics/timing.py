"""Time to first token, and speed. Shown, never tested: two runs differ by the machine's load."""

from __future__ import annotations

from rwkvbatch.compare.metrics.base import Metric, RawRow, replied


def _first_token_s(row: RawRow) -> float | None:
    return row["timing"]["first_token_s"] if replied(row) else None


def _tokens_per_s(row: RawRow) -> float | None:
    return row["timing"]["tokens_per_s"] if replied(row) else None


METRICS = (
    Metric("first_token_s", "time to first token", "lower", unit="s", of=_first_token_s, tested=False),
    Metric("tokens_per_s", "speed", "higher", unit="tokens/s", digits=1, of=_tokens_per_s, tested=False),
)
