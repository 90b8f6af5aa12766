"""Replies from an engine, made together and streamed, that can be ended where they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rwkvbatch.chat.tree import Dialogue, Exchange, Point
from rwkvbatch.engine.engine import ZERO_ROOT, Engine
from rwkvbatch.engine.prefix_cache import Hold
from rwkvbatch.engine.request import Reply, Request
from rwkvbatch.errors import NonFiniteLogitsError
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


GoOn = Callable[[], bool]
"""Asked after every step; false ends the replies under way where they stand."""


def make_replies(
    engine: Engine, requests: Sequence[Request], on_text: Callable[[str], None] | None, go_on: GoOn
) -> list[Reply]:
    """Replies to `requests`, in their order; nothing of them is left in the engine, whatever is raised.

    Args:
        on_text: is told the pieces of all of them. What it raises ends the replies, and is raised here.

    Raises:
        NonFiniteLogitsError: a reply could not be made.
    """
    failed: list[Exception] = []

    def guarded(text: str) -> None:
        # The engine is in the middle of a step: it must not be left there.
        if on_text is not None and not failed:
            try:
                on_text(text)
            except Exception as error:
                failed.append(error)

    replies = _run(engine, [replace(r, on_text=guarded) for r in requests], lambda: not failed and go_on())
    if failed:
        raise failed[0]
    return replies


def _run(engine: Engine, requests: Sequence[Request], go_on: GoOn) -> list[Reply]:
    ids = [engine.submit(request) for request in requests]
    replies: dict[int, Reply] = {}
    try:
        while len(replies) < len(ids):
            replies |= _step(engine)
            if not go_on():
                break
    finally:
        # Also when something was raised: a request left behind would go on with the next message.
        for request_id in ids:
            if request_id not in replies:
                engine.cancel(request_id)
    if len(replies) < len(ids):
        replies |= _step(engine)
    ordered = [replies[request_id] for request_id in ids]
    for reply in ordered:
        if reply.finish_reason == "error":
            raise NonFiniteLogitsError(reply.error or "the model has no reply", hint="/params shows what is set")
    return ordered


def _step(engine: Engine) -> dict[int, Reply]:
    return {number: result for number, result in engine.step() if isinstance(result, Reply)}
