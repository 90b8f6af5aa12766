"""`--fail-if` expressions: a small language of its own, read by a tokenizer and recursive descent. Nothing is
evaluated by Python.

    gate      = sum ("<" | "<=" | ">" | ">=") sum ["significantly"]
    sum       = product {("+" | "-") product}
    product   = unary {("*" | "/") unary}
    unary     = ["-"] (number | "(" sum ")" | value)
    value     = metric | statistic "(" metric ")" | "baseline" | "baseline." metric
              | statistic "(" "baseline." metric ")"
    statistic = "mean" | "median" | "min" | "max" | "p" number     (p95: the 95th percentile)

A metric alone is its mean. `baseline` alone is the baseline's value of the one metric that the gate names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rwkvbatch.comparison.metrics import TURN_METRICS
from rwkvbatch.errors import UsageError

MAX_LENGTH = 500
MAX_NESTING = 50
Operator = Literal["+", "-", "*", "/"]
Comparator = Literal["<", "<=", ">", ">="]


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Value:
    """A statistic of a metric, of the variant or of its baseline."""

    metric: str
    statistic: str
    of_baseline: bool


@dataclass(frozen=True)
class Negation:
    operand: Expression


@dataclass(frozen=True)
class Binary:
    operator: Operator
    left: Expression
    right: Expression


Expression = Number | Value | Negation | Binary


@dataclass(frozen=True)
class Gate:
    """A parsed gate: it fails where `left comparator right` holds (and, if so asked, significantly)."""

    text: str
    left: Expression
    comparator: Comparator
    right: Expression
    significantly: bool

    @property
    def values(self) -> list[Value]:
        """The statistics that it is about, in the order of the text."""
        return [node for side in (self.left, self.right) for node in walk(side) if isinstance(node, Value)]

    @property
    def needs_baseline(self) -> bool:
        return any(value.of_baseline for value in self.values)


def walk(node: Expression) -> Iterator[Expression]:
    """`node` and all below it, from left to right."""
    yield node
    match node:
        case Negation(operand):
            yield from walk(operand)
        case Binary(_, left, right):
            yield from walk(left)
            yield from walk(right)
        case _:
            pass


def parse_gate(text: str) -> Gate:
    """Read one `--fail-if` expression.

    Raises:
        UsageError: it is none; the message points at the place.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(f"--fail-if: an expression has at most {MAX_LENGTH} characters, got {len(text)}")
    return _Parser(text).gate()


_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<symbol><=|>=|[-+*/()<>.]))"
)
_PERCENTILE = re.compile(r"p(\d{1,2})")
_REPEATS = re.compile(r"(?:pass_at|all)_[1-9]\d{0,5}")


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int


_BARE_BASELINE = Value("", "", of_baseline=True)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._tokens())
        self.next = 0
        self.bare_baseline_at: int | None = None
        self.nesting = 0

    def gate(self) -> Gate:
        left = self._sum()
        token = self._take()
        if token.text not in ("<", "<=", ">", ">="):
            raise self._error("expected one of < <= > >=", token)
        comparator: Comparator = token.text
        right = self._sum()
        significantly = self._peek().text == "significantly"
        if significantly:
            self._take()
        if self._peek().kind != "end":
            raise self._error("expected the end of the expression", self._peek())
        return self._with_baseline(Gate(self.text.strip(), left, comparator, right, significantly))

    def _with_baseline(self, gate: Gate) -> Gate:
        """Say which metric's baseline a bare `baseline` means."""
        named = list(dict.fromkeys(v for v in gate.values if v != _BARE_BASELINE and not v.of_baseline))
        if self.bare_baseline_at is None:
            if not named and not gate.values:
                raise self._error("a gate must name a metric", self.tokens[0])
            return gate
        if len(named) != 1:
            problem = "no metric" if not named else " and ".join(value.metric for value in named)
            raise self._error(
                f"`baseline` alone needs exactly one metric beside it, and here is {problem}; write baseline.METRIC",
                self.tokens[self.bare_baseline_at],
            )
        meant = Value(named[0].metric, named[0].statistic, of_baseline=True)

        def filled(node: Expression) -> Expression:
            match node:
                case Value() if node == _BARE_BASELINE:
                    return meant
                case Negation(operand):
                    return Negation(filled(operand))
                case Binary(operator, left, right):
                    return Binary(operator, filled(left), filled(right))
                case _:
                    return node

        return Gate(gate.text, filled(gate.left), gate.comparator, filled(gate.right), gate.significantly)

    def _sum(self) -> Expression:
        node = self._product()
        while (operator := self._peek().text) in ("+", "-"):
            self._take()
            node = Binary(operator, node, self._product())
        return node

    def _product(self) -> Expression:
        node = self._unary()
        while (operator := self._peek().text) in ("*", "/"):
            self._take()
            node = Binary(operator, node, self._unary())
        return node

    def _unary(self) -> Expression:
        token = self._take()
        if token.text in ("-", "("):
            self.nesting += 1
            if self.nesting > MAX_NESTING:
                raise self._error(f"signs and parentheses are nested more than {MAX_NESTING} deep", token)
            inner = self._negated() if token.text == "-" else self._parenthesis()
            self.nesting -= 1
            return inner
        if token.kind == "number":
            return self._number(token)
        if token.kind == "name":
            return self._value(token)
        raise self._error("expected a number, a metric, `baseline` or (", token)

    def _negated(self) -> Expression:
        return Negation(self._unary())

    def _parenthesis(self) -> Expression:
        inner = self._sum()
        self._expect(")")
        return inner

    def _number(self, token: _Token) -> Number:
        value = float(token.text)
        if math.isinf(value):
            raise self._error("the number is out of range", token)
        return Number(value)

    def _value(self, token: _Token) -> Expression:
        if self._peek().text == "(":
            if token.text not in ("mean", "median", "min", "max") and not _PERCENTILE.fullmatch(token.text):
                raise self._error(
                    f"no statistic is called {token.text!r}; there are mean, median, min, max and p95 (p0 to p99)",
                    token,
                )
            self._take()
            name = self._take()
            value = self._metric(name, token.text, allow_bare=False)
            self._expect(")")
            return value
        return self._metric(token, "mean", allow_bare=True)

    def _metric(self, token: _Token, statistic: str, *, allow_bare: bool) -> Value:
        if token.text == "baseline":
            if self._peek().text == ".":
                self._take()
                name = self._take()
                return Value(self._known(name), statistic, of_baseline=True)
            if allow_bare:
                self.bare_baseline_at = self.tokens.index(token)
                return _BARE_BASELINE
            raise self._error(f"write {statistic}(baseline.METRIC)", token)
        return Value(self._known(token), statistic, of_baseline=False)

    def _known(self, token: _Token) -> str:
        names = [metric.name for metric in TURN_METRICS]
        if token.kind != "name" or (token.text not in names and not _REPEATS.fullmatch(token.text)):
            raise self._error(
                f"no metric is called {token.text!r}; there are {', '.join(names)}, pass_at_K, all_K", token
            )
        return token.text

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
                start = position + len(self.text[position:]) - len(self.text[position:].lstrip())
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
