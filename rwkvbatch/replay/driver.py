"""Runs tasks until they are finished: on a worker in this process (`LocalDriver`) or on a worker pool (`PoolDriver`).

Both pass finished rows to a `RowRecorder`, the only writer of a run's rows.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rwkvbatch.errors import RwkvBatchError, counted
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.replay.pools.dispatch import MAX_ATTEMPTS, MAX_HANGS, Dispatcher
from rwkvbatch.replay.pools.pool import (
    Assign,
    ChecksStarted,
    Drop,
    Leave,
    Report,
    WorkerExited,
    WorkerPool,
    WorkerReady,
)
from rwkvbatch.replay.progress import Counts, WorkerProgress
from rwkvbatch.replay.worker.models import ModelLoader
from rwkvbatch.replay.worker.rows import error_row, not_reached, was_reached
from rwkvbatch.replay.worker.worker import Worker
from rwkvbatch.results.row import Row, is_prompt_error
from rwkvbatch.results.row_codec import EncodedRow
from rwkvbatch.results.rows import Rows

WAIT_S = 0.25
"""Longest wait for events of the workers, after which timeouts and `should_stop` are checked."""
DRAIN_S = 10.0
"""Time that workers have to finish their step when the run is stopped."""
JUDGING_S = 60.0
"""Time that a worker has for the checks of one reply; then it is killed, and the conversation is run once more."""
FAILURES_SHOWN = 20
"""Number of failed turns that are logged as warnings; later ones are logged at level `info`."""

_log = logging.getLogger(__name__)


class TooManyFailuresError(RwkvBatchError):
    """More rows failed than `--max-failures` allows; all finished rows are kept."""


class RowRecorder:
    """Writes finished rows to a store, counts them, and logs the failed ones.

    Raises `TooManyFailuresError`, after writing the rows, when more than `max_failures` turns have failed.
    """

    def __init__(self, plan: Plan, rows: Rows, counts: Counts, max_failures: int | None = None) -> None:
        self._plan = plan
        self._max_failures = max_failures
        self.rows = rows
        self.counts = counts

    def incomplete(self, tasks: Iterable[int]) -> Iterator[int]:
        """The tasks of `tasks` that lack a row."""
        return (task for task in tasks if not all(map(self.rows.has, range(*self._plan.rows_of(task)))))

    def rows_of(self, task: int) -> dict[int, Row]:
        """The task's existing rows, by turn."""
        first, end = self._plan.rows_of(task)
        return {number - first: self.rows.read(number) for number in range(first, end) if self.rows.has(number)}

    def add(self, rows: Mapping[int, Row]) -> None:
        """Write rows, given by row number."""
        if rows:
            self.rows.append(rows)
        for number, row in rows.items():
            self._count(number, row)

    def add_encoded(self, rows: Sequence[EncodedRow]) -> None:
        """Write rows, as `add` does, except those that exist: two workers may send the same row."""
        new: dict[int, EncodedRow] = {}
        for row in rows:
            if not self.rows.has(row.number):
                new.setdefault(row.number, row)
        if new:
            self.rows.append_encoded(list(new.values()))
        for row in new.values():
            self._count(row.number, row)

    def add_lost(self, task: int, message: str) -> None:
        """Write error rows for all missing rows of a task whose workers crashed; the first one has `message`."""
        planned = self._plan.task(task)
        first_row = planned.first_row
        error_rows: dict[int, Row] = {}
        for turn in range(len(planned.conversation.turns)):
            if not self.rows.has(first_row + turn):
                error_rows[first_row + turn] = error_row(planned, turn, message)
                message = not_reached(min(error_rows) - first_row)
        self.add(error_rows)

    def _count(self, number: int, row: Row | EncodedRow) -> None:
        self.counts.rows += 1
        self.counts.failed_checks += row.failed_checks
        self.counts.reply_tokens += row.reply_tokens
        self.counts.scored_tokens += row.scored_tokens
        if row.error is None:
            return
        reached = was_reached(row.error)
        self.counts.failed_rows += 1
        self.counts.failed_turns += reached
        failed, allowed, key = self.counts.failed_turns, self._max_failures, self._plan.key(number)
        level = logging.WARNING if reached and failed <= FAILURES_SHOWN else logging.INFO
        _log.log(level, "%s: failed: %s", key.in_words(), row.error, extra={"row": vars(key)})
        if reached and failed == FAILURES_SHOWN + 1:
            _log.warning("more turns fail; the log file and `rwkvbatch show DIR --failed` list them")
        if reached and allowed is not None and failed > allowed:
            again = "--retry-errors runs the failed ones again"
            if is_prompt_error(row.error):
                again = "the same command has this error again"
            raise TooManyFailuresError(
                f"{counted(failed, 'turn')} failed, --max-failures allows {allowed}; "
                f"the last one, {key.in_words()}: {row.error}",
                hint=f"all rows so far are kept; {again}",
            )


@dataclass
class LocalDriver:
    """Steps one worker in this process; checks `should_stop` before each step and calls `after_step` after it."""

    plan: Plan
    loader: ModelLoader
    recorder: RowRecorder
    should_stop: Callable[[], bool] = lambda: False
    after_step: Callable[[], None] = lambda: None
    _worker: tuple[Setup, Worker] | None = field(default=None, init=False)

    def run(self, tasks: Iterable[int], setup: Setup) -> bool:
        """Run the tasks that lack a row. Returns False when the run was stopped before the end."""
        recorder, counts = self.recorder, self.recorder.counts
        incomplete = recorder.incomplete(tasks)
        task = next(incomplete, None)
        if task is None:
            return True
        if self._worker is None or self._worker[0] != setup:
            self._worker = None  # frees its model before the next one is loaded
            self._worker = setup, Worker(self.plan, self.loader, setup)
        worker = self._worker[1]
        progress = counts.workers.get(0) or WorkerProgress("local")
        while task is not None or worker.num_held:
            if self.should_stop():
                worker.drop()
                return False
            while task is not None and worker.num_held < self.plan.settings.batch_size:
                worker.add(task, recorder.rows_of(task))
                task = next(incomplete, None)
            step = worker.step()
            counts.workers[0] = progress = progress.after(step.active, step.rows.values(), step.prefill)
            recorder.add(step.rows)
            recorder.rows.tick()
            self.after_step()
        return True

    def close(self) -> None:
        self._worker = None


@dataclass
class _Judged:
    """A task whose checks a worker is running: since when, and whether the worker was killed because of it."""

    task: int
    seconds: float = 0.0
    killed: bool = False


@dataclass
class PoolDriver:
    """Distributes tasks to the workers of a pool; checks `should_stop` and calls `after_step` after each wait."""

    plan: Plan
    pool: WorkerPool
    recorder: RowRecorder
    should_stop: Callable[[], bool] = lambda: False
    after_step: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._workers = self.recorder.counts.workers
        self._draining = False
        self._judging: dict[int, _Judged] = {}
        self._checked_s = time.monotonic()

    def run(self, tasks: Iterable[int], setup: Setup) -> bool:
        """As `LocalDriver.run`; raises `WorkerError` when no worker can be started."""
        incomplete = array("q", self.recorder.incomplete(tasks))
        if not incomplete:
            return True
        self._dispatcher = Dispatcher(incomplete, self.plan.conversation_of)
        former_progress = dict(self._workers)
        self._workers.clear()
        self.pool.begin(setup)
        while not self._dispatcher.finished:
            if self.should_stop():
                self._drain()
                return False
            self._dispatcher.expect(self.pool.num_starting)
            for assignment in self._dispatcher.assignments():
                for task, worker in assignment.moved_from.items():
                    self.pool.send(worker, Drop((task,)))
                rows_of_tasks = {task: self.recorder.rows_of(task) for task in assignment.tasks}
                self.pool.send(assignment.worker, Assign(rows_of_tasks))
            self._receive(former_progress)
            self.recorder.rows.tick()
            self.after_step()
        return True

    def close(self) -> None:
        self.pool.close()

    def _receive(self, former_progress: Mapping[int, WorkerProgress]) -> None:
        """Handle the workers' events; `former_progress` is that of workers that served an earlier setup."""
        rows: list[EncodedRow] = []
        finished: list[tuple[int, int]] = []
        for worker, event in self.pool.receive(WAIT_S):
            judged = self._judging.pop(worker, None)
            match event:
                case ChecksStarted(task):
                    self._judging[worker] = _Judged(task)
                case WorkerReady(name, capacity):
                    if not self._draining:
                        self._workers[worker] = former_progress.get(worker) or WorkerProgress(name)
                        self._dispatcher.add_worker(worker, capacity)
                case Report():
                    for entry in event.logs:
                        logging.getLogger(entry.logger).log(entry.level, entry.text, extra={"worker": worker})
                    rows += event.rows
                    finished += [(worker, task) for task in event.finished]
                    self._dispatcher.reported(worker, event.active)
                    if (progress := self._workers.get(worker)) is not None:  # else it failed before it joined
                        self._workers[worker] = progress.after(event.active, event.rows, event.prefill)
                case WorkerExited(reason, error):
                    # Finished tasks are recorded first, so that they are not assigned again.
                    self._record(rows, finished)
                    rows, finished = [], []
                    if error is not None:
                        raise error
                    self._lose(worker, reason, judged)
        self._record(rows, finished)
        self._kill_hung()

    def _kill_hung(self) -> None:
        """Kill workers that have judged one reply for `JUDGING_S`."""
        now = time.monotonic()
        # A longer gap means that this process was paused, and the workers too: a stopped terminal job, a suspended
        # machine. It is not counted as time spent on checks.
        elapsed_s, self._checked_s = min(now - self._checked_s, 4 * WAIT_S), now
        for worker, judged in self._judging.items():
            judged.seconds += elapsed_s
            if judged.seconds >= JUDGING_S and not judged.killed:
                judged.killed = True
                self.pool.kill(worker)

    def _record(self, rows: Sequence[EncodedRow], finished: Sequence[tuple[int, int]]) -> None:
        self.recorder.add_encoded(rows)
        for worker, task in finished:
            for other in self._dispatcher.finish(worker, task):
                self.pool.send(other, Drop((task,)))

    def _lose(self, worker: int, reason: str, judged: _Judged | None) -> None:
        """Handle the end of a worker: reassign its tasks, and write error rows for those that are given up."""
        self._workers.pop(worker, None)
        hung_by = judged.task if judged is not None and judged.killed else None
        if hung_by is not None:
            reason = f"a check gave no verdict within {JUDGING_S:g} s"
        if self._draining:
            return
        self.recorder.counts.lost_workers += 1
        _log.warning("worker %d is lost: %s", worker, reason)
        for task in self._dispatcher.left(worker, hung_by):
            if task == hung_by:
                message = f"{MAX_HANGS} workers were killed while they judged this conversation: {reason}"
            else:
                message = f"{MAX_ATTEMPTS} workers ended while they ran this conversation; the last one: {reason}"
            self.recorder.add_lost(task, message)

    def _drain(self) -> None:
        """Let the workers finish their step, for up to `DRAIN_S`, and record the rows that they finish."""
        self._draining = True
        for worker in self._workers:
            self.pool.send(worker, Leave())
        deadline = time.monotonic() + DRAIN_S
        while self._workers and time.monotonic() < deadline:
            self._receive({})
