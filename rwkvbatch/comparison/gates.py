"""Whether a gate holds on the matched rows of a pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.gate_parser import Binary, Expression, Gate, Negation, Number, Value, parse_gate
from rwkvbatch.comparison.metrics import TURN_METRICS, exponential
from rwkvbatch.errors import UsageError
from rwkvbatch.stats.clustered import clustered_mean, holm

__all__ = ["Gate", "GateResult", "GateScope", "judge", "parse_gate"]


Floats = NDArray[np.float64]
_EXPONENTIAL = frozenset(metric.name for metric in TURN_METRICS if metric.exponential)


@dataclass(frozen=True)
class Column:
    """One metric of one side: `values` `[n]`, NaN where unknown; `conversations` `[n]` codes."""

    values: Floats
    conversations: NDArray[np.int64]


@dataclass(frozen=True)
class GateScope:
    """What a gate is judged on: a variant, beside its baseline if it has one.

    `column(metric, of_baseline)` gives the numbers; both sides' are of the same turns, in the same order.
    """

    label: str
    baseline_label: str | None
    column: Callable[[str, bool], Column]


@dataclass(frozen=True)
class GateResult:
    """One gate on one variant: `failed` says that its condition holds (significantly, if so asked).

    `p_holm` is NaN for gates that do not ask for significance.
    """

    gate: Gate
    label: str
    failed: bool
    left: float
    right: float
    p_holm: float = math.nan

    @property
    def line(self) -> str:
        """What a log shows of it."""
        word = "FAILED" if self.failed else "passed"
        found = f"{self.left:.4g} {self.gate.comparator} {self.right:.4g}"
        if not self.holds:
            found = f"not {found}"
        elif not math.isnan(self.p_holm):
            found += f"{'' if self.failed else ', which may be noise'}, p = {self.p_holm:.2g}"
        return f"{word}: {self.gate.text} [{self.label}: {found}]"

    @property
    def holds(self) -> bool:
        """Whether the condition holds, significantly or not. Where it does not, `p_holm` speaks of the opposite."""
        return _holds(self.gate, self.left, self.right)


def judge(gates: Sequence[Gate], scopes: Sequence[GateScope], *, alpha: float = 0.05) -> list[GateResult]:
    """Every gate on every scope. Those that ask for significance are Holm-corrected together.

    Raises:
        UsageError: a gate names a baseline where there is none, or a metric that no row has, divides by zero, gives
            no number, or asks for significance of what has no paired test (percentiles, products of metrics).
    """
    results = [_judge(gate, scope) for gate in gates for scope in scopes]
    adjusted = holm([result.p_holm for result in results]) if results else np.array([])
    final: list[GateResult] = []
    for result, p in zip(results, adjusted, strict=True):
        certain = not result.gate.significantly or p < alpha
        final.append(replace(result, failed=result.failed and bool(certain), p_holm=float(p)))
    return final


def _judge(gate: Gate, scope: GateScope) -> GateResult:
    if gate.needs_baseline and scope.baseline_label is None:
        raise UsageError(
            f"--fail-if {gate.text!r} names a baseline, and there is only one thing to look at",
            hint="give a second run or cell, or compare with a number: --fail-if 'score < 0.8'",
        )
    left, right = _number(gate.left, gate, scope), _number(gate.right, gate, scope)
    if math.isnan(left) or math.isnan(right):
        # Every comparison with NaN is false, so that the gate could never fail.
        raise UsageError(f"--fail-if {gate.text!r} gives no number on {scope.label}: its values are too large")
    p = _paired_p(gate, scope) if gate.significantly else math.nan
    return GateResult(gate, scope.label, _holds(gate, left, right), left, right, p)


def _holds(gate: Gate, left: float, right: float) -> bool:
    match gate.comparator:
        case "<":
            return left < right
        case "<=":
            return left <= right
        case ">":
            return left > right
        case ">=":
            return left >= right


def _number(node: Expression, gate: Gate, scope: GateScope) -> float:
    match node:
        case Number(value):
            return value
        case Value():
            return _statistic(node, gate, scope)
        case Negation(operand):
            return -_number(operand, gate, scope)
        case Binary(operator, left, right):
            a, b = _number(left, gate, scope), _number(right, gate, scope)
            match operator:
                case "+":
                    return a + b
                case "-":
                    return a - b
                case "*":
                    return a * b
                case "/":
                    if b == 0:
                        raise UsageError(f"--fail-if {gate.text!r} divides by zero on {scope.label}")
                    return a / b


def _statistic(value: Value, gate: Gate, scope: GateScope) -> float:
    numbers = scope.column(value.metric, value.of_baseline).values
    known = numbers[~np.isnan(numbers)]
    if not known.size:
        side = scope.baseline_label if value.of_baseline else scope.label
        raise UsageError(
            f"--fail-if {gate.text!r}: {side} has no {value.metric} to judge",
            hint="scores need checks in the script, nll and matched need reference replies, pass_at_K needs K repeats",
        )
    match value.statistic:
        case "mean":
            result = float(known.mean())
        case "median":
            result = float(np.median(known))
        case "min":
            result = float(known.min())
        case "max":
            result = float(known.max())
        case percentile:
            result = float(np.percentile(known, float(percentile[1:])))
    return exponential(result) if value.metric in _EXPONENTIAL else result


def _paired_p(gate: Gate, scope: GateScope) -> float:
    """Two-sided p-value of "both sides are equal", over rows; the sides must be linear in means of metrics."""
    margin = _linear(Binary("-", gate.left, gate.right), gate, scope)
    first = gate.values[0]
    conversations = scope.column(first.metric, first.of_baseline).conversations
    if np.ndim(margin) == 0:
        raise _no_test(gate)
    rows = np.asarray(margin)
    known = ~np.isnan(rows)
    if not known.any():
        raise UsageError(f"--fail-if {gate.text!r}: no turn of {scope.label} has all metrics it names")
    return clustered_mean(rows[known], conversations[known]).p_value()


def _linear(node: Expression, gate: Gate, scope: GateScope) -> Floats | float:
    match node:
        case Number(value):
            return value
        case Value(metric, statistic, of_baseline):
            if statistic != "mean" or metric in _EXPONENTIAL:
                raise _no_test(gate)
            return scope.column(metric, of_baseline).values
        case Negation(operand):
            return -_linear(operand, gate, scope)
        case Binary(operator, left, right):
            a, b = _linear(left, gate, scope), _linear(right, gate, scope)
            if np.ndim(a) and np.ndim(b) and np.shape(a) != np.shape(b):
                raise _no_test(gate)
            match operator:
                case "+":
                    return a + b
                case "-":
                    return a - b
                case "*" if not (np.ndim(a) and np.ndim(b)):
                    return a * b
                case "/" if not np.ndim(b) and b != 0:
                    return a / b
                case _:
                    raise _no_test(gate)


def _no_test(gate: Gate) -> UsageError:
    return UsageError(
        f"--fail-if {gate.text!r}: significance is known only for sums and multiples of means",
        hint="take the percentile, perplexity or product without `significantly`",
    )
