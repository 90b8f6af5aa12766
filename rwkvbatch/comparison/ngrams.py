"""Token n-grams of many replies at once, in arrays.

A batched equivalent of the `of` functions in `metrics`, which build sets of tuples and would dominate the run time of
a comparison; `tests/comparison/test_metrics.py` compares the two.

An n-gram that repeats within its reply gets a *class*: a number shared by equal n-grams of the same reply. An n-gram
that does not repeat has none, and neither does any longer one that begins with it, so only the first sort covers all
tokens. Two equal n-grams followed by two equal n-grams make two equal 2n-grams, so lengths are doubled (Karp, Miller &
Rosenberg 1972). If an n-gram repeats, so does one of every smaller n: the longest repeat is assembled like a binary
number from lengths 2^j, the largest first.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class NgramCounts:
    """Counts by reply, each `[replies]`.

    Attributes:
        tokens: the length of the reply.
        distinct_1, distinct_2: numbers of different tokens and different pairs of adjacent tokens.
        longest_repeat: the length of the longest n-gram that occurs twice.
    """

    tokens: Integers
    distinct_1: Integers
    distinct_2: Integers
    longest_repeat: Integers


@dataclass(frozen=True)
class _Level:
    """The repeating n-grams of one length: their positions, their classes by position (-1 elsewhere).

    `firsts` holds one position of each class.
    """

    positions: Integers
    classes: Integers
    firsts: Integers


def count_ngrams(replies: Sequence[array[int]]) -> NgramCounts:
    """Counts the n-grams of each reply. `replies` are token ids as arrays of type code `q`."""
    tokens = np.array([len(ids) for ids in replies], dtype=np.int64)
    ids = np.frombuffer(b"".join(replies), dtype=np.int64)
    owners = np.repeat(np.arange(len(replies)), tokens)
    level = _level(np.arange(ids.size), _keys(owners, ids), ids.size)
    levels = [level]
    while level.positions.size:
        level = _doubled(level, 1 << (len(levels) - 1), owners)
        levels.append(level)
    return NgramCounts(
        tokens,
        _distinct(tokens, levels[0], owners),
        _distinct(np.maximum(tokens - 1, 0), levels[1] if len(levels) > 1 else None, owners),
        _longest_repeats(levels, owners, tokens.size),
    )


def _distinct(totals: Integers, level: _Level | None, owners: Integers) -> Integers:
    """By reply, the number of different ones among its `totals` n-grams. `level` None: none repeats."""
    if level is None:
        return totals
    again = np.bincount(owners[level.positions], minlength=totals.size)
    return totals - again + np.bincount(owners[level.firsts], minlength=totals.size)


def shares(counts: Integers, totals: Integers) -> NDArray[np.float64]:
    """`counts` / `totals`; NaN where a total is 0 or less."""
    return np.divide(counts, totals, out=np.full(counts.size, np.nan), where=totals > 0)


def _keys(owners: Integers, ids: Integers) -> Integers:
    """A number per token, equal for equal ids of the same reply."""
    if not ids.size:
        return ids
    low, high = int(ids.min()), int(ids.max())
    if (int(owners[-1]) + 1) * (high - low + 1) >= 2**63:
        ids = np.unique(ids, return_inverse=True)[1]
        low, high = 0, ids.size
    return owners * (high - low + 1) + (ids - low)


def _level(positions: Integers, keys: Integers, size: int) -> _Level:
    """Those of `positions` whose keys repeat, with a class for each such key."""
    ordered, order = _sorted(keys)
    as_before = np.zeros(order.size, dtype=bool)
    as_before[1:] = ordered[1:] == ordered[:-1]
    again = as_before.copy()
    again[:-1] |= as_before[1:]
    first = again & ~as_before
    classes = np.full(size, -1)
    found = positions[order[again]]
    classes[found] = np.cumsum(first[again]) - 1
    return _Level(found, classes, positions[order[first]])


def _sorted(keys: Integers) -> tuple[Integers, Integers]:
    """`keys`, not negative, in ascending order, and their places."""
    bits = keys.size.bit_length()
    if not keys.size or int(keys.max()) >> (63 - bits):
        order = np.argsort(keys)
        return keys[order], order
    # Numbers sort faster than places: each place is written behind its key.
    both = np.sort((keys << bits) | np.arange(keys.size))
    return both >> bits, both & ((1 << bits) - 1)


def _doubled(level: _Level, n: int, owners: Integers) -> _Level:
    """From n-grams to 2n-grams."""
    starts = level.positions[level.positions + n < owners.size]
    follows = level.classes[starts + n]
    # Keys of 2n-grams that span the end of a reply are unique.
    fits = follows >= 0
    starts, follows = starts[fits], follows[fits]
    return _level(starts, level.classes[starts] * owners.size + follows, owners.size)


def _longest_repeats(levels: Sequence[_Level], owners: Integers, num_replies: int) -> Integers:
    """By reply, the length of its longest n-gram that occurs twice."""
    lengths = np.zeros(num_replies, dtype=np.int64)
    # Classes of the n-grams of `lengths[reply]` tokens: at first of 0 tokens, all equal. Those below the reply's
    # floor belong to a shorter length and do not repeat at the current one.
    classes, floors, next_class = owners.copy(), np.zeros(num_replies, dtype=np.int64), num_replies
    for j in reversed(range(len(levels))):
        follows = levels[j].positions
        replies = owners[follows]
        starts = follows - lengths[replies]
        fits = starts >= 0
        fits[fits] = owners[starts[fits]] == replies[fits]
        fits[fits] = classes[starts[fits]] >= floors[replies[fits]]
        starts, follows = starts[fits], follows[fits]
        longer = _level(starts, classes[starts] * owners.size + levels[j].classes[follows], owners.size)
        classes[longer.positions] = longer.classes[longer.positions] + next_class
        gained = np.flatnonzero(np.bincount(owners[longer.positions], minlength=num_replies))
        lengths[gained] += 1 << j
        floors[gained] = next_class
        next_class += longer.firsts.size
    return lengths
