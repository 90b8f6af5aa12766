"""Simultaneous intervals of what significant gates compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.gates import COMPARATORS, Floats, Gate, LinearForm
from rwkvbatch.comparison.paired import LEVEL
from rwkvbatch.comparison.scopes import GateScope
from rwkvbatch.stats.bounded import bounded_interval, unseen_share
from rwkvbatch.stats.family import Difference, compare_family
from rwkvbatch.stats.spread import unlimited_interval


@dataclass(frozen=True)
class Interval:
    """Simultaneous ends of a linear form, and its p-value. `reason`: why no data of this extent could decide.

    `exact`: all pairs are equal and the metric has no limits, so that the ends are those of the sample.
    """

    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    reason: str = ""
    exact: bool = False
    level_each: float = LEVEL


_NOTHING: Final = Interval(reason="no pair has all metrics of the gate")


@dataclass(frozen=True)
class Numbers:
    """A linear form without its constant on `n` pairs."""

    values: Floats
    conversations: NDArray[np.int64]
    repeats: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    weights: Floats | None = None

    @property
    def num_conversations(self) -> int:
        return int(np.unique(self.conversations).size)


def gate_intervals(gate: Gate, scopes: Sequence[GateScope]) -> list[Interval]:
    """Simultaneous intervals of `left - right`."""
    form = gate.form
    assert form is not None, "a significant gate has a linear form"
    numbers = [None if _unjudged(form, scope) else numbers_of(form, scope) for scope in scopes]
    if form.one_sided:
        some = sum(found is not None and found.values.size > 0 for found in numbers)
        return [_alone_interval(gate, form, found, LEVEL / max(1, some)) for found in numbers]
    return _paired_intervals(gate, form, numbers)


def _unjudged(form: LinearForm, scope: GateScope) -> bool:
    """Whether `_statistic` says why there is nothing to judge."""
    return bool(scope.unpaired) or (scope.baseline_label is None and any(value.of_baseline for value in form.weights))


def numbers_of(form: LinearForm, scope: GateScope) -> Numbers:
    """The form on the pairs that have all of its metrics on both sides, as the table has them."""
    first = next(iter(form.weights))
    column = scope.column(first.metric, first.of_baseline)
    total = np.zeros(column.values.size)
    for value, weight in form.weights.items():
        total = total + weight * scope.column(value.metric, value.of_baseline).values
        if scope.baseline_label is not None:
            total = total + 0.0 * scope.column(value.metric, not value.of_baseline).values
    known = ~np.isnan(total)
    weights = column.weights
    if weights is not None:
        weights = weights[known] / weights[known].mean() if known.any() else weights[known]
    return Numbers(total[known], column.conversations[known], column.repeats[known], weights)


def _paired_intervals(gate: Gate, form: LinearForm, numbers: Sequence[Numbers | None]) -> list[Interval]:
    """By sign flips. For a difference of means they are the table's intervals, moved by the margin.

    Where all pairs are equal, the table has the interval [0, 0] of the sample. A gate asks about other conversations
    too, a share of which may differ as far as the metric allows (`unseen_share`); so may they where the form is no
    difference, of which flips test 0 and no other number.
    """
    difference = form.difference
    # Of a difference, the constant is a margin around the table's interval; of other forms, a part of the values.
    shift, inside = (form.constant, 0.0) if difference else (0.0, form.constant)
    scale = difference[1] if difference else 1.0
    widest = form.reach / abs(scale)
    size = 1 + max((int(found.conversations.max(initial=-1)) for found in numbers if found), default=-1)
    sums, counts = np.zeros((size, len(numbers))), np.zeros((size, len(numbers)))
    for column, found in enumerate(numbers):
        if found is not None:
            values = (found.values + inside) / scale
            if found.weights is not None:
                values = values * found.weights
            sums[:, column] = np.bincount(found.conversations, values, minlength=size)
            counts[:, column] = np.bincount(found.conversations, found.weights, minlength=size)
    family = compare_family(sums, counts, level=LEVEL, widest=widest)
    judged = sum(found is not None and found.values.size > 0 for found in numbers)

    def ends(test: Difference, level: float) -> tuple[float, float]:
        low, high = sorted((scale * test.low + shift, scale * test.high + shift))
        if not difference and math.isfinite(widest):
            unseen = unseen_share(test.clusters, level)
            others = [test.mean + unseen * (limit - test.mean) for limit in form.limits]
            low, high = min(low, others[0]), max(high, others[1])
        return low, high

    intervals: list[Interval] = []
    for column, (found, test) in enumerate(zip(numbers, family.differences, strict=True)):
        if found is None or not found.values.size:
            intervals.append(_NOTHING)
            continue
        p = test.p_adjusted if difference and shift == 0 else math.nan
        low, high = ends(test, family.level_each)
        interval = Interval(low, high, p, exact=test.identical, level_each=family.level_each)
        if test.identical and math.isfinite(widest):
            most = form.reach * unseen_share(test.clusters, family.level_each)
            interval = replace(interval, low=shift - most, high=shift + most, exact=False)
        if not test.decidable:
            interval = replace(interval, reason=_too_few(found))
        elif math.isfinite(widest):
            best = widest * math.copysign(1.0, wanted_sign(gate) * scale)
            own = counts[:, column : column + 1]
            # At the level that holds for any data, so that it does not depend on the data what can be judged.
            extreme = compare_family(best * own, own, level=LEVEL / judged, widest=widest).differences[0]
            limits = ends(extreme, LEVEL / judged)
            interval = replace(interval, reason=_undecidable(gate, scale * best + shift, limits, found))
        intervals.append(interval)
    return intervals


def _alone_interval(gate: Gate, form: LinearForm, found: Numbers | None, level: float) -> Interval:
    """Of a variant's own means, or its baseline's, against a number, without a pairing."""
    if found is None or not found.values.size:
        return _NOTHING
    if found.num_conversations < 2:
        return Interval(reason=_too_few(found), level_each=level)
    lowest, highest = replace(form, constant=0.0).limits
    if not math.isfinite(highest - lowest):
        low, high = unlimited_interval(found.values, found.conversations, found.weights, level=1 - level)
        reason = "all conversations have the same value, which does not show how others vary" if math.isnan(low) else ""
        return Interval(low + form.constant, high + form.constant, reason=reason, level_each=level)

    def ends(of: Floats) -> tuple[float, float]:
        low, high = bounded_interval(of, found.conversations, lowest=lowest, highest=highest, level=1 - level)
        return low + form.constant, high + form.constant

    best = highest if wanted_sign(gate) > 0 else lowest
    reason = _undecidable(gate, best + form.constant, ends(np.full(found.values.size, best)), found)
    return Interval(*ends(np.clip(found.values, lowest, highest)), reason=reason, level_each=level)


def wanted_sign(gate: Gate) -> int:
    """The sign of `left - right` where the condition holds."""
    return -1 if gate.comparator in ("<", "<=") else 1


def _undecidable(gate: Gate, best: float, ends: Sequence[float], found: Numbers) -> str:
    """Why not even the most extreme outcome, with the mean `best` and the interval `ends`, would show the condition.

    Empty where it would, and where it is not on the condition's side: then the condition can never hold.
    """
    shown = ends[1] < 0 if wanted_sign(gate) < 0 else ends[0] > 0
    return "" if shown or not COMPARATORS[gate.comparator](best, 0.0) or best == 0 else _too_few(found)


def _too_few(found: Numbers) -> str:
    number = found.num_conversations
    return f"{number} conversation{'' if number == 1 else 's'} cannot show it, whatever the outcome"
