"""Simultaneous intervals of the differences that gates with `significantly` test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.gates.expressions import COMPARATORS, Floats, Gate, LinearForm, Value
from rwkvbatch.comparison.gates.scopes import GateScope
from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.comparison.statistics.differences import LEVEL
from rwkvbatch.errors import counted
from rwkvbatch.stats.bounded import bounded_interval, unseen_share
from rwkvbatch.stats.family import Difference, compare_family
from rwkvbatch.stats.spread import unlimited_interval


@dataclass(frozen=True)
class Interval:
    """The simultaneous interval of a linear form on one scope.

    Attributes:
        low, high: its ends; NaN if there is no interval.
        p: adjusted p-value of "variant and baseline are equal"; NaN if the gate tests another hypothesis.
        reason: why no data of this size could decide the gate; empty otherwise.
        exact: whether all pairs are equal and the metric has no limits, so that the ends are those of the sample.
        level_each: level of this interval within the family.
    """

    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    reason: str = ""
    exact: bool = False
    level_each: float = LEVEL


_NO_PAIRS: Final = Interval(reason="no pair has all metrics of the gate")


@dataclass(frozen=True)
class FormValues:
    """The values of a linear form without its constant.

    Attributes:
        values: `[n]`.
        conversations, repeats: `[n]` integer codes.
        weights: `[n]`, 1 on average; None for equal weights.
    """

    values: Floats
    conversations: NDArray[np.int64]
    repeats: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    weights: Floats | None = None

    @property
    def num_conversations(self) -> int:
        return int(np.unique(self.conversations).size)


def gate_intervals(gate: Gate, scopes: Sequence[GateScope]) -> list[Interval]:
    """The simultaneous interval of `left - right` on each scope."""
    form = gate.form
    assert form is not None, "a significant gate has a linear form"
    samples = [
        None if _has_no_values(form, scope) or different_turns(form, scope) else form_values(form, scope)
        for scope in scopes
    ]
    if form.one_sided:
        num_judged = sum(sample is not None and sample.values.size > 0 for sample in samples)
        return [_unpaired_interval(gate, form, sample, LEVEL / max(1, num_judged)) for sample in samples]
    return _paired_intervals(gate, form, samples)


def _has_no_values(form: LinearForm, scope: GateScope) -> bool:
    """Whether the scope lacks pairs or a baseline that the form needs; `evaluation` gives the reason."""
    return bool(scope.unpaired) or (scope.baseline_label is None and any(value.of_baseline for value in form.weights))


def known_values(value: Value, scope: GateScope) -> NDArray[np.bool_]:
    """`[n]` which values of a metric are known: on both sides if there is a baseline, as for the table's pairs."""
    known = ~np.isnan(scope.column(value.metric, value.of_baseline, value.tag).values)
    if scope.baseline_label is not None:
        known &= ~np.isnan(scope.column(value.metric, not value.of_baseline, value.tag).values)
    return known


def different_turns(form: LinearForm, scope: GateScope) -> str:
    """Why the form has no interval if its means are over different turns; empty if all are over the same."""
    first, *others = form.weights
    known = known_values(first, scope)
    for other in others:
        if not np.array_equal(known, other_known := known_values(other, scope)):
            what = metric_named(first.metric).level
            noun = f"{what}s" if scope.baseline_label is None or what == "conversation" else "pairs of turns"
            return (
                f"{first.name} is a mean over {int(known.sum()):,} {noun} and {other.name} over "
                f"{int(other_known.sum()):,}, {int((known & other_known).sum()):,} of which have both; "
                "`significantly` needs the same for all metrics"
            )
    return ""


def form_values(form: LinearForm, scope: GateScope) -> FormValues:
    """The form's values on the pairs that have its metrics on both sides, which are the table's pairs.

    All of its metrics have the same weights and, where gates are judged, the same pairs.
    """
    first = next(iter(form.weights))
    column = scope.column(first.metric, first.of_baseline, first.tag)
    total = np.zeros(column.values.size)
    known = np.ones(column.values.size, dtype=np.bool_)
    for value, weight in form.weights.items():
        total = total + weight * scope.column(value.metric, value.of_baseline, value.tag).values
        known &= known_values(value, scope)
    weights = column.weights
    if weights is not None:
        weights = weights[known] / weights[known].mean() if known.any() else weights[known]
    return FormValues(total[known], column.conversations[known], column.repeats[known], weights)


@dataclass(frozen=True)
class _FlipTest:
    """The sign-flip test of a linear form.

    It tests `(values + offset) / scale`, and turns an end of the test's interval into `scale * end + shift`. The
    constant of a difference of means is a margin, which shifts the table's interval; the constant of another form is
    part of the values.
    """

    form: LinearForm
    scale: float
    offset: float
    shift: float

    @classmethod
    def of(cls, form: LinearForm) -> _FlipTest:
        if form.difference is None:
            return cls(form, scale=1.0, offset=form.constant, shift=0.0)
        return cls(form, scale=form.difference[1], offset=0.0, shift=form.constant)

    @property
    def widest(self) -> float:
        """The largest absolute value that the metrics allow for what is tested."""
        return self.form.reach / abs(self.scale)

    def interval(self, test: Difference, level: float) -> tuple[float, float]:
        """The form's interval; `level` is that of the test.

        Flips test the hypothesis 0 alone, which says nothing about other values of a form that is no difference. Its
        interval therefore also contains the means that an unseen share of conversations at the limits would give.
        """
        low, high = sorted((self.scale * test.low + self.shift, self.scale * test.high + self.shift))
        if self.form.difference is None and math.isfinite(self.widest):
            unseen = unseen_share(test.clusters, level)
            lowest, highest = (test.mean + unseen * (limit - test.mean) for limit in self.form.limits)
            low, high = min(low, lowest), max(high, highest)
        return low, high


def _paired_intervals(gate: Gate, form: LinearForm, samples: Sequence[FormValues | None]) -> list[Interval]:
    """Intervals by sign flips; for a difference of means they are the table's, shifted by the margin.

    If all pairs are equal, an unseen share of other conversations may differ as far as the metric allows
    (`unseen_share`). Equal pairs of a metric without limits have no interval in the table; a gate takes those of the
    sample.
    """
    flip_test = _FlipTest.of(form)
    widest = flip_test.widest
    size = 1 + max((int(sample.conversations.max(initial=-1)) for sample in samples if sample), default=-1)
    sums, counts = np.zeros((size, len(samples))), np.zeros((size, len(samples)))
    for column, sample in enumerate(samples):
        if sample is not None:
            values = (sample.values + flip_test.offset) / flip_test.scale
            if sample.weights is not None:
                values = values * sample.weights
            sums[:, column] = np.bincount(sample.conversations, values, minlength=size)
            counts[:, column] = np.bincount(sample.conversations, sample.weights, minlength=size)
    family = compare_family(sums, counts, level=LEVEL, widest=widest)
    num_judged = sum(sample is not None and sample.values.size > 0 for sample in samples)
    intervals: list[Interval] = []
    for column, (sample, test) in enumerate(zip(samples, family.differences, strict=True)):
        if sample is None or not sample.values.size:
            intervals.append(_NO_PAIRS)
            continue
        p = test.p_adjusted if form.difference and flip_test.shift == 0 else math.nan
        low, high = flip_test.interval(test, test.level_interval)
        interval = Interval(low, high, p, exact=test.identical, level_each=test.level_interval)
        if test.identical:
            limited = math.isfinite(widest)
            unseen = form.reach * unseen_share(test.clusters, test.level_interval) if limited else 0.0
            interval = replace(interval, low=flip_test.shift - unseen, high=flip_test.shift + unseen, exact=not limited)
        if not test.decidable:
            interval = replace(interval, reason=_too_few(sample))
        elif math.isfinite(widest):
            best = widest * math.copysign(1.0, wanted_sign(gate) * flip_test.scale)
            sample_counts = counts[:, column : column + 1]
            # Whether a gate can be judged must not depend on the data: this level holds for any data.
            level = LEVEL / num_judged
            extreme = compare_family(best * sample_counts, sample_counts, level=level, widest=widest).differences[0]
            ends, mean = flip_test.interval(extreme, level), flip_test.scale * best + flip_test.shift
            interval = replace(interval, reason=_undecidable(gate, mean, ends, sample))
        intervals.append(interval)
    return intervals


def _unpaired_interval(gate: Gate, form: LinearForm, sample: FormValues | None, level: float) -> Interval:
    """The interval of a form of one side alone (variant or baseline), which needs no pairing."""
    if sample is None or not sample.values.size:
        return _NO_PAIRS
    if sample.num_conversations < 2:
        return Interval(reason=_too_few(sample), level_each=level)
    lowest, highest = replace(form, constant=0.0).limits
    if not math.isfinite(highest - lowest):
        low, high = unlimited_interval(sample.values, sample.conversations, sample.weights, level=1 - level)
        reason = "all conversations have the same value, which does not show how others vary" if math.isnan(low) else ""
        return Interval(low + form.constant, high + form.constant, reason=reason, level_each=level)

    def ends(values: Floats) -> tuple[float, float]:
        low, high = bounded_interval(values, sample.conversations, lowest=lowest, highest=highest, level=1 - level)
        return low + form.constant, high + form.constant

    best = highest if wanted_sign(gate) > 0 else lowest
    reason = _undecidable(gate, best + form.constant, ends(np.full(sample.values.size, best)), sample)
    return Interval(*ends(np.clip(sample.values, lowest, highest)), reason=reason, level_each=level)


def wanted_sign(gate: Gate) -> int:
    """The sign of `left - right` if the condition holds."""
    return -1 if gate.comparator in ("<", "<=") else 1


def _undecidable(gate: Gate, best: float, ends: Sequence[float], sample: FormValues) -> str:
    """Why even the most extreme outcome, with the mean `best` and the interval `ends`, would not show the condition.

    Empty if it would, or if `best` itself does not meet the condition, which then can never hold.
    """
    shown = ends[1] < 0 if wanted_sign(gate) < 0 else ends[0] > 0
    return "" if shown or not COMPARATORS[gate.comparator](best, 0.0) or best == 0 else _too_few(sample)


def _too_few(sample: FormValues) -> str:
    return f"{counted(sample.num_conversations, 'conversation')} cannot show it, whatever the outcome"
