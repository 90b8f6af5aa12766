"""Selects the tasks of a plan to run, round by round: all, those that `--until-ci` needs, or those of a race.

With `--until-ci`, a cell gets more repetitions after a round if its paired interval against the first cell is too wide;
the first cell gets as many, so that they can be paired. Only the width of the interval decides, never its position
(`rwkvbatch.stats.precision`). Only rows of finished rounds count, so that a resumed run selects the same tasks as an
uninterrupted one. `rwkvbatch.replay.race` selects the tasks of a race.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.race import FIRST_LOOK, DrawSelection, Race
from rwkvbatch.results.store import Rows

BASELINE = 0


@dataclass(frozen=True)
class RepeatSelection:
    """Tasks to run: the first `repeats[cell]` repetitions of every conversation in each cell of a plan."""

    plan: Plan
    repeats: tuple[int, ...]

    def tasks(self, *, longest_first: bool = False) -> Iterator[int]:
        """The task numbers, in the plan's order or with the conversations of most turns first."""
        conversations = self.plan.chosen
        if longest_first:
            lengths = [len(conversation.turns) for conversation in self.plan.conversations]
            conversations = sorted(conversations, key=lambda number: -lengths[number])
        for conversation in conversations:
            for cell, repeats in enumerate(self.repeats):
                first = self.plan.number_of(conversation, cell, 0)
                yield from range(first, first + repeats)

    @cached_property
    def num_rows(self) -> int:
        turns = sum(len(self.plan.conversations[number].turns) for number in self.plan.chosen)
        return turns * sum(self.repeats)


Selection = RepeatSelection | DrawSelection


def first_round(plan: Plan) -> Selection:
    """The tasks that every run has: `--repeats` of every cell, or the draws before a race's first look."""
    if plan.draws is not None:
        return DrawSelection(plan, (min(FIRST_LOOK, len(plan.draws)),) * len(plan.cells))
    return RepeatSelection(plan, (plan.settings.repeats,) * len(plan.cells))


def rounds(
    plan: Plan, rows: Rows, wide: Callable[..., bool] | None = None, *, race: Race | None = None
) -> Iterator[Selection]:
    """The tasks of each round, until the precision is reached or the race has ended.

    The rows of a round must exist before the next round is asked for.

    Args:
        race: the plan's race, which then decides alone.
        wide: `wide(differences, conversations, width=...)`, by default `stats.precision.needs_more_repeats`.
    """
    if race is not None:
        yield from (DrawSelection(plan, draws) for draws in race.looks())
        return
    selection = RepeatSelection(plan, (plan.settings.repeats,) * len(plan.cells))
    yield selection
    width = plan.settings.until_ci
    if width is None:
        return
    if wide is None:
        from rwkvbatch.stats.precision import needs_more_repeats

        wide = needs_more_repeats
    wide_cells = set(range(len(plan.cells))) - {BASELINE}
    while True:
        repeats = selection.repeats[BASELINE]
        if repeats >= plan.repeats:
            return
        # A cell that was precise enough once is not tested again: a further test could find it wide by chance.
        wide_cells = {cell for cell in wide_cells if _is_wide(plan, rows, cell, repeats, width, wide)}
        if not wide_cells:
            return
        more = min(plan.repeats, repeats + max(1, repeats // 4))
        raised = wide_cells | {BASELINE}
        selection = RepeatSelection(plan, tuple(more if c in raised else n for c, n in enumerate(selection.repeats)))
        yield selection


@dataclass(frozen=True)
class ReachedPrecision:
    """The precision that a cell reached with `--until-ci`.

    Attributes:
        repeats: repetitions per conversation.
        width: width of the paired interval against the first cell, as the stopping rule computes it; infinite if it
            is unknown, None for the first cell and if no rows can be compared.
    """

    cell: str
    repeats: int
    width: float | None


def reached(plan: Plan, rows: Rows, selection: RepeatSelection) -> tuple[ReachedPrecision, ...]:
    """The precision of each cell, in the plan's order; empty without `--until-ci`."""
    if plan.settings.until_ci is None:
        return ()
    from rwkvbatch.stats.precision import planning_width

    precisions: list[ReachedPrecision] = []
    for cell, repeats in enumerate(selection.repeats):
        differences, conversations = _differences(plan, rows, cell, repeats)
        width = None
        if cell != BASELINE and differences:
            width = planning_width(differences, conversations)
        precisions.append(ReachedPrecision(plan.cells[cell].name, repeats, width))
    return tuple(precisions)


def _is_wide(plan: Plan, rows: Rows, cell: int, repeats: int, width: float, wide: Callable[..., bool]) -> bool:
    differences, conversations = _differences(plan, rows, cell, repeats)
    # Without differences (all rows failed), more repetitions would not help.
    return bool(differences) and wide(differences, conversations, width=width)


def _differences(plan: Plan, rows: Rows, cell: int, repeats: int) -> tuple[list[float], list[int]]:
    """The cell's scores minus the first cell's, and the conversation of each difference."""
    differences: list[float] = []
    conversations: list[int] = []
    for number, conversation in enumerate(plan.conversations):
        if not any(turn.checks for turn in conversation.turns):
            continue
        for repeat in range(repeats):
            cell_scores = _scores(plan, rows, plan.number_of(number, cell, repeat))
            base_scores = _scores(plan, rows, plan.number_of(number, BASELINE, repeat))
            for score, base_score in zip(cell_scores, base_scores, strict=True):
                if score is not None and base_score is not None:
                    differences.append(score - base_score)
                    conversations.append(number)
    return differences, conversations


def _scores(plan: Plan, rows: Rows, task: int) -> Sequence[float | None]:
    """`[turns]` the scores of a task's rows, None for a missing row and for one without a scored check."""
    return [rows.read(row).score if rows.has(row) else None for row in range(*plan.rows_of(task))]
