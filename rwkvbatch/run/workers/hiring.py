"""Which crew a run's settings ask for."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from rwkvbatch.errors import UsageError
from rwkvbatch.run.plan import Plan
from rwkvbatch.run.settings import RunSettings
from rwkvbatch.run.setup import ModelShop, forkable_workshop
from rwkvbatch.run.workers.crew import Crew, LocalCrew

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
    if settings.ray is not None:
        from rwkvbatch.run.workers.ray_crew import RayCrew, check_ray

        check_ray(settings)
        return lambda plan, _: RayCrew(plan, settings)
    count = settings.workers or len(settings.devices)
    if settings.devices and count < len(settings.devices):
        raise UsageError(
            f"--devices names {len(settings.devices)} devices for {count} worker{'s' if count > 1 else ''}",
            hint="give at least as many workers, or leave --workers out",
        )
    make_shop = partial(forkable_workshop, with_threads(settings, count))
    return lambda plan, _: _process_crew(plan, make_shop, count, settings)


def _process_crew(plan: Plan, make_shop: Callable[[], ModelShop], count: int, settings: RunSettings) -> Crew:
    from rwkvbatch.run.workers.processes import ProcessCrew

    return ProcessCrew(plan, make_shop, count, settings.devices)


def with_threads(settings: RunSettings, count: int) -> RunSettings:
    """Settings of one of `count` workers that share this machine's processors, unless the user said how many."""
    if settings.threads is not None:
        return settings
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.replace(threads=max(1, there // count))
