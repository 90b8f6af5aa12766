"""Which dialogues of a plan are wanted: all of them, or with `--until-ci` as many repeats as precision needs.

After each round of repeats, a cell goes on whose paired interval against the first cell is still wider than asked
for; the first cell goes on with it, so that there is something to pair with. Only the width decides, never where
the interval lies (`rwkvbatch.stats.precision`), and only rows of finished rounds do: a resumed run decides as the
uninterrupted one did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rwkvbatch.replay.plan import Plan
from rwkvbatch.results.store import Rows

BASELINE = 0


@dataclass(frozen=True)
class Wanted:
    """So many repeats of each cell of a plan."""

    plan: Plan
    repeats: tuple[int, ...]

    def dialogues(self, *, longest_first: bool = False) -> Iterator[int]:
        """Their numbers, in the plan's order; or those of the conversations with the most turns first."""
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


def first_round(plan: Plan) -> Wanted:
    """What is wanted in any case."""
    return Wanted(plan, (plan.settings.repeats,) * len(plan.cells))


def rounds(plan: Plan, rows: Rows, wide: Callable[..., bool] | None = None) -> Iterator[Wanted]:
    """What is wanted, again and again, until it is enough; each must be there before the next is asked for.

    Args:
        wide: `wide(differences, conversations, width=...)`, by default `stats.precision.needs_more_repeats`.
    """
    wanted = first_round(plan)
    yield wanted
    width = plan.settings.until_ci
    if width is None:
        return
    if wide is None:
        from rwkvbatch.stats.precision import needs_more_repeats

        wide = needs_more_repeats
    going_on = set(range(len(plan.cells))) - {BASELINE}
    while True:
        now = wanted.repeats[BASELINE]
        if now >= plan.repeats:
            return
        # A cell that was precise enough once is left alone: looking again would be looking at its luck.
        going_on = {cell for cell in going_on if _is_wide(plan, rows, cell, now, width, wide)}
        if not going_on:
            return
        more = min(plan.repeats, now + max(1, now // 4))
        raised = going_on | {BASELINE}
        wanted = Wanted(plan, tuple(more if cell in raised else n for cell, n in enumerate(wanted.repeats)))
        yield wanted


@dataclass(frozen=True)
class Reached:
    """How precise a cell got with `--until-ci`.

    Attributes:
        repeats: how many it was replayed.
        width: of its paired interval against the first cell, as the stopping rule sees it; infinite where it cannot be
            known, None for the first cell and where nothing can be compared.
    """

    cell: str
    repeats: int
    width: float | None


def reached(plan: Plan, rows: Rows, wanted: Wanted) -> tuple[Reached, ...]:
    """What each cell came to, in order; nothing without `--until-ci`."""
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
    # Nothing to compare (all rows failed): more of the same would not help.
    return bool(differences) and wide(differences, conversations, width=width)


def _differences(plan: Plan, rows: Rows, cell: int, repeats: int) -> tuple[list[float], list[int]]:
    """The cell's scores minus the first cell's, and the conversation that each is of."""
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


def _scores(plan: Plan, rows: Rows, dialogue: int) -> Sequence[float | None]:
    return [rows.read(row).score if rows.has(row) else None for row in range(*plan.rows_of(dialogue))]
