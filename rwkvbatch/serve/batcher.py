"""Runs the engine in a thread: batches the requests of all clients, and passes their results to the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import EngineStats, Reply, Request, Score, TokenDetails
from rwkvbatch.errors import RowError, RwkvBatchError, in_words

_log = logging.getLogger(__name__)


class QueueFullError(RowError):
    """The server has the largest allowed number of unfinished requests."""


class ShuttingDownError(RowError):
    """The server ends before the request is done."""


class EngineFailedError(RowError):
    """The engine failed during a step. All its requests ended, and a new engine was made."""


@dataclass(frozen=True)
class ScoreRequest:
    """A request to score `continuation` after `prefix`, with the `num_top` likeliest tokens at each position."""

    prefix: tuple[int, ...]
    continuation: tuple[int, ...]
    root: int
    num_top: int


Work = Request | ScoreRequest
Update = str | TokenDetails | Reply | Score | RwkvBatchError
"""An update of one request: a piece of its text, a token's details, its result, or the error that ended its flight."""

SHUTTING_DOWN = "the server is shutting down"
EVENTS_PER_SECOND = 2000
"""Approximate limit of the pieces of text that the event loop gets per second. With many streams, each gets fewer and
larger pieces: an event for each token would use the processor time that computes the tokens."""


class ClientLeftError(Exception):
    """The client of a flight has closed its connection."""


class Flight:
    """The engine requests of one HTTP request. Only the event loop's thread uses it, except where noted.

    Attributes:
        results: the result of each request; None until it ends.
        error: the reason why all requests ended without results.
        undelivered: updates that the event loop does not have yet; used by the engine's thread.
        next_s: time from which the event loop may get more text; used by the engine's thread.
    """

    def __init__(self, works: Sequence[Work], *, streams: bool) -> None:
        self.works = works
        self.streams = streams
        self.results: list[Reply | Score | None] = [None] * len(works)
        self.error: RwkvBatchError | None = None
        self.is_cancelled = False
        self.undelivered: list[tuple[int, Update]] = []
        self.next_s = 0.0
        self._pieces: list[list[str]] = [[] for _ in works]
        self._details: list[list[TokenDetails]] = [[] for _ in works]
        self._num_left = len(works)
        self._client_left = False
        self._changed = asyncio.Event()
        if not works:
            self._changed.set()

    @property
    def is_done(self) -> bool:
        return self._num_left == 0 or self.error is not None

    async def change(self) -> None:
        """Wait for an update.

        Raises:
            RwkvBatchError: the requests ended without results.
            ClientLeftError: the client has closed its connection.
        """
        await self._changed.wait()
        self._changed.clear()
        if self._client_left:
            raise ClientLeftError
        if self.error is not None:
            raise self.error

    def leave(self) -> None:
        """Record that the client has closed its connection."""
        self._client_left = True
        self._changed.set()

    def take_text(self, index: int) -> str:
        """The text of request `index` since the last call."""
        pieces = self._pieces[index]
        text = "".join(pieces)
        pieces.clear()
        return text

    def take_details(self, index: int) -> list[TokenDetails]:
        """The details of the tokens of request `index` since the last call."""
        details, self._details[index] = self._details[index], []
        return details

    def put(self, updates: Sequence[tuple[int, Update]]) -> None:
        """Take updates, each with the index of its request."""
        for index, value in updates:
            if isinstance(value, str):
                self._pieces[index].append(value)
            elif isinstance(value, TokenDetails):
                self._details[index].append(value)
            elif isinstance(value, RwkvBatchError):
                self.error = self.error or value
            elif self.results[index] is None:
                self.results[index] = value
                self._num_left -= 1
        self._changed.set()


class Batcher:
    """Runs an engine in its own thread.

    Args:
        make_engine: makes the engine; called by `start`, and in the thread after a failure of the engine.
        max_unfinished: largest number of unfinished requests, including those that wait.
    """

    def __init__(self, make_engine: Callable[[], Engine], max_unfinished: int) -> None:
        self._make_engine = make_engine
        self._max_unfinished = max_unfinished
        self._engine: Engine | None = None
        self._former_stats = EngineStats()
        self._wake = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._closing = False
        self._failure: str | None = None
        self._thread: threading.Thread | None = None
        # Used by the engine's thread:
        self._running: dict[int, tuple[Flight, int]] = {}
        self._updated: dict[Flight, bool] = {}  # flights with undelivered updates, and whether these must not wait
        # Used by the event loop's thread:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flights: set[Flight] = set()
        self.num_unfinished = 0
        self.num_cancelled = 0

    @property
    def is_healthy(self) -> bool:
        return self._failure is None and self._engine is not None

    @property
    def stats(self) -> EngineStats:
        """Counts of this engine and of its predecessors."""
        engine = self._engine
        if engine is None:
            return self._former_stats
        current = asdict(engine.stats)
        return EngineStats(**{name: count + current[name] for name, count in asdict(self._former_stats).items()})

    @property
    def num_cached_states(self) -> int:
        return 0 if self._engine is None else self._engine.num_cached_states

    @property
    def num_waiting(self) -> int:
        """Number of unfinished requests that do not fit into the batch."""
        return 0 if self._engine is None else max(0, self.num_unfinished - self._engine.max_batch)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make the engine and start its thread, which passes results to `loop`. Raises as `make_engine`."""
        self._loop = loop
        self._engine = self._make_engine()
        self._thread = threading.Thread(target=self._run, name="rwkvbatch-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the engine's thread after its step; unfinished requests end with an error.

        Must be called in the event loop's thread.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        for flight in list(self._flights):
            self._deliver([(flight, [(0, ShuttingDownError(SHUTTING_DOWN))])])

    def submit(self, works: Sequence[Work], *, streams: bool) -> Flight:
        """Queue requests of one client.

        Raises:
            QueueFullError: too many requests are unfinished.
            EngineFailedError: the engine failed, and no new one could be made.
            ShuttingDownError: the batcher was closed.
        """
        if self._closing:
            raise ShuttingDownError(SHUTTING_DOWN)
        if self._failure is not None:
            raise EngineFailedError(f"the engine failed and could not be made again: {self._failure}")
        if self.num_unfinished + len(works) > self._max_unfinished:
            raise QueueFullError(
                f"{self.num_unfinished} replies are in progress or waiting, this request adds {len(works)}, and the "
                f"server takes {self._max_unfinished}",
                hint="try again later",
            )
        flight = Flight(works, streams=streams)
        if not works:
            return flight
        self._flights.add(flight)
        self.num_unfinished += len(works)
        self._command(lambda: self._begin(flight))
        return flight

    def cancel(self, flight: Flight) -> None:
        """End the unfinished requests of a flight."""
        if flight.is_cancelled or flight.is_done:
            return
        flight.is_cancelled = True
        self.num_cancelled += 1
        self._leave(flight)
        self._command(lambda: self._drop(flight))

    def _command(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _leave(self, flight: Flight) -> None:
        if flight in self._flights:
            self._flights.remove(flight)
            self.num_unfinished -= len(flight.works)

    def _deliver(self, updates: list[tuple[Flight, list[tuple[int, Update]]]]) -> None:
        for flight, flight_updates in updates:
            flight.put(flight_updates)
            if flight.is_done:
                self._leave(flight)

    # The following methods run in the engine's thread.

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._closing or self._is_busy):
                    self._wake.wait()
                if self._closing:
                    break
            try:
                while self._commands:
                    self._commands.popleft()()
                if self._engine is not None and self._engine.busy:
                    self._take(self._engine.step())
            except Exception as error:
                self._fail(error)
            self._hand_over_updates()

    @property
    def _is_busy(self) -> bool:
        return self._engine is not None and self._engine.busy

    def _begin(self, flight: Flight) -> None:
        engine = self._engine
        if engine is None:
            self._notify(flight, 0, EngineFailedError("there is no engine"))
            return
        try:
            for index, work in enumerate(flight.works):
                self._running[self._submit(engine, flight, index, work)] = flight, index
        except (RwkvBatchError, ValueError) as error:
            self._drop(flight)
            self._notify(flight, 0, error if isinstance(error, RwkvBatchError) else RowError(str(error)))

    def _submit(self, engine: Engine, flight: Flight, index: int, work: Work) -> int:
        if isinstance(work, ScoreRequest):
            return engine.submit_score(work.prefix, work.continuation, work.root, num_top=work.num_top)
        if flight.streams:

            def add_update(value: str | TokenDetails) -> None:
                flight.undelivered.append((index, value))
                self._updated.setdefault(flight, False)

            work = replace(work, on_text=add_update, on_details=add_update)
        return engine.submit(work)

    def _notify(self, flight: Flight, index: int, value: Update) -> None:
        """Add an update that must be delivered after this step."""
        flight.undelivered.append((index, value))
        self._updated[flight] = True

    def _drop(self, flight: Flight) -> None:
        for request_id in [request_id for request_id, (owner, _) in self._running.items() if owner is flight]:
            del self._running[request_id]
            if self._engine is not None:
                self._engine.cancel(request_id)
        self._updated.pop(flight, None)

    def _take(self, finished: Sequence[tuple[int, Reply | Score]]) -> None:
        for request_id, result in finished:
            flight_and_index = self._running.pop(request_id, None)
            if flight_and_index is not None:
                self._notify(*flight_and_index, result)

    def _fail(self, error: Exception) -> None:
        """End all requests, because their states may be ahead of their tokens, and make a new engine."""
        _log.error("the engine failed", exc_info=error)
        self._former_stats = self.stats
        self._engine = None
        self._end_all(EngineFailedError(f"the engine failed: {in_words(error)}"))
        try:
            self._engine = self._make_engine()
        except Exception as second_error:
            self._failure = in_words(second_error)

    def _end_all(self, error: EngineFailedError) -> None:
        flights = {flight for flight, _ in self._running.values()}
        self._running.clear()
        for flight in flights:
            self._notify(flight, 0, error)

    def _hand_over_updates(self) -> None:
        """Pass updates to the event loop, with one call for all flights."""
        now_s, next_s = time.monotonic(), time.monotonic() + len(self._updated) / EVENTS_PER_SECOND
        updates: list[tuple[Flight, list[tuple[int, Update]]]] = []
        for flight, is_urgent in list(self._updated.items()):
            if is_urgent or now_s >= flight.next_s:
                del self._updated[flight]
                updates.append((flight, flight.undelivered))
                flight.undelivered, flight.next_s = [], next_s
        if updates and self._loop is not None and not self._loop.is_closed():
            self._call_in_loop(self._deliver, updates)

    def _call_in_loop(self, function: Callable[..., Any], *arguments: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop was closed meanwhile, so that nothing waits for results
            _log.debug("the event loop is closed")
