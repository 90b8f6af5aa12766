"""A pool of workers on a Ray cluster: `RayPool` runs in the driver, `ray_actor.RayWorker` on the nodes.

Ray places the actors by the processors and GPUs that they reserve, restarts those whose process or node ends, and
repeats the call of `RayWorker.place` until it is answered. The driver sends orders by `RayWorker.send` and reads events
from the stream of `RayWorker.serve`. A broken stream is reported as `WorkerExited`, and the restarted actor as
`WorkerReady`.
"""

from __future__ import annotations

import logging
import math
import re
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import ray
from ray._private import services, worker
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rwkvbatch import signals
from rwkvbatch.config import RunSettings
from rwkvbatch.errors import NoClusterError, RwkvBatchError, UsageError, WorkerError, error_text
from rwkvbatch.replay.continuing.identity import cell_identities
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import Setup, setups_of
from rwkvbatch.replay.pools.pool import Event, Order, RestartLimit, WorkerExited, WorkerReady, processors
from rwkvbatch.replay.pools.ray_actor import RayWorker, own_variables, versions
from rwkvbatch.replay.worker.models import ModelLoader

PLACEMENT_S = 60.0
"""Time that an actor may wait for room on the cluster before a warning or an error."""
CONNECT_S = 5.0
"""Timeout of the connection to a cluster's address."""
LOCAL_OBJECT_STORE_BYTES = 256 * 2**20
"""Size of the object store of a cluster that `--ray local` starts; it holds the plan and events in transit."""

_START_HINT = "start a cluster with `ray start --head`, or give local"

_ray, _services = cast("Any", ray), cast("Any", services)  # most of their functions have no types
_log = logging.getLogger(__name__)


def reservations(
    nodes: Mapping[str, Mapping[str, float]], settings: RunSettings, strategies: Sequence[str]
) -> list[dict[str, Any]]:
    """Ray's options for each worker.

    The number of workers is that of the settings; otherwise one per GPU; otherwise one per node, with all its
    processors. Workers that are not bound to a node are spread over the nodes.

    Args:
        nodes: by node id, the node's resources.
        strategies: the strategies of the setups, which count if the settings name no devices.

    Raises:
        WorkerError: the cluster has no processors, or none of the GPUs that are asked for.
    """
    devices = settings.devices or strategies
    count = settings.workers or len(settings.devices)
    cpus_of = {name: node["CPU"] for name, node in nodes.items() if node.get("CPU")}
    gpus_of = {name: node["GPU"] for name, node in nodes.items() if node.get("GPU")}
    if gpus_of and not all(device.startswith("cpu") for device in devices):
        count = count or int(sum(gpus_of.values()))
        workers_per_gpu = math.ceil(count / sum(gpus_of.values()))
        cpus = min(_share(cpus_of.get(name, 0.0), gpus * workers_per_gpu) for name, gpus in gpus_of.items())
        reserved = [(cpus, _share(1.0, workers_per_gpu), "SPREAD")] * count
    elif any("cuda" in device for device in devices):
        raise WorkerError("GPUs are asked for, and the cluster has none", hint="give --strategy cpu")
    elif not cpus_of:
        raise WorkerError("the cluster offers no processors")
    elif count:
        reserved = [(_largest_share(list(cpus_of.values()), count), 0.0, "SPREAD")] * count
    else:
        reserved = [(cpus, 0.0, NodeAffinitySchedulingStrategy(node, soft=True)) for node, cpus in cpus_of.items()]
    max_cpus = settings.threads or math.inf
    return [
        {"num_cpus": min(cpus, max_cpus), "num_gpus": gpus, "scheduling_strategy": strategy}
        for cpus, gpus, strategy in reserved
    ]


def _largest_share(amounts: Sequence[float], count: int) -> float:
    """The largest share of which `count` fit on nodes with `amounts`; 0 if none fit."""
    shares = {_share(amount, number) for amount in amounts for number in range(1, count + 1)} - {0.0}
    return max((s for s in shares if sum(int(amount / s) for amount in amounts) >= count), default=0.0)


def _share(amount: float, count: float) -> float:
    """An even share, rounded down to what Ray can reserve: a whole number, or below 1 a multiple of 0.0001."""
    share = amount / count
    return float(int(share)) if share >= 1 else int(share * 10_000) / 10_000


@dataclass
class _Actor:
    """The driver's record of an actor.

    Attributes:
        resources: what it reserves, as text.
        call: the pending `place`, or the event stream of `serve`; None between the two.
        called_s: time at which `place` was called; infinite after the warning that the actor waits for room.
        name: empty until `place` is answered.
        ready: its `WorkerReady` event; None until it serves the current setup.
    """

    number: int
    handle: Any
    resources: str
    call: Any = None
    called_s: float = 0.0
    name: str = ""
    ready: WorkerReady | None = None

    @property
    def serving(self) -> bool:
        return bool(self.name) and self.call is not None

    def start(self) -> None:
        """Call `place`, which is answered when a new process runs."""
        self.name, self.ready = "", None
        self.called_s = time.monotonic()
        self.call = self.handle.place.remote()

    def failure(self, error: RayError) -> WorkerExited:
        """The reason why a call failed, in one line. It ends the run unless the actor's process or node has ended."""
        reason = re.sub(r"^[\w.]+Error: ", "", str(error).strip().rpartition("\n")[2].strip())
        if isinstance(error, ActorUnavailableError):
            reason = "its process or node ended, or cannot be reached"
        cause = cast("Any", error).cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, RwkvBatchError):
            return WorkerExited(reason, cause.add_place(self.name))
        if cause is None and self.name:
            return WorkerExited(reason)
        hint = "the driver and every node need the same rwkvbatch (one wheel), plug-ins, Python and Ray"
        name = self.name or f"worker {self.number}"
        return WorkerExited(reason, WorkerError(f"{name} cannot start: {reason}", hint=hint))


class RayPool:
    """Actors on the cluster at the settings' `ray`, one for each of `reservations`.

    Args:
        make_loader: makes the model loader; called on every node and in this process.
    """

    def __init__(self, plan: Plan, make_loader: Callable[[RunSettings], ModelLoader]) -> None:
        self._plan = plan
        self._make_loader = make_loader
        self._owns_connection = False
        # The plan and `make_loader` in Ray's object store. Restarted actors need them, and Ray deletes an object with
        # the last reference in this process.
        self._refs: list[Any] = []
        self._restarts = RestartLimit(0)
        self._actors: dict[int, _Actor] = {}
        self._events: list[tuple[int, Event]] = []
        self._setup: Setup | None = None
        self._identities: dict[Setup, Mapping[str, Any]] = {}

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        if not self._refs:
            self._start()
        on_node = {setup: self._on_node(setup) for setup in setups}
        specs_on_node = self._ask_first(list(on_node.values()))
        specs = {setup: specs_on_node[node_setup] for setup, node_setup in on_node.items()}
        tokenizer_of = self._make_loader(self._plan.settings).tokenizer
        for setup, spec in specs.items():
            self._identities[setup] = cell_identities(self._plan, {setup: spec}, tokenizer_of)
        return specs

    @property
    def num_starting(self) -> int:
        return sum(actor.serving and actor.ready is None for actor in self._actors.values())

    def begin(self, setup: Setup) -> None:
        if setup not in self._identities or not self._refs:
            self.specs([setup])
        has_changed = self._setup not in (None, setup)
        self._setup = setup
        if has_changed:
            self._events.clear()
        for actor in self._actors.values():
            if has_changed and actor.name:
                actor.start()  # in a new process, which frees the memory of the previous model
            elif actor.ready is not None:
                self._events.append((actor.number, actor.ready))
            elif actor.name and not actor.serving:
                self._serve(actor)

    def send(self, worker: int, order: Order) -> None:
        if (actor := self._actors.get(worker)) is not None and actor.serving:
            actor.handle.send.remote(order)

    def kill(self, worker: int) -> None:
        if (actor := self._actors.get(worker)) is not None:
            _ray.kill(actor.handle, no_restart=False)

    def receive(self, timeout_s: float) -> Sequence[tuple[int, Event]]:
        if not raylet_is_alive():  # some seconds later, Ray would end this process too
            raise WorkerError("Ray's process on this machine (the raylet) has ended", hint=_START_HINT)
        actors = {actor.call: actor for actor in self._actors.values() if actor.call is not None}
        if actors:
            calls = list(actors)
            _ray.wait(calls, num_returns=1, timeout=0.0 if self._events else timeout_s)
            for call in _ray.wait(calls, num_returns=len(calls), timeout=0.0)[0]:
                self._read(actors[call])
        elif not self._events:
            time.sleep(timeout_s)
        self._check_room()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        if raylet_is_alive():  # without a raylet, the calls would wait until Ray ends this process
            for actor in self._actors.values():
                _ray.kill(actor.handle)
        self._actors.clear()
        self._events.clear()
        self._refs.clear()
        self._setup = None
        if self._owns_connection:
            _ray.shutdown()
        self._owns_connection = False

    def _start(self) -> None:
        settings = self._plan.settings
        self._owns_connection = connect(settings.ray or "auto", processors())
        nodes = {node["NodeID"]: node["Resources"] for node in _ray.nodes() if node["Alive"]}
        reserved = reservations(nodes, settings, [setup.strategy for setup in setups_of(self._plan)])
        self._restarts = RestartLimit(len(reserved))
        self._refs = [_ray.put(self._plan), _ray.put(self._make_loader)]
        arguments = versions(), str(Path.cwd()), own_variables(), self._refs
        actor_class = _ray.remote(max_restarts=-1, concurrency_groups={"control": 1})(RayWorker)
        for number, options in enumerate(reserved):
            resources = f"{options['num_gpus']:g} GPUs and {options['num_cpus']:g} processors"
            self._actors[number] = _Actor(number, actor_class.options(**options).remote(number, *arguments), resources)
            self._actors[number].start()

    def _ask_first(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        """The specs of the models of `setups`, from the first actor that runs."""
        while True:
            for _, event in self.receive(1.0):
                if isinstance(event, WorkerExited) and event.error is not None:
                    raise event.error
            if (actor := next((actor for actor in self._actors.values() if actor.name), None)) is not None:
                try:
                    return _ray.get(actor.handle.specs.remote(setups))
                except RayError as error:
                    self._lose(actor, actor.failure(error))

    def _on_node(self, setup: Setup) -> Setup:
        """The setup for an actor. Ray makes one GPU visible to an actor, as the device `cuda`, whatever its number."""
        devices = self._plan.settings.devices
        node_setup = setup.on_device(devices[0].partition(":")[0] if devices else None)
        return replace(node_setup, strategy=re.sub(r"cuda:\d+", "cuda", node_setup.strategy))

    def _serve(self, actor: _Actor) -> None:
        assert self._setup is not None
        actor.call = actor.handle.serve.remote(self._on_node(self._setup), self._identities[self._setup])

    def _read(self, actor: _Actor) -> None:
        """Handle an actor's answer to `place`, or its next event."""
        try:
            result = _ray.get(next(actor.call) if actor.serving else actor.call)
        except RayError as error:
            self._lose(actor, actor.failure(error))
            return
        if not actor.serving:
            actor.name, actor.call = result, None
            if self._setup is not None:
                self._serve(actor)
            return
        self._restarts.observe(result)
        if isinstance(result, WorkerExited):
            error = None if result.error is None else result.error.add_place(actor.name)
            self._lose(actor, replace(result, error=error))
            return
        if isinstance(result, WorkerReady):
            actor.ready = result
        self._events.append((actor.number, result))

    def _lose(self, actor: _Actor, left: WorkerExited) -> None:
        """Report that a worker has ended, and call `place` for its restart unless it cannot be restarted."""
        left = self._restarts.check(left)
        self._events.append((actor.number, left))
        if left.restartable:
            actor.start()
        else:
            _ray.kill(self._actors.pop(actor.number).handle)

    def _check_room(self) -> None:
        """Log a warning for each actor that has waited `PLACEMENT_S` for room; it may still start.

        Raises:
            WorkerError: no actor runs.
        """
        none_runs = not any(actor.name for actor in self._actors.values())
        for actor in self._actors.values():
            if actor.name or time.monotonic() - actor.called_s < PLACEMENT_S:
                continue
            if none_runs:
                problem = f"the cluster had no room for a worker with {actor.resources} within {PLACEMENT_S:g} s"
                hint = "`ray status` shows what is taken; ask for less with --workers and --threads"
                raise WorkerError(problem, hint=hint)
            actor.called_s = math.inf
            message = "the cluster has no room for worker %d with %s; it may join later"
            _log.warning(message, actor.number, actor.resources)


def connect(address: str, num_cpus: int) -> bool:
    """Connect to a cluster; `local` starts one with `num_cpus` processors.

    Returns:
        Whether the caller must disconnect: False if this process was connected before.

    Raises:
        UsageError: this process is connected, and `address` is not `auto`.
        NoClusterError: there is no cluster, or it runs other versions of Ray or Python.
    """
    if _ray.is_initialized():
        if address != "auto":
            problem = f"--ray {address}: this process is connected to a Ray cluster already"
            raise UsageError(problem, hint="give auto to use it, or call ray.shutdown() first")
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        memory = LOCAL_OBJECT_STORE_BYTES
        options |= {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": memory}
    try:
        target = address if address != "auto" else _services.get_ray_address_from_environment("auto", None)
        check_listening(target)
        with signals.handlers_restored(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _ray.init(target, **options)
    except (OSError, RuntimeError, ValueError) as error:
        _ray.shutdown()
        raise NoClusterError(f"--ray {address}: {error_text(error, None)}", hint=_START_HINT) from None
    return True


def check_listening(address: str) -> None:
    """Raise `ConnectionError` if nothing listens at HOST:PORT, because Ray would retry for minutes.

    Addresses of other forms are not checked.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(f"nothing listens there: {error}") from None


def raylet_is_alive() -> bool:
    """Whether the raylet that this process started still runs; True if another program started it."""
    node: Any = getattr(worker, "_global_node", None)
    started: list[Any] = [] if node is None else node.all_processes.get("raylet", [])
    return all(info.process.poll() is None for info in started)
