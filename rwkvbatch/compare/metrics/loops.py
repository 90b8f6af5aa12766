"""The loop detector: how much of a reply its longest repeated n-gram takes up.

The length of the longest n-gram of tokens that occurs at least twice (the two may overlap) over the reply's
length. A reply that repeats a phrase of p tokens to its end of L tokens scores (L - p) / L, near 1; ordinary
prose, whose longest repeat is a common phrase, stays near 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.compare.metrics.base import Metric, RawRow
from rwkvbatch.compare.metrics.ngrams import NgramCounts, shares


def longest_repeat(ids: Sequence[int]) -> int:
    """The length of the longest run of tokens that occurs twice in `ids`; 0 when all tokens differ."""
    n = 0
    while _occurs_twice(ids, n + 1):  # if a longer one does, so does one of every smaller length
        n += 1
    return n


def _occurs_twice(ids: Sequence[int], n: int) -> bool:
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return len(set(grams)) < len(grams)


def _loop(row: RawRow) -> float | None:
    ids: list[int] = row["reply_ids"]
    return longest_repeat(ids) / len(ids) if ids else None


def _all_loops(counts: NgramCounts) -> NDArray[np.float64]:
    return shares(counts.longest_repeat, counts.tokens)


METRICS = (Metric("loop", "longest repeat", "lower", of=_loop, of_ngrams=_all_loops, highest=1.0),)
