"""What a metric is: data about a number of a row, and how to get it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.compare.metrics.ngrams import NgramCounts

RawRow = Mapping[str, Any]
"""One line of `results.jsonl` as JSON gave it; the keys are the fields of `rwkvbatch.run.results.rows.Row`."""

Better = Literal["higher", "lower", "none"]
Level = Literal["turn", "conversation"]


@dataclass(frozen=True)
class Metric:
    """One number that a turn (or, with `level` "conversation", a conversation's repeats) can be judged by.

    Attributes:
        name: column name, and the name in a gate's expression.
        title: what a table's reader sees.
        unit: of the number; empty for shares and scores.
        better: which way is better; `none` where that is a matter of taste.
        digits: decimals worth showing.
        of: the number of one row, or None where the row has none; metrics by conversation have none here.
        of_ngrams: the same numbers for many replies at once, NaN for None, where `of` would take long.
        level: what one number belongs to.
        tested: whether a difference gets a p-value and counts in the correction for many tests. Not so for
            timings, whose noise (the machine's load) is not drawn anew for each conversation, nor for what
            only restates another metric.
        exponential: the mean is shown as exp(mean).
        lowest, highest: what the number can be at all (the exponent's, where `exponential`). An interval of a mean
            ends there: the true mean cannot lie beyond.
    """

    name: str
    title: str
    better: Better
    unit: str = ""
    digits: int = 3
    of: Callable[[RawRow], float | None] | None = None
    of_ngrams: Callable[[NgramCounts], NDArray[np.float64]] | None = None
    level: Level = "turn"
    tested: bool = True
    exponential: bool = False
    lowest: float = 0.0
    highest: float = math.inf


def exponential(value: float) -> float:
    """exp(value); infinite where a float has no room for it."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def replied(row: RawRow) -> bool:
    """Whether the row has a reply that numbers can be taken of: its turn did not end in an error."""
    return row["finish"] != "error"
