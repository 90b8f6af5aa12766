"""Drivers: one over a pool whose events the test chooses, one over a worker in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rwkvbatch.errors import WorkerError
from rwkvbatch.replay.driver import LocalDriver, PoolDriver, RowRecorder
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import Setup, setups_of
from rwkvbatch.replay.pools.pool import Assign, Event, LogEntry, Order, Report, WorkerExited, WorkerReady
from rwkvbatch.replay.progress import Counts
from rwkvbatch.results import row_codec
from rwkvbatch.results.row_codec import EncodedRow
from rwkvbatch.results.rows import MemoryRows
from tests.replay.fakes import FakeLoader, make_conversation, make_plan, make_row
from tests.replay.runs import StopAfter


class FakePool:
    """Returns a list of events at each call of `receive`, and keeps the orders."""

    num_starting = 0

    def __init__(self, *events: list[tuple[int, Event]]) -> None:
        self.events = list(events)
        self.orders: list[tuple[int, Order]] = []

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        return {}

    def begin(self, setup: Setup) -> None: ...

    def send(self, worker: int, order: Order) -> None:
        self.orders.append((worker, order))

    def receive(self, timeout_s: float) -> list[tuple[int, Event]]:
        return self.events.pop(0)

    def close(self) -> None: ...


def report(*numbers: int, finished: tuple[int, ...] = ()) -> Report:
    return Report(tuple(EncodedRow.of(n, make_row("c", n)) for n in numbers), finished)


def drive(pool: FakePool, rows: MemoryRows, counts: Counts | None = None, plan: Plan | None = None) -> bool:
    plan = plan or make_plan(conversations=[make_conversation("c", 2)], batch_size=1)
    driver = PoolDriver(plan, pool, RowRecorder(plan, rows, counts or Counts()))
    return driver.run(range(len(plan.conversations)), setups_of(plan)[0])


def test_rows_reported_before_an_error_are_kept() -> None:
    rows = MemoryRows()
    pool = FakePool([(0, WorkerReady("a", 1))], [(0, report(0)), (0, WorkerExited("no", WorkerError("none left")))])
    with pytest.raises(WorkerError):
        drive(pool, rows)
    assert rows.has(0)


def test_the_first_worker_leaves_a_share_to_workers_that_are_starting() -> None:
    plan = make_plan(conversations=[make_conversation(f"c{n}", 1) for n in range(4)])
    pool = FakePool([(0, WorkerReady("a", 8))], [(0, WorkerExited("enough", WorkerError("none left")))])
    pool.num_starting = 1
    with pytest.raises(WorkerError):
        drive(pool, MemoryRows(), plan=plan)
    ((_, order),) = pool.orders
    assert isinstance(order, Assign)
    assert len(order.tasks) == 2


def test_a_row_that_two_workers_report_is_written_and_counted_once() -> None:
    rows, counts = MemoryRows(), Counts()
    pool = FakePool([(0, WorkerReady("a", 1))], [(0, report(0)), (0, report(0))], [(0, report(0, 1, finished=(0,)))])
    assert drive(pool, rows, counts)
    assert (rows.num_rows, counts.rows, counts.reply_tokens) == (2, 2, 6)


def test_a_lost_worker_s_task_continues_after_its_last_row() -> None:
    pool = FakePool(
        [(0, WorkerReady("a", 1))],
        [(0, report(0)), (0, WorkerExited("died")), (1, WorkerReady("b", 1))],
        [(1, report(1, finished=(0,)))],
    )
    counts = Counts()
    assert drive(pool, MemoryRows(), counts)
    assigned = [order.tasks[0] for _, order in pool.orders if isinstance(order, Assign)]
    assert [sorted(rows) for rows in assigned] == [[], [0]]
    assert counts.lost_workers == 1
    assert [worker.name for worker in counts.workers.values()] == ["b"]


def test_a_worker_that_fails_before_it_joins_has_its_log_reported(caplog: pytest.LogCaptureFixture) -> None:
    entry = LogEntry("rwkvbatch.replay.worker.worker", 40, "Traceback of the failure")
    pool = FakePool(
        [(0, Report(logs=(entry,))), (0, WorkerExited("RuntimeError: no")), (1, WorkerReady("b", 1))],
        [(1, report(0, 1, finished=(0,)))],
    )
    assert drive(pool, MemoryRows())
    assert "Traceback of the failure" in caplog.messages


class TestLocalDriver:
    def test_rows_are_not_encoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def encode(row: object) -> bytes:
            pytest.fail("a row was encoded")

        monkeypatch.setattr(row_codec, "encode_row", encode)
        plan, rows = make_plan(5), MemoryRows()
        driver = LocalDriver(plan, FakeLoader(), RowRecorder(plan, rows, Counts()))
        assert driver.run(range(plan.num_tasks), setups_of(plan)[0])
        assert rows.num_rows == plan.num_rows

    def test_a_run_of_finished_tasks_makes_no_engine(self) -> None:
        plan, rows = make_plan(3), MemoryRows()
        for number in range(plan.num_rows):
            rows.append({number: make_row("c")})
        loader = FakeLoader()
        driver = LocalDriver(plan, loader, RowRecorder(plan, rows, Counts()))
        assert driver.run(range(plan.num_tasks), setups_of(plan)[0])
        assert loader.engines == []

    def test_a_stopped_run_continues_with_the_same_worker(self) -> None:
        plan, rows, loader, counts = make_plan(9, batch_size=2), MemoryRows(), FakeLoader(), Counts()
        driver = LocalDriver(plan, loader, RowRecorder(plan, rows, counts), StopAfter(4))
        setup = setups_of(plan)[0]
        assert not driver.run(range(plan.num_tasks), setup)
        assert 0 < rows.num_rows < plan.num_rows
        driver.should_stop = lambda: False
        assert driver.run(range(plan.num_tasks), setup)
        assert rows.num_rows == plan.num_rows == counts.rows == counts.workers[0].rows
        assert len(loader.engines) == 1
