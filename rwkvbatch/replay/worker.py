"""Leased dialogues, turn by turn, many at once over one engine; every finished turn is reported.

Nothing here decides about a token: the engine's replies depend on the request alone, so it does not matter which
dialogues are under way together, and rows that were under way when a worker ended are simply asked for again.
"""

from __future__ import annotations

import logging
from collections import deque

from rwkvbatch.engine.request import Reply, Score
from rwkvbatch.errors import RowError, RwkvBatchError, is_out_of_memory
from rwkvbatch.replay.conversation import ConversationReplay, error_row
from rwkvbatch.replay.messages import Drop, FinishedRow, Leave, Order, Report, Work
from rwkvbatch.replay.models import ModelProvider, Setup
from rwkvbatch.replay.plan import Plan
from rwkvbatch.results.row import NOT_REACHED, EncodedRow, Row, encode_row

_log = logging.getLogger(__name__)


class Worker:
    """Carries leases out over an engine of its own.

    Args:
        plan: all dialogues.
        shop: makes the engine, and makes it again for fewer replies at once when memory ran out in a way that the
            engine could not mend itself.
        setup: the model.

    Raises:
        CheckpointError, UsageError: the model cannot be loaded.
    """

    def __init__(self, plan: Plan, shop: ModelProvider, setup: Setup) -> None:
        self._plan = plan
        self._shop = shop
        self._setup = setup
        self._batch = plan.settings.batch_size
        self._desk = shop.desk(setup, plan)
        self._engine = shop.engine(setup, plan, self._batch)
        self._waiting: deque[int] = deque()
        # The rows of each leased dialogue, by turn: those that were there, and those made since.
        self._rows_of: dict[int, dict[int, Row]] = {}
        self._asked: dict[int, ConversationReplay] = {}
        self._num_active = 0
        self._finished: list[FinishedRow] = []
        self._over: list[int] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._rows_of

    def take(self, order: Order) -> None:
        """Do as the driver says; `step` goes on from there."""
        match order:
            case Work(leases):
                for lease in leases:
                    if lease.dialogue not in self._rows_of:
                        self._rows_of[lease.dialogue] = dict(lease.rows)
                        self._waiting.append(lease.dialogue)
            case Drop(dialogues):
                self._drop(set(dialogues))
            case Leave():
                self._drop(set(self._rows_of))

    def step(self) -> Report:
        """Begin what there is room for, advance everything by one step of the engine, and say what is finished."""
        self._fill()
        if self._asked:
            try:
                finished = self._engine.step()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(error)
            else:
                for request_id, result in finished:
                    self._take_result(request_id, result)
        report = Report(tuple(self._finished), tuple(self._over), self._num_active)
        self._finished.clear()
        self._over.clear()
        return report

    def _fill(self) -> None:
        window = min(self._batch, self._engine.max_batch)
        while self._waiting and self._num_active < window:
            self._num_active += 1
            self._go_on(ConversationReplay(self._plan.dialogue(self._waiting.popleft()), self._desk))

    def _go_on(self, active: ConversationReplay) -> None:
        """Replay what is there, then ask for the next turn; or let the dialogue end."""
        rows = self._rows_of[active.dialogue.number]
        while not active.over and active.turn in rows:
            row = rows[active.turn]
            if row.finish_reason == "error":
                self._end_early(active)
                return
            active.replay(row)
        if active.over:
            self._end(active)
            return
        try:
            request = active.request()
            scoring = active.scoring()
            active.request_id = self._engine.submit(request)
        except (RwkvBatchError, ValueError) as error:
            self._finish(active, active.turn, active.fail_turn(error))
            self._end_early(active)
            return
        self._asked[active.request_id] = active
        if scoring is not None:
            active.score_id = self._engine.submit_score(scoring.prefix, scoring.continuation, scoring.root)
            self._asked[active.score_id] = active

    def _take_result(self, request_id: int, result: Reply | Score) -> None:
        active = self._asked.pop(request_id, None)
        if active is None:  # dropped meanwhile
            return
        if isinstance(result, Reply):
            active.reply = result
        else:
            active.score = result
        if active.request_id in self._asked or active.score_id in self._asked or active.reply is None:
            return
        turn, reply = active.turn, active.reply
        row = active.finish_turn(reply, active.score)
        active.reply = active.score = None
        active.request_id = active.score_id = -1
        self._finish(active, turn, row)
        if row.finish_reason == "error":
            self._end_early(active)
        else:
            self._go_on(active)

    def _end_early(self, active: ConversationReplay) -> None:
        """The next turn's row is an error: those after it become error rows too, so that every row is there."""
        rows = self._rows_of[active.dialogue.number]
        for turn in range(active.turn + 1, len(active.dialogue.conversation.turns)):
            if turn not in rows:
                self._finish(active, turn, error_row(active.dialogue, turn, not_reached(active.turn)))
        self._end(active)

    def _end(self, active: ConversationReplay) -> None:
        self._num_active -= 1
        del self._rows_of[active.dialogue.number]
        self._over.append(active.dialogue.number)

    def _finish(self, active: ConversationReplay, turn: int, row: Row) -> None:
        self._rows_of[active.dialogue.number][turn] = row
        self._finished.append(finished_row(active.dialogue.first_row + turn, row))

    def _drop(self, dialogues: set[int]) -> None:
        gone = dialogues & self._rows_of.keys()
        if not gone:
            return
        self._waiting = deque(number for number in self._waiting if number not in gone)
        dropped = {a.dialogue.number: a for a in self._asked.values() if a.dialogue.number in gone}
        for active in dropped.values():
            for request_id in (active.request_id, active.score_id):
                if self._asked.pop(request_id, None) is not None:
                    self._engine.cancel(request_id)
        self._num_active -= len(dropped)
        for number in gone:
            del self._rows_of[number]

    def _shrink(self, error: Exception) -> None:
        """Memory ran out and the engine could not mend it: fewer at once, on a new engine; the rows run again."""
        under_way = {active.dialogue.number: active for active in self._asked.values()}
        _log.warning("out of memory with %d dialogues under way; going on with half", len(under_way))
        self._asked.clear()
        if self._batch == 1:
            for active in under_way.values():
                self._finish(active, active.turn, active.fail_turn(RowError(f"out of memory: {error}")))
                self._end_early(active)
        else:
            self._num_active = 0
            self._waiting.extendleft(sorted(under_way, reverse=True))
        self._batch = max(1, self._batch // 2)
        self._engine = self._shop.engine(self._setup, self._plan, self._batch)


def not_reached(failed_turn: int) -> str:
    """The error of a turn after one that failed."""
    return f"{NOT_REACHED} turn {failed_turn} of this conversation failed"


def finished_row(number: int, row: Row) -> FinishedRow:
    """`row`, number `number` of the plan, as it is reported."""
    return FinishedRow(
        EncodedRow(number, encode_row(row), row.finish_reason == "error"),
        error=row.error,
        reached=row.error is None or not row.error.startswith(NOT_REACHED),
        failed_checks=sum(not check.passed for check in row.checks),
        reply_tokens=row.tokens.reply,
        prompt_tokens=row.tokens.prompt,
        cached_tokens=row.timing.cached_tokens,
    )
