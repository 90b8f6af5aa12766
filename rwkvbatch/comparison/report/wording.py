"""How numbers and findings are written, the same in every format."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.paired import Comparison
from rwkvbatch.comparison.ranking import Candidate, Ranking, VariantMean

ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
MISSING = "—"
RANKING_NOTE = (
    "At 95 %, the truly best is the one named best or not told apart from it. The best mean was picked by the same "
    "data, so a new run is likely to show a less good one."
)


def number(value: float, digits: int) -> str:
    """A number for a table; a dash where it is not known."""
    if math.isnan(value):
        return MISSING
    text = f"{value:.{digits}f}"
    return text.replace("-", "") if float(text) == 0 else text


def signed(value: float, digits: int) -> str:
    """A difference, with its sign."""
    text = number(value, digits)
    return text if text == MISSING or text.startswith("-") or float(text) == 0 else f"+{text}"


def interval(line: Comparison) -> str:
    """The 95 % interval."""
    if math.isnan(line.low):
        return MISSING
    return f"[{signed(line.low, line.metric.digits)}, {signed(line.high, line.metric.digits)}]"


def mean_interval(mean: VariantMean) -> str:
    """The 95 % interval of a mean that is held against nothing."""
    if math.isnan(mean.low):
        return MISSING
    return f"[{number(mean.low, mean.metric.digits)}, {number(mean.high, mean.metric.digits)}]"


def p_value(p: float) -> str:
    """A p-value to two digits, never 0."""
    if math.isnan(p):
        return MISSING
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def metric_title(line: Comparison) -> str:
    """The metric's title, with an arrow towards the better side."""
    return f"{line.metric.title} {ARROWS[line.metric.better]}".rstrip()


def heading(line: Comparison) -> str:
    """Who is held against whom."""
    group = f", {line.group}" if line.group else ""
    return f"{line.pair.variant.label} against {line.pair.baseline.label}{group}"


def extent(lines: Iterable[Comparison]) -> str:
    """How much the lines of one pair rest on: the most that any of their metrics is known for."""
    most = max(lines, key=lambda line: line.num_values)
    return f"{_count(most.num_values, 'turn')}, {_count(most.num_conversations, 'conversation')}"


def findings(analysis: Analysis) -> list[Comparison]:
    """The lines that say more than noise, smallest p first."""
    found = [line for line in analysis.comparisons if line.verdict in ("better", "worse", "differs")]
    return sorted(found, key=lambda line: line.p)


def finding(line: Comparison) -> str:
    """One finding as a sentence."""
    digits = line.metric.digits
    return (
        f"{heading(line)}: {line.metric.title} {signed(line.difference, digits)} {interval(line)}, "
        f"{line.verdict} (p = {p_value(line.p_holm)} after correction)".replace("p = <", "p < ")
    )


def conclusion(analysis: Analysis) -> str:
    """What the whole table says, in one sentence."""
    tested = sum(1 for line in analysis.comparisons if line.metric.tested)
    if not tested:
        return "Nothing to test: give a second run, or a run with several cells."
    found = len(findings(analysis))
    if not found:
        return f"No difference beyond noise in {_count(tested, 'test')} (Holm-corrected, 5 %)."
    verb = "says" if found == 1 else "say"
    return f"{found} of {_count(tested, 'test')} {verb} more than noise (Holm-corrected, 5 %)."


def standing(ranking: Ranking, *, most_named: int | None = None) -> str:
    """Which variant is best by a metric, which may be as well, and how many are worse.

    Args:
        most_named: how many of those that may be best as well are named, None for all.
    """
    parts = [f"{ranking.metric.title}: best {_with_mean(ranking.best, ranking)}"]
    also, worse = ranking.not_told_apart, ranking.worse
    if also:
        named = [_with_mean(candidate, ranking) for candidate in also[:most_named]]
        more = [f"{len(also) - len(named)} more"] if len(named) < len(also) else []
        parts.append(f"not told apart: {', '.join(named + more)}")
    if worse:
        parts.append(f"worse: {_count(len(worse), 'other')}" if also else f"worse: all {len(worse)} others")
    return "; ".join(parts)


def common_rows(ranking: Ranking) -> str:
    """What a ranking rests on."""
    by_turn = ranking.metric.level == "turn"
    rows = f"{_count(ranking.num_values, 'turn')} of " if by_turn else ""
    text = f"over {rows}{_count(ranking.num_conversations, 'conversation')}"
    if ranking.num_left_out:
        text += f"; {_count(ranking.num_left_out, ranking.metric.level)} that not all have left out"
    return text


def _with_mean(candidate: Candidate, ranking: Ranking) -> str:
    return f"{candidate.variant.label} ({number(candidate.mean, ranking.metric.digits)})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
