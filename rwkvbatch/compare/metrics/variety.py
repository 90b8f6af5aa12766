"""distinct-1 and distinct-2: different n-grams over all n-grams of a reply (Li et al. 2016), here over tokens."""

from __future__ import annotations

from rwkvbatch.compare.metrics.base import Metric, RawRow
from rwkvbatch.compare.metrics.ngrams import as_characters, pairs


def _distinct_1(row: RawRow) -> float | None:
    ids = row["reply_ids"]
    return len(set(ids)) / len(ids) if ids else None


def _distinct_2(row: RawRow) -> float | None:
    ids = row["reply_ids"]
    return len(set(pairs(as_characters(ids), 1))) / (len(ids) - 1) if len(ids) > 1 else None


METRICS = (
    Metric("distinct1", "distinct-1", "none", of=_distinct_1),
    Metric("distinct2", "distinct-2", "none", of=_distinct_2),
)
