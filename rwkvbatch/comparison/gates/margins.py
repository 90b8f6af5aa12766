"""Warnings about gates without `significantly` whose margin is within what chance gives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Final

import numpy as np

from rwkvbatch.comparison.gates.expressions import Gate, Value
from rwkvbatch.comparison.gates.intervals import different_turns, form_values, known_values
from rwkvbatch.comparison.gates.scopes import GateScope
from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.comparison.statistics.differences import LEVEL, Comparison
from rwkvbatch.stats.sample_size import smallest_detectable
from rwkvbatch.stats.variances import discreteness, variances, weighted_deviations

_POWER: Final = 0.8


def margin_notes(
    gates: Sequence[Gate], scopes: Sequence[GateScope], comparisons: Sequence[Comparison] = ()
) -> list[str]:
    """A sentence on each gate whose margin is below the difference that the comparison detects on some variant.

    Gates with `significantly`, on a number or on timings, and those that equal models fail, have none.

    Args:
        comparisons: the lines of the table, whose detectable differences the notes take where they have one.
    """
    in_table = {
        (line.pair.variant.label, line.metric.name): line.detectable for line in comparisons if line.group is None
    }
    notes: list[str] = []
    for gate in gates:
        found = [
            (detectable, margin, share)
            for scope in scopes
            for margin, detectable, share in _margins(gate, scope, in_table)
            if margin < detectable
        ]
        if not found:
            continue
        detectable, margin, share = max(found)
        name = f"{gate.option.removeprefix('--')} {gate.text}"
        often = max(1, round(100 * share))
        # Two digits, rounded up: a margin of this size must not cause the note again.
        digits = 1 - math.floor(math.log10(detectable))
        enough = f"{math.ceil(detectable * 10**digits) / 10**digits:g}"
        notes.append(
            f"{name}: its margin of {margin:.3g} is below {enough}, the smallest difference that this comparison "
            f"detects, so chance fails it in about {often} of 100 comparisons of equally good models; write "
            f"{gate.option} {f'{gate.text} significantly'!r}, or a margin of at least {enough}"
        )
    return notes


def _margins(
    gate: Gate, scope: GateScope, in_table: Mapping[tuple[str, str], float]
) -> Iterator[tuple[float, float, float]]:
    """The margin of a gate on a scope, the detectable difference, and the share of equal models that fail the gate.

    There is none where all pairs are equal, or if the gate is not on one metric of both sides.
    """
    form = gate.form
    if gate.significantly or form is None or scope.baseline_label is None or scope.unpaired:
        return
    own, of_baseline = (
        [value for value in form.weights if value.of_baseline == is_baseline] for is_baseline in (False, True)
    )
    if len(own) != 1 or [value.name for value in own] != [value.name for value in of_baseline]:
        return
    if not known_values(own[0], scope).any() or different_turns(form, scope):
        return
    fails_above = (gate.comparator in (">", ">=")) == (gate.option == "--fail-if")
    scale = abs(form.weights[own[0]])
    baseline_mean = _mean(of_baseline[0], scope)
    equal = form.constant + sum(form.weights.values()) * baseline_mean
    margin = (-equal if fails_above else equal) / scale
    if margin < 0:  # equal models fail it
        return
    sample = form_values(form, scope)
    deviations = weighted_deviations(sample.values / scale, sample.weights)
    between, within, repeats = variances(deviations, sample.conversations, sample.repeats)
    if math.isnan(between) or not between + within > 0:
        return
    discrete, reach, step = discreteness(
        sample.values / scale, sample.conversations, metric_named(own[0].metric).widest, sample.weights
    )
    detectable = smallest_detectable(
        sample.num_conversations, between, within, repeats, power=_POWER, level=LEVEL, discrete=discrete, reach=reach,
        step=step,
    )  # fmt: skip
    if form.difference and own[0].tag is None:
        detectable = in_table.get((scope.label, own[0].metric), detectable)
    if math.isnan(detectable):
        return
    error = math.sqrt((between + within / repeats) / sample.num_conversations)
    yield margin, detectable, NormalDist().cdf(-margin / error)


def _mean(value: Value, scope: GateScope) -> float:
    """The mean of a value over the pairs that have it on both sides."""
    column, known = scope.column(value.metric, value.of_baseline, value.tag), known_values(value, scope)
    return float(np.average(column.values[known], weights=None if column.weights is None else column.weights[known]))
