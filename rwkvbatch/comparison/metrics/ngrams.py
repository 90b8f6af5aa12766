"""Batched counts of token n-grams in replies.

A batched equivalent of the `of` functions in `metrics`, which build sets of tuples and would dominate the run time of
a comparison; `tests/comparison/metrics/test_metrics.py` compares the two.

All n-grams of a reply that are equal share a number, their *class*. An n-gram that occurs once has no class, and
neither has any longer n-gram that begins with it, so only the first sort covers all tokens. Two equal n-grams that are
followed by two equal n-grams make two equal 2n-grams, so each step doubles the length (Karp, Miller & Rosenberg 1972).
If an n-gram repeats, one of every smaller length repeats too. The length of the longest repeat is therefore found like
the digits of a binary number: from lengths 2^j, the largest first.
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
        tokens: length of the reply.
        distinct_1, distinct_2: number of different tokens, and of different pairs of adjacent tokens.
        longest_repeat: length of the longest n-gram that occurs twice.
    """

    tokens: Integers
    distinct_1: Integers
    distinct_2: Integers
    longest_repeat: Integers


@dataclass(frozen=True)
class _Level:
    """The repeating n-grams of one length.

    Attributes:
        positions: start positions of the n-grams.
        classes: `[tokens]` the class of the n-gram at each position, -1 without one.
        firsts: one position of each class.
    """

    positions: Integers
    classes: Integers
    firsts: Integers


def count_ngrams(replies: Sequence[array[int]]) -> NgramCounts:
    """Count the n-grams of each reply. `replies` are token ids as arrays of type code `q`."""
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
    """`[replies]` the number of different n-grams among `totals` `[replies]`; `level` is None if none repeats."""
    if level is None:
        return totals
    repeating = np.bincount(owners[level.positions], minlength=totals.size)
    return totals - repeating + np.bincount(owners[level.firsts], minlength=totals.size)


def shares(counts: Integers, totals: Integers) -> NDArray[np.float64]:
    """`counts` / `totals`; NaN where a total is 0 or less."""
    return np.divide(counts, totals, out=np.full(counts.size, np.nan), where=totals > 0)


def _keys(owners: Integers, ids: Integers) -> Integers:
    """`[tokens]` a key for each token, equal for equal ids of the same reply."""
    if not ids.size:
        return ids
    low, high = int(ids.min()), int(ids.max())
    if (int(owners[-1]) + 1) * (high - low + 1) >= 2**63:
        ids = np.unique(ids, return_inverse=True)[1]
        low, high = 0, ids.size
    return owners * (high - low + 1) + (ids - low)


def _level(positions: Integers, keys: Integers, size: int) -> _Level:
    """The n-grams at `positions` whose `keys` repeat, with a class for each such key; `size` is that of all tokens."""
    ordered, order = _sorted(keys)
    equals_previous = np.zeros(order.size, dtype=bool)
    equals_previous[1:] = ordered[1:] == ordered[:-1]
    repeats = equals_previous.copy()
    repeats[:-1] |= equals_previous[1:]
    is_first = repeats & ~equals_previous
    classes = np.full(size, -1)
    repeating_positions = positions[order[repeats]]
    classes[repeating_positions] = np.cumsum(is_first[repeats]) - 1
    return _Level(repeating_positions, classes, positions[order[is_first]])


def _sorted(keys: Integers) -> tuple[Integers, Integers]:
    """The non-negative `keys` in ascending order, and their indices as of `argsort`."""
    bits = keys.size.bit_length()
    if not keys.size or int(keys.max()) >> (63 - bits):
        order = np.argsort(keys)
        return keys[order], order
    # Sorting values is faster than sorting indices, so each index is packed into the low bits of its key.
    packed = np.sort((keys << bits) | np.arange(keys.size))
    return packed >> bits, packed & ((1 << bits) - 1)


def _doubled(level: _Level, n: int, owners: Integers) -> _Level:
    """The repeating 2n-grams, from the repeating n-grams."""
    starts = level.positions[level.positions + n < owners.size]
    second_classes = level.classes[starts + n]
    # A 2n-gram whose halves lie in two replies has a unique key: only one pair of halves meets at a boundary.
    repeats = second_classes >= 0
    starts, second_classes = starts[repeats], second_classes[repeats]
    return _level(starts, level.classes[starts] * owners.size + second_classes, owners.size)


def _longest_repeats(levels: Sequence[_Level], owners: Integers, num_replies: int) -> Integers:
    """`[replies]` the length of the longest n-gram that occurs twice."""
    lengths = np.zeros(num_replies, dtype=np.int64)
    # `classes` are those of the n-grams of `lengths[reply]` tokens, at first of 0 tokens, which are all equal. A class
    # below its reply's floor belongs to a shorter length: the n-gram at the current length does not repeat.
    classes, floors, next_class = owners.copy(), np.zeros(num_replies, dtype=np.int64), num_replies
    for j in reversed(range(len(levels))):
        # Extend the n-grams that end where a repeating 2^j-gram begins.
        extensions = levels[j].positions
        replies = owners[extensions]
        starts = extensions - lengths[replies]
        fits = starts >= 0
        fits[fits] = owners[starts[fits]] == replies[fits]
        fits[fits] = classes[starts[fits]] >= floors[replies[fits]]
        starts, extensions = starts[fits], extensions[fits]
        longer = _level(starts, classes[starts] * owners.size + levels[j].classes[extensions], owners.size)
        classes[longer.positions] = longer.classes[longer.positions] + next_class
        gained = np.flatnonzero(np.bincount(owners[longer.positions], minlength=num_replies))
        lengths[gained] += 1 << j
        floors[gained] = next_class
        next_class += longer.firsts.size
    return lengths
