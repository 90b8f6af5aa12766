"""The loop detector: how much of a reply its longest repeated n-gram takes up.

The length of the longest n-gram of tokens that occurs at least twice (the two may overlap) over the reply's
length. A reply that repeats a phrase of p tokens to its end of L tokens scores (L - p) / L, near 1; ordinary
prose, whose longest repeat is a common phrase, stays near 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from rwkvbatch.compare.metrics.base import Metric, RawRow


def longest_repeat(ids: Sequence[int]) -> int:
    """The length of the longest run of tokens that occurs twice in `ids`; 0 when all tokens differ.

    If some n-gram occurs twice, so does one of every smaller n; so the length is searched by doubling and
    halving.
    """
    # Tokens as characters: slices of a string are cheap to make and to hash.
    text = "".join(map(chr, ids))

    def occurs_twice(n: int) -> bool:
        num_grams = len(text) - n + 1
        return len({text[start : start + n] for start in range(num_grams)}) < num_grams

    known, probe = 0, 1
    while probe < len(text) and occurs_twice(probe):
        known, probe = probe, probe + 1 if probe < 4 else 2 * probe
    failed = min(probe, len(text))
    while failed - known > 1:
        middle = (known + failed) // 2
        if occurs_twice(middle):
            known = middle
        else:
            failed = middle
    return known


def _loop(row: RawRow) -> float | None:
    ids: list[int] = row["reply_ids"]
    return longest_repeat(ids) / len(ids) if ids else None


METRICS = (Metric("loop", "longest repeat", "lower", of=_loop),)
