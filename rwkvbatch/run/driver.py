"""Dialogues, turn by turn, many at once over one engine; every finished turn goes to the store.

Nothing here decides about a token: the engine's replies depend on the request alone, so it does not matter which
dialogues are under way together, and rows that were under way when a run ended are simply asked for again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rwkvbatch.engine.request import Reply, Request, Score
from rwkvbatch.errors import RowError, RwkvBatchError
from rwkvbatch.run.plan import Plan
from rwkvbatch.run.rows import Row
from rwkvbatch.run.turns import ActiveDialogue, Desk

_log = logging.getLogger(__name__)


class TurnEngine(Protocol):
    """What the driver needs of an engine."""

    @property
    def max_batch(self) -> int: ...
    def submit(self, request: Request) -> int: ...
    def submit_score(self, prefix: Sequence[int], continuation: Sequence[int], root: int = 0) -> int: ...
    def step(self) -> Sequence[tuple[int, Reply | Score]]: ...


class RowSink(Protocol):
    """Where rows go, and where those of an earlier session are."""

    def has(self, number: int) -> bool: ...
    def read(self, number: int) -> Row: ...
    def append(self, number: int, row: Row) -> None: ...
    def tick(self) -> None: ...


@dataclass
class Counts:
    """What this session did. Rows count when they are written; the store knows which are durable."""

    rows: int = 0
    failed_rows: int = 0
    failed_checks: int = 0
    reply_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    active: int = 0


class TooManyFailuresError(RwkvBatchError):
    """More rows failed than `--max-failures` allows; what is done is kept."""


class Driver:
    """Runs dialogues of a plan over an engine.

    Args:
        plan: all dialogues.
        sink: the store.
        counts: added to while the driver runs.
        max_failures: stop when more rows than this have failed in this session.
        should_stop: asked between steps; true ends the run and drops the rows under way.
        after_step: called after every step of the engine.
    """

    def __init__(
        self,
        plan: Plan,
        sink: RowSink,
        counts: Counts,
        *,
        max_failures: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan = plan
        self._sink = sink
        self._counts = counts
        self._max_failures = max_failures
        self._should_stop = should_stop
        self._after_step = after_step

    def run(
        self, dialogues: Iterable[int], desk: Desk, make_engine: Callable[[int], TurnEngine], batch: int
    ) -> bool:
        """Run `dialogues` (numbers in the plan) to their ends.

        Args:
            make_engine: an engine for so many replies at once. Called again with a smaller number when memory
                ran out in a way that the engine could not mend itself.
            batch: so many dialogues are under way together.

        Returns:
            False when it was stopped before the end.

        Raises:
            TooManyFailuresError: more rows failed than allowed.
            StorageError: a row could not be written.
        """
        self._waiting = iter(dialogues)
        self._desk = desk
        self._engine = make_engine(batch)
        self._batch = batch
        self._asked: dict[int, ActiveDialogue] = {}
        self._retry: list[int] = []
        while True:
            if self._should_stop():
                return False
            self._fill()
            if not self._asked:
                return True
            try:
                finished = self._engine.step()
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                self._shrink(error, make_engine)
                continue
            for request_id, result in finished:
                self._take(request_id, result)
            self._sink.tick()
            self._after_step()

    def _fill(self) -> None:
        window = min(self._batch, self._engine.max_batch)
        while self._counts.active < window:
            number = self._retry.pop() if self._retry else next(self._waiting, None)
            if number is None:
                return
            self._start(number)

    def _start(self, number: int) -> None:
        dialogue = self._plan.dialogue(number)
        rows = range(dialogue.first_row, dialogue.first_row + len(dialogue.conversation.turns))
        if all(self._sink.has(row) for row in rows):
            return
        active = ActiveDialogue(dialogue, self._desk)
        self._counts.active += 1
        self._go_on(active)

    def _go_on(self, active: ActiveDialogue) -> None:
        """Replay what is there, then ask for the next turn; or let the dialogue end."""
        while not active.over and self._sink.has(active.row_number):
            row = self._sink.read(active.row_number)
            if row.finish == "error":
                self._end_early(active)
                return
            active.replay(row)
        if active.over:
            self._counts.active -= 1
            return
        try:
            request = active.request()
            scoring = active.scoring()
            active.request_id = self._engine.submit(request)
        except (RwkvBatchError, ValueError) as error:
            self._commit(active.row_number, active.fail_turn(error))
            self._end_early(active)
            return
        self._asked[active.request_id] = active
        if scoring is not None:
            active.score_id = self._engine.submit_score(scoring.prefix, scoring.continuation, scoring.root)
            self._asked[active.score_id] = active

    def _take(self, request_id: int, result: Reply | Score) -> None:
        active = self._asked.pop(request_id)
        if isinstance(result, Reply):
            active.reply = result
        else:
            active.score = result
        if active.request_id in self._asked or active.score_id in self._asked or active.reply is None:
            return
        number, reply = active.row_number, active.reply
        row = active.finish_turn(reply, active.score)
        active.reply = active.score = None
        active.request_id = active.score_id = -1
        self._counts.reply_tokens += len(reply.ids)
        self._counts.prompt_tokens += reply.num_prompt
        self._counts.cached_tokens += reply.num_cached
        self._commit(number, row)
        if row.finish == "error":
            self._end_early(active)
        else:
            self._go_on(active)

    def _end_early(self, active: ActiveDialogue) -> None:
        """The next turn's row is an error: those after it become error rows too, so that every row is there."""
        self._counts.active -= 1
        failed_turn = active.turn
        active.turn += 1
        while not active.over:
            number = active.row_number
            row = active.skip_turn(failed_turn)
            if not self._sink.has(number):
                self._write(number, row)

    def _commit(self, number: int, row: Row) -> None:
        self._write(number, row)
        self._counts.failed_checks += sum(not check.passed for check in row.checks)
        if row.finish != "error":
            return
        self._counts.failed_rows += 1
        _log.warning("row failed: %s", row.error, extra={"row": vars(row.key)})
        if self._max_failures is not None and self._counts.failed_rows > self._max_failures:
            raise TooManyFailuresError(
                f"{self._counts.failed_rows} rows failed, --max-failures allows {self._max_failures}; "
                f"the last one: {row.error}",
                hint="all rows so far are kept; --retry-errors runs the failed ones again",
            )

    def _write(self, number: int, row: Row) -> None:
        self._sink.append(number, row)
        self._counts.rows += 1

    def _shrink(self, error: Exception, make_engine: Callable[[int], TurnEngine]) -> None:
        """Memory ran out and the engine could not mend it: fewer at once, on a new engine; the rows run again."""
        under_way = {active.dialogue.number: active for active in self._asked.values()}
        _log.warning("out of memory with %d dialogues under way; going on with half", len(under_way))
        self._asked.clear()
        self._counts.active = 0
        if self._batch == 1:
            for active in under_way.values():
                self._counts.active += 1
                self._commit(active.row_number, active.fail_turn(RowError(f"out of memory: {error}")))
                self._end_early(active)
        else:
            self._retry.extend(sorted(under_way, reverse=True))
        self._batch = max(1, self._batch // 2)
        self._engine = make_engine(self._batch)


def _is_out_of_memory(error: Exception) -> bool:
    # By name, so that nothing here imports torch.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
