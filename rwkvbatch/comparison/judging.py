"""Evaluates gates on the pairs of a comparison, so that gates, table and verdicts come from the same numbers.

A gate can only pass on data that it was meant for. It fails with a reason where rows are missing or ended in an error
(unless that is allowed), where a run is unfinished (unless that is allowed), and where it cannot be judged at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.gates import (
    COMPARATORS,
    OPERATORS,
    PERCENTILE,
    STATISTICS,
    Floats,
    Gate,
    LinearForm,
    Value,
    evaluated,
)
from rwkvbatch.comparison.metrics import metric_named
from rwkvbatch.comparison.paired import LEVEL, Dropped
from rwkvbatch.errors import UsageError
from rwkvbatch.stats.bounded import bounded_interval, components, conversations_needed
from rwkvbatch.stats.clustered import clustered_mean
from rwkvbatch.stats.signflip import compare_family

POWER: Final = 0.8
"""The probability with which the sample size that is printed shows what the gate asks for."""
_SMALLEST_DISTANCE: Final = 1e-6


@dataclass(frozen=True)
class Column:
    """One metric of one side: `values` `[n]`, NaN where unknown; `conversations` and `repeats` `[n]` integer codes.

    `weights` `[n]`: how much each counts in the mean; None where all count equally.
    """

    values: Floats
    conversations: NDArray[np.int64]
    repeats: NDArray[np.int64]
    weights: Floats | None = None


@dataclass(frozen=True)
class GateScope:
    """A variant that gates are judged on.

    Attributes:
        baseline_label: None for a variant without a baseline.
        column: the numbers of a metric, of the variant or of the baseline; both have the same pairs in the same order.
        dropped: what variant and baseline lack; `missing` is what this side lacks of the other.
        unfinished: a sentence on each run that is not finished.
        unpaired: why there is no pair to judge, else empty.
    """

    label: str
    baseline_label: str | None
    column: Callable[[str, bool], Column]
    dropped: tuple[Dropped, ...] = ()
    unfinished: tuple[str, ...] = ()
    unpaired: str = ""

    def count(self, value: Value) -> float:
        """A count of the variant or of its baseline, such as `errors`."""
        return float(getattr(self.dropped[value.of_baseline], value.metric))


@dataclass(frozen=True)
class GateResult:
    """One gate on one variant.

    Attributes:
        failed: the condition holds (`--fail-if`) or does not (`--fail-unless`), or the gate cannot pass for `reason`.
        left, right: the two sides of the condition; NaN where they could not be computed.
        shown: for significant gates, whether the interval shows that the condition holds; else whether it holds.
        low, high: for significant gates the interval of `left - right`, simultaneous over all variants; else NaN.
        p_adjusted: of "variant and baseline are equal", corrected over all variants; NaN for another question.
        reason: why the gate fails whatever its condition says; empty where it was judged.
        conversations_needed: how many would show the condition, where a significant `--fail-unless` fails for want of
            data.
        note: what `conversations_needed` assumes.
    """

    gate: Gate
    label: str
    baseline_label: str | None
    failed: bool
    left: float = math.nan
    right: float = math.nan
    shown: bool = False
    low: float = math.nan
    high: float = math.nan
    p_adjusted: float = math.nan
    reason: str = ""
    conversations_needed: int | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the condition holds, significantly or not."""
        return COMPARATORS[self.gate.comparator](self.left, self.right)

    @property
    def found(self) -> str:
        """The numbers that were compared, and the reason of a failure."""
        parts: list[str] = []
        if not math.isnan(self.left):
            word = "" if self.holds else "not "
            parts.append(f"{word}{self.left:.4g} {self.gate.comparator} {self.right:.4g}")
        if not math.isnan(self.low):
            if self.holds and not self.shown:
                parts.append("not significant")
            parts.append(f"left - right = {self.left - self.right:+.4g} [{self.low:+.4g}, {self.high:+.4g}]")
        if not math.isnan(self.p_adjusted):
            parts.append(f"p = {self.p_adjusted:.2g}")
        return "; ".join(filter(None, (", ".join(parts), self.reason, self.note)))

    @property
    def line(self) -> str:
        """The outcome as one line of a log."""
        unless = "unless " if self.gate.option == "--fail-unless" else ""
        return f"{'FAILED' if self.failed else 'passed'}: {unless}{self.gate.text} [{self.label}: {self.found}]"


@dataclass(frozen=True)
class _Interval:
    """Simultaneous ends of a linear form, and its p-value. `reason`: why no data of this extent could decide.

    `exact`: all pairs are equal and the metric has no limits, so that the ends are those of the sample.
    """

    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    reason: str = ""
    exact: bool = False
    level_each: float = LEVEL


_NOTHING: Final = _Interval(reason="no pair has all metrics of the gate")


@dataclass(frozen=True)
class _Numbers:
    """A linear form without its constant on `n` pairs."""

    values: Floats
    conversations: NDArray[np.int64]
    repeats: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    weights: Floats | None = None

    @property
    def num_conversations(self) -> int:
        return int(np.unique(self.conversations).size)


def judge(
    gates: Sequence[Gate], scopes: Sequence[GateScope], *, allow_missing: bool = False, partial: bool = False
) -> list[GateResult]:
    """Every gate on every scope.

    Significant gates are decided by simultaneous intervals over all scopes, at a level of 5 %; each gate is a family.

    Args:
        allow_missing: judge what is there where rows are missing or ended in an error.
        partial: judge unfinished runs.

    Raises:
        UsageError: a gate needs a baseline, and the only variant has none.
    """
    return [
        result
        for gate in gates
        for result in _judge_everywhere(gate, scopes, allow_missing=allow_missing, partial=partial)
    ]


def _judge_everywhere(
    gate: Gate, scopes: Sequence[GateScope], *, allow_missing: bool, partial: bool
) -> list[GateResult]:
    if len(scopes) == 1 and scopes[0].baseline_label is None and any(value.of_baseline for value in gate.values):
        raise UsageError(
            f"{gate.option} {gate.text!r} needs a baseline, and only one variant is given",
            hint="give a second run or cell, or compare with a number: --fail-if 'score < 0.8'",
        )
    intervals = _intervals(gate, scopes) if gate.significantly else [None] * len(scopes)
    results: list[GateResult] = []
    for scope, interval in zip(scopes, intervals, strict=True):
        result = _judge(gate, scope, interval)
        problems = _incomplete(gate, scope, allow_missing=allow_missing, partial=partial)
        if problems:
            result = replace(result, failed=True, reason="; ".join(filter(None, (result.reason, *problems))))
        results.append(result)
    return results


def _incomplete(gate: Gate, scope: GateScope, *, allow_missing: bool, partial: bool) -> list[str]:
    """What is missing and was not allowed. Counts that the gate itself names are judged by it."""
    problems = [] if partial else [f"{text} (--partial judges it as it is)" for text in scope.unfinished]
    if allow_missing:
        return problems
    named = {value.metric for value in gate.values}
    if "failed" in named:
        named |= {"errors", "unreached"}
    labels = (scope.label, scope.baseline_label)
    found: list[str] = []
    for label, dropped in zip(labels, scope.dropped, strict=False):
        counts = {
            "errors": f"{_turns(dropped.errors)} ended in an error",
            "unreached": f"{_turns(dropped.unreached)} not reached after an error",
            "missing": f"{_turns(dropped.missing)} missing",
            "different": f"{_turns(dropped.different)} asked differently",
        }
        texts = [text for name, text in counts.items() if getattr(dropped, name) and name not in named]
        if texts:
            found.append(f"{label}: {', '.join(texts)}")
    if found:
        problems.append(f"{'; '.join(found)} (--allow-missing judges the rest)")
    return problems


def _turns(count: int) -> str:
    return f"{count:,} turn{'' if count == 1 else 's'}"


def _judge(gate: Gate, scope: GateScope, interval: _Interval | None) -> GateResult:
    result = GateResult(gate, scope.label, scope.baseline_label, failed=True)
    try:
        left, right = (_number(gate, scope, side) for side in ("left", "right"))
    except _CannotJudgeError as error:
        return replace(result, reason=f"cannot be judged: {error}")
    result = replace(result, left=left, right=right)
    unless = gate.option == "--fail-unless"
    if interval is None:
        return replace(result, shown=result.holds, failed=result.holds != unless)
    if interval.reason:
        result = replace(result, reason=f"cannot be judged: {interval.reason}")
        return _with_sample_size(result, scope, interval) if unless else result
    end = interval.high if gate.comparator in ("<", "<=") else interval.low
    # An end at 0 can be that of an interval that was widened to contain 0, which shows nothing.
    shown = COMPARATORS[gate.comparator](end, 0.0) and (end != 0 or interval.exact)
    result = replace(
        result, shown=shown, failed=shown != unless, low=interval.low, high=interval.high, p_adjusted=interval.p
    )
    return _with_sample_size(result, scope, interval) if unless and not shown else result


class _CannotJudgeError(Exception):
    """The data do not give the numbers that a gate needs."""


def _number(gate: Gate, scope: GateScope, side: str) -> float:
    def of_value(value: Value) -> float:
        return _statistic(value, scope)

    def combined(sign: str, a: float, b: float) -> float:
        if sign == "/" and b == 0:
            raise _CannotJudgeError(f"its {side} side divides by zero")
        return OPERATORS[sign](a, b)

    number = float(evaluated(getattr(gate, side), of_value, combined))
    if math.isnan(number):
        # Every comparison with NaN is false: the gate could never fail.
        raise _CannotJudgeError(f"its {side} side is no number, its values are too large")
    return number


def _statistic(value: Value, scope: GateScope) -> float:
    metric = metric_named(value.metric)
    if value.of_baseline and scope.baseline_label is None:
        raise _CannotJudgeError(scope.unpaired or "there is no baseline")
    if metric.level == "variant":
        return scope.count(value)
    if scope.unpaired:
        raise _CannotJudgeError(scope.unpaired)
    column = scope.column(metric.name, value.of_baseline)
    numbers = column.values
    known = ~np.isnan(numbers)
    if scope.baseline_label is not None:
        known &= ~np.isnan(scope.column(metric.name, not value.of_baseline).values)
    if not known.any():
        whose = scope.label if scope.baseline_label is None else f"no pair of {scope.label} and {scope.baseline_label}"
        raise _CannotJudgeError(f"{whose} has {'no ' if scope.baseline_label is None else ''}{metric.name}")
    percentile = PERCENTILE.fullmatch(value.statistic)
    if percentile:
        return metric.shown(float(np.percentile(numbers[known], int(percentile[1]))))
    if value.statistic == "mean" and column.weights is not None:
        return metric.shown(float(np.average(numbers[known], weights=column.weights[known])))
    return metric.shown(float(STATISTICS[value.statistic](numbers[known])))


def _intervals(gate: Gate, scopes: Sequence[GateScope]) -> list[_Interval]:
    """Simultaneous intervals of `left - right`."""
    form = gate.form
    if form is None:
        raise AssertionError("a significant gate has a linear form")
    numbers = [None if _unjudged(form, scope) else _numbers(form, scope) for scope in scopes]
    if any(value.of_baseline for value in form.weights):
        return _paired_intervals(gate, form, numbers)
    some = sum(found is not None and found.values.size > 0 for found in numbers)
    return [_alone_interval(gate, form, found, LEVEL / max(1, some)) for found in numbers]


def _unjudged(form: LinearForm, scope: GateScope) -> bool:
    """Whether `_statistic` says why there is nothing to judge."""
    return bool(scope.unpaired) or (scope.baseline_label is None and any(value.of_baseline for value in form.weights))


def _numbers(form: LinearForm, scope: GateScope) -> _Numbers:
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
    return _Numbers(total[known], column.conversations[known], column.repeats[known], weights)


def _paired_intervals(gate: Gate, form: LinearForm, numbers: Sequence[_Numbers | None]) -> list[_Interval]:
    """By sign flips. For a difference of means they are the table's intervals, moved by the margin.

    Where all pairs are equal, the table has the interval [0, 0] of the sample. A gate asks about other conversations
    too: if none of n differs, at most a share 1 - (level / 2)^(1 / n) of all may (Clopper and Pearson 1934).
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
    intervals: list[_Interval] = []
    for column, (found, test) in enumerate(zip(numbers, family.differences, strict=True)):
        if found is None or not found.values.size:
            intervals.append(_NOTHING)
            continue
        ends = sorted((scale * test.low + shift, scale * test.high + shift))
        p = test.p_adjusted if difference and shift == 0 else math.nan
        interval = _Interval(ends[0], ends[1], p, exact=test.identical, level_each=family.level_each)
        if test.identical and math.isfinite(widest):
            most = form.reach * (1 - (family.level_each / 2) ** (1 / test.clusters))
            interval = replace(interval, low=shift - most, high=shift + most, exact=False)
        if not test.decidable:
            interval = replace(interval, reason=_too_few(found))
        elif math.isfinite(widest):
            best = widest * math.copysign(1.0, _wanted(gate) * scale)
            own = counts[:, column : column + 1]
            # At the level that holds for any data, so that it does not depend on the data what can be judged.
            extreme = compare_family(best * own, own, level=LEVEL / judged, widest=widest).differences[0]
            limits = sorted((scale * extreme.low + shift, scale * extreme.high + shift))
            interval = replace(interval, reason=_undecidable(gate, scale * best + shift, limits, found))
        intervals.append(interval)
    return intervals


def _alone_interval(gate: Gate, form: LinearForm, found: _Numbers | None, level: float) -> _Interval:
    """Of a variant's own means against a number, without a pairing."""
    if found is None or not found.values.size:
        return _NOTHING
    if found.num_conversations < 2:
        return _Interval(reason=_too_few(found), level_each=level)
    lowest, highest = replace(form, constant=0.0).limits
    if not math.isfinite(highest - lowest):
        low, high = clustered_mean(found.values, found.conversations, found.weights).interval(1 - level)
        reason = _too_few(found) if math.isnan(low) else ""
        return _Interval(low + form.constant, high + form.constant, reason=reason, level_each=level)

    def ends(of: Floats) -> tuple[float, float]:
        low, high = bounded_interval(of, found.conversations, lowest=lowest, highest=highest, level=1 - level)
        return low + form.constant, high + form.constant

    best = highest if _wanted(gate) > 0 else lowest
    reason = _undecidable(gate, best + form.constant, ends(np.full(found.values.size, best)), found)
    return _Interval(*ends(np.clip(found.values, lowest, highest)), reason=reason, level_each=level)


def _wanted(gate: Gate) -> int:
    """The sign of `left - right` where the condition holds."""
    return -1 if gate.comparator in ("<", "<=") else 1


def _undecidable(gate: Gate, best: float, ends: Sequence[float], found: _Numbers) -> str:
    """Why not even the most extreme outcome, with the mean `best` and the interval `ends`, would show the condition.

    Empty where it would, and where it is not on the condition's side: then the condition can never hold.
    """
    shown = ends[1] < 0 if _wanted(gate) < 0 else ends[0] > 0
    return "" if shown or not COMPARATORS[gate.comparator](best, 0.0) or best == 0 else _too_few(found)


def _too_few(found: _Numbers) -> str:
    number = found.num_conversations
    return f"{number} conversation{'' if number == 1 else 's'} cannot show it, whatever the outcome"


def _with_sample_size(result: GateResult, scope: GateScope, interval: _Interval) -> GateResult:
    """Adds the conversations that would show the condition if the variants are equal, or else if they are as found."""
    gate, form = result.gate, result.gate.form
    if form is None:
        raise AssertionError("a significant gate has a linear form")
    # Where the opposite is shown, more data would show it again.
    if not interval.reason and (interval.low > 0 if _wanted(gate) < 0 else interval.high < 0):
        return result
    equal = _wanted(gate) * form.constant if form.difference else 0.0
    distance, given = equal, "if there is no true difference"
    if not distance > _SMALLEST_DISTANCE:
        distance, given = _wanted(gate) * (result.left - result.right), "if the true values are those found"
    if not distance > _SMALLEST_DISTANCE:
        return result
    found = _numbers(form, scope)
    between, within, repeats = variances(found.values, found.conversations, found.repeats)
    if math.isnan(between):
        return replace(result, note="the number of conversations that it takes cannot be told from one")
    if between + within > 0:
        needed = conversations_needed(distance, between, within, repeats, power=POWER, level=interval.level_each)
    elif distance < form.reach < math.inf:
        needed = math.ceil(math.log(interval.level_each / 2) / math.log1p(-distance / form.reach))
        given = "if all pairs are equal there too"
    else:
        return result
    each = f" of {repeats} repetitions" if repeats > 1 else ""
    chance = f" with a probability of {POWER:.0%}" if between + within > 0 else ""
    note = f"about {needed:,} conversations{each} show it{chance}, {given}"
    return replace(result, conversations_needed=needed, note=note)


def variances(values: Floats, conversations: NDArray[np.int64], repeats: NDArray[np.int64]) -> tuple[float, float, int]:
    """The variance of conversations' true means and of one repetition around them, and the usual number of repetitions.

    Args:
        values, conversations, repeats: `[n]` numbers and their codes; those of one repetition are averaged first.

    Returns:
        (between, within, repetitions); between is NaN for fewer than two conversations.
    """
    number = int(repeats.max(initial=0)) + 1
    key, place = np.unique(conversations * number + repeats, return_inverse=True)
    each = np.bincount(place, values) / np.bincount(place)
    _, conversation = np.unique(key // number, return_inverse=True)
    counts = np.bincount(conversation)
    means = np.bincount(conversation, each) / np.maximum(counts, 1)
    squares = np.bincount(conversation, (each - means[conversation]) ** 2)
    within = np.divide(squares, counts - 1, out=np.full(counts.size, math.nan), where=counts > 1)
    between, inner = components(means, within, counts)
    return between, inner, max(1, round(float(counts.mean()))) if counts.size else 1
