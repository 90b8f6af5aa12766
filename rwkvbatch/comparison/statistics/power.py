"""Sample sizes for planned runs: the conversations and repetitions that find a difference, from a pilot's variances."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from rwkvbatch.comparison.metrics.declarations import Metric, metric_named
from rwkvbatch.comparison.pairing.matching import comparable_rows, match
from rwkvbatch.comparison.pairing.notes import check_runs
from rwkvbatch.comparison.pairing.pairs import Pair, pair_up
from rwkvbatch.comparison.runs.data import RunData, variants_of
from rwkvbatch.comparison.runs.loading import load_runs
from rwkvbatch.comparison.statistics.differences import LEVEL
from rwkvbatch.comparison.values.columns import rows_of
from rwkvbatch.comparison.values.metric_values import has_both_values, weights_of
from rwkvbatch.errors import UsageError, counted
from rwkvbatch.results.row import stored_prompt
from rwkvbatch.script.records import Conversation, Turn
from rwkvbatch.stats.sample_size import conversations_needed, smallest_detectable
from rwkvbatch.stats.variances import discreteness, variances, weighted_deviations

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

REPETITIONS: Final = (1, 2, 3, 5, 10)
_NEEDS_PILOT: Final = (
    "make one in which what will be compared varies, such as `rwkvbatch run SCRIPT --model before,after --limit 20 "
    "--shuffle-seed 1` or --temp 0.7,1.0, and give it as --pilot"
)
ONE_CELL_WARNING: Final = (
    "these numbers are upper estimates, and may be many times too large: one cell does not show how alike baseline and "
    f"variant are. {_NEEDS_PILOT[0].upper()}{_NEEDS_PILOT[1:]}"
)


@dataclass(frozen=True)
class Spread:
    """Variances of the paired differences of a metric.

    Attributes:
        between: variance of the conversations' true differences.
        within: variance of one repetition around them.
        source: a sentence on the origin of the variances and on what was assumed.
        num_conversations, repetitions: size of the pilot; 0 without one.
        steps: whether the differences are discrete, which gives the test more power (`stats.spread.Spread.discrete`).
        reach: how far conversations that the pilot lacks may differ (`stats.spread.Spread.reach`).
        step: between two possible differences of a conversation without repetitions (`stats.spread.Spread.step`).
        replayed: number of all conversations of the pilot; 0 without one.
        in_script: number of them that the planned script has, with the same messages where the pilot has them.
        of_one_cell: whether the pilot has one cell, so that the numbers are upper estimates (`ONE_CELL_WARNING`).
    """

    between: float
    within: float
    source: str
    num_conversations: int = 0
    repetitions: int = 0
    steps: bool = True
    reach: float = 1.0
    step: float = 0.0
    replayed: int = 0
    in_script: int = 0
    of_one_cell: bool = False


@dataclass(frozen=True)
class Design:
    """The sample size for one number of repetitions.

    Attributes:
        conversations: number that finds the difference with the required probability.
        turns: number that each cell then replays.
        detectable: the smallest difference that the script's conversations find; NaN if they are too few for any.
        enough: whether the script has at least `conversations`.
    """

    repetitions: int
    conversations: int
    turns: int
    detectable: float
    enough: bool


def judged(conversations: Iterable[Conversation], metric: Metric) -> list[Conversation]:
    """The conversations with a turn that can have a value of `metric`."""
    needs = _needs(metric)

    def can_have_value(turn: Turn) -> bool:
        if needs == "checks":
            return bool(turn.checks)
        return needs != "references" or turn.reference is not None

    return [conversation for conversation in conversations if any(map(can_have_value, conversation.turns))]


def _needs(metric: Metric) -> Literal["checks", "references", ""]:
    """What a turn must have for a value of `metric`; empty for nothing."""
    if metric.name in ("score", "passed") or metric.level == "conversation":
        return "checks"
    return "references" if metric.name in ("nll", "matched") else ""


def metric_of(conversations: Sequence[Conversation], name: str | None) -> Metric:
    """The metric called `name`; for None the script's primary metric.

    Raises:
        UsageError: the metric is not tested, or no turn of the script can have a value of it.
    """
    if name is not None:
        metric = metric_named(name)
        if not metric.tested:
            raise UsageError(f"--metric {name}: differences in it are not tested")
        if not judged(conversations, metric):
            raise UsageError(f"--metric {name}: no conversation of the script has {_needs(metric)} to judge")
        return metric
    for default in ("score", "nll"):
        if judged(conversations, metric_named(default)):
            return metric_named(default)
    raise UsageError(
        "the script has neither checks (score) nor reference replies (nll)", hint="choose --metric, such as tokens"
    )


def repetitions_of(metric: Metric, spread: Spread) -> Sequence[int]:
    """The numbers of repetitions to plan for.

    A metric of conversations, such as pass@k, has only the pilot's number (at least k): its variance for other numbers
    is unknown.
    """
    if metric.level != "conversation":
        return REPETITIONS
    return (max(spread.repetitions, int(metric.name.rpartition("_")[2])),)


def without_pilot(metric: Metric) -> Spread:
    """A cautious guess for metrics between 0 and 1.

    Raises:
        UsageError: the metric has another range, so that its spread cannot be guessed.
    """
    if metric.widest != 1.0:
        raise UsageError(
            f"the spread of {metric.name} cannot be guessed: it has no limits",
            hint=f"--pilot RUN measures it; {_NEEDS_PILOT}",
        )
    return Spread(
        0.5,
        0.0,
        "no pilot: each conversation counts as one yes/no outcome, half of them pass, baseline and variant pass "
        "independently, and repetitions save nothing (variance 0.5)",
    )


def of_pilot(
    pilots: Sequence[str], metric: Metric, baseline: str | None = None, script: Iterable[Conversation] = ()
) -> Spread:
    """The variances of the pair of the pilots' cells that varies most, or of the repetitions of an only cell.

    Args:
        script: the conversations that are planned, for `Spread.in_script`.

    Raises:
        UsageError: the pilot has a single cell with one repetition, or fewer than two conversations with the metric.
        InputError: it cannot be read, or the pilots replayed different scripts.
    """
    pilot = " ".join(pilots)
    runs = load_runs(pilots)
    check_runs(runs, force=False)
    table = comparable_rows(runs)
    variants = variants_of(runs)
    pairs, _ = pair_up(runs, variants, baseline)
    if pairs:
        spreads = [spread for pair in pairs if (spread := _of_pair(pair, metric, table)) is not None]
        if not spreads:
            raise UsageError(f"--pilot {pilot}: no pair of cells has 2 conversations with {metric.name}")
        spread = max(spreads, key=lambda spread: spread.between + spread.within)
        if len(pairs) > 1:
            source = spread.source.replace("pilot:", "pilot: of all pairs the one that varies most,")
            spread = replace(spread, source=source)
    else:
        spread = _of_one_cell(pilot, metric, rows_of(table, variants[0]))
    replayed, in_script = _shared(runs, script)
    return replace(_at_least(spread, metric), replayed=replayed, in_script=in_script)


def _shared(runs: Sequence[RunData], script: Iterable[Conversation]) -> tuple[int, int]:
    """The number of conversations in `runs`, and that of those that the script has with the same messages.

    Results of other programs have no messages, or their own forms of them: their conversations are known by id.
    """
    prompts: dict[str, set[str]] = {}
    for run in runs:
        for name, prompt in run.rows[["conversation", "prompt"]].drop_duplicates().itertuples(index=False):
            prompts.setdefault(name, set()).update(() if run.is_foreign else (prompt,))
    asked = {conversation.id: set(map(stored_prompt, conversation.turns)) for conversation in script}
    return len(prompts), sum(name in asked and own <= asked[name] for name, own in prompts.items())


def _of_pair(pair: Pair, metric: Metric, table: pd.DataFrame) -> Spread | None:
    """The variances of the differences in one pair; None with fewer than two conversations."""
    matched = match(pair, table)
    rows, values = matched.rows, matched.values(metric)
    num_conversations = int(np.unique(values.conversations).size)
    if num_conversations < 2:
        return None
    deviations = weighted_deviations(values.differences, values.weights)
    if metric.level == "turn":
        repeats = rows.loc[has_both_values(rows, metric), "repeat"].to_numpy(dtype=np.int64)
        between, within, repetitions = variances(deviations, values.conversations, repeats)
        note = "" if repetitions > 1 else "; it has one repetition, so what repetitions save is unknown and left out"
    else:
        between, within, _ = variances(deviations, values.conversations, np.zeros(deviations.size, np.int64))
        repetitions, note = 1 + int(rows["repeat"].to_numpy().max()), ""
    source = f"pilot: {pair.variant.label} against {pair.baseline.label}{note}{_errors_in(rows, metric)}"
    discrete, reach, step = discreteness(values.differences, values.conversations, metric.widest, values.weights)
    return Spread(between, within, source, num_conversations, repetitions, steps=discrete, reach=reach, step=step)


def _errors_in(rows: pd.DataFrame, metric: Metric) -> str:
    """A clause on matched turns of the pilot that ended in an error; empty without any."""
    errors = sum(np.count_nonzero(rows[f"finish_reason{side}"] == "error") for side in ("_a", "_b"))
    if not errors:
        return ""
    count_as_failed = metric.level == "conversation" or metric.name in ("score", "passed", "error_rate")
    return f"; {errors:,} of its turns ended in an error and {'count as failed' if count_as_failed else 'are left out'}"


def _of_one_cell(pilot: str, metric: Metric, rows: pd.DataFrame) -> Spread:
    """The variances of the differences of two variants that each vary as the repetitions of one cell do."""
    if metric.level != "turn":
        raise UsageError(f"--pilot {pilot}: {metric.name} needs a pilot with two cells")
    rows = rows.loc[rows[metric.column].notna()]
    codes = rows["conversation_code"].to_numpy(dtype=np.int64)
    values, repeats = rows[metric.column].to_numpy(dtype=np.float64), rows["repeat"].to_numpy(dtype=np.int64)
    weights = weights_of(rows, metric)
    if weights is not None:
        weights = weights / weights.mean()
    between, within, repetitions = variances(weighted_deviations(values, weights), codes, repeats)
    conversations = int(np.unique(codes).size)
    if conversations < 2 or repetitions < 2:
        raise UsageError(
            f"--pilot {pilot}: a pilot has at least two cells or two repetitions, and two conversations with "
            f"{metric.name}; this one has 1 cell, {counted(repetitions, 'repetition')} and "
            f"{conversations} of those conversations",
            hint=_NEEDS_PILOT,
        )
    # Var(variant - baseline) = 2 Var - 2 Cov for equal variances. With a correlation of 0.5 between conversations the
    # component between conversations stays as it is, and the component within them doubles.
    # Two repetitions stand for two variants: the differences of repetition 1 minus repetition 0.
    signed, is_first_two = np.where(repeats == 0, -values, values), repeats < 2
    discrete, reach, step = discreteness(signed[is_first_two], codes[is_first_two], metric.widest)
    return Spread(
        between,
        2 * within,
        "pilot: repetitions of one cell; a correlation of 0.5 between the conversations of baseline and variant is "
        "assumed, which a pilot with two cells measures",
        conversations,
        repetitions,
        steps=discrete,
        reach=reach,
        step=step,
        of_one_cell=True,
    )


def _at_least(spread: Spread, metric: Metric) -> Spread:
    """`spread`, or its upper confidence limit if it is 0: a pilot without differences does not prove that none exist.

    If none of n conversations differs, at most a share 1 - 0.05^(1 / n) of all conversations does, at 95 % confidence
    (Clopper and Pearson 1934).

    Raises:
        UsageError: the spread is 0 and the metric has no limits, so that the share gives no variance.
    """
    if spread.between + spread.within > 0:
        return spread
    if not math.isfinite(metric.widest):
        raise UsageError(f"--pilot: its pairs are all equal in {metric.name}, so it says nothing about the spread")
    share = 1 - 0.05 ** (1 / spread.num_conversations)
    source = f"{spread.source}; its pairs are all equal, which up to {share:.1%} of other conversations need not be"
    return replace(spread, between=share * metric.widest**2, source=source)


def designs(
    conversations: Sequence[Conversation],
    spread: Spread,
    detect: float,
    *,
    power: float = 0.8,
    num_variants: int = 1,
    repetitions: Sequence[int] = REPETITIONS,
) -> list[Design]:
    """The sample sizes that find a difference of `detect` with probability `power`, for each number of repetitions.

    Args:
        conversations: those of the script that can have a value of the metric.
        num_variants: number of variants compared with one baseline. The level is divided by it, which controls the
            family-wise error rate under any dependence (Bonferroni).
    """
    level = LEVEL / num_variants
    mean_turns = sum(len(conversation.turns) for conversation in conversations) / len(conversations)
    sizes: list[Design] = []
    for number in repetitions:
        components = (spread.between, spread.within, number)
        needed = conversations_needed(
            detect, *components, power=power, level=level, discrete=spread.steps, reach=spread.reach, step=spread.step
        )
        detectable = smallest_detectable(
            len(conversations), *components, power=power, level=level, discrete=spread.steps, reach=spread.reach,
            step=spread.step,
        )  # fmt: skip
        turns = round(needed * number * mean_turns)
        sizes.append(Design(number, needed, turns, detectable, enough=len(conversations) >= needed))
    return sizes
