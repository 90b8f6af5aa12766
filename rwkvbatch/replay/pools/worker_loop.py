"""Runs a worker for a driver in another process: executes its orders and sends reports."""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.replay.pools import pool
from rwkvbatch.replay.worker.worker import Worker
from rwkvbatch.results.row_codec import EncodedRow

HEARTBEAT_S = 0.5
"""Longest time between two reports of `run_worker`, so that the driver's progress display stays current."""

_log = logging.getLogger(__name__)


class Channel(Protocol):
    """A connection to the driver, such as `multiprocessing.connection.Connection`."""

    def send(self, obj: Any, /) -> None: ...
    def recv(self) -> Any: ...


class LogCollector(logging.Handler):
    """Keeps log records until `take` is called, for the next report to the driver."""

    def __init__(self, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._entries: list[pool.LogEntry] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._entries.append(pool.LogEntry(record.name, record.levelno, record.getMessage()))

    def take(self) -> tuple[pool.LogEntry, ...]:
        entries, self._entries = tuple(self._entries), []
        return entries


@contextmanager
def collecting_logs(logs: LogCollector) -> Generator[None]:
    """Redirect this package's log records and all Python warnings to `logs` within the context."""
    logger = logging.getLogger("rwkvbatch")

    def log_warning(message: Warning | str, *_: object, **__: object) -> None:
        logging.getLogger(f"{logger.name}.warnings").warning("%s", message)

    logger.addHandler(logs)
    logger.propagate = False
    with warnings.catch_warnings():
        warnings.showwarning = log_warning
        try:
            yield
        finally:
            logger.removeHandler(logs)


def run_worker(
    channel: Channel, make_worker: Callable[[], Worker], name: str, logs: LogCollector | None = None
) -> None:
    """Run a worker for the driver at the other end of `channel`, until `Leave` or until the channel breaks.

    The last event sent is `WorkerExited`.

    Args:
        logs: has entries for the first report, if any.
    """
    logs = logs or LogCollector()
    with collecting_logs(logs):
        left = pool.WorkerExited(pool.EXITED_ON_REQUEST)
        try:
            worker = make_worker()
            worker.judging = lambda task: channel.send(pool.ChecksStarted(task))
            orders = _start_reading(channel)
            channel.send(pool.WorkerReady(name, worker.capacity))
            _execute_orders(channel, worker, orders, logs)
        except (EOFError, OSError):
            left = pool.WorkerExited("the driver is gone")
        except RwkvBatchError as error:
            left = pool.WorkerExited(str(error), error)
        except Exception as error:  # the driver decides what to do; its log gets the traceback
            _log.error("%s", traceback.format_exc())
            with suppress(OSError, ValueError):
                channel.send(pool.Report(logs=logs.take()))
            left = pool.WorkerExited(f"{type(error).__name__}: {error}")
        with suppress(OSError, ValueError):
            channel.send(left)


_Orders = queue.SimpleQueue[pool.Order | None]


def _execute_orders(channel: Channel, worker: Worker, orders: _Orders, logs: LogCollector) -> None:
    """Run the assigned tasks and send reports; wait for orders only while the worker holds no task.

    Raises:
        EOFError: the channel broke.
    """
    sent_s = time.monotonic()
    leaving = False
    while not leaving:
        while not leaving and (not worker.num_held or not orders.empty()):
            match orders.get():
                case pool.Assign(tasks):
                    for task, rows in tasks.items():
                        worker.add(task, rows)
                case pool.Drop(dropped):
                    worker.drop(dropped)
                case pool.Leave():
                    worker.drop()
                    leaving = True
                case _:
                    raise EOFError
        step, entries, now = worker.step(), logs.take(), time.monotonic()
        if step.rows or step.finished or entries or not worker.num_held or now - sent_s >= HEARTBEAT_S:
            rows = tuple(EncodedRow.of(number, row) for number, row in step.rows.items())
            channel.send(pool.Report(rows, step.finished, step.active, entries, step.prefill))
            sent_s = now


def _start_reading(channel: Channel) -> _Orders:
    """A queue of the driver's orders, filled by a thread; None is its last entry.

    Without the thread, the worker and the driver would wait for each other when both block in `send`.
    """
    orders: _Orders = queue.SimpleQueue()

    def read_orders() -> None:
        with suppress(EOFError, OSError):
            while True:
                orders.put(channel.recv())
        orders.put(None)

    threading.Thread(target=read_orders, name="orders", daemon=True).start()
    return orders
