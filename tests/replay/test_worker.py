"""One worker over an engine that replies at once: tasks that come twice or fail, and requests that cannot be made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from rwkvbatch.engine.request import Reply, Request, Score
from rwkvbatch.errors import RowError
from rwkvbatch.replay.conversation import ConversationReplay
from rwkvbatch.replay.models import setups_of
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.worker import Worker
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


def test_a_task_that_comes_twice_runs_once() -> None:
    loader = FakeLoader()
    worker = worker_of(three_turns(), loader)
    worker.add(0, {})
    worker.add(0, {})
    assert worker.num_held == 1
    assert sorted(rows_of(worker)) == [0, 1, 2]
    assert loader.num_generated == 3


def test_rows_that_are_there_after_a_turn_that_fails_stay() -> None:
    plan = three_turns()
    worker = worker_of(plan, FakeLoader())
    worker.add(0, {})
    done = rows_of(worker)

    def fails(request: Request, reply: Reply) -> Reply:
        return replace(reply, finish_reason="error", error="the engine broke")

    worker = worker_of(plan, FakeLoader(change=fails))
    worker.add(0, {2: done[2]})
    made = rows_of(worker)
    assert {number: row.error for number, row in made.items()} == {0: "the engine broke", 1: made[1].error}
    assert "turn 0" in str(made[1].error)


def test_a_result_that_nobody_waits_for_is_dropped() -> None:
    worker = worker_of(three_turns(), FakeLoader())
    worker._take_result(99, Score((-1.0,), 1))
    assert not worker.step().rows


class Refusing:
    """An engine that takes the reply and refuses to score."""

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


def test_a_turn_whose_second_request_is_refused_takes_the_first_one_back() -> None:
    replay, engine = replay_of(three_turns()), Refusing()
    replay.submit_more(cast("Any", engine))  # nothing has been begun
    with pytest.raises(ValueError, match="no room"):
        replay.submit(cast("Any", engine))
    assert engine.cancelled == [7]


def test_a_score_with_an_error_is_the_turns_error() -> None:
    turn = three_turns().conversations[0].turns[0]
    with pytest.raises(RowError, match="the server gave up"):
        ConversationReplay._check_scores(turn, [Score((), 0), Score((), 0, error="the server gave up")])
