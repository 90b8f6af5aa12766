"""The driver: leases dialogues to workers, and writes the rows that they report. The only writer of a run."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.replay.conversation import error_row
from rwkvbatch.replay.dispatch import MAX_ATTEMPTS, Dispatcher, Grant
from rwkvbatch.replay.messages import Drop, FinishedRow, Joined, Lease, Leave, Left, Report, Work
from rwkvbatch.replay.models import Setup
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import WorkerPool
from rwkvbatch.replay.progress import WorkerProgress
from rwkvbatch.replay.worker import finished_row, not_reached
from rwkvbatch.results.row import Row
from rwkvbatch.results.store import Rows

WAIT_S = 0.25
"""How long the driver waits for a word of its workers before it looks at the clock."""
DRAIN_S = 10.0
"""How long workers have to come to the end of their step when the run is stopped."""
FAILURES_TOLD = 20
"""So many failed turns are told one by one, as warnings; of the others only the log file hears."""

_log = logging.getLogger(__name__)


@dataclass
class WorkerCounts:
    """What one worker did in this session. `rows` includes those that another one had finished first."""

    name: str
    active: int = 0
    rows: int = 0
    reply_tokens: int = 0
    alive: bool = True


@dataclass
class Counts:
    """What this session did. Rows count when they are written; the store knows which are durable."""

    rows: int = 0
    failed_rows: int = 0
    failed_turns: int = 0
    failed_checks: int = 0
    reply_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    lost_workers: int = 0
    workers: dict[int, WorkerCounts] = field(default_factory=dict[int, WorkerCounts])

    @property
    def active(self) -> int:
        """Dialogues under way."""
        return sum(worker.active for worker in self.workers.values())

    def at_work(self) -> tuple[WorkerProgress, ...]:
        """The workers that are there."""
        return tuple(
            WorkerProgress(worker.name, worker.active, worker.rows, worker.reply_tokens)
            for worker in self.workers.values()
            if worker.alive
        )


class TooManyFailuresError(RwkvBatchError):
    """More rows failed than `--max-failures` allows; what is done is kept."""


class Driver:
    """Runs dialogues of a plan.

    Args:
        plan: all dialogues.
        sink: the store.
        crew: the workers.
        counts: added to while the driver runs.
        max_failures: stop when more rows than this have failed in this session.
        should_stop: asked again and again; true ends the run and drops the rows under way.
        after_step: called whenever workers were listened to.
    """

    def __init__(
        self,
        plan: Plan,
        sink: Rows,
        crew: WorkerPool,
        counts: Counts,
        *,
        max_failures: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan = plan
        self._sink = sink
        self._crew = crew
        self._counts = counts
        self._max_failures = max_failures
        self._should_stop = should_stop
        self._after_step = after_step
        self._draining = False

    def run(self, dialogues: Iterable[int], setup: Setup) -> bool:
        """Run those of `dialogues` (numbers in the plan) that have rows missing to their ends.

        Returns:
            False when it was stopped before the end.

        Raises:
            TooManyFailuresError: more rows failed than allowed.
            WorkerError: no worker can be had.
            StorageError: a row could not be written.
        """
        todo = array("q", (number for number in dialogues if not self._is_complete(number)))
        if not todo:
            return True
        self._dispatcher = Dispatcher(todo, self._plan.conversation_of)
        for worker in self._counts.workers.values():
            worker.active, worker.alive = 0, False
        self._crew.begin(setup)
        while not self._dispatcher.finished:
            if self._should_stop():
                self._drain()
                return False
            self._dispatcher.expect(self._crew.num_coming)
            for grant in self._dispatcher.grants():
                self._lease(grant)
            self._listen(WAIT_S)
            self._sink.tick()
            self._after_step()
        return True

    def _is_complete(self, number: int) -> bool:
        return all(self._sink.has(row) for row in range(*self._plan.rows_of(number)))

    def _lease(self, grant: Grant) -> None:
        for dialogue, worker in grant.taken.items():
            self._crew.send(worker, Drop((dialogue,)))
        leases = tuple(Lease(dialogue, self._rows_there(dialogue)) for dialogue in grant.dialogues)
        self._crew.send(grant.worker, Work(leases))

    def _rows_there(self, dialogue: int) -> dict[int, Row]:
        first, last = self._plan.rows_of(dialogue)
        return {n - first: self._sink.read(n) for n in range(first, last) if self._sink.has(n)}

    def _listen(self, timeout_s: float) -> None:
        finished: list[FinishedRow] = []
        ended: list[tuple[int, int]] = []
        for worker, event in self._crew.receive(timeout_s):
            match event:
                case Joined(name, room):
                    if not self._draining:
                        self._counts.workers.setdefault(worker, WorkerCounts(name)).alive = True
                        self._dispatcher.joined(worker, room)
                case Report(rows, over, active, notes):
                    for note in notes:
                        logging.getLogger(note.logger).log(note.level, note.text, extra={"worker": worker})
                    finished += rows
                    ended += [(worker, dialogue) for dialogue in over]
                    self._dispatcher.reported(worker, active)
                    self._count_worker(worker, rows, active)
                case Left(reason, error):
                    # What was reported before is kept, and known before the leases are given away.
                    self._commit(finished)
                    self._end(ended)
                    finished, ended = [], []
                    if error is not None:
                        raise error
                    self._lose(worker, reason)
        self._commit(finished)
        self._end(ended)

    def _count_worker(self, worker: int, rows: Sequence[FinishedRow], active: int) -> None:
        counts = self._counts.workers[worker]
        counts.active = active
        counts.rows += len(rows)
        counts.reply_tokens += sum(row.reply_tokens for row in rows)

    def _commit(self, rows: Sequence[FinishedRow]) -> None:
        # A row may come twice, from two workers: it is the same row, and the first one counts.
        new = {row.encoded.number: row for row in reversed(rows) if not self._sink.has(row.encoded.number)}
        if not new:
            return
        ordered = list(reversed(new.values()))
        self._sink.append_all([row.encoded for row in ordered])
        counts = self._counts
        counts.rows += len(ordered)
        for row in ordered:
            counts.failed_checks += row.failed_checks
            counts.reply_tokens += row.reply_tokens
            counts.prompt_tokens += row.prompt_tokens
            counts.cached_tokens += row.cached_tokens
            if row.error is not None:
                counts.failed_rows += 1
                self._tell_failure(row, row.error)

    def _tell_failure(self, row: FinishedRow, error: str) -> None:
        """Log a failed row, and end the run where there are too many; rows that were not reached do not count."""
        dialogue, turn = self._plan.dialogue_of_row(row.encoded.number)
        key = self._plan.dialogue(dialogue).key(turn)
        counts = self._counts
        counts.failed_turns += row.reached
        told = row.reached and counts.failed_turns <= FAILURES_TOLD
        level = logging.WARNING if told else logging.INFO
        _log.log(level, "%s: failed: %s", key.in_words(), error, extra={"row": vars(key)})
        if row.reached and counts.failed_turns == FAILURES_TOLD + 1:
            _log.warning("more turns fail; the log file and `rwkvbatch show DIR --failed` tell which")
        if row.reached and self._max_failures is not None and counts.failed_turns > self._max_failures:
            raise TooManyFailuresError(
                f"{counts.failed_turns} turns failed, --max-failures allows {self._max_failures}; "
                f"the last one, {key.in_words()}: {error}",
                hint="all rows so far are kept; --retry-errors runs the failed ones again",
            )

    def _end(self, ended: Sequence[tuple[int, int]]) -> None:
        for worker, dialogue in ended:
            for other in self._dispatcher.over(worker, dialogue):
                self._crew.send(other, Drop((dialogue,)))

    def _lose(self, worker: int, reason: str) -> None:
        counts = self._counts.workers.get(worker)
        if counts is not None:
            counts.active, counts.alive = 0, False
        if self._draining:
            return
        self._counts.lost_workers += 1
        _log.warning("worker %d is gone: %s", worker, reason)
        for dialogue in self._dispatcher.left(worker):
            self._give_up(dialogue, reason)

    def _give_up(self, number: int, reason: str) -> None:
        """Error rows for all that is missing of a dialogue that no worker survives."""
        dialogue = self._plan.dialogue(number)
        first, last = self._plan.rows_of(number)
        missing = [turn for turn in range(last - first) if not self._sink.has(first + turn)]
        failed: list[FinishedRow] = []
        for turn in missing:
            message = f"{MAX_ATTEMPTS} workers died while they had this conversation; the last one: {reason}"
            if turn != missing[0]:
                message = not_reached(missing[0])
            failed.append(finished_row(first + turn, error_row(dialogue, turn, message)))
        self._commit(failed)

    def _drain(self) -> None:
        """Let the workers come to the end of their step, and keep what they have finished."""
        self._draining = True
        for number, worker in self._counts.workers.items():
            if worker.alive:
                self._crew.send(number, Leave())
        deadline = time.monotonic() + DRAIN_S
        while any(worker.alive for worker in self._counts.workers.values()) and time.monotonic() < deadline:
            self._listen(WAIT_S)
