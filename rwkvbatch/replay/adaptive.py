"""Decides which tasks of a plan to run: all of them, with `--until-ci` as many repetitions as precision needs, or those
of a race (`rwkvbatch.replay.race`).

After each round, a cell gets more repetitions if its paired interval against the first cell is wider than asked for;
the first cell gets them too, to be paired with. Only the width of the interval decides, never its position
(`rwkvbatch.stats.precision`), and only rows of finished rounds count: a resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.race import FIRST_LOOK, Played, Race
from rwkvbatch.results.store import Rows

BASELINE = 0


@dataclass(frozen=True)
class Wanted:
    """Tasks to run: a number of repetitions for each cell of a plan."""

    plan: Plan
    repeats: tuple[int, ...]

    def tasks(self, *, longest_first: bool = False) -> Iterator[int]:
        """Their numbers, in the plan's order or with the conversations of most turns first."""
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


def first_round(plan: Plan) -> Wanted | Played:
    """What every run needs: `--repeats` of every cell, or the draws before a race's first look."""
    if plan.draws is not None:
        return Played(plan, (min(FIRST_LOOK, len(plan.draws)),) * len(plan.cells))
    return Wanted(plan, (plan.settings.repeats,) * len(plan.cells))


def rounds(
    plan: Plan, rows: Rows, wide: Callable[..., bool] | None = None, *, race: Race | None = None
) -> Iterator[Wanted | Played]:
    """What to run round by round, until the precision is reached or the race has ended.

    A round's rows must exist before the next one.

    Args:
        race: that of the plan, which decides alone.
        wide: `wide(differences, conversations, width=...)`, by default `stats.precision.needs_more_repeats`.
    """
    if race is not None:
        yield from (Played(plan, draws) for draws in race.looks())
        return
    wanted = Wanted(plan, (plan.settings.repeats,) * len(plan.cells))
    yield wanted
    width = plan.settings.until_ci
    if width is None:
        return
    if wide is None:
        from rwkvbatch.stats.precision import needs_more_repeats

        wide = needs_more_repeats
    widening = set(range(len(plan.cells))) - {BASELINE}
    while True:
        now = wanted.repeats[BASELINE]
        if now >= plan.repeats:
            return
        # A cell that was precise enough once stays out: testing it again would favour chance.
        widening = {cell for cell in widening if _is_wide(plan, rows, cell, now, width, wide)}
        if not widening:
            return
        more = min(plan.repeats, now + max(1, now // 4))
        raised = widening | {BASELINE}
        wanted = Wanted(plan, tuple(more if cell in raised else n for cell, n in enumerate(wanted.repeats)))
        yield wanted


@dataclass(frozen=True)
class Reached:
    """The precision that a cell reached with `--until-ci`.

    Attributes:
        repeats: its repetitions.
        width: of its paired interval against the first cell, as in the stopping rule; infinite where it is unknown,
            None for the first cell and where nothing can be compared.
    """

    cell: str
    repeats: int
    width: float | None


def reached(plan: Plan, rows: Rows, wanted: Wanted) -> tuple[Reached, ...]:
    """The precision of each cell in order; empty without `--until-ci`."""
    if plan.settings.until_ci is None:
        return ()
    from rwkvbatch.stats.precision import planning_width

    found: list[Reached] = []
    for cell, repeats in enumerate(wanted.repeats):
        differences, conversations = _differences(plan, rows, cell, repeats)
        width = None
        if cell != BASELINE and differences:
            width = planning_width(differences, conversations)
        found.append(Reached(plan.cells[cell].name, repeats, width))
    return tuple(found)


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
            ours = _scores(plan, rows, plan.number_of(number, cell, repeat))
            base = _scores(plan, rows, plan.number_of(number, BASELINE, repeat))
            for one, other in zip(ours, base, strict=True):
                if one is not None and other is not None:
                    differences.append(one - other)
                    conversations.append(number)
    return differences, conversations


def _scores(plan: Plan, rows: Rows, task: int) -> Sequence[float | None]:
    return [rows.read(row).score if rows.has(row) else None for row in range(*plan.rows_of(task))]
