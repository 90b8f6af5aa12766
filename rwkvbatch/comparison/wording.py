"""Numbers, table columns and sentences of a comparison, shared by all output formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from rwkvbatch.comparison.blame import Blame
from rwkvbatch.comparison.matching import PASS_COLUMNS, Dropped
from rwkvbatch.comparison.metrics import Metric
from rwkvbatch.comparison.paired import Comparison, Family
from rwkvbatch.comparison.ranking import Candidate, Ranking, VariantMean
from rwkvbatch.comparison.trend import Trend

ARROWS: Final = {"higher": "↑", "lower": "↓", "none": ""}
MISSING: Final = "—"
RANKING_NOTE: Final = (
    "The truly best variant is named best or not distinguishable from it in at least 95 % of sweeps. The best mean was "
    "selected on these data and is likely to be less good in a new run."
)
_HUGE = 1e9
_MAX_LABELS = 2
"""How many variants a sentence on dropped rows names."""


def number(value: float, digits: int) -> str:
    """A number with a fixed number of decimals and no negative zero; a dash for NaN, a power of ten for huge ones."""
    if math.isnan(value):
        return MISSING
    if abs(value) >= _HUGE:
        return f"{value:.3g}"
    text = f"{value:.{digits}f}"
    return text.replace("-", "") if float(text) == 0 else text


def signed(value: float, digits: int) -> str:
    """A number as `number` writes it, with a plus sign where it is positive."""
    text = number(value, digits)
    return text if text == MISSING or text.startswith("-") or float(text) == 0 else f"+{text}"


def interval(line: Comparison | VariantMean) -> str:
    """The 95 % interval, of a difference with signs; a dash where nothing is known.

    An end that is not 0 is not written as 0 where that would contradict the verdict.
    """
    low, high, digits = line.low, line.high, line.metric.digits
    if math.isnan(low) or (math.isinf(low) and math.isinf(high)):
        return MISSING
    if isinstance(line, VariantMean):
        return f"[{number(low, digits)}, {number(high, digits)}]"
    return f"[{_of_verdict(line, low)}, {_of_verdict(line, high)}]"


def difference(line: Comparison) -> str:
    """The difference with its sign; not 0 where it is significant."""
    return _of_verdict(line, line.difference)


def _of_verdict(line: Comparison, value: float) -> str:
    text = signed(value, line.metric.digits)
    return f"{value:+.1g}" if line.significant and value and float(text) == 0 else text


def detectable(value: float, digits: int) -> str:
    """A detectable difference; a small one is not written as 0."""
    text = number(value, digits)
    return f"{value:.1g}" if value > 0 and float(text) == 0 else text


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
    TableColumn("mean", lambda line: number(line.variant_mean, line.metric.digits)),
    TableColumn("difference", lambda line: difference(line), short="diff"),
    TableColumn("95 % interval", interval, left=True),
    TableColumn("W/T/L", lambda line: directions(line)),
    TableColumn("detectable", lambda line: detectable(line.detectable, line.metric.digits)),
    TableColumn("p", lambda line: p_value(line.p_adjusted)),
    TableColumn("verdict", lambda line: verdict(line), left=True),
)


def directions(line: Comparison) -> str:
    """Conversations that the variant won, tied and lost; a dash for counts of whole variants."""
    return MISSING if line.metric.level == "variant" else f"{line.wins}/{line.ties}/{line.losses}"


def verdict(line: Comparison) -> str:
    """The verdict, with the margin that the whole interval is within; nothing for untested metrics."""
    if line.margin is not None and line.within_margin and line.verdict in ("equivalent", "better", "worse", "differs"):
        return f"{line.verdict}{',' if line.significant else ''} within {line.margin:g}"
    return "" if line.verdict == "untested" else line.verdict


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


def by_family(lines: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """The lines of each family, in order."""
    families: dict[str, list[Comparison]] = {}
    for line in lines:
        families.setdefault(line.family, []).append(line)
    return families


def question(lines: Sequence[Comparison]) -> str:
    """What the lines of one family compare: the metric, and the baseline with its mean if there is one for all."""
    metric = lines[0].metric
    baselines = list(dict.fromkeys(line.pair.baseline.label for line in lines))
    text = metric_title(metric)
    if lines[0].family != metric.name:
        text += lines[0].family.removeprefix(metric.name)
    if len(baselines) == 1:
        means = {number(line.baseline_mean, metric.digits) for line in lines}
        text += f" against {baselines[0]}" + (f" ({means.pop()})" if len(means) == 1 else "")
    return text + (", exploratory" if lines[0].exploratory else "")


def extent(lines: Sequence[Comparison], repetitions: tuple[int, int]) -> str:
    """The numbers of conversations, repetitions and pairs that the lines of one family have; empty for counts.

    Args:
        repetitions: the fewest and the most of a conversation.
    """
    if lines[0].metric.level == "variant":
        return ""
    conversations = _span([line.num_conversations for line in lines], "conversation")
    pairs = _span([line.num_values for line in lines], "pair")
    return f"{conversations}, {_span(repetitions, 'repetition')}, {pairs}"


def _span(numbers: Sequence[int], noun: str) -> str:
    low, high = min(numbers), max(numbers)
    return _count(high, noun) if low == high else f"{low:,} to {_count(high, noun)}"


def with_minus(text: str) -> str:
    """Numbers in `text` with minus signs instead of hyphens."""
    return text.replace("-", "\u2212")


def correction(family: Family) -> str:
    """How the lines of a family are corrected, as a sentence."""
    if not family.metric.tested:
        return "Not tested."
    if not family.size:
        return "All pairs are equal."
    if family.size == 1:
        return f"{'Exploratory: one' if family.exploratory else 'One'} test, level {1 - family.level:.0%}.".replace(
            "%", " %"
        )
    return (
        f"{'Exploratory family' if family.exploratory else 'Family'} of {_count(family.size, 'test')}, simultaneous "
        f"level {1 - family.level:.0%}, each at {1 - family.level_each:.2%}.".replace("%", " %")
    )


def power(lines: Iterable[Comparison]) -> str:
    """The detectable differences of the lines without a found one; empty where there is none."""
    some = [
        line for line in lines if line.verdict in ("no difference found", "unclear") and not math.isnan(line.detectable)
    ]
    if not some:
        return ""
    digits = some[0].metric.digits
    low, high = (detectable(end(line.detectable for line in some), digits) for end in (min, max))
    return f"detectable: {low}" + (f" to {high}" if high != low else "")


def rank_disagreement(lines: Iterable[Comparison]) -> str:
    """The lines where the signed-rank test comes to another conclusion than the mean; empty where there is none."""
    found = [line for line in lines if line.rank_disagrees]
    if not found:
        return ""
    named = [f"{variant_label(line)} (p {p_value(line.p_rank)})".replace("p <", "p < ") for line in found]
    each = {f"{line.level_each:.2g}" for line in found if line.level_each < line.level}
    level = f"; each test is at {' or '.join(sorted(each))}" if each else ""
    return f"{found[0].metric.name}: the signed-rank test does not agree for {', '.join(named)}{level}"


def variant_label(line: Comparison) -> str:
    """The label of the variant, and the group."""
    return line.pair.variant.label + (f", {line.group}" if line.group else "")


def left_out(dropped: Iterable[Dropped], metric: Metric | None = None, *, named: bool = True) -> str:
    """The rows that are not what was planned and what becomes of them; empty where there are none.

    Args:
        metric: the primary one: turns with an error fail its checks, or have no number of it. None for several metrics.
        named: with the labels of up to two variants.
    """
    every = list(dropped)
    parts: list[str] = []
    scored = metric is None or metric.level == "conversation" or metric.name in (*PASS_COLUMNS, "failed")
    failed = "failed" if scored else "left out"
    for name, noun, outcome in (
        ("errors", "turn with an error", failed),
        ("unreached", "turn not reached", failed),
        ("missing", "turn without a counterpart", "left out"),
        ("different", "turn not asked the same", "left out"),
        ("unfinished", "turn not there yet", ""),
        ("unjudged", "turn without a judge's verdict", "left out"),
    ):
        own = [(each.label, getattr(each, name)) for each in every if getattr(each, name)]
        if own:
            few = named and len(own) <= _MAX_LABELS
            where = " and ".join(label for label, _ in own) if few else _count(len(own), "variant")
            text = _count(sum(count for _, count in own), noun)
            parts.append(f"{text} in {where}{f' ({outcome})' if outcome else ''}")
    return f"Not as planned: {'; '.join(parts)}." if parts else ""


def summary(line: Comparison) -> str:
    """Both means, the difference, its interval and p-value, and the verdict."""
    digits = line.metric.digits
    return (
        f"{number(line.baseline_mean, digits)} -> {number(line.variant_mean, digits)}, {difference(line)} "
        f"{interval(line)}, p {p_value(line.p_adjusted)}, {verdict(line) or 'not tested'}"
    )


def significant(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """The significant differences, smallest p first."""
    return sorted((line for line in comparisons if line.significant), key=lambda line: line.p)


def finding(line: Comparison) -> str:
    """One significant difference as a sentence."""
    return (
        f"{heading(line)}: {line.metric.name} {difference(line)} {interval(line)}, "
        f"{verdict(line)} (p = {p_value(line.p_adjusted)})".replace("p = <", "p < ")
    )


def conclusion(comparisons: Sequence[Comparison]) -> str:
    """The verdicts of the first family, as a sentence."""
    if not comparisons:
        return "Nothing to compare: give a second run, or a run with several cells."
    lines = next(iter(by_family(comparisons).values()))
    name = f"{lines[0].family}{' (exploratory)' if lines[0].exploratory else ''}"
    if len(lines) == 1:
        (line,) = lines
        return f"{name}: {verdict(line) or 'not tested'}, {difference(line)} {interval(line)}"
    counts: dict[str, int] = {}
    for line in lines:
        counts[verdict(line) or "not tested"] = counts.get(verdict(line) or "not tested", 0) + 1
    return f"{name}: {', '.join(f'{count} {what}' for what, count in counts.items())}"


def standing(ranking: Ranking, *, max_named: int | None = None) -> str:
    """The best variant by a metric, those not distinguishable from it, and the number of worse ones.

    Args:
        max_named: how many of the indistinguishable variants are named, None for all.
    """
    parts = [f"{ranking.metric.name}: best {_with_mean(ranking.best, ranking)}"]
    also, worse = ranking.indistinguishable, ranking.worse
    if also:
        named = [_with_mean(candidate, ranking) for candidate in also[:max_named]]
        more = [f"{len(also) - len(named)} more"] if len(named) < len(also) else []
        parts.append(f"not distinguishable: {', '.join(named + more)}")
    if worse:
        what = _count(len(worse), "other") if also or len(worse) == 1 else f"all {len(worse)} others"
        parts.append(f"worse than another: {what}")
    return "; ".join(parts)


def common_rows(ranking: Ranking) -> str:
    """The numbers of turns and conversations that all variants of a ranking have, and of those that only some have."""
    by_turn = ranking.metric.level == "turn"
    rows = f"{_count(ranking.num_values, 'turn')} of " if by_turn else ""
    common = f"{rows}{_count(ranking.num_conversations, 'conversation')}"
    if not ranking.num_left_out:
        return f"over {common}"
    some = _count(ranking.num_left_out, ranking.metric.level)
    how = "means relative to the baseline's, over what each shares with it"
    return f"{common} in all variants, {some} in some only; {how}"


def trend_title(trend: Trend, *, exploratory: bool = False) -> str:
    """What a trend is of: the metric, the axis, and the numbers of checkpoints and conversations."""
    rows = f", {_count(trend.num_values, 'turn')} each" if trend.metric.level == "turn" else ""
    left = (
        f"; {_count(trend.num_left_out, trend.metric.level)} not in all of them left out" if trend.num_left_out else ""
    )
    mark = " (exploratory)" if exploratory else ""
    return (
        f"{metric_title(trend.metric)}{mark} over {trend.over}: {_count(len(trend.points), 'checkpoint')}, "
        f"{_count(trend.num_conversations, 'conversation')}{rows}{left}"
    )


def trend_sentence(trend: Trend) -> str:
    """The verdict on a trend, the means at both ends, and the test."""
    first, last, digits = trend.points[0], trend.points[-1], trend.metric.digits
    ends = f"{number(first.mean, digits)} at {first.x:,g} to {number(last.mean, digits)} at {last.x:,g}"
    sentence = f"{trend.verdict}, {ends}"
    if not trend.decidable or trend.verdict == "no change":
        return sentence
    test = f"concordance {signed(trend.concordance, 2)} [{signed(trend.low, 2)}, {signed(trend.high, 2)}]"
    return f"{sentence}; {test}, p {p_value(trend.p)}".replace("p <", "p < ")


TREND_NOTE: Final = (
    "Concordance is the mean over conversations of Kendall's rank correlation of the metric with the order of the "
    "checkpoints, from -1 to 1; its test flips the signs of whole conversations. It is about these checkpoints and "
    "other conversations of this kind, not about another training run."
)


def _with_mean(candidate: Candidate, ranking: Ranking) -> str:
    return f"{candidate.variant.label} ({number(candidate.mean, ranking.metric.digits)})"


def _count(number: int, noun: str) -> str:
    first, separator, rest = noun.partition(" ")
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {first}s{separator}{rest}"


BLAME_TITLE: Final = "The first turn that fails after the model's own history and passes after the script's replies"


def named_dialogues(blame: Blame, turn: int, most: int = 5) -> str:
    """The conversations that went wrong at a turn, with their repeats where there are several."""
    found = [each for each in blame.dialogues if each.turn == turn]
    several = any(each.repeat for each in blame.dialogues)
    names = [f"{each.conversation}, repeat {each.repeat}" if several else each.conversation for each in found[:most]]
    return "; ".join(names) + ("; ..." if len(found) > most else "")
