"""Chooses the worker pool of a run: none, processes of this machine, or actors of a Ray cluster."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial

from rwkvbatch.config import RunSettings
from rwkvbatch.errors import MissingExtraError, UsageError, counted
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.pools.pool import WorkerPool, processors
from rwkvbatch.replay.worker.models import ModelLoader, forkable_loader

MakePool = Callable[[Plan], WorkerPool]


def pool_for(settings: RunSettings, *, model_given: bool = False) -> MakePool | None:
    """A function that makes the settings' pool: processes, or actors of a Ray cluster. None for a run in this process.

    Args:
        model_given: whether the run uses a model in memory.

    Raises:
        UsageError: the settings contradict each other, or a model in memory is given.
        MissingExtraError: Ray is not installed.
    """
    if settings.ray is None and settings.workers in (None, 1) and not settings.devices:
        return None
    if model_given:
        hint = "give the checkpoint's file, or leave workers, devices and ray out"
        raise UsageError("a model in the memory of this process cannot be given to other processes", hint=hint)
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
    from rwkvbatch.replay.pools.processes import ProcessPool

    settings = plan.settings
    if settings.threads is None:
        settings = settings.replace(threads=max(1, processors() // count))
    return ProcessPool(plan, partial(forkable_loader, settings), count, settings.devices)


def _make_ray_pool(plan: Plan) -> WorkerPool:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray reads this variable when it is imported. Without it, Ray prints events, such as the end of a worker, to
    # standard output.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    from rwkvbatch.replay.pools.ray_pool import RayPool

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
