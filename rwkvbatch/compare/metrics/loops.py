"""The loop detector: how much of a reply its longest repeated n-gram takes up.

The length of the longest n-gram of tokens that occurs at least twice (the two may overlap) over the reply's
length. A reply that repeats a phrase of p tokens to its end of L tokens scores (L - p) / L, near 1; ordinary
prose, whose longest repeat is a common phrase, stays near 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from rwkvbatch.compare.metrics.base import Metric, RawRow
from rwkvbatch.compare.metrics.ngrams import as_characters, pairs, ranks


def longest_repeat(ids: Sequence[int]) -> int:
    """The length of the longest run of tokens that occurs twice in `ids`; 0 when all tokens differ.

    If some n-gram occurs twice, so does one of every smaller n, so the length can be searched by doubling and
    halving. An m-gram with n <= m <= 2n is told by its first and its last n tokens, and n-grams are replaced by their
    ranks at each doubling, so that no gram is ever longer than two characters (Karp, Miller & Rosenberg 1972).
    """
    grams, n = as_characters(ids), 1
    if len(set(grams)) == len(grams):
        return 0
    while 2 * n < len(ids) and _occurs_twice(grams, n):
        grams, n = ranks(pairs(grams, n)), 2 * n
    known, failed = n, min(2 * n, len(ids))
    while failed - known > 1:
        middle = (known + failed) // 2
        if _occurs_twice(grams, middle - n):
            known = middle
        else:
            failed = middle
    return known


def _occurs_twice(grams: str, distance: int) -> bool:
    return len(set(pairs(grams, distance))) < len(grams) - distance


def _loop(row: RawRow) -> float | None:
    ids: list[int] = row["reply_ids"]
    return longest_repeat(ids) / len(ids) if ids else None


METRICS = (Metric("loop", "longest repeat", "lower", of=_loop),)
