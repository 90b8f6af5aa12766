"""Which crew a run's settings ask for."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial

from rwkvbatch.errors import MissingExtraError, UsageError
from rwkvbatch.run.planning.plan import Plan
from rwkvbatch.run.planning.settings import RunSettings
from rwkvbatch.run.workers.crew import Crew, LocalCrew
from rwkvbatch.run.workshop import ModelShop, Workshop, forkable_workshop

MakeCrew = Callable[[Plan, ModelShop], Crew]


def crew_for(settings: RunSettings, *, model_given: bool = False) -> MakeCrew:
    """What makes the workers: one in this process, several processes, or actors of a Ray cluster.

    Args:
        model_given: the model is an object of this process, so that no other can have it.

    Raises:
        UsageError: other workers are asked for all the same, or settings that do not go together.
        MissingExtraError: Ray is not installed.
    """
    here = settings.ray is None and settings.workers in (None, 1) and not settings.devices
    if here:
        return LocalCrew
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
        return lambda plan, _: _ray_crew(plan)
    make_shop = partial(forkable_workshop, with_threads(settings, count))
    return lambda plan, _: _process_crew(plan, make_shop, count, settings)


def _process_crew(plan: Plan, make_shop: Callable[[], ModelShop], count: int, settings: RunSettings) -> Crew:
    from rwkvbatch.run.workers.processes import ProcessCrew

    return ProcessCrew(plan, make_shop, count, settings.devices)


def _ray_crew(plan: Plan) -> Crew:
    from rwkvbatch.run.workers.ray_crew import RayCrew

    return RayCrew(plan, Workshop)


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
