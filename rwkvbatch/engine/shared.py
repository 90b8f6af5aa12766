"""`SharedEngine`: an engine that concurrent library calls and open streams step together."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import Reply, Score
from rwkvbatch.errors import RowError, UsageError
from rwkvbatch.model.base import State

MAX_INITIAL_STATES = 16
"""Most initial states of one engine. One more needs a new engine, without cached prefixes."""


class SharedEngine:
    """An engine shared by running calls and open streams.

    Attributes:
        results: results by request number, for the requests of running calls and open streams; None until they end.
        abandoned: requests whose caller is gone. They are cancelled before the next step rather than at once, since the
            garbage collector may close a stream in the middle of a step.
        is_broken: an error interrupted a step, so that states may be ahead of their tokens.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.results: dict[int, Reply | Score | None] = {}
        self.abandoned: list[int] = []
        self.is_broken = False
        # State and root by the state's `id`. Keeping the state ensures that its id is not reused.
        self._roots: dict[int, tuple[State, int]] = {}

    def root(self, state: State) -> int:
        """The engine's root for `state`, added at its first use.

        Raises:
            UsageError: the engine has `MAX_INITIAL_STATES` already, or no memory for another one.
        """
        if id(state) not in self._roots:
            if len(self._roots) == MAX_INITIAL_STATES:
                raise UsageError(f"an engine keeps at most {MAX_INITIAL_STATES} initial states")
            self._roots[id(state)] = state, self.engine.add_root(state)
        return self._roots[id(state)][1]

    def step(self) -> list[int]:
        """Advance all requests by one forward pass; returns the numbers of those that ended."""
        if self.is_broken:
            raise RowError("the reply was cancelled: another call on this LLM was interrupted", hint="repeat the call")
        with self.broken_by_errors():
            while self.abandoned:
                number = self.abandoned.pop()
                if self.results.pop(number) is None:
                    self.engine.cancel(number)
            done = [(number, result) for number, result in self.engine.step() if number in self.results]
            self.results.update(done)
        return [number for number, _ in done]

    def run(self, submitted: Iterable[int]) -> list[Any]:
        """Step until all requests end; results in their order.

        Args:
            submitted: the requests' numbers; iterating it submits them.
        """
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
        """Set `is_broken` if the block raises."""
        try:
            yield
        except BaseException:  # KeyboardInterrupt too: states may have read tokens that the scheduler does not count
            self.is_broken = True
            raise
