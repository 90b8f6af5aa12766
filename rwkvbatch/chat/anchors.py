"""Where the points of a dialogue are in an engine: going on from one costs the same however long the way to it is."""

from __future__ import annotations

from collections.abc import Mapping

from rwkvbatch.chat.dialogue import Dialogue, Exchange, Point
from rwkvbatch.engine.core import ZERO_ROOT, Engine
from rwkvbatch.engine.places import Hold
from rwkvbatch.model.base import State


class Anchors:
    """One dialogue in one engine: roots for its openings, marks for its points, holds for its branches' ends.

    Args:
        states: initial states by the openings' numbers; the others begin with the zero state.

    Raises:
        UsageError: the engine has no memory for another initial state.
    """

    def __init__(self, engine: Engine, dialogue: Dialogue, states: Mapping[int, State] | None = None) -> None:
        self._engine = engine
        self._dialogue = dialogue
        self._marks: dict[Point, int] = {}
        self._holds: dict[Point, Hold] = {}
        self._roots: dict[int, int] = {}
        for opening, state in (states or {}).items():
            self.set_state(opening, state)

    def set_state(self, opening: int, state: State) -> None:
        """Let the dialogue begin with `state` at `opening`, which nothing follows yet.

        Raises:
            UsageError: the engine has no memory for another initial state.
        """
        self._roots[opening] = self._engine.add_root(state)

    def root(self, point: Point) -> int:
        """The engine's number of the initial state before `point`."""
        return self._roots.get(point.opening, ZERO_ROOT)

    def mark(self, point: Point) -> int:
        """The engine's root behind `point`: the next turn follows it without the engine's seeing what came before."""
        missing: list[Exchange] = []
        while point not in self._marks and point.exchange is not None:
            missing.append(self._dialogue.exchanges[point.exchange])
            point = self._dialogue.before(missing[-1])
        if point not in self._marks:
            opening = self._dialogue.openings[point.opening]
            self._marks[point] = self._engine.places.mark(opening.tokens, self.root(point))
        mark = self._marks[point]
        for exchange in reversed(missing):
            mark = self._engine.places.mark(exchange.tokens, mark)
            self._marks[Point(exchange.opening, exchange.number)] = mark
        return mark

    def hold_branches(self) -> None:
        """Keep the states of all branches' ends at hand, whatever else is read."""
        ends = set(self._dialogue.branches.values())
        for point in [point for point in self._holds if point not in ends]:
            self._engine.places.release(self._holds.pop(point))
        for point in ends - self._holds.keys():
            hold = self._engine.places.hold((), self.mark(point))
            if hold is not None:
                self._holds[point] = hold

    def let_go(self) -> None:
        """Forget all marks and holds: the engine goes on with another dialogue."""
        for mark in self._marks.values():
            self._engine.places.unmark(mark)
        for hold in self._holds.values():
            self._engine.places.release(hold)
        self._marks.clear()
        self._holds.clear()
