"""Results of gates, and their sentences in logs and reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rwkvbatch.comparison.gates.expressions import COMPARATORS, Expression, Gate, Value, evaluated, has_value
from rwkvbatch.errors import counted

CANNOT_JUDGE: Final = "cannot be judged: "
"""Begins the reason of a gate whose numbers cannot be computed."""


@dataclass(frozen=True)
class GateResult:
    """One gate on one variant.

    Attributes:
        failed: whether the condition holds (`--fail-if`) or does not hold (`--fail-unless`), or there is a `reason`.
        left, right: values of the two sides of the condition; NaN if they could not be computed.
        shown: for significant gates, whether the interval shows that the condition holds; else whether it holds.
        low, high: for significant gates the interval of `left - right`, simultaneous over all variants; else NaN.
        p_adjusted: p-value of "variant and baseline are equal", corrected over all variants; NaN if the gate tests
            another hypothesis.
        reason: why the gate fails regardless of its condition; empty otherwise.
        conversations_needed: number of conversations that would show the condition, if a significant `--fail-unless`
            fails because it has too few; else None.
        note: what `conversations_needed` assumes.
        only: the name of the restriction of the comparison (`--only`); empty without one.
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
    only: str = ""

    @property
    def holds(self) -> bool:
        """Whether the condition holds, significantly or not."""
        return COMPARATORS[self.gate.comparator](self.left, self.right)

    @property
    def found(self) -> str:
        """A sentence without a full stop: why the gate could not be judged, if so, and the numbers that it compared."""
        if not self.reason:
            return "; ".join(filter(None, (self._numbers(named=True), self.note)))
        parts = [f"{self.label} could not be judged: {self.reason.removeprefix(CANNOT_JUDGE)}"]
        if not math.isnan(self.left):
            parts.append(f"as it is, it has {self._numbers(named=False)}")
            if not self.reason.startswith(CANNOT_JUDGE):
                fails = self.shown != (self.gate.option == "--fail-unless")
                parts[-1] += ", and fails, too" if fails else ", and would pass"
        return "; ".join(filter(None, (*parts, self.note)))

    def _numbers(self, *, named: bool) -> str:
        """The side of the condition that is of the variant, and the other one as its limit.

        Args:
            named: begin with the variant that has the number.
        """
        gate = self.gate
        sides = [(self.left, gate.left), (self.right, gate.right)]
        is_swapped = not _is_of_variant(gate.left) and (_is_of_variant(gate.right) or not has_value(gate.left))
        texts, signs = self._sides, 1
        if is_swapped:
            sides, texts, signs = sides[::-1], texts[::-1], -1
        owner = self.label if _is_of_variant(sides[0][1]) else self.baseline_label or self.label
        text = f"{owner} has {texts[0]}" if named else texts[0]
        if not isinstance(sides[1][1], float):  # the condition has a number as it is
            text += f", the limit is {texts[1]}"
        if not math.isnan(self.low):
            low, high = sorted((signs * self.low, signs * self.high))
            text += f", difference from it {signs * (self.left - self.right):+.4g} [{low:+.4g}, {high:+.4g}]"
            if self.holds:
                text += " is significant" if self.shown else " is not significant"
        if not math.isnan(self.p_adjusted):
            text += f", p = {self.p_adjusted:.2g}"
        return text

    @property
    def _sides(self) -> tuple[str, str]:
        """The two sides as text, whose order is that of the numbers.

        A side without a metric has the number that the gate gives; others have 4 significant digits, or more.
        """
        sides = [(self.left, self.gate.left), (self.right, self.gate.right)]

        def texts(digits: int) -> tuple[str, str]:
            left, right = (f"{number:.{digits if has_value(node) else 15}g}" for number, node in sides)
            return left, right

        order = _order(self.left, self.right)
        digits = next((n for n in (4, 6, 8, 12) if _order(*map(float, texts(n))) == order), 17)
        return texts(digits)

    @property
    def condition(self) -> str:
        """The condition prefixed with `fail-if` or `fail-unless`, and the restriction."""
        return f"{self.gate.option.removeprefix('--')} {self.gate.text}{self.only and f' ({self.only})'}"

    @property
    def line(self) -> str:
        """The outcome as one line of a log."""
        return f"{'FAILED' if self.failed else 'passed'}: {self.condition}: {self.found}"


def gates_outcome(results: Sequence[GateResult]) -> str:
    """How many gates failed, as a headline; empty without gates. A gate fails if it fails on any variant."""
    gates = list(dict.fromkeys((result.gate.option, result.gate.text) for result in results))
    failed = {(result.gate.option, result.gate.text) for result in results if result.failed}
    if not gates:
        return ""
    if not failed:
        return "the gate passed" if len(gates) == 1 else f"all {len(gates)} gates passed"
    text = "the gate failed" if len(gates) == 1 else f"{len(failed)} of {counted(len(gates), 'gate')} failed"
    variants = dict.fromkeys(result.label for result in results)
    failing = {result.label for result in results if result.failed}
    return text if len(variants) == 1 else f"{text}, on {len(failing)} of {counted(len(variants), 'variant')}"


def _is_of_variant(node: Expression) -> bool:
    """Whether a side of a condition has a statistic of the variant."""

    def of_value(value: Value) -> bool:
        return not value.of_baseline

    return evaluated(node, of_value, lambda sign, a, b: a is True or b is True) is True


def _order(left: float, right: float) -> int:
    return (left > right) - (left < right)
