"""Workers as actors of a Ray cluster.

Ray places the actors by the processors and GPUs that they reserve, restarts those whose process or node ends, and
repeats their first call until it is answered. The driver sends orders by `RayWorker.send` and reads events from the
stream that `RayWorker.serve` returns. A stream that breaks is reported as `Left`, and the restarted actor as `Joined`.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rwkvbatch.config import RunSettings
from rwkvbatch.errors import RwkvBatchError, WorkerError
from rwkvbatch.replay.identity import cell_identities
from rwkvbatch.replay.models import ModelLoader, Setup, setups_of
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import Event, Joined, Left, Order, RestartLimit, processors
from rwkvbatch.replay.ray_actor import MakeLoader, RayWorker, own_variables
from rwkvbatch.replay.ray_cluster import Slot, cluster_nodes, connect, make_slots, raylet_is_alive, versions

PLACEMENT_S = 60.0
"""How long an actor may wait for room on the cluster before a warning or an error."""

_RAYLET_ENDED = "Ray's process on this machine (the raylet) has ended"

_ray = cast("Any", ray)  # most of its functions have no types
_log = logging.getLogger(__name__)


@dataclass
class _Actor:
    """An actor as the driver sees it.

    Attributes:
        call: the pending `place`, or the event stream of `serve`; None between the two.
        since_s: when `place` was called; infinite once a warning said that it waits for room.
        name: empty until `place` is answered. joined: once it serves the current setup.
    """

    slot: Slot
    handle: Any
    call: Any = None
    since_s: float = 0.0
    name: str = ""
    joined: Joined | None = None

    @property
    def serving(self) -> bool:
        return bool(self.name) and self.call is not None

    def start(self) -> None:
        """Ask for the place, which Ray answers when a new process runs."""
        self.name, self.joined = "", None
        self.since_s = time.monotonic()
        self.call = self.handle.place.remote()


class RayPool:
    """Actors on the cluster at the settings' `ray`; `make_slots` decides how many.

    `make_loader` is called on every node and here. Actors may wait `placement_s` for room when no other is at work.
    """

    def __init__(
        self, plan: Plan, make_loader: Callable[[RunSettings], ModelLoader], *, placement_s: float = PLACEMENT_S
    ) -> None:
        self._plan = plan
        self._make_loader = make_loader
        self._placement_s = placement_s
        self._owns_connection = False
        self._plan_ref: Any = None
        self._restarts = RestartLimit(0)
        self._actors: dict[int, _Actor] = {}
        self._events: list[tuple[int, Event]] = []
        self._setup: Setup | None = None
        self._identities: dict[Setup, Mapping[str, Any]] = {}

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        if self._plan_ref is None:
            self._start()
        specs = self._specs_on_first(setups)
        tokenizer_of = self._make_loader(self._plan.settings).tokenizer
        for setup, spec in specs.items():
            self._identities[setup] = cell_identities(self._plan, {setup: spec}, tokenizer_of)
        return specs

    @property
    def num_starting(self) -> int:
        return sum(actor.serving and actor.joined is None for actor in self._actors.values())

    def begin(self, setup: Setup) -> None:
        if setup not in self._identities:
            self.specs([setup])
        changed = self._setup not in (None, setup)
        self._setup = setup
        if changed:
            self._events.clear()
        for number, actor in self._actors.items():
            if changed and actor.name:
                actor.start()  # a new process: it frees the memory of the previous model
            elif actor.joined is not None:
                self._events.append((number, actor.joined))
            elif actor.name and not actor.serving:
                self._serve(actor)

    def send(self, worker: int, order: Order) -> None:
        actor = self._actors.get(worker)
        if actor is not None and actor.serving:
            actor.handle.send.remote(order)

    def kill(self, worker: int) -> None:
        actor = self._actors.get(worker)
        if actor is not None:
            _ray.kill(actor.handle, no_restart=False)

    def receive(self, timeout_s: float) -> Sequence[tuple[int, Event]]:
        numbers = {actor.call: number for number, actor in self._actors.items() if actor.call is not None}
        if numbers:
            calls = list(numbers)
            _ray.wait(calls, num_returns=1, timeout=0.0 if self._events else timeout_s)
            for call in _ray.wait(calls, num_returns=len(calls), timeout=0.0)[0]:
                self._read(numbers[call])
        elif not self._events:
            time.sleep(timeout_s)
        self._check_room()
        if not raylet_is_alive():  # Ray ends this process too, some seconds later
            error = WorkerError(_RAYLET_ENDED, hint="start the cluster again, or give local")
            self._events.append((-1, Left(_RAYLET_ENDED, error)))
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        if not raylet_is_alive():  # calls to it would wait until Ray ends this process
            self._actors.clear()
        for number in list(self._actors):
            self._remove(number)
        self._events.clear()
        self._setup = self._plan_ref = None
        if self._owns_connection:
            _ray.shutdown()
        self._owns_connection = False

    def _start(self) -> None:
        settings = self._plan.settings
        self._owns_connection = connect(settings.ray or "auto", processors())
        slots = make_slots(cluster_nodes(), settings, [setup.strategy for setup in setups_of(self._plan)])
        self._restarts = RestartLimit(len(slots))
        self._plan_ref = _ray.put(self._plan)
        actor_class = _ray.remote(concurrency_groups={"control": 1})(RayWorker)
        for number, slot in enumerate(slots):
            strategy = NodeAffinitySchedulingStrategy(slot.node, soft=True) if slot.node else "SPREAD"
            reserved = {"num_cpus": slot.cpus, "num_gpus": slot.gpus, "scheduling_strategy": strategy}
            placed = actor_class.options(name=f"worker {number}", max_restarts=-1, **reserved)
            self._actors[number] = _Actor(slot, placed.remote(versions(), str(Path.cwd()), own_variables()))
            self._actors[number].start()

    def _specs_on_first(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        """The models of `setups`, as the first actor that runs finds them."""
        while True:
            while not any(actor.name for actor in self._actors.values()):
                for _, event in self.receive(1.0):
                    if isinstance(event, Left) and event.error is not None:
                        raise event.error
            number, actor = next((number, actor) for number, actor in self._actors.items() if actor.name)
            there = [actor.slot.setup(setup) for setup in setups]
            try:
                specs = _ray.get(actor.handle.specs.remote(self._loader_for(actor), actor.name, there))
            except RayTaskError as error:
                if isinstance(error.cause, RwkvBatchError):
                    raise error.cause from None
                raise _start_error(actor.name, error) from None
            except RayError as error:
                self._lose(number, Left(_reason(error)))
            else:
                return {setup: specs[moved] for setup, moved in zip(setups, there, strict=True)}

    def _serve(self, actor: _Actor) -> None:
        assert self._setup is not None
        setup = actor.slot.setup(self._setup)
        expected = self._identities[self._setup]
        actor.call = actor.handle.serve.remote(self._loader_for(actor), actor.name, setup, self._plan_ref, expected)

    def _loader_for(self, actor: _Actor) -> MakeLoader:
        return partial(self._make_loader, self._plan.settings.replace(threads=actor.slot.threads))

    def _read(self, number: int) -> None:
        actor = self._actors[number]
        try:
            answer = _ray.get(next(actor.call) if actor.serving else actor.call)
        except RayError as error:
            if actor.serving and not isinstance(error, RayTaskError):
                self._lose(number, Left(_reason(error)))
            else:
                failure = _start_error(actor.name or f"worker {number}", error)
                self._lose(number, Left(str(failure), failure))
            return
        if not actor.serving:
            actor.name, actor.call = f"worker {number} on {answer}", None
            if self._setup is not None:
                self._serve(actor)
            return
        self._restarts.observe(answer)
        if isinstance(answer, Left):
            self._lose(number, answer)
            return
        if isinstance(answer, Joined):
            actor.joined = answer
        self._events.append((number, answer))

    def _lose(self, number: int, left: Left) -> None:
        """Report that a worker lost its tasks, and wait until Ray has restarted it."""
        left = self._restarts.check(left)
        self._events.append((number, left))
        if left.restartable:
            self._actors[number].start()
        else:
            self._remove(number)

    def _check_room(self) -> None:
        """Warn of actors that the cluster has no room for; they may still start. No actor at all is an error."""
        none_runs = not any(actor.name for actor in self._actors.values())
        for number, actor in self._actors.items():
            if actor.name or time.monotonic() - actor.since_s < self._placement_s:
                continue
            wanted = f"{actor.slot.gpus:g} GPUs and {actor.slot.cpus:g} processors"
            if none_runs:
                problem = f"the cluster had no room for a worker with {wanted} within {self._placement_s:g} s"
                hint = "`ray status` shows what is taken; ask for less with --workers and --threads"
                self._events.append((number, Left(problem, WorkerError(problem, hint=hint))))
                return
            actor.since_s = math.inf
            _log.warning("the cluster has no room for worker %d with %s; going on without it", number, wanted)

    def _remove(self, number: int) -> None:
        _ray.kill(self._actors.pop(number).handle)


def _reason(error: RayError) -> str:
    """Why a call failed, in one line."""
    if isinstance(error, ActorUnavailableError):
        return "its process or node ended, or cannot be reached"
    return re.sub(r"^[\w.]+Error: ", "", str(error).strip().rpartition("\n")[2].strip())


def _start_error(name: str, error: RayError) -> WorkerError:
    hint = "the driver and every node need the same rwkvbatch (one wheel), plug-ins, Python 3.x and Ray"
    return WorkerError(f"{name} cannot start: {_reason(error)}", hint=hint)
