"""How likely the model finds the script's reference replies.

Perplexity is exp(mean nll): one number for a set of rows, not for a row; it restates nll and is not tested
again.
"""

from __future__ import annotations

from rwkvbatch.compare.metrics.base import Metric, RawRow


def _nll(row: RawRow) -> float | None:
    return None if row["reference"] is None else row["reference"]["nll"]


def _matched(row: RawRow) -> float | None:
    return None if row["reference"] is None else row["reference"]["matched"]


METRICS = (
    Metric("nll", "reference nll", "lower", unit="nats/token", of=_nll),
    Metric("perplexity", "reference perplexity", "lower", of=_nll, tested=False, exponential=True),
    Metric("matched", "reference tokens matched", "higher", of=_matched, highest=1.0),
)
