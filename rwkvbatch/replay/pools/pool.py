"""The interface between the driver and a pool of workers in other processes: orders, events and the restart limit.

A run in one process does not use it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rwkvbatch.engine.request import NO_PREFILL, PrefillProgress
from rwkvbatch.errors import RwkvBatchError, WorkerError
from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.results.row import Row
from rwkvbatch.results.row_codec import EncodedRow

# Orders, from the driver to a worker, and events, from a worker to the driver. All can be pickled.


@dataclass(frozen=True, slots=True)
class Assign:
    """Tasks to run: by task number, the existing rows by turn, which are replayed and not generated again."""

    tasks: Mapping[int, Mapping[int, Row]]


@dataclass(frozen=True, slots=True)
class Drop:
    """Tasks that another worker has finished or taken over."""

    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """Drop all tasks, send what is finished, and end."""


Order = Assign | Drop | Leave


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A log record of a worker: the logger's name, the number of the level, the formatted text."""

    logger: str
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker is ready to hold up to `capacity` tasks; `name` is for display."""

    name: str
    capacity: int


@dataclass(frozen=True, slots=True)
class ChecksStarted:
    """A worker begins to run the checks of a turn of a task; its next event means that they have ended."""

    task: int


@dataclass(frozen=True, slots=True)
class Report:
    """Results of a worker since its last report.

    Attributes:
        finished: tasks that now have all their rows.
        active: number of tasks under way, which are the first ones that the worker holds.
        prefill: progress through their long texts.
    """

    rows: tuple[EncodedRow, ...] = ()
    finished: tuple[int, ...] = ()
    active: int = 0
    logs: tuple[LogEntry, ...] = ()
    prefill: PrefillProgress = NO_PREFILL


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """A worker has ended. An `error` ends the run, because every worker would have it (for example, no model found)."""

    reason: str
    error: RwkvBatchError | None = None

    @property
    def restartable(self) -> bool:
        return self.error is None and self.reason != EXITED_ON_REQUEST


Event = WorkerReady | ChecksStarted | Report | WorkerExited

EXITED_ON_REQUEST = "was asked to leave"
"""`WorkerExited.reason` of a worker that ended because of `Leave`."""


class WorkerPool(Protocol):
    """Workers in other processes, by number. A worker that is restarted sends `WorkerExited`, then `WorkerReady`.

    It is used from one thread.
    """

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        """The `ModelSpec` of every setup's model, loaded where the workers run; raises if a model cannot be loaded."""
        ...

    @property
    def num_starting(self) -> int:
        """Number of workers that will send `WorkerReady` soon, without those that may never start."""
        ...

    def begin(self, setup: Setup) -> None:
        """Make the workers serve `setup`. Each one sends `WorkerReady` when it does, even if it sent one before."""

    def send(self, worker: int, order: Order) -> None:
        """Send an order to a worker; ignored when the worker has ended."""

    def kill(self, worker: int) -> None:
        """Kill a worker that does not answer; `receive` returns its `WorkerExited`. Ignored after its end."""

    def receive(self, timeout_s: float) -> Sequence[tuple[int, Event]]:
        """Events since the last call, in order, with the workers' numbers; waits up to `timeout_s` for the first."""
        ...

    def close(self) -> None:
        """Kill all workers."""


def processors() -> int:
    """Number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SPARE_RESTARTS = 8


class RestartLimit:
    """Allows `num_workers + SPARE_RESTARTS` ends of workers in a row, without a finished row between them."""

    def __init__(self, num_workers: int) -> None:
        self._limit = num_workers + SPARE_RESTARTS
        self._count = 0

    def observe(self, event: Event) -> None:
        """Reset the count when a row was finished."""
        if isinstance(event, Report) and event.rows:
            self._count = 0

    def check(self, left: WorkerExited) -> WorkerExited:
        """Count the end of a worker. Returns `left`, with a `WorkerError` if the limit is exceeded."""
        self._count += 1
        if left.error is not None or self._count <= self._limit:
            return left
        return replace(left, error=WorkerError(f"{self._count} workers ended without a row; {left.reason}"))
