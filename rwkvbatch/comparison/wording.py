"""Numbers, table columns and sentences of a comparison, shared by all output formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from rwkvbatch.comparison.metrics import Metric
from rwkvbatch.comparison.paired import Comparison
from rwkvbatch.comparison.ranking import Candidate, Ranking, VariantMean

ARROWS: Final = {"higher": "↑", "lower": "↓", "none": ""}
MISSING: Final = "—"
RANKING_NOTE: Final = (
    "The truly best variant is named best or not distinguishable from it in at least 95 % of sweeps. The best mean was "
    "selected on these data and is likely to be less good in a new run."
)


def number(value: float, digits: int) -> str:
    """A number with a fixed number of decimals and no negative zero; a dash for NaN."""
    if math.isnan(value):
        return MISSING
    text = f"{value:.{digits}f}"
    return text.replace("-", "") if float(text) == 0 else text


def signed(value: float, digits: int) -> str:
    """A number as `number` writes it, with a plus sign where it is positive."""
    text = number(value, digits)
    return text if text == MISSING or text.startswith("-") or float(text) == 0 else f"+{text}"


def interval(line: Comparison | VariantMean) -> str:
    """The 95 % interval, of a difference with signs."""
    if math.isnan(line.low):
        return MISSING
    write = signed if isinstance(line, Comparison) else number
    return f"[{write(line.low, line.metric.digits)}, {write(line.high, line.metric.digits)}]"


def p_value(p: float) -> str:
    """A p-value with two significant digits, never 0."""
    if math.isnan(p):
        return MISSING
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


@dataclass(frozen=True)
class TableColumn:
    """A column of the table of comparisons; `short` is its heading where space is limited."""

    name: str
    text: Callable[[Comparison], str]
    left: bool = False
    short: str = ""


COLUMNS: Final = (
    TableColumn("baseline", lambda line: number(line.baseline_mean, line.metric.digits)),
    TableColumn("variant", lambda line: number(line.variant_mean, line.metric.digits)),
    TableColumn("difference", lambda line: signed(line.difference, line.metric.digits), short="diff"),
    TableColumn("95 % interval", interval, left=True),
    TableColumn("W/T/L", lambda line: f"{line.wins}/{line.ties}/{line.losses}"),
    TableColumn("detectable", lambda line: number(line.detectable, line.metric.digits)),
    TableColumn("p", lambda line: p_value(line.p_adjusted)),
    TableColumn("verdict", lambda line: "" if line.verdict == "untested" else line.verdict, left=True),
)


def metric_title(metric: Metric) -> str:
    """The metric's name, with an arrow in the better direction."""
    return f"{metric.name} {ARROWS[metric.better]}".rstrip()


def heading(line: Comparison) -> str:
    """The labels of variant and baseline, and the group."""
    group = f", {line.group}" if line.group else ""
    return f"{line.pair.variant.label} against {line.pair.baseline.label}{group}"


def by_heading(lines: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """The lines of the table by `heading`."""
    groups: dict[str, list[Comparison]] = {}
    for line in lines:
        groups.setdefault(heading(line), []).append(line)
    return groups


def extent(lines: Iterable[Comparison]) -> str:
    """The largest numbers of turns and conversations that a metric of one pair has."""
    most = max(lines, key=lambda line: line.num_values)
    return f"{_count(most.num_values, 'turn')}, {_count(most.num_conversations, 'conversation')}"


def significant(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """The significant differences, smallest p first."""
    return sorted((line for line in comparisons if line.significant), key=lambda line: line.p)


def finding(line: Comparison) -> str:
    """One significant difference as a sentence."""
    digits = line.metric.digits
    return (
        f"{heading(line)}: {line.metric.title} {signed(line.difference, digits)} {interval(line)}, "
        f"{line.verdict} (p = {p_value(line.p_adjusted)} after correction)".replace("p = <", "p < ")
    )


def conclusion(comparisons: Sequence[Comparison]) -> str:
    """The number of significant differences, as a sentence."""
    tested = sum(line.metric.tested for line in comparisons)
    if not tested:
        return "Nothing to test: give a second run, or a run with several cells."
    found = sum(line.significant for line in comparisons)
    if not found:
        return f"No significant difference in {_count(tested, 'test')} (Holm-corrected, 5 %)."
    verb = "is" if found == 1 else "are"
    return f"{found} of {_count(tested, 'difference')} {verb} significant (Holm-corrected, 5 %)."


def standing(ranking: Ranking, *, max_named: int | None = None) -> str:
    """The best variant by a metric, those not distinguishable from it, and the number of worse ones.

    Args:
        max_named: how many of the indistinguishable variants are named, None for all.
    """
    parts = [f"{ranking.metric.title}: best {_with_mean(ranking.best, ranking)}"]
    also, worse = ranking.indistinguishable, ranking.worse
    if also:
        named = [_with_mean(candidate, ranking) for candidate in also[:max_named]]
        more = [f"{len(also) - len(named)} more"] if len(named) < len(also) else []
        parts.append(f"not distinguishable: {', '.join(named + more)}")
    if worse:
        parts.append(f"worse: {_count(len(worse), 'other')}" if also else f"worse: all {len(worse)} others")
    return "; ".join(parts)


def common_rows(ranking: Ranking) -> str:
    """The numbers of turns and conversations that a ranking uses, and of those that it leaves out."""
    by_turn = ranking.metric.level == "turn"
    rows = f"{_count(ranking.num_values, 'turn')} of " if by_turn else ""
    text = f"over {rows}{_count(ranking.num_conversations, 'conversation')}"
    if ranking.num_left_out:
        text += f"; {_count(ranking.num_left_out, ranking.metric.level)} not in all variants left out"
    return text


def _with_mean(candidate: Candidate, ranking: Ranking) -> str:
    return f"{candidate.variant.label} ({number(candidate.mean, ranking.metric.digits)})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
