"""Reads the text of a gate (`--fail-if`, `--fail-unless`) by recursive descent; Python never evaluates it.

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
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from rwkvbatch.comparison.gates.expressions import (
    COMPARATORS,
    OPERATORS,
    PERCENTILE,
    STATISTICS,
    Binary,
    Expression,
    Gate,
    GateOption,
    Value,
    evaluated,
)
from rwkvbatch.comparison.metrics.declarations import KNOWN_NAMES, metric_named
from rwkvbatch.errors import UsageError, listed

MAX_LENGTH: Final = 500
MAX_NESTING: Final = 50
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<symbol><=|>=|[-+*/()<>.])"
    r"|\[\s*(?P<tag>\"(?:[^\"\\]|\\.)*\"|[^\s\[\]\"](?:[^\[\]]*[^\s\[\]])?)\s*\])"
)
_BARE_BASELINE = Value("", "", of_baseline=True)


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
        ends = [float(OPERATORS[sign](x, y)) for x in left for y in right]
        return _UNKNOWN_RANGE if any(map(math.isnan, ends)) else (min(ends), max(ends))

    found: _Range | float = evaluated(node, of_value, combined)
    return found if isinstance(found, tuple) else (found, found)


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
