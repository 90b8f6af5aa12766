"""distinct-1 and distinct-2: different n-grams over all n-grams of a reply (Li et al. 2016), here over tokens."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.compare.metrics.base import Metric, RawRow
from rwkvbatch.compare.metrics.ngrams import NgramCounts, shares


def _distinct_1(row: RawRow) -> float | None:
    ids = row["reply_ids"]
    return len(set(ids)) / len(ids) if ids else None


def _distinct_2(row: RawRow) -> float | None:
    ids = row["reply_ids"]
    return len(set(pairwise(ids))) / (len(ids) - 1) if len(ids) > 1 else None


def _all_distinct_1(counts: NgramCounts) -> NDArray[np.float64]:
    return shares(counts.distinct_1, counts.tokens)


def _all_distinct_2(counts: NgramCounts) -> NDArray[np.float64]:
    return shares(counts.distinct_2, counts.tokens - 1)


METRICS = (
    Metric("distinct1", "distinct-1", "none", of=_distinct_1, of_ngrams=_all_distinct_1, highest=1.0),
    Metric("distinct2", "distinct-2", "none", of=_distinct_2, of_ngrams=_all_distinct_2, highest=1.0),
)
