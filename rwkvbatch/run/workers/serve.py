"""A worker at the far end of a connection: takes orders, steps, reports, until it is told to leave."""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol

from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.run.workers.messages import ASKED_TO_LEAVE, Event, Joined, Leave, Left, Note, Order, Report
from rwkvbatch.run.workers.worker import Worker

HEARTBEAT_S = 0.5
"""A worker that has nothing to report says so this often, so that one can see it live."""


class Channel(Protocol):
    """A two-way connection; `multiprocessing`'s, in practice."""

    def send(self, obj: Any, /) -> None: ...
    def recv(self) -> Any: ...


class NoteTaker(logging.Handler):
    """Keeps log records until the next report takes them to the driver, whose log they belong in."""

    def __init__(self, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._notes: list[Note] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._notes.append(Note(record.name, record.levelno, record.getMessage()))

    def take(self) -> tuple[Note, ...]:
        notes, self._notes = tuple(self._notes), []
        return notes


@contextmanager
def noted(notes: NoteTaker) -> Generator[None]:
    """What this package logs, and Python's warnings, whoever gives them, go to `notes` and nowhere else."""
    logger = logging.getLogger("rwkvbatch")

    def log(message: Warning | str, *_: object, **__: object) -> None:
        logging.getLogger(f"{logger.name}.warnings").warning("%s", message)

    logger.addHandler(notes)
    logger.propagate = False
    with warnings.catch_warnings():
        warnings.showwarning = log
        try:
            yield
        finally:
            logger.removeHandler(notes)


def room_for(batch: int) -> int:
    """How many dialogues a worker wants to hold: those under way, and some to begin while the driver is asked."""
    return batch + max(1, batch // 2)


def serve(
    channel: Channel,
    make_worker: Callable[[], Worker],
    name: str,
    batch: int,
    notes: NoteTaker | None = None,
) -> None:
    """Serve until `Leave`, or until the driver is gone. Any other end is told to the driver as `Left`.

    Args:
        notes: what was noted before, which goes to the driver too.
    """
    notes = notes or NoteTaker()
    with noted(notes):
        _tell(channel, _end_of_service(channel, make_worker, name, batch, notes))


def _end_of_service(
    channel: Channel, make_worker: Callable[[], Worker], name: str, batch: int, notes: NoteTaker
) -> Left:
    try:
        worker = make_worker()
        orders = _orders_from(channel)
        channel.send(Joined(name, room_for(batch)))
        _serve_orders(channel, worker, orders, notes)
    except (EOFError, OSError):
        return Left("the driver is gone")
    except RwkvBatchError as error:
        return Left(str(error), error)
    except Exception as error:
        logging.getLogger(__name__).error("%s", traceback.format_exc())
        _tell(channel, Report(notes=notes.take()))
        return Left(f"{type(error).__name__}: {error}")
    return Left(ASKED_TO_LEAVE)


def _serve_orders(channel: Channel, worker: Worker, orders: _Orders, notes: NoteTaker) -> None:
    told_s = time.monotonic()
    leaving = False
    while not leaving:
        while worker.idle or not orders.empty():
            order = orders.get()
            if order is None:
                raise EOFError
            worker.take(order)
            if isinstance(order, Leave):
                leaving = True
                break
        report = worker.step()
        now = time.monotonic()
        taken = notes.take()
        if report.rows or report.over or taken or worker.idle or now - told_s >= HEARTBEAT_S:
            channel.send(Report(report.rows, report.over, report.active, taken))
            told_s = now


_Orders = queue.SimpleQueue[Order | None]


def _orders_from(channel: Channel) -> _Orders:
    """A thread reads them, so that the driver can always send: two ends that both wait to send would wait forever."""
    orders: _Orders = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                orders.put(channel.recv())
        except (EOFError, OSError):
            orders.put(None)

    threading.Thread(target=read, name="orders", daemon=True).start()
    return orders


def _tell(channel: Channel, event: Event) -> None:
    try:
        channel.send(event)
    except (OSError, ValueError):
        return
