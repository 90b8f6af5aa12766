"""Numbers, table columns and sentences of a comparison, shared by all output formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from rwkvbatch.comparison.dialogues.blame import Blame
from rwkvbatch.comparison.metrics.declarations import Metric
from rwkvbatch.comparison.numbers import MISSING, detectable, difference, interval, p_value, shown_mean, signed
from rwkvbatch.comparison.pairing.matching import PASS_COLUMNS, Dropped
from rwkvbatch.comparison.runs.data import RunData
from rwkvbatch.comparison.statistics.differences import Comparison, Family
from rwkvbatch.comparison.statistics.means import VariantMean
from rwkvbatch.comparison.statistics.ranking import Candidate, Ranking
from rwkvbatch.comparison.statistics.trend import Trend
from rwkvbatch.errors import counted
from rwkvbatch.stats.family import can_be_significant

ARROWS: Final = {"higher": "↑", "lower": "↓", "none": ""}
RANKING_NOTE: Final = (
    "The truly best variant is named best or not distinguishable from it in at least 95 % of sweeps. The best mean was "
    "selected on these data and is likely to be less good in a new run."
)
_MIN_COLLAPSED = 2
"""Minimum number of groups of too few conversations that a sentence names instead of lines of the table."""
_MAX_LABELS = 2
"""The most variants that a sentence on dropped rows names."""


@dataclass(frozen=True)
class TableColumn:
    """A column of the table of comparisons; `short` is its heading in narrow tables."""

    name: str
    text: Callable[[Comparison], str]
    left: bool = False
    short: str = ""


COLUMNS: Final = (
    TableColumn("baseline", lambda line: shown_mean(line.metric, line.baseline_mean)),
    TableColumn("mean", lambda line: shown_mean(line.metric, line.variant_mean)),
    TableColumn("difference", lambda line: difference(line), short="diff"),
    TableColumn("95 % interval", interval, left=True),
    TableColumn("W/T/L", lambda line: directions(line)),
    TableColumn("detectable", lambda line: detectable(line.detectable, line.metric.digits)),
    TableColumn("p", lambda line: p_value(line.p_adjusted)),
    TableColumn("verdict", lambda line: verdict(line), left=True),
)


def directions(line: Comparison) -> str:
    """The numbers of conversations that the variant won, tied and lost; a dash for counts of whole variants."""
    return MISSING if line.metric.level == "variant" else f"{line.wins}/{line.ties}/{line.losses}"


def verdict(line: Comparison) -> str:
    """The verdict, with the margin if the whole interval is within it; empty for untested metrics.

    For a cell of a race, its place in the race.
    """
    if line.pair.variant.race:
        return "" if line.exploratory or line.group else line.pair.variant.race
    if (
        line.margin is not None
        and line.within_margin
        and line.verdict in ("equivalent", "equal values", "better", "worse", "differs")
    ):
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
    """The lines of the table, grouped by `heading`."""
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


def family_title(lines: Sequence[Comparison]) -> str:
    """The title of a family's lines: the metric, and the baseline with its mean if all lines share them."""
    metric = lines[0].metric
    baselines = list(dict.fromkeys(line.pair.baseline.label for line in lines))
    text = metric_title(metric)
    if lines[0].family != metric.name:
        text += lines[0].family.removeprefix(metric.name)
    if len(baselines) == 1:
        means = {shown_mean(metric, line.baseline_mean) for line in lines}
        text += f" against {baselines[0]}" + (f" ({means.pop()})" if len(means) == 1 else "")
    return text + (", exploratory" if lines[0].exploratory else "")


def without_undecidable(lines: Sequence[Comparison]) -> tuple[list[Comparison], str]:
    """The lines of a family without groups of too few conversations for a test, and a sentence that names these.

    A single such group stays in the table, and the sentence is then empty. A group of which no variant can be tested is
    named without its variants.
    """
    is_undecidable = [line.group is not None and line.verdict == "too little data" for line in lines]
    undecidable = [line for line, is_left_out in zip(lines, is_undecidable, strict=True) if is_left_out]
    if len({line.group for line in undecidable}) < _MIN_COLLAPSED:
        return list(lines), ""
    rest = [line for line, is_left_out in zip(lines, is_undecidable, strict=True) if not is_left_out]
    tested = {line.group for line in rest}
    names = dict.fromkeys(str(line.group) if line.group not in tested else variant_label(line) for line in undecidable)
    conversations = _span([line.num_conversations for line in undecidable], "conversation")
    return rest, f"{counted(len(names), 'group')} of too little data ({conversations} each): {', '.join(names)}"


def sample_size_text(lines: Sequence[Comparison], repetitions: tuple[int, int]) -> str:
    """The numbers of conversations, repetitions and pairs of a family's lines; empty for counts of whole variants.

    Args:
        repetitions: the fewest and the most repetitions of a conversation.
    """
    if lines[0].metric.level == "variant":
        return ""
    conversations = _span([line.num_conversations for line in lines], "conversation")
    pairs = _span([line.num_values for line in lines], "pair")
    return f"{conversations}, {_span(repetitions, 'repetition')}, {pairs}"


def _span(numbers: Sequence[int], noun: str) -> str:
    low, high = min(numbers), max(numbers)
    return counted(high, noun) if low == high else f"{low:,} to {counted(high, noun)}"


def correction(family: Family, lines: Sequence[Comparison]) -> str:
    """Sentences on the number of a family's tests and on their correction."""
    if not family.metric.tested:
        return "Not tested."
    lines = [line for line in lines if not line.pair.of_race]
    if not lines:
        return "Not tested: the rows are of a race."
    too_few = sum(not line.identical and not can_be_significant(line.num_conversations, family.level) for line in lines)
    if not family.size and too_few:
        return "Too few conversations for a test."
    if not family.size:
        are_judged = any(line.num_without_preference for line in lines)
        return f"All pairs {'with a verdict ' if are_judged else ''}are equal."
    if family.size == 1:
        text = f"{'Exploratory: one' if family.exploratory else 'One'} test, level {1 - family.level:.0%}."
    else:
        each = f"each test at {1 - family.level_each:.2%}"
        if family.level_interval < family.level_each:
            each += f", each interval at {1 - family.level_interval:.2%}"
        text = (
            f"{'Exploratory family' if family.exploratory else 'Family'} of {counted(family.size, 'test')}, "
            f"simultaneous level {1 - family.level:.0%}, {each}."
        )
    if untested := sum(line.identical and line.num_values > 0 for line in lines):
        needs = "needs" if untested == 1 else "need"
        text += f" {counted(untested, 'comparison')} of equal pairs {needs} no test."
    if too_few:
        text += f" {counted(too_few, 'comparison')} of too few conversations {'has' if too_few == 1 else 'have'} none."
    return text.replace("%", " %")


def power(lines: Iterable[Comparison]) -> str:
    """What the lines could show; may be empty.

    It is the range of detectable differences of those without a significant one, whether replies differ where all pairs
    are equal, and the number of conversations that a margin takes there.
    """
    lines = list(lines)
    texts: list[str] = []
    undecided = [
        line for line in lines if line.verdict in ("no difference found", "unclear") and not math.isnan(line.detectable)
    ]
    if undecided:
        digits = undecided[0].metric.digits
        low, high = (detectable(extreme(line.detectable for line in undecided), digits) for extreme in (min, max))
        texts.append(f"detectable: {low}" + (f" to {high}" if high != low else ""))
    texts += _equal_values(lines)
    if needed := max((_conversations_for_margin(line) for line in lines), default=0):
        texts.append(f"equal pairs show equivalence within {lines[0].margin:g} from {needed:,} conversations on")
    return "; ".join(texts)


def _equal_values(lines: Sequence[Comparison]) -> list[str]:
    """In how many turns replies differ whose values are equal: no difference is shown, and no equivalence either."""
    differing = [line for line in lines if line.verdict == "equal values"]
    texts: list[str] = []
    if len(differing) == 1:
        line = differing[0]
        texts.append(
            f"equal values, but other replies in {line.num_replies_differ:,} of {counted(line.num_values, 'turn')} of "
            f"{variant_label(line)}"
        )
    elif differing:
        least, most = (extreme(line.num_replies_differ for line in differing) for extreme in (min, max))
        texts.append(
            f"equal values, but other replies in {least:,} to {counted(most, 'turn')} of {len(differing)} lines"
        )
    return texts


def _conversations_for_margin(line: Comparison) -> int:
    """Number of conversations with equal pairs whose interval would be within the margin; 0 if this line's is already.

    The interval of n of them ends where a share `high / widest` of the population is unseen: (1 - share)^n is half of
    its level (`stats.bounded.unseen_share`).
    """
    widest, margin = line.metric.widest, line.margin
    if not line.identical or margin is None or not 0 < margin < line.high < widest < math.inf:
        return 0
    return math.ceil(line.num_conversations * math.log1p(-line.high / widest) / math.log1p(-margin / widest))


def rank_disagreement(lines: Iterable[Comparison]) -> str:
    """The lines for which the signed-rank test disagrees with the test of the mean; empty if there are none."""
    disagreeing = [line for line in lines if line.rank_disagrees]
    if not disagreeing:
        return ""
    named = [f"{variant_label(line)} (p {p_value(line.p_rank)})".replace("p <", "p < ") for line in disagreeing]
    corrected_levels = {f"{line.level_rank:.2g}" for line in disagreeing if line.level_rank < line.level}
    level = f"; each test is at {' or '.join(sorted(corrected_levels))}" if corrected_levels else ""
    return f"{disagreeing[0].metric.name}: the signed-rank test does not agree for {', '.join(named)}{level}"


def variant_label(line: Comparison) -> str:
    """The label of the variant, and the group."""
    return line.pair.variant.label + (f", {line.group}" if line.group else "")


def left_out(dropped: Iterable[Dropped], metric: Metric | None = None, *, named: bool = True) -> str:
    """A sentence on rows that are missing or do not count like the others; empty if there are none.

    Args:
        metric: the primary metric, which decides whether turns with an error count as failed or are left out; None for
            several metrics.
        named: name the variants, if there are at most two.
    """
    variants = list(dropped)
    parts: list[str] = []
    errors_fail = metric is None or metric.level == "conversation" or metric.name in (*PASS_COLUMNS, "error_rate")
    error_outcome = "failed" if errors_fail else "left out"
    for name, noun, problem, outcome in (
        ("errors", "turn", "with an error", error_outcome),
        ("unreached", "turn", "not reached", error_outcome),
        ("missing", "turn", "without a counterpart", "left out"),
        ("different", "turn", "not asked the same", "left out"),
        ("unfinished", "turn", "not run yet", ""),
        ("unjudged", "turn", "without a verdict", "left out"),
        ("without_preference", "pair", "without the judge's verdict", "left out"),
    ):
        counts = {variant.label: getattr(variant, name) for variant in variants if getattr(variant, name)}
        if counts:
            labels = " and ".join(counts) if named and len(counts) <= _MAX_LABELS else counted(len(counts), "variant")
            count = counted(sum(counts.values()), noun)
            parts.append(f"{count} {problem} in {labels}{f' ({outcome})' if outcome else ''}")
    return f"Not as planned: {'; '.join(parts)}." if parts else ""


def summary(line: Comparison) -> str:
    """Both means, the difference, its interval and p-value, and the verdict."""
    means = " -> ".join(shown_mean(line.metric, mean) for mean in (line.baseline_mean, line.variant_mean))
    test = f"{interval(line)}, p {p_value(line.p_adjusted)}, {verdict(line) or 'not tested'}"
    return f"{means}, {difference(line)} {test}"


def significant(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """The significant differences, smallest p first."""
    return sorted((line for line in comparisons if line.significant), key=lambda line: line.p)


def finding(line: Comparison) -> str:
    """One significant difference as a sentence."""
    return (
        f"{heading(line)}: {line.metric.name} {difference(line)} {interval(line)}, "
        f"{verdict(line)} (p = {p_value(line.p_adjusted)})".replace("p = <", "p < ")
    )


_MOST_LEFT: Final = 4
"""The most cells that a sentence on a race names besides the leader."""
RACE_NOTE: Final = (
    "How many rows a cell of a race has depends on its scores, so that intervals and p-values of these rows do not "
    "hold; differences have none here."
)


def race_sentence(run: RunData) -> str:
    """The result of a race and its guarantee; empty for other runs."""
    if run.race is None:
        return ""
    if (leader := run.race.get("leader")) is None:
        return f"{run.name} is a race without a result yet"
    scores = {cell["cell"]: cell["score"] for cell in run.race["cells"]}
    others = sorted((name for name in run.race["left"] if name != leader), key=lambda name: -(scores[name] or 0.0))
    parts = [f"leader {leader} (score {scores[leader]:.3f})"]
    if others:
        more = f" and {len(others) - _MOST_LEFT:,} more" if len(others) > _MOST_LEFT else ""
        parts.append(f"not shown to be worse: {', '.join(others[:_MOST_LEFT])}{more}")
    num_dropped = len(scores) - 1 - len(others)
    parts.append(f"dropped as worse than another: {num_dropped:,} of {counted(len(scores), 'cell')}")
    parts.append(f"a best cell was dropped with a probability of at most {run.race['level']:g}")
    return f"{run.name} is a race: {'; '.join(parts)}"


def conclusion(comparisons: Sequence[Comparison], means: Sequence[VariantMean] = ()) -> str:
    """The verdicts of the first family, as a sentence; without comparisons, the first of the single variant's means."""
    if not comparisons:
        how = "give a second run, or a run with several cells"
        if not means:
            return f"Nothing to compare: {how}."
        mean = f"{shown_mean(means[0].metric, means[0].mean)} {interval(means[0])}"
        return f"{means[0].metric.name}: {mean}; to compare, {how}"
    lines = next(iter(by_family(comparisons).values()))
    name = f"{lines[0].family}{' (exploratory)' if lines[0].exploratory else ''}"
    if len(lines) == 1:
        (line,) = lines
        return f"{name}: {verdict(line) or 'not tested'}, {difference(line)} {interval(line)}"
    counts: dict[str, int] = {}
    for line in lines:
        counts[verdict(line) or "not tested"] = counts.get(verdict(line) or "not tested", 0) + 1
    return f"{name}: {', '.join(f'{count} {text}' for text, count in counts.items())}"


def ranking_sentence(ranking: Ranking, *, max_named: int | None = None) -> str:
    """The best variant by a metric, those not distinguishable from it, and the number of worse ones.

    Args:
        max_named: the most indistinguishable variants that are named; None for all.
    """
    parts = [f"{ranking.metric.name}: best {_with_mean(ranking.best, ranking)}"]
    indistinguishable, worse = ranking.indistinguishable, ranking.worse
    if indistinguishable:
        named = [_with_mean(candidate, ranking) for candidate in indistinguishable[:max_named]]
        num_unnamed = len(indistinguishable) - len(named)
        parts.append(f"not distinguishable: {', '.join(named + ([f'{num_unnamed} more'] if num_unnamed else []))}")
    if worse:
        all_worse = not indistinguishable and len(worse) > 1
        count = f"all {len(worse)} others" if all_worse else counted(len(worse), "other")
        parts.append(f"worse than another: {count}")
    return "; ".join(parts)


def common_rows(ranking: Ranking) -> str:
    """The numbers of turns and conversations that all variants of a ranking have, and that only some have."""
    by_turn = ranking.metric.level == "turn"
    rows = f"{counted(ranking.num_values, 'turn')} of " if by_turn else ""
    common = f"{rows}{counted(ranking.num_conversations, 'conversation')}"
    if not ranking.num_left_out:
        return f"over {common}"
    in_some = counted(ranking.num_left_out, ranking.metric.level)
    means = "means relative to the baseline's, over what each shares with it"
    return f"{common} in all variants, {in_some} in some only; {means}"


def trend_title(trend: Trend, *, exploratory: bool = False) -> str:
    """The title of a trend: the metric, the axis, and the numbers of checkpoints and conversations."""
    rows = f", {counted(trend.num_values, 'turn')} each" if trend.metric.level == "turn" else ""
    left = (
        f"; {counted(trend.num_left_out, trend.metric.level)} not in all of them left out" if trend.num_left_out else ""
    )
    mark = " (exploratory)" if exploratory else ""
    return (
        f"{metric_title(trend.metric)}{mark} over {trend.over}: {counted(len(trend.points), 'checkpoint')}, "
        f"{counted(trend.num_conversations, 'conversation')}{rows}{left}"
    )


def trend_sentence(trend: Trend) -> str:
    """A sentence on a trend: the verdict, the means at both ends, and the test."""
    points = (trend.points[0], trend.points[-1])
    ends = " to ".join(f"{shown_mean(trend.metric, point.mean)} at {point.x:,g}" for point in points)
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
    return f"{candidate.variant.label} ({shown_mean(ranking.metric, candidate.mean)})"


BLAME_TITLE: Final = "The first turn that fails after the model's own history and passes after the script's replies"


def named_dialogues(blame: Blame, turn: int, most: int = 5) -> str:
    """At most `most` conversations that went wrong at a turn, with their repeats if the run has several."""
    dialogues = [dialogue for dialogue in blame.dialogues if dialogue.turn == turn]
    has_repeats = any(dialogue.repeat for dialogue in blame.dialogues)
    names = [
        f"{dialogue.conversation}, repeat {dialogue.repeat}" if has_repeats else dialogue.conversation
        for dialogue in dialogues[:most]
    ]
    return "; ".join(names) + ("; ..." if len(dialogues) > most else "")
