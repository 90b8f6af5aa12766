"""Selects the tasks of a plan to run, round by round: all, those that `--until-ci` needs, or those of a race.

With `--until-ci`, a cell gets more repetitions after a round if its paired interval against the first cell is too wide;
the first cell gets as many, so that they can be paired. Only the width of the interval decides, never its position
(`rwkvbatch.stats.precision`). Only rows of finished rounds count, so that a resumed run selects the same tasks as an
uninterrupted one. `rwkvbatch.replay.planning.race` decides which draws of a race the cells play.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rwkvbatch.errors import RowError
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.race import FIRST_LOOK, Race, RaceCell, RaceResult
from rwkvbatch.replay.planning.setups import setups_of
from rwkvbatch.results.rows import Rows

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


@dataclass(frozen=True)
class DrawSelection:
    """Tasks of a race: each cell plays the first `draws[cell]` draws."""

    plan: Plan
    draws: tuple[int, ...]

    def tasks(self, *, longest_first: bool = False) -> Iterator[int]:
        """The task numbers, grouped by conversation, in the plan's order or the longest conversations first."""
        plan, all_draws = self.plan, self.plan.draws
        assert all_draws is not None
        draws_of: dict[int, list[int]] = {}
        for draw in range(max(self.draws)):
            draws_of.setdefault(all_draws.conversation[draw], []).append(draw)
        conversations = sorted(draws_of)
        if longest_first:
            conversations.sort(key=lambda number: -len(plan.conversations[number].turns))
        for conversation in conversations:
            for cell, num_draws in enumerate(self.draws):
                for draw in draws_of[conversation]:
                    if draw < num_draws:
                        yield plan.number_of(conversation, cell, all_draws.repeat[draw])

    @cached_property
    def num_rows(self) -> int:
        turns = turns_of_draws(self.plan)
        return sum(sum(turns[:num_draws]) for num_draws in self.draws)

    @property
    def num_cells_left(self) -> int:
        return self.draws.count(max(self.draws))


Selection = RepeatSelection | DrawSelection


def first_round(plan: Plan) -> Selection:
    """The tasks that every run has: `--repeats` of every cell, or the draws before a race's first look."""
    if plan.draws is not None:
        return DrawSelection(plan, (min(FIRST_LOOK, len(plan.draws)),) * len(plan.cells))
    return RepeatSelection(plan, (plan.settings.repeats,) * len(plan.cells))


def rounds(plan: Plan, rows: Rows, race: Race | None = None) -> Iterator[Selection]:
    """The tasks of each round, until the precision is reached or the race has ended.

    The rows of a round must exist before the next round is asked for.

    Args:
        race: the plan's race, which then decides alone.
    """
    if race is not None:
        yield from (DrawSelection(plan, draws) for draws in race.looks())
        return
    selection = RepeatSelection(plan, (plan.settings.repeats,) * len(plan.cells))
    yield selection
    width = plan.settings.until_ci
    if width is None:
        return
    wide_cells = set(range(len(plan.cells))) - {BASELINE}
    while True:
        repeats = selection.repeats[BASELINE]
        if repeats >= plan.repeats:
            return
        # A cell that was precise enough once is not tested again: a further test could find it wide by chance.
        wide_cells = {cell for cell in wide_cells if _is_wide(plan, rows, cell, repeats, width)}
        if not wide_cells:
            return
        more = min(plan.repeats, repeats + max(1, repeats // 4))
        raised = wide_cells | {BASELINE}
        selection = RepeatSelection(plan, tuple(more if c in raised else n for c, n in enumerate(selection.repeats)))
        yield selection


def race_of(plan: Plan, rows: Rows) -> Race:
    """The race of a plan with `settings.race`; reads the scores of its draws from `rows`."""
    settings, draws = plan.settings, plan.draws
    assert draws is not None

    def score_of(draw: int, cell: int) -> float:
        """The mean over the turns with checks; a turn that failed or was not reached scores 0.

        Raises:
            RowError: a judge gave no verdict, which the race needs.
        """
        conversation = draws.conversation[draw]
        first, _ = plan.rows_of(plan.number_of(conversation, cell, draws.repeat[draw]))
        turns_with_checks = [n for n, turn in enumerate(plan.conversations[conversation].turns) if turn.checks]
        scored_rows = [rows.read(first + turn) for turn in turns_with_checks]
        for row in scored_rows:
            missing = next((check for check in row.checks if check.passed is None), None)
            if missing is not None:
                raise RowError(
                    f"--race decides by verdicts, and there is none on {row.key.in_words()}: {missing.detail}",
                    hint="the same command asks the judge again, and continues the race",
                )
        return sum(row.score or 0.0 for row in scored_rows) / len(scored_rows)

    return Race(
        draws,
        turns_of_draws(plan),
        len(plan.cells),
        score_of,
        level=settings.race_level,
        margin=settings.race_margin,
        max_rows=settings.race_rows,
        pace=8 if len(setups_of(plan)) == 1 else 2,
    )


def turns_of_draws(plan: Plan) -> list[int]:
    """`[draws]` the number of turns of each draw's conversation."""
    assert plan.draws is not None
    return [len(plan.conversations[number].turns) for number in plan.draws.conversation]


def race_result(race: Race, plan: Plan, selection: DrawSelection) -> RaceResult:
    """The result of a race whose tasks were `selection`."""
    state, settings, turns = race.state, plan.settings, turns_of_draws(plan)
    leader = state.leader
    cells: list[RaceCell] = []
    for cell in range(len(plan.cells)):
        played = int(state.played[cell])
        cells.append(
            RaceCell(
                cell=plan.cells[cell].name,
                draws=played,
                rows=sum(turns[: selection.draws[cell]]),
                score=float(state.means[cell]) if played else None,
                dropped_after=race.dropped_after.get(cell),
                log_evidence=float(state.log_wealth[cell]),
                behind=state.mean_behind(leader, cell) if played else None,
            )
        )
    conversations = [plan.conversations[number] for number in plan.chosen]
    return RaceResult(
        level=settings.race_level,
        margin=settings.race_margin,
        ending=race.ending,
        draws=state.num_draws,
        draws_planned=len(race.draws),
        looks=race.num_looks,
        leader=plan.cells[leader].name if state.num_draws else None,
        left=tuple(plan.cells[int(cell)].name for cell in state.left),
        rows=selection.num_rows,
        rows_of_grid=settings.repeats * len(plan.cells) * sum(len(c.turns) for c in conversations),
        cells=tuple(cells),
    )


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


def reached_precision(plan: Plan, rows: Rows, selection: RepeatSelection) -> tuple[ReachedPrecision, ...]:
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


def _is_wide(plan: Plan, rows: Rows, cell: int, repeats: int, width: float) -> bool:
    from rwkvbatch.stats import precision

    differences, conversations = _differences(plan, rows, cell, repeats)
    # Without differences (all rows failed), more repetitions would not help.
    return bool(differences) and precision.needs_more_repeats(differences, conversations, width=width)


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
