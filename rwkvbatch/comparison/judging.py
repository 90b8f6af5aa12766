"""Evaluates gates on the pairs of a comparison, so that gates, table and verdicts come from the same numbers.

A gate can only pass on data that it was meant for. It fails with a reason where rows are missing or ended in an error
(unless that is allowed), where a run is unfinished (unless that is allowed), and where it cannot be judged at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.gate_intervals import Interval, gate_intervals, numbers_of, wanted_sign
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
from rwkvbatch.comparison.preference import PREFERENCE
from rwkvbatch.comparison.scopes import GateScope
from rwkvbatch.errors import UsageError, counted
from rwkvbatch.stats.sample_size import components, conversations_needed
from rwkvbatch.stats.spread import Spread

POWER: Final = 0.8
"""The probability with which the sample size that is printed shows what the gate asks for."""
_SMALLEST_DISTANCE: Final = 1e-6


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
    intervals = gate_intervals(gate, scopes) if gate.significantly else [None] * len(scopes)
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
    if PREFERENCE in named and scope.unpreferred:
        problems.append(
            f"{counted(scope.unpreferred, 'pair')} without a verdict of the judge (--allow-missing judges the rest)"
        )
    labels = (scope.label, scope.baseline_label)
    found: list[str] = []
    for label, dropped in zip(labels, scope.dropped, strict=False):
        counts = {
            "errors": f"{_turns(dropped.errors)} ended in an error",
            "unreached": f"{_turns(dropped.unreached)} not reached after an error",
            "missing": f"{_turns(dropped.missing)} missing",
            "different": f"{_turns(dropped.different)} asked differently",
            "unjudged": f"{_turns(dropped.unjudged)} without a judge's verdict",
        }
        texts = [text for name, text in counts.items() if getattr(dropped, name) and name not in named]
        if texts:
            found.append(f"{label}: {', '.join(texts)}")
    if found:
        problems.append(f"{'; '.join(found)} (--allow-missing judges the rest)")
    return problems


def _turns(count: int) -> str:
    return f"{count:,} turn{'' if count == 1 else 's'}"


def _judge(gate: Gate, scope: GateScope, interval: Interval | None) -> GateResult:
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
    if metric.level == "pair" and scope.baseline_label is None:
        raise _CannotJudgeError(f"{metric.name} is of a variant and its baseline, and there is no baseline")
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


def _with_sample_size(result: GateResult, scope: GateScope, interval: Interval) -> GateResult:
    """Adds the conversations that would show the condition if the variants are equal, or else if they are as found."""
    gate, form = result.gate, result.gate.form
    assert form is not None, "a significant gate has a linear form"
    # Where the opposite is shown, more data would show it again.
    if not interval.reason and (interval.low > 0 if wanted_sign(gate) < 0 else interval.high < 0):
        return result
    equal = wanted_sign(gate) * form.constant if form.difference else 0.0
    distance, given = equal, "if there is no true difference"
    if not distance > _SMALLEST_DISTANCE:
        distance, given = wanted_sign(gate) * (result.left - result.right), "if the true values are those found"
    if not distance > _SMALLEST_DISTANCE:
        return result
    found = numbers_of(form, scope)
    between, within, repeats = variances(as_counted(found.values, found.weights), found.conversations, found.repeats)
    if math.isnan(between):
        return replace(result, note="the number of conversations that it takes cannot be told from one")
    if between + within > 0:
        steps, reach = ties_of(found.values, found.conversations, form.reach, found.weights)
        # The interval of one side alone is not that of an enlarged sample.
        reach = 0.0 if form.one_sided else reach
        needed = conversations_needed(
            distance, between, within, repeats, power=POWER, level=interval.level_each, limited=steps, reach=reach
        )
    elif distance < (room := _room(form, result, wanted_sign(gate))) < math.inf:
        needed = math.ceil(math.log(interval.level_each / 2) / math.log1p(-distance / room))
        given = f"if all {'conversations' if form.one_sided else 'pairs'} are equal there too"
    else:
        return result
    each = f" of {repeats} repetitions" if repeats > 1 else ""
    chance = f" with a probability of {POWER * 100:.0f} %" if between + within > 0 else ""
    note = f"about {needed:,} conversations{each} show it{chance}, {given}"
    return replace(result, conversations_needed=needed, note=note)


def _room(form: LinearForm, result: GateResult, sign: int) -> float:
    """How far below (for `sign` -1 above) what was found other conversations can be."""
    if form.difference:
        return form.reach
    low, high = form.limits
    found = result.left - result.right
    return found - low if sign > 0 else high - found


def as_counted(values: Floats, weights: Floats | None) -> Floats:
    """`values` `[n]` as deviations that vary as much as their weighted mean does; without weights as they are.

    Args:
        weights: `[n]`, 1 on average.
    """
    return values if weights is None else weights * (values - np.average(values, weights=weights))


def ties_of(
    values: Floats, conversations: NDArray[np.int64], widest: float, weights: Floats | None = None
) -> tuple[bool, float]:
    """How the test takes the conversations' means of `values` `[n]` (`stats.spread`).

    Returns:
        Whether they are steps between limits, and `Spread.reach`. Where all are 0 they are, if there are limits:
        nothing speaks for another kind of numbers then.
    """
    _, codes = np.unique(conversations, return_inverse=True)
    sums, counts = (
        np.bincount(codes, of).astype(np.float64) for of in (values if weights is None else weights * values, weights)
    )
    if not sums.any():
        return math.isfinite(widest), widest if math.isfinite(widest) else 0.0
    spread = Spread.of(sums, counts, widest)
    return spread.discrete, spread.reach


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
