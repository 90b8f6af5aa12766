"""Gates as trees of expressions, and their linear forms; `parsing` reads their text, `evaluation` judges them."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.declarations import VARIANT_METRICS, Metric, metric_named

_MAX_NUMBER: Final = 1e100
Floats = NDArray[np.float64]
GateOption = Literal["--fail-if", "--fail-unless"]

COMPARATORS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
}  # fmt: skip
STATISTICS: Final[Mapping[str, Callable[[Floats], Any]]] = {
    "mean": np.mean, "median": np.median, "min": np.min, "max": np.max,
}  # fmt: skip
PERCENTILE = re.compile(r"p(\d{1,2})")


@dataclass(frozen=True)
class Value:
    """A statistic of a metric, of the variant or of its baseline; of the turns with a tag, or of all for None."""

    metric: str
    statistic: str
    of_baseline: bool
    tag: str | None = None

    @property
    def name(self) -> str:
        """The metric, and the tag in brackets."""
        return self.metric if self.tag is None else f"{self.metric}[{self.tag}]"


@dataclass(frozen=True)
class Binary:
    operator: str
    left: Expression
    right: Expression


Expression = float | Value | Binary


@dataclass(frozen=True)
class LinearForm:
    """`constant` plus a weighted sum of means, which are all of turns or all of conversations, and of the same tag."""

    constant: float
    weights: Mapping[Value, float]

    @property
    def difference(self) -> tuple[Metric, float] | None:
        """The metric and its weight, if the form is a multiple of variant minus baseline; else None."""
        if len(self.weights) == 2:
            items = sorted(self.weights.items(), key=lambda item: item[0].of_baseline)
            (variant, weight), (baseline, baseline_weight) = items
            is_pair = variant.name == baseline.name and not variant.of_baseline and baseline.of_baseline
            if is_pair and weight == -baseline_weight:
                return metric_named(variant.metric), weight
        return None

    @property
    def one_sided(self) -> bool:
        """Whether all values are of the variant, or all of the baseline."""
        return len({value.of_baseline for value in self.weights}) == 1

    @property
    def has_different_weights(self) -> bool:
        """Whether two of its means weigh turns differently, as `nll` (by tokens) and `bits_per_byte` (by bytes)."""
        return len({metric_named(value.metric).weight_column for value in self.weights}) > 1

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest value of the form that the metrics' ranges allow."""
        low = high = self.constant
        for value, weight in self.weights.items():
            metric = metric_named(value.metric)
            ends = (weight * metric.lowest, weight * metric.highest)
            low, high = low + min(ends), high + max(ends)
        return low, high

    @property
    def reach(self) -> float:
        """The largest distance from 0 (from the constant, for a difference) that the metrics' ranges allow."""
        if self.difference:
            metric, weight = self.difference
            return abs(weight) * metric.widest
        return max(map(abs, self.limits))


@dataclass(frozen=True)
class Gate:
    """A parsed gate with the condition `left comparator right`, which must be significant if `significantly` is set.

    With `--fail-if` it fails if the condition holds, with `--fail-unless` if it does not.
    """

    text: str
    option: GateOption
    left: Expression
    comparator: str
    right: Expression
    significantly: bool
    values: tuple[Value, ...]
    """The statistics in the gate, from left to right."""

    @cached_property
    def form(self) -> LinearForm | None:
        """`left - right`; None if it has no test, because of percentiles, products, timings, counts or several tags."""
        form = _linear(Binary("-", self.left, self.right))
        if form is None or not form.weights:
            return None
        metrics = [metric_named(value.metric) for value in form.weights]
        same_level = len({(metric.level, value.tag) for metric, value in zip(metrics, form.weights, strict=True)}) == 1
        return form if same_level and all(metric.tested for metric in metrics) else None

    def judges(self, count: str, *, of_baseline: bool) -> bool:
        """Whether the gate fails by itself if enough rows of one side are counted by `count`, a field of `Dropped`.

        It has sums and multiples of such counts alone (`error_rate` is one of errors), and fails as this one grows.
        """
        form = _linear(Binary("-", self.left, self.right))
        if form is None or any(value.tag is not None or value.metric not in _COUNTED_BY for value in form.weights):
            return False
        weights = [
            weight
            for value, weight in form.weights.items()
            if value.of_baseline == of_baseline and count in _COUNTED_BY[value.metric]
        ]
        fails_above = (self.comparator in (">", ">=")) == (self.option == "--fail-if")
        return bool(weights) and all((weight > 0) == fails_above for weight in weights)


_COUNTED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    **{metric.name: (metric.name,) for metric in VARIANT_METRICS},
    "error_rate": ("errors", "unreached"),
}
"""The counts of incomplete rows that grow with a metric."""


def evaluated(node: Expression, of_value: Callable[[Value], Any], combined: Callable[[str, Any, Any], Any]) -> Any:
    """The result of an expression: `of_value` gives that of a statistic, `combined` that of an operator."""
    match node:
        case Value():
            return of_value(node)
        case Binary(sign, left, right):
            sides = (evaluated(side, of_value, combined) for side in (left, right))
            return combined(sign, *sides)
        case number:
            return number


def has_value(node: Expression) -> bool:
    """Whether the expression has a statistic, and is not a number alone."""
    return evaluated(node, lambda value: True, lambda sign, a, b: a is True or b is True) is True


def _linear(node: Expression) -> LinearForm | None:
    """The expression as a linear form; None if it is not linear in means."""

    def of_value(value: Value) -> LinearForm | None:
        is_mean = value.statistic == "mean" and not metric_named(value.metric).log_of
        return LinearForm(0.0, {value: 1.0}) if is_mean else None

    def combined(sign: str, a: LinearForm | float | None, b: LinearForm | float | None) -> LinearForm | None:
        if a is None or b is None:
            return None
        left, right = (side if isinstance(side, LinearForm) else LinearForm(side, {}) for side in (a, b))
        if sign in "+-":
            return _added(left, right, 1.0 if sign == "+" else -1.0)
        if sign == "*" and not (left.weights and right.weights):
            return _scaled(left, right.constant) if left.weights else _scaled(right, left.constant)
        if sign == "/" and not right.weights and right.constant != 0:
            return _scaled(left, 1 / right.constant)
        return None

    form = evaluated(node, of_value, combined)
    # Sums of squares of numbers above the limit overflow.
    if form is None or not all(abs(number) < _MAX_NUMBER for number in (form.constant, *form.weights.values())):
        return None
    return LinearForm(form.constant, {value: weight for value, weight in form.weights.items() if weight != 0})


def _added(left: LinearForm, right: LinearForm, factor: float) -> LinearForm:
    """`left + factor * right`."""
    weights = dict(left.weights)
    for value, weight in right.weights.items():
        weights[value] = weights.get(value, 0.0) + factor * weight
    return LinearForm(left.constant + factor * right.constant, weights)


def _scaled(form: LinearForm, factor: float) -> LinearForm:
    return LinearForm(form.constant * factor, {value: weight * factor for value, weight in form.weights.items()})
