"""An engine that several callers step: calls of a library's user and streams that are open at the same time."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import Reply, Score
from rwkvbatch.errors import RowError, UsageError
from rwkvbatch.model.base import State

MAX_INITIAL_STATES = 16
"""Initial states that one engine keeps. One more makes a new engine, without cached prefixes."""


class SharedEngine:
    """An engine that calls and open streams share.

    Attributes:
        results: of the requests of running calls and open streams, by number; None until they end.
        abandoned: requests that nobody waits for any more. They are cancelled before the next step, not at once:
            the garbage collector may close a stream in the middle of a step.
        is_broken: an error ended a step half way, so that states may be ahead of their tokens.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.results: dict[int, Reply | Score | None] = {}
        self.abandoned: list[int] = []
        self.is_broken = False
        # The engine keeps a root for its whole life. The state is kept beside it, so that its id stays its own.
        self._roots: dict[int, tuple[State, int]] = {}

    def root(self, state: State) -> int:
        """The engine's root for `state`. Raises `UsageError` when no room is left for another one."""
        if id(state) not in self._roots:
            if len(self._roots) == MAX_INITIAL_STATES:
                raise UsageError(f"an engine keeps at most {MAX_INITIAL_STATES} initial states")
            self._roots[id(state)] = state, self.engine.add_root(state)
        return self._roots[id(state)][1]

    def step(self) -> list[int]:
        """Advance all requests by one forward pass; returns the numbers of those that ended."""
        if self.is_broken:
            raise RowError("the reply was given up: another call on this LLM was interrupted", hint="make it again")
        with self.broken_by_errors():
            while self.abandoned:
                number = self.abandoned.pop()
                if self.results.pop(number) is None:
                    self.engine.cancel(number)
            done = [(number, result) for number, result in self.engine.step() if number in self.results]
            self.results.update(done)
        return [number for number, _ in done]

    def run(self, submitted: Iterable[int]) -> list[Any]:
        """The results of requests, in their order; `submitted` submits them and gives their numbers."""
        numbers: list[int] = []
        try:
            for number in submitted:
                numbers.append(number)
                self.results[number] = None
            unfinished = set(numbers)
            while unfinished:
                unfinished.difference_update(self.step())
            return [self.results.pop(number) for number in numbers]
        finally:
            self.abandoned += [number for number in numbers if number in self.results]

    @contextmanager
    def broken_by_errors(self) -> Generator[None]:
        try:
            yield
        except BaseException:  # an interrupt too: states may have read tokens that the scheduler does not count
            self.is_broken = True
            raise
