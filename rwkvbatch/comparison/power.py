"""Sample sizes before a run: how many conversations and repetitions find a difference, from a pilot run's variances."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from rwkvbatch.comparison.judging import as_counted, ties_of, variances
from rwkvbatch.comparison.loading import Source, load_runs
from rwkvbatch.comparison.matching import comparable_rows, match, rows_of, weights_of
from rwkvbatch.comparison.metrics import Metric, metric_named
from rwkvbatch.comparison.paired import LEVEL
from rwkvbatch.comparison.pairing import pair_up, variants_of
from rwkvbatch.errors import UsageError
from rwkvbatch.script.records import Conversation, Turn
from rwkvbatch.stats.sample_size import conversations_needed, smallest_detectable

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

REPETITIONS: Final = (1, 2, 3, 5, 10)
_NEEDS_PILOT: Final = "make one with `rwkvbatch run SCRIPT --repeats 2 --limit 20` and give it as --pilot"


@dataclass(frozen=True)
class Spread:
    """How much the paired differences of a metric vary.

    Attributes:
        between: variance of the conversations' true differences. within: of one repetition around them.
        source: where they come from and what was assumed, as a sentence.
        num_conversations, repetitions: of the pilot; 0 without one.
        steps: the differences are steps between limits, of which the test has more power (`stats.spread`).
        reach: how far conversations that the pilot lacks may differ (`stats.spread.Spread.reach`).
    """

    between: float
    within: float
    source: str
    num_conversations: int = 0
    repetitions: int = 0
    steps: bool = True
    reach: float = 1.0


@dataclass(frozen=True)
class Design:
    """A number of repetitions, and what it takes with it.

    Attributes:
        conversations: that find the difference with the wanted probability. turns: that a cell then has to replay.
        detectable: the smallest difference that the script's own conversations find; NaN where they are too few.
        enough: whether the script has as many conversations.
    """

    repetitions: int
    conversations: int
    turns: int
    detectable: float
    enough: bool


def judged(conversations: Iterable[Conversation], metric: Metric) -> list[Conversation]:
    """The conversations that can have a number of `metric`: with checks, with references, or all."""
    needs = _needs(metric)

    def has(turn: Turn) -> bool:
        return bool(turn.checks) if needs == "checks" else turn.reference is not None if needs == "references" else True

    return [conversation for conversation in conversations if any(map(has, conversation.turns))]


def _needs(metric: Metric) -> str:
    if metric.name in ("score", "passed") or metric.level == "conversation":
        return "checks"
    return "references" if metric.name in ("nll", "matched") else ""


def metric_of(conversations: Sequence[Conversation], name: str | None) -> Metric:
    """The metric called `name`; for None the primary one of the script.

    Raises:
        UsageError: it is not tested, or the script has nothing that it judges.
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
    """The numbers of repetitions to plan for: of pass@k and the like the pilot's, or k; others are not known."""
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


def of_pilot(pilot: Source, metric: Metric, baseline: str | None = None) -> Spread:
    """The variances of the pair of cells that varies most; of the repetitions of a single cell.

    Raises:
        UsageError: the pilot has a single cell with one repetition, or fewer than two conversations with the metric.
        InputError: it cannot be read.
    """
    runs = load_runs(pilot)
    table = comparable_rows(runs)
    variants = variants_of(runs)
    pairs, _ = pair_up(runs, variants, baseline)
    found: list[Spread] = []
    for pair in pairs:
        matched = match(pair, table)
        values = matched.values(metric)
        if np.unique(values.conversations).size < 2:
            continue
        rows = matched.rows
        differences = as_counted(values.variant - values.baseline, values.weights)
        if metric.level == "turn":
            known = ~(rows[f"{metric.column}_a"].isna() | rows[f"{metric.column}_b"].isna())
            repeats = rows.loc[known, "repeat"].to_numpy(dtype=np.int64)
            between, within, repetitions = variances(differences, values.conversations, repeats)
            note = (
                "" if repetitions > 1 else "; it has one repetition, so what repetitions save is unknown and left out"
            )
        else:
            between, within, _ = variances(differences, values.conversations, np.zeros(differences.size, np.int64))
            repetitions, note = 1 + int(rows["repeat"].to_numpy().max()), ""
        source = f"pilot: {pair.variant.label} against {pair.baseline.label}{note}{_errors_in(rows, metric)}"
        if len(pairs) > 1:
            source = source.replace("pilot:", "pilot: of all pairs the one that varies most,")
        steps, reach = ties_of(values.variant - values.baseline, values.conversations, metric.widest, values.weights)
        number = int(np.unique(values.conversations).size)
        found.append(Spread(between, within, source, number, repetitions, steps, reach))
    if found:
        return _at_least(max(found, key=lambda spread: spread.between + spread.within), metric)
    if pairs:
        raise UsageError(f"--pilot {pilot}: no pair of cells has 2 conversations with {metric.name}")
    return _of_one_cell(pilot, metric, rows_of(table, variants[0]))


def _errors_in(rows: pd.DataFrame, metric: Metric) -> str:
    """What became of matched turns of the pilot that ended in an error."""
    errors = sum(np.count_nonzero(rows[f"finish_reason{side}"] == "error") for side in ("_a", "_b"))
    if not errors:
        return ""
    counted = metric.level == "conversation" or metric.name in ("score", "passed", "failed")
    return f"; {errors:,} of its turns ended in an error and {'count as failed' if counted else 'are left out'}"


def _of_one_cell(pilot: Source, metric: Metric, rows: pd.DataFrame) -> Spread:
    if metric.level != "turn":
        raise UsageError(f"--pilot {pilot}: {metric.name} needs a pilot with two cells")
    known = rows.loc[rows[metric.column].notna()]
    codes = known["conversation_code"].to_numpy(dtype=np.int64)
    values, repeats = known[metric.column].to_numpy(dtype=np.float64), known["repeat"].to_numpy(dtype=np.int64)
    weights = weights_of(known, metric)
    if weights is not None:
        weights = weights / weights.mean()
    between, within, repetitions = variances(as_counted(values, weights), codes, repeats)
    conversations = int(np.unique(codes).size)
    if conversations < 2 or repetitions < 2:
        raise UsageError(
            f"--pilot {pilot}: a pilot has at least two cells or two repetitions, and two conversations with "
            f"{metric.name}; this one has 1 cell, {repetitions} repetition{'s' if repetitions > 1 else ''} and "
            f"{conversations} of those conversations",
            hint=_NEEDS_PILOT,
        )
    # Var(variant - baseline) of two variants alike: twice that of one, less twice their covariance.
    # Two repetitions differ in the manner of two variants.
    signed, first = np.where(repeats == 0, -values, values), repeats < 2
    steps, reach = ties_of(signed[first], codes[first], metric.widest)
    spread = Spread(
        between,
        2 * within,
        "pilot: repetitions of one cell; a correlation of 0.5 between the conversations of baseline and variant is "
        "assumed, which a pilot with two cells measures",
        conversations,
        repetitions,
        steps,
        reach,
    )
    return _at_least(spread, metric)


def _at_least(spread: Spread, metric: Metric) -> Spread:
    """`spread`; where it is 0, the largest that is likely: a pilot without a difference does not mean that none exists.

    If none of n conversations differs, at most a share 1 - 0.05^(1 / n) of all does (Clopper and Pearson 1934).

    Raises:
        UsageError: the metric has no limits, so that nothing is known.
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
    """What it takes to find a difference of `detect`, by the number of repetitions.

    Args:
        conversations: those of the script that the metric judges.
        num_variants: compared with one baseline; the level is divided by it, which is enough for any dependence.
    """
    level = LEVEL / num_variants
    turns = sum(len(conversation.turns) for conversation in conversations) / len(conversations)
    found: list[Design] = []
    for number in repetitions:
        variances_of = (spread.between, spread.within, number)
        needed = conversations_needed(
            detect, *variances_of, power=power, level=level, limited=spread.steps, reach=spread.reach
        )
        detectable = smallest_detectable(
            len(conversations), *variances_of, power=power, level=level, limited=spread.steps, reach=spread.reach
        )
        found.append(Design(number, needed, round(needed * number * turns), detectable, len(conversations) >= needed))
    return found
