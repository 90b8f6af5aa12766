"""Gates: `--fail-if` expressions, parsed by recursive descent and evaluated on matched rows, never by Python.

    gate      = sum ("<" | "<=" | ">" | ">=") sum ["significantly"]
    sum       = product {("+" | "-") product}
    product   = unary {("*" | "/") unary}
    unary     = ["-"] (number | "(" sum ")" | value)
    value     = metric | statistic "(" metric ")" | "baseline" | "baseline." metric
              | statistic "(" "baseline." metric ")"
    statistic = "mean" | "median" | "min" | "max" | "p" number     (p95: the 95th percentile)

A metric alone is its mean. `baseline` alone is the same statistic of the only metric in the gate.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics import KNOWN_NAMES, metric_named
from rwkvbatch.errors import UsageError
from rwkvbatch.stats.clustered import clustered_mean, holm

MAX_LENGTH: Final = 500
MAX_NESTING: Final = 50
Floats = NDArray[np.float64]

_COMPARATORS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
}  # fmt: skip
_STATISTICS: Final[Mapping[str, Callable[[Floats], Any]]] = {
    "mean": np.mean, "median": np.median, "min": np.min, "max": np.max,
}  # fmt: skip
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<symbol><=|>=|[-+*/()<>.]))"
)
_PERCENTILE = re.compile(r"p(\d{1,2})")


@dataclass(frozen=True)
class Value:
    """A statistic of a metric, of the variant or of its baseline."""

    metric: str
    statistic: str
    of_baseline: bool


@dataclass(frozen=True)
class Binary:
    operator: str
    left: Expression
    right: Expression


Expression = float | Value | Binary
_BARE_BASELINE = Value("", "", of_baseline=True)


@dataclass(frozen=True)
class Gate:
    """A parsed gate: it fails where `left comparator right` holds (significantly, where `significantly` is set)."""

    text: str
    left: Expression
    comparator: str
    right: Expression
    significantly: bool
    values: tuple[Value, ...]
    """The statistics in the gate, from left to right."""


def parse_gate(text: str) -> Gate:
    """Parse one `--fail-if` expression.

    Raises:
        UsageError: a syntax error or an unknown name; the message marks its position.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(f"--fail-if: an expression has at most {MAX_LENGTH} characters, got {len(text)}")
    parser = _Parser(text)
    gate = parser.gate()
    return gate if parser.bare is None else _Parser(text, parser.meaning_of_bare(parser.bare)).gate()


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int


class _Parser:
    """Parses one expression.

    Args:
        meaning: the value of `baseline` alone, known after a first pass.
    """

    def __init__(self, text: str, meaning: Value = _BARE_BASELINE) -> None:
        self.text = text
        self.meaning = meaning
        self.tokens = list(self._tokens())
        self.next = 0
        self.values: list[Value] = []
        self.bare: _Token | None = None
        self.nesting = 0

    def gate(self) -> Gate:
        left = self._sum()
        token = self._take()
        if token.text not in _COMPARATORS:
            raise self._error(f"expected one of {' '.join(_COMPARATORS)}", token)
        right = self._sum()
        significantly = self._peek().text == "significantly"
        if significantly:
            self._take()
        if self._peek().kind != "end":
            raise self._error("expected the end of the expression", self._peek())
        if not self.values:
            raise self._error("a gate must name a metric", self.tokens[0])
        return Gate(self.text.strip(), left, token.text, right, significantly, tuple(self.values))

    def meaning_of_bare(self, token: _Token) -> Value:
        """The baseline's value of the only metric in the gate; `token` is the bare `baseline`."""
        named = list(dict.fromkeys(value for value in self.values if not value.of_baseline))
        if len(named) != 1:
            found = " and ".join(value.metric for value in named) or "no metric"
            raise self._error(
                f"`baseline` alone needs exactly one metric in the gate, found {found}; write baseline.METRIC", token
            )
        return replace(named[0], of_baseline=True)

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
        if token.text not in _STATISTICS and not _PERCENTILE.fullmatch(token.text):
            known = ", ".join(_STATISTICS)
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
                self.bare = token
                return self.meaning
            else:
                raise self._error(f"write {statistic}(baseline.METRIC)", token)
        try:
            metric_named(token.text)
        except UsageError:
            raise self._error(f"no metric is called {token.text!r}; known: {KNOWN_NAMES}", token) from None
        return Value(token.text, statistic, of_baseline)

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
            found = _TOKEN.match(self.text, position)
            if found is None:
                start = end - len(self.text[position:end].lstrip())
                raise self._error(f"unexpected character {self.text[start]!r}", _Token("?", self.text[start], start))
            kind = found.lastgroup or ""
            yield _Token(kind, found[kind], found.start(kind))
            position = found.end()
        yield _Token("end", "", end)

    def _error(self, problem: str, token: _Token) -> UsageError:
        line = self.text.replace("\n", " ").replace("\t", " ")
        return UsageError(
            f"--fail-if: {problem}\n    {line}\n    {' ' * token.start}^",
            hint='for example: --fail-if "score < baseline - 0.02", --fail-if "p95(first_token_s) > 2 * baseline"',
        )


@dataclass(frozen=True)
class Column:
    """One metric of one side: `values` `[n]`, NaN where unknown; `conversations` `[n]` codes."""

    values: Floats
    conversations: NDArray[np.int64]


@dataclass(frozen=True)
class GateScope:
    """A variant that gates are judged on, with or without a baseline.

    `column(metric, of_baseline)` gives the numbers; both sides have the same turns in the same order.
    """

    label: str
    baseline_label: str | None
    column: Callable[[str, bool], Column]


@dataclass(frozen=True)
class GateResult:
    """One gate on one variant. `failed`: its condition holds, significantly if the gate says so.

    `p_holm` is NaN for gates without `significantly`; where the condition does not hold, it is of the opposite.
    """

    gate: Gate
    label: str
    failed: bool
    left: float
    right: float
    p_holm: float = math.nan

    @property
    def line(self) -> str:
        """The outcome as one line of a log."""
        word = "FAILED" if self.failed else "passed"
        found = f"{self.left:.4g} {self.gate.comparator} {self.right:.4g}"
        if not self.holds:
            found = f"not {found}"
        elif not math.isnan(self.p_holm):
            found += f"{'' if self.failed else ', not significant'}, p = {self.p_holm:.2g}"
        return f"{word}: {self.gate.text} [{self.label}: {found}]"

    @property
    def holds(self) -> bool:
        """Whether the condition holds, significantly or not."""
        return _COMPARATORS[self.gate.comparator](self.left, self.right)


def judge(gates: Sequence[Gate], scopes: Sequence[GateScope], *, alpha: float = 0.05) -> list[GateResult]:
    """Every gate on every scope. The p-values of all significant gates are Holm-corrected together.

    Raises:
        UsageError: a gate needs a baseline where there is none, or a metric that no row has, divides by zero, gives
            no number, or asks for significance of what has no paired test (percentiles, products of metrics).
    """
    results = [_judge(gate, scope) for gate in gates for scope in scopes]
    adjusted = holm([result.p_holm for result in results])
    return [
        replace(result, failed=result.holds and (not result.gate.significantly or bool(p < alpha)), p_holm=float(p))
        for result, p in zip(results, adjusted, strict=True)
    ]


def _judge(gate: Gate, scope: GateScope) -> GateResult:
    if scope.baseline_label is None and any(value.of_baseline for value in gate.values):
        raise UsageError(
            f"--fail-if {gate.text!r} needs a baseline, and only one variant is given",
            hint="give a second run or cell, or compare with a number: --fail-if 'score < 0.8'",
        )

    def combined(sign: str, a: float, b: float) -> float:
        if sign == "/" and b == 0:
            raise UsageError(f"--fail-if {gate.text!r} divides by zero on {scope.label}")
        return _OPERATORS[sign](a, b)

    left, right = (
        _evaluated(side, lambda value: _statistic(value, gate, scope), combined) for side in (gate.left, gate.right)
    )
    if math.isnan(left) or math.isnan(right):
        # Every comparison with NaN is false: the gate could never fail.
        raise UsageError(f"--fail-if {gate.text!r} gives no number on {scope.label}: its values are too large")
    p = _paired_p(gate, scope) if gate.significantly else math.nan
    return GateResult(gate, scope.label, False, left, right, p)


def _evaluated(node: Expression, of_value: Callable[[Value], Any], combined: Callable[[str, Any, Any], Any]) -> Any:
    """The result of an expression, from those of its statistics and operators."""
    match node:
        case Value():
            return of_value(node)
        case Binary(sign, left, right):
            return combined(sign, _evaluated(left, of_value, combined), _evaluated(right, of_value, combined))
        case number:
            return number


def _statistic(value: Value, gate: Gate, scope: GateScope) -> float:
    numbers = scope.column(value.metric, value.of_baseline).values
    known = numbers[~np.isnan(numbers)]
    if not known.size:
        side = scope.baseline_label if value.of_baseline else scope.label
        raise UsageError(
            f"--fail-if {gate.text!r}: {side} has no {value.metric} to judge",
            hint="scores need checks in the script, nll and matched need reference replies, pass_at_K needs K repeats",
        )
    percentile = _PERCENTILE.fullmatch(value.statistic)
    result = float(np.percentile(known, int(percentile[1])) if percentile else _STATISTICS[value.statistic](known))
    return metric_named(value.metric).shown(result)


def _paired_p(gate: Gate, scope: GateScope) -> float:
    """Two-sided p-value of "both sides are equal" over rows; the sides must be linear in means of metrics."""

    def by_row(value: Value) -> Floats:
        if value.statistic != "mean" or metric_named(value.metric).log_of:
            raise _no_test(gate)
        return scope.column(value.metric, value.of_baseline).values

    def combined(sign: str, a: Floats | float, b: Floats | float) -> Floats | float:
        both = np.ndim(a) and np.ndim(b)
        linear = {"*": not both, "/": not np.ndim(b) and b != 0}.get(sign, True)
        if not linear or (both and np.shape(a) != np.shape(b)):
            raise _no_test(gate)
        return _OPERATORS[sign](a, b)

    margin = np.asarray(_evaluated(Binary("-", gate.left, gate.right), by_row, combined))
    if not margin.ndim:
        raise _no_test(gate)
    first = gate.values[0]
    conversations = scope.column(first.metric, first.of_baseline).conversations
    known = ~np.isnan(margin)
    if not known.any():
        raise UsageError(f"--fail-if {gate.text!r}: no turn of {scope.label} has all metrics of the gate")
    return clustered_mean(margin[known], conversations[known]).p_value()


def _no_test(gate: Gate) -> UsageError:
    return UsageError(
        f"--fail-if {gate.text!r}: significance is defined only for sums and multiples of means",
        hint="remove `significantly` from gates on percentiles, perplexity or products",
    )
