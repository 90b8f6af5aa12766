"""Workers that die are replaced, but not forever."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from rwkvbatch.errors import MissingExtraError, UsageError, WorkerError
from rwkvbatch.replay.messages import ASKED_TO_LEAVE, Event, Joined, Leave, Left, Order, Report, Signal
from rwkvbatch.replay.models import ModelLoader, ModelProvider, Setup, forkable_loader
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.settings import RunSettings
from rwkvbatch.replay.worker import Worker


class WorkerPool(Protocol):
    """Workers that come, report and perhaps die. Used from one thread."""

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        """What every setup's model is, on a worker.

        Raises:
            CheckpointError, UsageError: a model cannot be loaded.
        """
        ...

    @property
    def num_coming(self) -> int:
        """Workers that are about to say `Joined`; not those that may never come."""
        ...

    def begin(self, setup: Setup) -> None:
        """From now on the workers serve `setup`; each says `Joined` (once more) when it is ready."""
        ...

    def send(self, worker: int, order: Order) -> None:
        """Tell a worker something; nothing happens when it is gone."""
        ...

    def receive(self, timeout_s: float) -> Sequence[Signal]:
        """What was said since the last call, in order; waits at most so long for something to be said."""
        ...

    def close(self) -> None:
        """End all workers, at once."""
        ...


class LocalPool:
    """One worker, in this process: a step of its engine is made whenever the driver listens.

    Args:
        shop: where the models come from.
    """

    def __init__(self, plan: Plan, shop: ModelProvider) -> None:
        self._plan = plan
        self._shop = shop
        self._setup: Setup | None = None
        self._worker: Worker | None = None
        self._greeted = True

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        return self._shop.specs(setups)

    @property
    def num_coming(self) -> int:
        return int(not self._greeted)

    def begin(self, setup: Setup) -> None:
        if self._worker is None or self._setup != setup:
            self._worker = None
            self._setup = setup
            self._worker = Worker(self._plan, self._shop, setup)
        self._greeted = False

    def send(self, worker: int, order: Order) -> None:
        if isinstance(order, Leave):
            self._worker = None
        elif self._worker is not None:
            self._worker.take(order)

    def receive(self, timeout_s: float) -> Sequence[Signal]:
        if self._worker is None:
            return [(0, Left(ASKED_TO_LEAVE))]
        if not self._greeted:
            self._greeted = True
            # No reserve: what is wanted next is leased between two steps.
            return [(0, Joined("local", self._plan.settings.batch_size))]
        return [(0, self._worker.step())]

    def close(self) -> None:
        self._worker = None


MakePool = Callable[[Plan, ModelProvider], WorkerPool]


def pool_for(settings: RunSettings, *, model_given: bool = False) -> MakePool:
    """What makes the workers: one in this process, several processes, or actors of a Ray cluster.

    Args:
        model_given: the model is an object of this process, so that no other can have it.

    Raises:
        UsageError: other workers are asked for all the same, or settings that do not go together.
        MissingExtraError: Ray is not installed.
    """
    here = settings.ray is None and settings.workers in (None, 1) and not settings.devices
    if here:
        return LocalPool
    if model_given:
        raise UsageError(
            "a model that is loaded already cannot be given to other processes",
            hint="give the checkpoint's file, or leave workers, devices and ray out",
        )
    count = settings.workers or len(settings.devices)
    if settings.devices and count < len(settings.devices):
        raise UsageError(
            f"--devices names {len(settings.devices)} devices for {count} worker{'s' if count > 1 else ''}",
            hint="give at least as many workers, or leave --workers out",
        )
    if settings.ray is not None:
        check_ray(settings.ray, settings.devices)
        return lambda plan, _: _ray_pool(plan)
    make_loader = partial(forkable_loader, with_threads(settings, count))
    return lambda plan, _: _process_pool(plan, make_loader, count, settings)


def _process_pool(
    plan: Plan, make_loader: Callable[[], ModelProvider], count: int, settings: RunSettings
) -> WorkerPool:
    from rwkvbatch.replay.processes import ProcessPool

    return ProcessPool(plan, make_loader, count, settings.devices)


def _ray_pool(plan: Plan) -> WorkerPool:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray reads this when it is imported. It would print events, such as a worker's end, on standard output.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    from rwkvbatch.replay.ray_pool import RayPool

    return RayPool(plan, ModelLoader)


def check_ray(address: str, devices: Sequence[str]) -> None:
    """Refuse what cannot be, before anything is started.

    Raises:
        UsageError: an address of the Ray Client, or devices of different kinds.
        MissingExtraError: Ray is not installed.
    """
    reached = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if reached.startswith("ray://"):
        raise UsageError(
            f"--ray {reached}: addresses of the Ray Client do not serve, because it sends every call through a "
            "proxy: this process would not be a part of the cluster, and would lose its workers with the proxy",
            hint="run the command on a node of the cluster, with --ray auto",
        )
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise UsageError("--devices must be of one kind with --ray: replies of GPUs and CPUs differ in bits")
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("--ray needs the package ray, which is not installed", extra="ray")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def with_threads(settings: RunSettings, count: int) -> RunSettings:
    """Settings of one of `count` workers that share this machine's processors, unless the user said how many."""
    if settings.threads is not None:
        return settings
    return settings.replace(threads=max(1, processors() // count))


SPARE_RESTARTS = 8


class RestartLimit:
    """Counts workers that ended since one of them last reported a row.

    Args:
        num_workers: so many may end at once without being a sign of anything.
    """

    def __init__(self, num_workers: int) -> None:
        self._most = num_workers + SPARE_RESTARTS
        self._count = 0

    def heard(self, event: Event) -> None:
        """A row shows that workers can work."""
        if isinstance(event, Report) and event.rows:
            self._count = 0

    def judge(self, left: Left) -> Left:
        """`left`, with a `WorkerError` when so many have ended by now that no other worker will do better."""
        self._count += 1
        if left.error is not None or self._count <= self._most:
            return left
        return replace(left, error=WorkerError(f"{self._count} workers ended without a row; {left.reason}"))
