"""The interface between the driver and a pool of workers in other processes: orders, events and the restart limit.

A run in one process does not use it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from rwkvbatch.config import RunSettings
from rwkvbatch.engine.request import NO_READING, Reading
from rwkvbatch.errors import MissingExtraError, RwkvBatchError, UsageError, WorkerError, counted
from rwkvbatch.replay.models import ModelLoader, Setup, forkable_loader
from rwkvbatch.replay.plan import Plan
from rwkvbatch.results.row import EncodedRow, Row

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
class Joined:
    """A worker is ready to hold up to `room` tasks; `name` is for display."""

    name: str
    room: int


@dataclass(frozen=True, slots=True)
class Judging:
    """A worker begins to run the checks of a turn of a task; its next event means that they have ended."""

    task: int


@dataclass(frozen=True, slots=True)
class Report:
    """Results of a worker since its last report.

    Attributes:
        finished: tasks that now have all their rows.
        active: number of tasks under way, which are the first ones that the worker holds.
        reading: progress through their long texts.
    """

    rows: tuple[EncodedRow, ...] = ()
    finished: tuple[int, ...] = ()
    active: int = 0
    logs: tuple[LogEntry, ...] = ()
    reading: Reading = NO_READING


@dataclass(frozen=True, slots=True)
class Left:
    """A worker has ended. An `error` ends the run, because every worker would have it (for example, no model found)."""

    reason: str
    error: RwkvBatchError | None = None

    @property
    def restartable(self) -> bool:
        return self.error is None and self.reason != LEFT_ON_REQUEST


Event = Joined | Judging | Report | Left

LEFT_ON_REQUEST = "was asked to leave"
"""`Left.reason` of a worker that ended because of `Leave`."""


class WorkerPool(Protocol):
    """Workers in other processes, by number. A worker that is restarted sends `Left`, then `Joined`.

    It is used from one thread.
    """

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        """The `ModelSpec` of every setup's model, loaded where the workers run; raises if a model cannot be loaded."""
        ...

    @property
    def num_starting(self) -> int:
        """Number of workers that will send `Joined` soon, without those that may never start."""
        ...

    def begin(self, setup: Setup) -> None:
        """Make the workers serve `setup`. Each one sends `Joined` when it does, even if it sent one before."""

    def send(self, worker: int, order: Order) -> None:
        """Send an order to a worker; ignored when the worker has ended."""

    def kill(self, worker: int) -> None:
        """Kill a worker that does not answer; `receive` returns its `Left`. Ignored when the worker has ended."""

    def receive(self, timeout_s: float) -> Sequence[tuple[int, Event]]:
        """Events since the last call, in order, with the workers' numbers; waits up to `timeout_s` for the first."""
        ...

    def close(self) -> None:
        """Kill all workers."""


MakePool = Callable[[Plan], WorkerPool]


def pool_for(settings: RunSettings, *, model_given: bool = False) -> MakePool | None:
    """A function that makes the settings' pool: processes, or actors of a Ray cluster. None for a run in this process.

    Args:
        model_given: whether the run uses a loaded model.

    Raises:
        UsageError: the settings contradict each other, or a loaded model is given.
        MissingExtraError: Ray is not installed.
    """
    if settings.ray is None and settings.workers in (None, 1) and not settings.devices:
        return None
    if model_given:
        hint = "give the checkpoint's file, or leave workers, devices and ray out"
        raise UsageError("a model that is loaded already cannot be given to other processes", hint=hint)
    check_pool(settings)
    if settings.ray is not None:
        return _make_ray_pool
    return partial(_make_process_pool, count=settings.workers or len(settings.devices))


def check_pool(settings: RunSettings) -> None:
    """Check the settings of workers before anything is started; raises as `pool_for`."""
    count = settings.workers or len(settings.devices)
    if settings.devices and count < len(settings.devices):
        message = f"--devices names {counted(len(settings.devices), 'device')} for {counted(count, 'worker')}"
        raise UsageError(message, hint="give at least as many workers, or leave --workers out")
    if settings.ray is not None:
        check_ray(settings.ray, settings.devices)


def _make_process_pool(plan: Plan, *, count: int) -> WorkerPool:
    from rwkvbatch.replay.processes import ProcessPool

    settings = plan.settings
    if settings.threads is None:
        settings = settings.replace(threads=max(1, processors() // count))
    return ProcessPool(plan, partial(forkable_loader, settings), count, settings.devices)


def _make_ray_pool(plan: Plan) -> WorkerPool:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray reads this variable when it is imported. Without it, Ray prints events, such as the end of a worker, to
    # standard output.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    from rwkvbatch.replay.ray_pool import RayPool

    return RayPool(plan, ModelLoader)


def check_ray(address: str, devices: Sequence[str]) -> None:
    """Check the settings of a Ray run before anything is started; raises as `pool_for`."""
    target = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if target.startswith("ray://"):
        raise UsageError(
            f"--ray {target}: addresses of the Ray Client are not supported: this process would not be part of the "
            "cluster, and would lose its workers with the client's proxy",
            hint="run the command on a node of the cluster, with --ray auto",
        )
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise UsageError("--devices must be of one kind with --ray: replies of GPUs and CPUs differ in bits")
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("--ray needs the package ray, which is not installed", extra="ray")


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

    def check(self, left: Left) -> Left:
        """Count the end of a worker. Returns `left`, with a `WorkerError` if the limit is exceeded."""
        self._count += 1
        if left.error is not None or self._count <= self._limit:
            return left
        return replace(left, error=WorkerError(f"{self._count} workers ended without a row; {left.reason}"))
