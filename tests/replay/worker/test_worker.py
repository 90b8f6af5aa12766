"""A worker over a fake engine: tasks that are assigned twice or fail, and requests that are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from rwkvbatch.engine.request import Reply, Request, Score
from rwkvbatch.errors import RowError
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import setups_of
from rwkvbatch.replay.worker.conversation import ConversationReplay
from rwkvbatch.replay.worker.rows import check_scores
from rwkvbatch.replay.worker.worker import Worker
from rwkvbatch.results.row import Row
from tests.replay.fakes import FakeLoader, make_conversation, make_plan


def worker_of(plan: Plan, loader: FakeLoader) -> Worker:
    return Worker(plan, cast("Any", loader), setups_of(plan)[0])


def rows_of(worker: Worker) -> dict[int, Row]:
    found: dict[int, Row] = {}
    while worker.num_held:
        found.update(worker.step().rows)
    return found


def three_turns() -> Plan:
    return make_plan(conversations=[make_conversation("c", 3, reference="a reference")])


def test_a_task_assigned_twice_runs_once() -> None:
    loader = FakeLoader()
    worker = worker_of(three_turns(), loader)
    worker.add(0, {})
    worker.add(0, {})
    assert worker.num_held == 1
    assert sorted(rows_of(worker)) == [0, 1, 2]
    assert loader.num_generated == 3


def test_existing_rows_after_a_failed_turn_are_kept() -> None:
    plan = three_turns()
    worker = worker_of(plan, FakeLoader())
    worker.add(0, {})
    first_rows = rows_of(worker)

    def fail(request: Request, reply: Reply) -> Reply:
        return replace(reply, finish_reason="error", error="the engine broke")

    worker = worker_of(plan, FakeLoader(change=fail))
    worker.add(0, {2: first_rows[2]})
    rows = rows_of(worker)
    assert {number: row.error for number, row in rows.items()} == {0: "the engine broke", 1: rows[1].error}
    assert "turn 0" in str(rows[1].error)


def test_a_result_of_an_unknown_request_is_dropped() -> None:
    worker = worker_of(three_turns(), FakeLoader())
    worker._take_result(99, Score((-1.0,), 1))
    assert not worker.step().rows


class RefusingEngine:
    """An engine that accepts requests for replies and refuses those for scores."""

    def __init__(self) -> None:
        self.cancelled: list[int] = []

    def submit(self, request: Request) -> int:
        return 7

    def submit_score(self, *_: Any, **__: Any) -> int:
        raise ValueError("no room")

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)


def replay_of(plan: Plan) -> ConversationReplay:
    return ConversationReplay(plan.task(0), FakeLoader().encoder(setups_of(plan)[0], plan))


def test_a_turn_whose_second_request_is_refused_cancels_the_first() -> None:
    replay, engine = replay_of(three_turns()), RefusingEngine()
    replay.submit_more(cast("Any", engine))  # does nothing before `submit`
    with pytest.raises(ValueError, match="no room"):
        replay.submit(cast("Any", engine))
    assert engine.cancelled == [7]


def test_the_error_of_a_score_is_that_of_its_turn() -> None:
    turn = three_turns().conversations[0].turns[0]
    with pytest.raises(RowError, match="the server gave up"):
        check_scores(turn, [Score((), 0), Score((), 0, error="the server gave up")])
