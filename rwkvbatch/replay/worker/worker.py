"""Runs many tasks over one engine.

A reply depends only on its request. Therefore any tasks can run together, and another worker can generate the
unfinished turns of a lost one again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rwkvbatch.engine.request import NO_PREFILL, PrefillProgress, Reply, Score
from rwkvbatch.errors import RowError, RwkvBatchError, is_out_of_memory
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.replay.worker.conversation import ConversationReplay
from rwkvbatch.replay.worker.models import ModelLoader
from rwkvbatch.replay.worker.rows import error_row, not_reached
from rwkvbatch.results.row import Row

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """Results of one step.

    Attributes:
        rows: new rows, by row number.
        finished: tasks that now have all their rows.
        active: number of tasks under way.
        prefill: progress through their long prompts and scored texts.
    """

    rows: dict[int, Row]
    finished: tuple[int, ...]
    active: int
    prefill: PrefillProgress = NO_PREFILL


class Worker:
    """Runs tasks over its own engine; replaces the engine by one with half the batch when memory runs out.

    Attributes:
        judging: is called with the number of a task before the checks of one of its replies run.
    """

    def __init__(self, plan: Plan, loader: ModelLoader, setup: Setup) -> None:
        self._plan = plan
        self._loader = loader
        self._setup = setup
        self._batch = plan.settings.batch_size
        self._encoder = loader.encoder(setup, plan)
        self._engine = loader.engine(setup, plan, self._batch)
        self._waiting: deque[int] = deque()
        # By task, then by turn: the rows that existed and those that this worker made.
        self._rows_of: dict[int, dict[int, Row]] = {}
        self._requests: dict[int, ConversationReplay] = {}
        self._num_active = 0
        self.judging: Callable[[int], None] = lambda task: None
        self._new_rows: dict[int, Row] = {}
        self._finished: list[int] = []

    @property
    def num_held(self) -> int:
        """Number of tasks that were added and are neither finished nor dropped."""
        return len(self._rows_of)

    @property
    def capacity(self) -> int:
        """Tasks to hold when the driver is in another process: a batch, and half a batch to start as tasks end."""
        return self._batch + max(1, self._batch // 2)

    def add(self, task: int, rows: Mapping[int, Row]) -> None:
        """Take a task. Its existing rows, by turn, are replayed and not generated again."""
        if task not in self._rows_of:
            self._rows_of[task] = dict(rows)
            self._waiting.append(task)

    def drop(self, tasks: Iterable[int] | None = None) -> None:
        """Forget tasks (all of them by default) and cancel their requests."""
        dropped = set(self._rows_of) if tasks is None else self._rows_of.keys() & tasks
        if not dropped:
            return
        self._waiting = deque(task for task in self._waiting if task not in dropped)
        for replay in {id(r): r for r in self._requests.values() if r.task.number in dropped}.values():
            for request_id in replay.pending:
                del self._requests[request_id]
                self._engine.cancel(request_id)
            self._num_active -= 1
        for task in dropped:
            del self._rows_of[task]

    def step(self) -> Step:
        """Start waiting tasks while the batch has room, then run one step of the engine."""
        while self._waiting and self._num_active < min(self._batch, self._engine.max_batch):
            self._num_active += 1
            self._advance(ConversationReplay(self._plan.task(self._waiting.popleft()), self._encoder))
        if self._requests:
            try:
                results = self._engine.step()
            except Exception as error:  # out of memory comes as different types
                if not is_out_of_memory(error):
                    raise
                self._shrink(error)
            else:
                for request_id, result in results:
                    self._take_result(request_id, result)
        step = Step(self._new_rows, tuple(self._finished), self._num_active, self._engine.prefill)
        self._new_rows, self._finished = {}, []
        return step

    def _advance(self, replay: ConversationReplay) -> None:
        """Skip turns that have rows, then submit the next turn; end the task after its last turn or a failed one."""
        rows = self._rows_of[replay.task.number]
        while not replay.over:
            if (row := rows.get(replay.turn)) is None:
                try:
                    replay.submit(self._engine)
                except (RwkvBatchError, ValueError) as error:
                    row = replay.fail_turn(error)
                    self._add_row(replay, replay.turn, row)
                else:
                    self._requests |= dict.fromkeys(replay.pending, replay)
                    return
            # A failed probe does not end the dialogue, which does not include it.
            if row.finish_reason == "error" and not replay.is_at_probe:
                self._end_with_error(replay)
                return
            replay.skip_turn(row)
        self._end(replay)

    def _take_result(self, request_id: int, result: Reply | Score) -> None:
        replay = self._requests.pop(request_id, None)
        if replay is None:  # dropped while it was generated
            return
        turn = replay.turn
        if replay.task.conversation.turns[turn].checks:
            self.judging(replay.task.number)
        try:
            row = replay.take_result(request_id, result)
            if row is None:
                replay.submit_more(self._engine)
                self._requests |= dict.fromkeys(replay.pending, replay)
                return
        except (RwkvBatchError, ValueError) as error:
            for pending_id in replay.pending:
                self._requests.pop(pending_id, None)
            self._fail(replay, error)
            return
        self._add_row(replay, turn, row)
        self._advance(replay)

    def _fail(self, replay: ConversationReplay, error: Exception) -> None:
        """Make an error row of the next turn, and advance."""
        self._add_row(replay, replay.turn, replay.fail_turn(error))
        self._advance(replay)

    def _end_with_error(self, replay: ConversationReplay) -> None:
        """Make error rows for the turns after a failed one, so that every row of the plan exists."""
        rows = self._rows_of[replay.task.number]
        for turn in replay.turns_after:
            if turn not in rows:
                self._add_row(replay, turn, error_row(replay.task, turn, not_reached(replay.turn)))
        self._end(replay)

    def _end(self, replay: ConversationReplay) -> None:
        self._num_active -= 1
        del self._rows_of[replay.task.number]
        self._finished.append(replay.task.number)

    def _add_row(self, replay: ConversationReplay, turn: int, row: Row) -> None:
        self._rows_of[replay.task.number][turn] = row
        self._new_rows[replay.task.first_row + turn] = row

    def _shrink(self, error: Exception) -> None:
        """Make an engine with half the batch and restart the active tasks; with a batch of 1, fail their next turns."""
        active = {replay.task.number: replay for replay in self._requests.values()}
        _log.warning("out of memory with %d active conversations; continuing with half the batch size", len(active))
        self._requests.clear()
        if self._batch == 1:
            for replay in active.values():
                self._fail(replay, RowError(f"out of memory: {error}"))
        else:
            self._num_active = 0
            self._waiting.extendleft(sorted(active, reverse=True))
        self._batch = max(1, self._batch // 2)
        self._engine = self._loader.engine(self._setup, self._plan, self._batch)
