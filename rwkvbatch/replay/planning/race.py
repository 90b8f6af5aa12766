"""Plans a race (`--race`): which draws each cell plays until the best cell of a grid is known.

A draw is a conversation, chosen uniformly and with replacement by a keyed generator; its k-th draw is its repetition
k - 1. All cells that are still in the race play every draw, with common random numbers. Therefore the score differences
of two cells, one per draw, are independent and identically distributed. Their expectation is the true difference: the
difference of the cells' expected scores, averaged with equal weights over the script's conversations with checks.
At every look, `rwkvbatch.stats.sequential.Elimination` drops the cells that are worse than another one.

The first look is after 8 draws; each further look is after 1/8 more draws, or after 1/2 more if the cells have several
models, because these are reloaded after every look. The rows of a race depend only on the plan and on the rows of
finished looks: an interrupted race continues as an uninterrupted one, and each row is the same as in the full grid.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from typing import Any, Literal

FIRST_LOOK = 8
"""Draws before the first look: the evidence of fewer than 5 cannot reach 1 / 0.05."""

Ending = Literal["one cell left", "within the margin", "budget", "interrupted"]

ScoreOf = Callable[[int, int], float]
"""The score of a draw in a cell, in [0, 1]."""


class Draws:
    """The conversations of a race in the order in which they are played.

    Args:
        seed: the run's seed.
        conversations: numbers of the conversations that can be drawn.

    Attributes:
        conversation: `[draws]` number of each draw's conversation.
        repeat: `[draws]` repetition of that conversation, from 0.
        num_repeats: repetitions per conversation that a plan needs for all draws.
    """

    def __init__(self, seed: int, conversations: Sequence[int], num_draws: int) -> None:
        self.conversation = array("q")
        self.repeat = array("q")
        visits = dict.fromkeys(conversations, 0)
        for number in islice(_random_numbers(seed), num_draws if conversations else 0):
            chosen = conversations[number % len(conversations)]
            self.conversation.append(chosen)
            self.repeat.append(visits[chosen])
            visits[chosen] += 1
        self.num_repeats = max([1, *visits.values()])

    def __len__(self) -> int:
        return len(self.conversation)


def _random_numbers(seed: int) -> Iterator[int]:
    """Uniform 64-bit numbers, made by a hash so that they do not depend on a library's version."""
    for block in count():
        digest = hashlib.blake2b(f"race\x1f{seed}\x1f{block}".encode()).digest()
        yield from (int.from_bytes(digest[at : at + 8], "little") for at in range(0, len(digest), 8))


@dataclass(frozen=True)
class RaceCell:
    """Result of one cell.

    Attributes:
        draws: draws that the cell played.
        rows: rows of these draws.
        score: mean score over the draws; None without draws.
        dropped_after: number of draws after which the cell was dropped; None for a cell that is left.
        log_evidence: evidence that another cell is better: natural logarithm of the wealth at the cell's last look.
        behind: mean score of the race's leader minus the cell's, over the draws that the cell played.
    """

    cell: str
    draws: int
    rows: int
    score: float | None
    dropped_after: int | None
    log_evidence: float
    behind: float | None


@dataclass(frozen=True)
class RaceResult:
    """Result of a race.

    Attributes:
        level: upper bound on the probability that a truly best cell was dropped.
        margin: `--race-margin`, see `Race`.
        ending: why the race stopped.
        draws: draws played.
        draws_planned: draws that `--repeats` allows.
        leader: the cell in the race with the highest mean score; None before the first look.
        left: the cells that were not dropped.
        rows: rows of the race.
        rows_of_grid: rows of the full grid with the same `--repeats`.
    """

    level: float
    margin: float | None
    ending: Ending
    draws: int
    draws_planned: int
    looks: int
    leader: str | None
    left: tuple[str, ...]
    rows: int
    rows_of_grid: int
    cells: tuple[RaceCell, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Race:
    """Plans a race look by look.

    Args:
        draws: the draws, in the order in which they are played.
        rows_of_draw: `[draws]` rows of a draw in one cell.
        num_cells: at least 2.
        score_of: is called only for draws that were played, in cells that are in the race.
        level: upper bound on the probability that a truly best cell is dropped.
        margin: the race ends when no cell left is better than the leader by this or more; None disables this.
        max_rows: upper bound on the rows of the whole race.
        pace: each look comes after 1 / `pace` more draws.
    """

    def __init__(
        self,
        draws: Draws,
        rows_of_draw: Sequence[int],
        num_cells: int,
        score_of: ScoreOf,
        *,
        level: float = 0.05,
        margin: float | None = None,
        max_rows: int | None = None,
        pace: int = 8,
    ) -> None:
        from rwkvbatch.stats.sequential import Elimination

        self.draws = draws
        self.state = Elimination(num_cells, level)
        self.margin = margin
        self.ending: Ending = "interrupted"
        self.dropped_after: dict[int, int] = {}
        self.num_rows = 0
        self.num_looks = 0
        self._rows_of_draw = rows_of_draw
        self._score_of = score_of
        self._max_rows = max_rows
        self._pace = pace

    def looks(self) -> Iterator[tuple[int, ...]]:
        """`[cells]` draws that each cell must have played before the next step; sets `ending` at the end."""
        state = self.state
        while True:
            if state.left.size == 1:
                self.ending = "one cell left"
                return
            stop = self._next_look()
            if stop == state.num_draws:
                self.ending = "budget"
                return
            played = [int(number) for number in state.played]
            for cell in state.left:
                played[cell] = stop
            yield tuple(played)
            for draw in range(state.num_draws, stop):
                state.add([self._score_of(draw, int(cell)) for cell in state.left])
            self.num_looks += 1
            self.dropped_after |= dict.fromkeys(state.drop(), stop)
            if self.margin is not None and state.left.size > 1 and state.is_within(self.margin):
                self.ending = "within the margin"
                return

    def _next_look(self) -> int:
        """The number of draws at the next look; counts their rows."""
        start = self.state.num_draws
        stop = min(len(self.draws), max(FIRST_LOOK, start + max(1, start // self._pace)))
        for draw in range(start, stop):
            rows = self._rows_of_draw[draw] * int(self.state.left.size)
            if self._max_rows is not None and self.num_rows + rows > self._max_rows:
                return draw
            self.num_rows += rows
        return stop


def can_drop(num_cells: int, num_draws: int, level: float) -> bool:
    """Whether a race of `num_draws` draws drops a cell in the clearest case: one cell always scores 1, all others 0."""
    from rwkvbatch.stats.sequential import Elimination

    state = Elimination(num_cells, level)
    for _ in range(num_draws):
        state.add([1.0] + [0.0] * (num_cells - 1))
        if state.drop():
            return True
    return False
