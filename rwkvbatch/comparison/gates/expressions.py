"""Gates: `--fail-if` and `--fail-unless` expressions, parsed by recursive descent and never evaluated by Python.

    gate      = sum ("<" | "<=" | ">" | ">=") sum ["significantly"]
    sum       = product {("+" | "-") product}
    product   = unary {("*" | "/") unary}
    unary     = ["-"] (number | "(" sum ")" | value)
    value     = of | statistic "(" of ")" | "baseline" [tag]
    of        = ["baseline."] metric [tag]
    statistic = "mean" | "median" | "min" | "max" | "p" number     (p95: the 95th percentile)
    tag       = "[" (text without brackets | a string of JSON) "]"

A metric without a statistic means its mean, and one with a tag that of the turns with the tag. `baseline` without a
metric means the same statistic of the only metric in the gate, with the same tag unless it has its own. `evaluation`
judges gates on the pairs of a comparison.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.declarations import KNOWN_NAMES, VARIANT_METRICS, Metric, metric_named
from rwkvbatch.errors import UsageError, listed

MAX_LENGTH: Final = 500
MAX_NESTING: Final = 50
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
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<symbol><=|>=|[-+*/()<>.])"
    r"|\[\s*(?P<tag>\"(?:[^\"\\]|\\.)*\"|[^\s\[\]\"](?:[^\[\]]*[^\s\[\]])?)\s*\])"
)
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
_BARE_BASELINE = Value("", "", of_baseline=True)


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


def parse_gate(text: str, option: GateOption = "--fail-if", *, significantly: bool = False) -> Gate:
    """Parse one expression.

    Args:
        significantly: add `significantly` if the text does not have it.

    Raises:
        UsageError: a syntax error, an unknown name (the message marks its position), a condition that the ranges of the
            metrics decide, or `significantly` in a gate that has no test or whose metrics have different weights.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(f"{option}: an expression has at most {MAX_LENGTH} characters, got {len(text)}")
    parser = _Parser(text, option)
    gate = parser.gate()
    if parser.bare_baseline is not None:
        gate = _Parser(text, option, parser.value_of_bare(parser.bare_baseline)).gate()
    if significantly:
        gate = replace(gate, significantly=True)
    if gate.significantly and gate.form is None:
        raise UsageError(
            f"{option} {gate.text!r}: significance is defined only for sums and multiples of means that are tested",
            hint="remove `significantly` from gates on percentiles, timings, perplexity, counts, products or two tags",
        )
    if gate.significantly and gate.form is not None and gate.form.has_different_weights:
        names = listed(list(dict.fromkeys(value.metric for value in gate.form.weights)))
        raise UsageError(
            f"{option} {gate.text!r}: {names} average turns with different weights, so their sum has no single test",
            hint="remove `significantly`, or write a gate for each of them",
        )
    _refuse_decided(gate)
    return gate


def _refuse_decided(gate: Gate) -> None:
    """Raise `UsageError` if the condition holds for all values in the metrics' ranges, or for none."""
    low, high = _range(Binary("-", gate.left, gate.right))
    compared = COMPARATORS[gate.comparator]
    outcomes = {compared(end, 0.0) for end in (low, high)}
    if len(outcomes) > 1:
        return
    outcome = "always" if outcomes.pop() else "never"
    ranges = listed(list(dict.fromkeys(_range_text(value) for value in gate.values)))
    raise UsageError(
        f"{gate.option} {gate.text!r}: the condition {outcome} holds: {ranges}",
        hint="compare with a number in the range, such as 0.9 for 90 %",
    )


def _range_text(value: Value) -> str:
    low, high = _range(replace(value, of_baseline=False))
    return f"{value.metric} is in [{low:g}, {high:g}]" if math.isfinite(high) else f"{value.metric} is at least {low:g}"


_Range = tuple[float, float]
_UNKNOWN_RANGE: Final[_Range] = (-math.inf, math.inf)


def _range(node: Expression) -> _Range:
    """The lowest and the highest value that the metrics' ranges allow, at most too wide."""

    def of_value(value: Value) -> _Range:
        metric = metric_named(value.metric)
        low, high = (metric.shown(end) for end in (metric.lowest, metric.highest))
        return low, high

    def combined(sign: str, a: _Range | float, b: _Range | float) -> _Range:
        left, right = (side if isinstance(side, tuple) else (side, side) for side in (a, b))
        if sign == "/" and right[0] <= 0 <= right[1]:
            return _UNKNOWN_RANGE
        # 0 * infinity is 0 here: the infinite end is never a value.
        ends = [0.0 if sign == "*" and 0 in (x, y) else float(OPERATORS[sign](x, y)) for x in left for y in right]
        return _UNKNOWN_RANGE if any(map(math.isnan, ends)) else (min(ends), max(ends))

    found: _Range | float = evaluated(node, of_value, combined)
    return found if isinstance(found, tuple) else (found, found)


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


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int


class _Parser:
    """Parses one expression by recursive descent.

    Args:
        bare_value: the value that `baseline` without a metric stands for; the first pass finds it.

    Attributes:
        next: index of the next token.
        values: the statistics parsed so far.
        nesting: depth of signs and parentheses.
        bare_baseline: the last token `baseline` without a metric; None if there is none.
        bare_tags: the tags of all of these, None for each without one.
    """

    def __init__(self, text: str, option: GateOption, bare_value: Value = _BARE_BASELINE) -> None:
        self.text = text
        self.option: GateOption = option
        self.bare_value = bare_value
        self.tokens = list(self._tokens())
        self.next = 0
        self.values: list[Value] = []
        self.bare_baseline: _Token | None = None
        self.bare_tags: list[str | None] = []
        self.nesting = 0

    def gate(self) -> Gate:
        left = self._sum()
        token = self._take()
        if token.text not in COMPARATORS:
            raise self._error(f"expected one of {' '.join(COMPARATORS)}", token)
        right = self._sum()
        significantly = self._peek().text == "significantly"
        if significantly:
            self._take()
        if self._peek().kind != "end":
            raise self._error("expected the end of the expression", self._peek())
        if not self.values:
            raise self._error("a gate must name a metric", self.tokens[0])
        return Gate(self.text.strip(), self.option, left, token.text, right, significantly, tuple(self.values))

    def value_of_bare(self, token: _Token) -> Value:
        """The baseline's statistic of the only metric in the gate; `token` is the `baseline` without a metric."""
        variant_values = list(dict.fromkeys(value for value in self.values if not value.of_baseline))
        if None not in self.bare_tags:
            variant_values = list(dict.fromkeys(replace(value, tag=None) for value in variant_values))
        if len(variant_values) != 1:
            names = " and ".join(value.name for value in variant_values) or "no metric"
            raise self._error(
                f"`baseline` alone needs exactly one metric in the gate, found {names}; write baseline.METRIC", token
            )
        return replace(variant_values[0], of_baseline=True)

    def _sum(self) -> Expression:
        return self._chain("+-", self._product)

    def _product(self) -> Expression:
        return self._chain("*/", self._unary)

    def _chain(self, signs: str, operand: Callable[[], Expression]) -> Expression:
        node = operand()
        while self._peek().kind == "symbol" and self._peek().text in signs:
            node = Binary(self._take().text, node, operand())
        return node

    def _unary(self) -> Expression:
        token = self._take()
        if token.text in ("-", "("):
            self.nesting += 1
            if self.nesting > MAX_NESTING:
                raise self._error(f"signs and parentheses are nested more than {MAX_NESTING} deep", token)
            inner = Binary("-", 0.0, self._unary()) if token.text == "-" else self._sum()
            if token.text == "(":
                self._expect(")")
            self.nesting -= 1
            return inner
        if token.kind == "number":
            if math.isinf(float(token.text)):
                raise self._error("the number is out of range", token)
            return float(token.text)
        if token.kind == "name":
            self.values.append(self._value(token))
            return self.values[-1]
        raise self._error("expected a number, a metric, `baseline` or (", token)

    def _value(self, token: _Token) -> Value:
        if self._peek().text != "(":
            return self._metric(token, "mean", allow_bare=True)
        if token.text not in STATISTICS and not PERCENTILE.fullmatch(token.text):
            known = ", ".join(STATISTICS)
            raise self._error(f"no statistic is called {token.text!r}; known: {known} and p0 to p99", token)
        self._take()
        value = self._metric(self._take(), token.text, allow_bare=False)
        self._expect(")")
        return value

    def _metric(self, token: _Token, statistic: str, *, allow_bare: bool) -> Value:
        of_baseline = token.text == "baseline"
        if of_baseline:
            if self._peek().text == ".":
                self._take()
                token = self._take()
            elif allow_bare:
                self.bare_baseline = token
                tag = self._tag()
                self.bare_tags.append(tag)
                return self.bare_value if tag is None else replace(self.bare_value, tag=tag)
            else:
                raise self._error(f"write {statistic}(baseline.METRIC)", token)
        try:
            metric = metric_named(token.text)
        except UsageError:
            raise self._error(f"no metric is called {token.text!r}; known: {KNOWN_NAMES}", token) from None
        tag_token = self._peek()
        tag = self._tag()
        if tag is not None and metric.level == "variant":
            raise self._error(f"{metric.name} is counted over all turns and has no tag", tag_token)
        return Value(metric.name, statistic, of_baseline, tag)

    def _tag(self) -> str | None:
        """The tag in brackets, if it comes next."""
        if self._peek().kind != "tag":
            return None
        token = self._take()
        if not token.text.startswith('"'):
            return token.text
        try:
            return json.loads(token.text)
        except ValueError:
            raise self._error("the tag is not a JSON string", token) from None

    def _expect(self, text: str) -> None:
        token = self._take()
        if token.text != text:
            raise self._error(f"expected {text}", token)

    def _peek(self) -> _Token:
        return self.tokens[self.next]

    def _take(self) -> _Token:
        token = self.tokens[self.next]
        self.next = min(self.next + 1, len(self.tokens) - 1)
        return token

    def _tokens(self) -> Iterator[_Token]:
        position = 0
        end = len(self.text.rstrip())
        while position < end:
            match = _TOKEN.match(self.text, position)
            if match is None:
                start = end - len(self.text[position:end].lstrip())
                raise self._error(f"unexpected character {self.text[start]!r}", _Token("?", self.text[start], start))
            kind = match.lastgroup or ""
            yield _Token(kind, match[kind], self.text.index("[", position) if kind == "tag" else match.start(kind))
            position = match.end()
        yield _Token("end", "", end)

    def _error(self, problem: str, token: _Token) -> UsageError:
        line = self.text.replace("\n", " ").replace("\t", " ")
        return UsageError(
            f"{self.option}: {problem}\n    {line}\n    {' ' * token.start}^",
            hint='such as --fail-if "score < baseline - 0.02", --fail-unless "score >= baseline - 0.02 significantly"',
        )
