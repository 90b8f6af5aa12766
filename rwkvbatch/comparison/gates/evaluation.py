"""Evaluation of gates on the pairs of a comparison, from the same numbers as the table and its verdicts.

A gate passes only on complete data. It fails with a reason if rows are missing or ended in an error, or if a run is
unfinished (unless an option allows these), and if it cannot be judged at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Final

import numpy as np

from rwkvbatch.comparison.gates.expressions import (
    COMPARATORS,
    OPERATORS,
    PERCENTILE,
    STATISTICS,
    Gate,
    LinearForm,
    Value,
    evaluated,
)
from rwkvbatch.comparison.gates.intervals import (
    Interval,
    different_turns,
    form_values,
    gate_intervals,
    known_values,
    wanted_sign,
)
from rwkvbatch.comparison.gates.results import CANNOT_JUDGE, GateResult
from rwkvbatch.comparison.gates.scopes import GateScope
from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.comparison.pairing.preference import PREFERENCE
from rwkvbatch.comparison.runs.restriction import Restriction
from rwkvbatch.errors import UsageError, counted, listed, shown_value
from rwkvbatch.stats.sample_size import conversations_needed
from rwkvbatch.stats.variances import discreteness, variances, weighted_deviations

POWER: Final = 0.8
"""The probability with which a sample of the printed size shows that the condition holds."""
_SMALLEST_DISTANCE: Final = 1e-6


def judge(
    gates: Sequence[Gate],
    scopes: Sequence[GateScope],
    *,
    allow_missing: bool = False,
    partial: bool = False,
    only: Restriction | None = None,
) -> list[GateResult]:
    """Judge every gate on every scope.

    Significant gates are decided by intervals that are simultaneous over all scopes, at a level of 5 %; each gate is
    a separate family.

    Args:
        allow_missing: judge the rows that exist even if others are missing or ended in an error.
        partial: judge unfinished runs.
        only: the restriction of the comparison, which results name.

    Raises:
        UsageError: a gate needs a baseline, and the only variant has none.
    """
    return [
        replace(result, only="" if only is None else only.name)
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
    """What is missing and was not allowed, except counts on which the gate fails by itself (`Gate.judges`)."""
    problems = [] if partial else [f"{text} (--partial judges it as it is)" for text in scope.unfinished]
    if allow_missing:
        return problems
    if any(value.metric == PREFERENCE for value in gate.values) and scope.unpreferred:
        problems.append(
            f"{counted(scope.unpreferred, 'pair')} without a verdict of the judge (--allow-missing judges the rest)"
        )
    labels = (scope.label, scope.baseline_label)
    sides: list[str] = []
    for of_baseline, (label, dropped) in enumerate(zip(labels, scope.dropped, strict=False)):
        sentences = {
            "errors": f"{counted(dropped.errors, 'turn')} ended in an error",
            "unreached": f"{counted(dropped.unreached, 'turn')} not reached after an error",
            "missing": f"{counted(dropped.missing, 'turn')} missing",
            "different": f"{counted(dropped.different, 'turn')} asked differently",
            "unjudged": f"{counted(dropped.unjudged, 'turn')} without a verdict",
        }
        texts = [
            text
            for name, text in sentences.items()
            if getattr(dropped, name) and not gate.judges(name, of_baseline=bool(of_baseline))
        ]
        if texts:
            sides.append(f"in {label}, {', '.join(texts)}")
    if sides:
        problems.append(f"{'; '.join(sides)} (--allow-missing judges the rest)")
    return problems


def _judge(gate: Gate, scope: GateScope, interval: Interval | None) -> GateResult:
    result = GateResult(gate, scope.label, scope.baseline_label, failed=True)
    try:
        left, right = (_number(gate, scope, side) for side in ("left", "right"))
    except _CannotJudgeError as error:
        return replace(result, reason=f"{CANNOT_JUDGE}{error}")
    result = replace(result, left=left, right=right)
    unless = gate.option == "--fail-unless"
    if interval is None:
        return replace(result, shown=result.holds, failed=result.holds != unless)
    if gate.form is not None and (reason := different_turns(gate.form, scope)):
        return replace(result, reason=f"{CANNOT_JUDGE}{reason}")
    if interval.reason:
        result = replace(result, reason=f"{CANNOT_JUDGE}{interval.reason}")
        return _with_sample_size(result, scope, interval) if unless else result
    end = interval.high if gate.comparator in ("<", "<=") else interval.low
    # An interval that was widened to contain 0 can end at 0; such an end shows nothing.
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
        raise _CannotJudgeError(f"its {side} side overflows")
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
    if value.tag is not None and value.tag not in (tags := scope.tags()):
        known = f"known: {listed(_similar_first(value.tag, tags))}" if tags else "no turn has any"
        raise _CannotJudgeError(f"no turn has the tag {shown_value(value.tag)}; {known}")
    column = scope.column(metric.name, value.of_baseline, value.tag)
    values, known = column.values, known_values(value, scope)
    if not known.any():
        whose = scope.label if scope.baseline_label is None else f"no pair of {scope.label} and {scope.baseline_label}"
        needs = ""
        if metric.level == "conversation":
            needs = f", which needs {counted(int(metric.name.rpartition('_')[2]), 'repetition')} (--repeats)"
        raise _CannotJudgeError(f"{whose} has {'no ' if scope.baseline_label is None else ''}{value.name}{needs}")
    percentile = PERCENTILE.fullmatch(value.statistic)
    if percentile:
        return metric.shown(float(np.percentile(values[known], int(percentile[1]))))
    if value.statistic == "mean" and column.weights is not None:
        return metric.shown(float(np.average(values[known], weights=column.weights[known])))
    return metric.shown(float(STATISTICS[value.statistic](values[known])))


def _similar_first(name: str, names: Sequence[str]) -> list[str]:
    """The names in order, but those similar to `name` first."""
    return list(dict.fromkeys([*get_close_matches(name, names), *sorted(names)]))


def _with_sample_size(result: GateResult, scope: GateScope, interval: Interval) -> GateResult:
    """`result` with the number of conversations that would show the condition.

    The number assumes that the variants are equal or, if that does not meet the condition or the interval rules it out,
    that the true values are the observed ones.
    """
    gate, form = result.gate, result.gate.form
    assert form is not None, "a significant gate has a linear form"
    sign = wanted_sign(gate)
    # If the interval shows the opposite of the condition, more data would only show it more clearly.
    if not interval.reason and (interval.low > 0 if sign < 0 else interval.high < 0):
        return result
    distance, assumption = sign * form.constant if form.difference else 0.0, "if there is no true difference"
    equal_is_possible = bool(interval.reason) or interval.low <= form.constant <= interval.high
    if not distance > _SMALLEST_DISTANCE or not equal_is_possible:
        distance, assumption = sign * (result.left - result.right), "if the true values are those found"
    if not distance > _SMALLEST_DISTANCE:
        return result
    sample = form_values(form, scope)
    deviations = weighted_deviations(sample.values, sample.weights)
    between, within, repeats = variances(deviations, sample.conversations, sample.repeats)
    if math.isnan(between):
        return replace(result, note="the number of conversations that it takes cannot be estimated from one")
    if between + within > 0:
        discrete, reach, step = discreteness(sample.values, sample.conversations, form.reach, sample.weights)
        # The interval of one side alone does not use the enlarged sample that `reach` describes.
        reach = 0.0 if form.one_sided else reach
        # Sign flips test a difference of 0; the interval decides on any other.
        margin = form.difference is None or form.constant != 0
        needed = conversations_needed(
            distance, between, within, repeats, power=POWER, level=interval.level_each, discrete=discrete, reach=reach,
            step=step, margin=margin,
        )  # fmt: skip
        probability = f" with a probability of {POWER * 100:.0f} %"
    elif distance < (room := _room(form, result, sign)) < math.inf:
        needed = math.ceil(math.log(interval.level_each / 2) / math.log1p(-distance / room))
        assumption = f"if all {'conversations' if form.one_sided else 'pairs'} are equal there too"
        probability = ""
    else:
        return result
    repetitions = f" of {repeats} repetitions" if repeats > 1 else ""
    note = f"about {needed:,} conversations{repetitions} show it{probability}, {assumption}"
    return replace(result, conversations_needed=needed, note=note)


def _room(form: LinearForm, result: GateResult, sign: int) -> float:
    """The distance from the observed `left - right` to the metric's limit on the side opposite to `sign`."""
    if form.difference:
        return form.reach
    low, high = form.limits
    observed = result.left - result.right
    return observed - low if sign > 0 else high - observed
