"""The driver and a crew that says what the test wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rwkvbatch.errors import WorkerError
from rwkvbatch.replay.driver import Counts, Driver
from rwkvbatch.replay.messages import Joined, Left, Order, Report, Signal, Work
from rwkvbatch.replay.models import Setup, setups_of
from rwkvbatch.replay.pool import LocalPool
from rwkvbatch.replay.worker import finished_row
from rwkvbatch.results.store import MemoryRows
from tests.replay.fakes import FakeShop, make_conversation, make_plan, make_row


class WorkerPool:
    """Says a list of signals at each listening; remembers what it was told."""

    num_coming = 0

    def __init__(self, *said: list[Signal]) -> None:
        self.said = list(said)
        self.told: list[tuple[int, Order]] = []

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        return {}

    def begin(self, setup: Setup) -> None: ...

    def send(self, worker: int, order: Order) -> None:
        self.told.append((worker, order))

    def receive(self, timeout_s: float) -> list[Signal]:
        return self.said.pop(0)

    def close(self) -> None: ...


def report(*numbers: int, over: tuple[int, ...] = ()) -> Report:
    return Report(tuple(finished_row(n, make_row("c", n)) for n in numbers), over)


def drive(crew: WorkerPool, rows: MemoryRows, counts: Counts | None = None) -> bool:
    plan = make_plan(conversations=[make_conversation("c", 2)], cells=None, batch_size=1)
    driver = Driver(plan, rows, crew, counts or Counts())
    return driver.run([0], setups_of(plan)[0])


def test_what_was_reported_before_an_error_is_kept() -> None:
    rows = MemoryRows()
    crew = WorkerPool([(0, Joined("a", 1))], [(0, report(0)), (0, Left("no", WorkerError("none left")))])
    with pytest.raises(WorkerError):
        drive(crew, rows)
    assert rows.has(0)


def test_who_is_first_leaves_their_share_to_workers_that_are_starting() -> None:
    plan = make_plan(conversations=[make_conversation(f"c{n}", 1) for n in range(4)], cells=None)
    crew = WorkerPool([(0, Joined("a", 8))], [(0, Left("enough", WorkerError("none left")))])
    crew.num_coming = 1
    with pytest.raises(WorkerError):
        Driver(plan, MemoryRows(), crew, Counts()).run(range(4), setups_of(plan)[0])
    ((_, order),) = crew.told
    assert isinstance(order, Work)
    assert len(order.leases) == 2


def test_a_worker_in_this_process_has_no_others_to_leave_anything_to() -> None:
    plan = make_plan(conversations=[make_conversation("c", 1)], cells=None)
    crew = LocalPool(plan, FakeShop())
    crew.begin(setups_of(plan)[0])
    assert crew.num_coming == 1
    ((_, event),) = crew.receive(0.0)
    assert isinstance(event, Joined)
    assert crew.num_coming == 0


def test_a_row_that_comes_twice_is_written_and_counted_once() -> None:
    rows, counts = MemoryRows(), Counts()
    crew = WorkerPool([(0, Joined("a", 1))], [(0, report(0)), (0, report(0))], [(0, report(0, 1, over=(0,)))])
    assert drive(crew, rows, counts)
    assert (rows.num_rows, counts.rows, counts.reply_tokens) == (2, 2, 6)


def test_a_lost_worker_s_dialogue_goes_on_after_its_last_row() -> None:
    crew = WorkerPool(
        [(0, Joined("a", 1))],
        [(0, report(0)), (0, Left("died")), (1, Joined("b", 1))],
        [(1, report(1, over=(0,)))],
    )
    counts = Counts()
    assert drive(crew, MemoryRows(), counts)
    leases = [order.leases[0] for _, order in crew.told if isinstance(order, Work)]
    assert [sorted(lease.rows) for lease in leases] == [[], [0]]
    assert counts.lost_workers == 1
