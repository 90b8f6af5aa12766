"""Workers as actors of a Ray cluster: `RayPool` is the driver's side, `RayWorker` runs on the nodes.

Ray places the actors by the processors and GPUs that they reserve, restarts those whose process or node ends, and
repeats `RayWorker.place` until it is answered. The driver sends orders by `RayWorker.send` and reads events from the
stream of `RayWorker.serve`. A stream that breaks is reported as `Left`, and the restarted actor as `Joined`.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import ray
from ray._private import services, worker
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rwkvbatch import __version__, signals
from rwkvbatch.config import RunSettings
from rwkvbatch.errors import NoClusterError, RwkvBatchError, UsageError, WorkerError
from rwkvbatch.replay.identity import cell_identities, check_same, code_sha256
from rwkvbatch.replay.models import ModelLoader, Setup, setups_of
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import Event, Joined, Left, Order, RestartLimit, processors
from rwkvbatch.replay.worker import LogCollector, Worker, collecting_logs, serve
from rwkvbatch.setting_names import ENVIRONMENT_PREFIX

PLACEMENT_S = 60.0
"""How long an actor may wait for room on the cluster before a warning or an error."""
CONNECT_S = 5.0
LOCAL_OBJECT_STORE_BYTES = 256 * 2**20
"""Object store of a cluster that `--ray local` starts: it holds the plan and events in transit."""

_START_HINT = "start a cluster with `ray start --head`, or give local"

_ray, _services = cast("Any", ray), cast("Any", services)  # most of their functions have no types
_log = logging.getLogger(__name__)


def versions() -> dict[str, str]:
    """What must be the same on every node, by name; Ray itself compares its own version and Python's."""
    return {"rwkvbatch": __version__, "rwkvbatch's code": code_sha256()[:12]}


def own_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}


class RayWorker:
    """The actor. Ray constructs it again, from the same arguments, after each restart.

    The arguments are builtin types, which another version of this program can read, and references that it need not
    read: its number; the driver's `versions`, directory and environment variables of this program; the plan and what
    makes the loader. A node with other versions raises `WorkerError`.
    """

    def __init__(
        self, number: int, expected: Mapping[str, str], directory: str, variables: Mapping[str, str], refs: list[Any]
    ) -> None:
        here = versions()
        if different := [key for key, value in expected.items() if here.get(key) != value]:
            shown = ", ".join(f"{key} {here.get(key, 'unknown')}, not {expected[key]}" for key in different)
            raise WorkerError(f"node {socket.gethostname()} runs {shown}")
        if Path(directory).is_dir():
            os.chdir(directory)
        for name in own_variables():
            del os.environ[name]
        os.environ.update(variables)
        gpus = _ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        self._name = f"worker {number} on {socket.gethostname()}, {f'cuda:{gpus[0]}' if gpus else 'cpu'}"
        self._refs = refs
        self._logs = LogCollector()
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._served = False

    @_ray.method(concurrency_group="control", max_task_retries=-1)
    def place(self) -> str:
        """The worker's name. A process that served before ends instead: Ray restarts it and repeats the call."""
        if self._served:
            signals.end_process(1)
        return self._name

    @_ray.method(concurrency_group="control")
    def send(self, order: Order) -> None:
        """Pass an order to the worker that `serve` runs."""
        self._orders.put(order)

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        """The models of the setups."""
        with collecting_logs(self._logs):
            return self._work[1].specs(setups)

    def serve(self, setup: Setup, expected: Mapping[str, Any]) -> Generator[Event]:
        """Load the setup's model, whose cells must have the identity `expected`; yield events, the last one `Left`."""
        plan, loader = self._work

        def make_worker() -> Worker:
            check_same(cell_identities(plan, loader.specs([setup]), loader.tokenizer), expected)
            return Worker(plan, loader, setup)

        self._served = True
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        channel = SimpleNamespace(recv=self._orders.get, send=events.put)
        threading.Thread(target=serve, args=(channel, make_worker, self._name, self._logs), daemon=True).start()
        event = None
        while not isinstance(event, Left):
            event = events.get()
            yield event

    @cached_property
    def _work(self) -> tuple[Plan, ModelLoader]:
        plan, make_loader = _ray.get(self._refs)
        cpus = _ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
        return plan, make_loader(plan.settings.replace(threads=plan.settings.threads or max(1, int(cpus))))


def reservations(
    nodes: Mapping[str, Mapping[str, float]], settings: RunSettings, strategies: Sequence[str]
) -> list[dict[str, Any]]:
    """Ray's options for the workers: as many as were asked for; else one a GPU; else one a node, with all processors.

    `nodes` has the resources of each node, by its id. Ray prefers a given node, and spreads other workers.
    """
    wanted = settings.devices or strategies
    count = settings.workers or len(settings.devices)
    cpus_of = {name: node["CPU"] for name, node in nodes.items() if node.get("CPU")}
    gpus_of = {name: node["GPU"] for name, node in nodes.items() if node.get("GPU")}
    if gpus_of and not all(text.startswith("cpu") for text in wanted):
        count = count or int(sum(gpus_of.values()))
        per_gpu = math.ceil(count / sum(gpus_of.values()))
        cpus = min(_share(cpus_of.get(name, 0.0), gpus * per_gpu) for name, gpus in gpus_of.items())
        found = [(cpus, _share(1.0, per_gpu), "SPREAD")] * count
    elif any("cuda" in text for text in wanted):
        raise WorkerError("GPUs are asked for, and the cluster has none", hint="give --strategy cpu")
    elif not cpus_of:
        raise WorkerError("the cluster offers no processors")
    elif count:
        found = [(_largest_share(list(cpus_of.values()), count), 0.0, "SPREAD")] * count
    else:
        found = [(cpus, 0.0, NodeAffinitySchedulingStrategy(node, soft=True)) for node, cpus in cpus_of.items()]
    most = settings.threads or math.inf
    return [{"num_cpus": min(cpus, most), "num_gpus": gpus, "scheduling_strategy": how} for cpus, gpus, how in found]


def _largest_share(amounts: Sequence[float], count: int) -> float:
    """The largest share of which `count` fit on nodes that have `amounts`; 0 for none."""
    shares = {_share(amount, number) for amount in amounts for number in range(1, count + 1)} - {0.0}
    return max((s for s in shares if sum(int(amount / s) for amount in amounts) >= count), default=0.0)


def _share(amount: float, count: float) -> float:
    """An even share, as Ray can reserve it: a whole number, or below 1 a multiple of 0.0001."""
    share = amount / count
    return float(int(share)) if share >= 1 else int(share * 10_000) / 10_000


@dataclass
class _Actor:
    """An actor as the driver sees it.

    Attributes:
        wants: what it reserves, in words.
        call: the pending `place`, or the event stream of `serve`; None between the two.
        since_s: when `place` was called; infinite once a warning said that it waits for room.
        name: empty until `place` is answered. joined: once it serves the current setup.
    """

    number: int
    handle: Any
    wants: str
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

    def failure(self, error: RayError) -> Left:
        """Why a call failed, in one line. It ends the run unless only the process or its node has ended."""
        reason = re.sub(r"^[\w.]+Error: ", "", str(error).strip().rpartition("\n")[2].strip())
        if isinstance(error, ActorUnavailableError):
            reason = "its process or node ended, or cannot be reached"
        cause = cast("Any", error).cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, RwkvBatchError):
            return Left(reason, cause.add_place(self.name))
        if cause is None and self.name:
            return Left(reason)
        hint = "the driver and every node need the same rwkvbatch (one wheel), plug-ins, Python and Ray"
        name = self.name or f"worker {self.number}"
        return Left(reason, WorkerError(f"{name} cannot start: {reason}", hint=hint))


class RayPool:
    """Actors on the cluster at the settings' `ray`, one for each of `reservations`.

    `make_loader` is called on every node and here.
    """

    def __init__(self, plan: Plan, make_loader: Callable[[RunSettings], ModelLoader]) -> None:
        self._plan = plan
        self._make_loader = make_loader
        self._owns_connection = False
        self._refs: list[Any] = []  # Ray drops an object with its last reference here, and restarted actors need both
        self._restarts = RestartLimit(0)
        self._actors: dict[int, _Actor] = {}
        self._events: list[tuple[int, Event]] = []
        self._setup: Setup | None = None
        self._identities: dict[Setup, Mapping[str, Any]] = {}

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        if not self._refs:
            self._start()
        on_node = {setup: self._on_node(setup) for setup in setups}
        found = self._ask_first(list(on_node.values()))
        specs = {setup: found[moved] for setup, moved in on_node.items()}
        tokenizer_of = self._make_loader(self._plan.settings).tokenizer
        for setup, spec in specs.items():
            self._identities[setup] = cell_identities(self._plan, {setup: spec}, tokenizer_of)
        return specs

    @property
    def num_starting(self) -> int:
        return sum(actor.serving and actor.joined is None for actor in self._actors.values())

    def begin(self, setup: Setup) -> None:
        if setup not in self._identities or not self._refs:
            self.specs([setup])
        changed = self._setup not in (None, setup)
        self._setup = setup
        if changed:
            self._events.clear()
        for actor in self._actors.values():
            if changed and actor.name:
                actor.start()  # a new process: it frees the memory of the previous model
            elif actor.joined is not None:
                self._events.append((actor.number, actor.joined))
            elif actor.name and not actor.serving:
                self._serve(actor)

    def send(self, worker: int, order: Order) -> None:
        if (actor := self._actors.get(worker)) is not None and actor.serving:
            actor.handle.send.remote(order)

    def kill(self, worker: int) -> None:
        if (actor := self._actors.get(worker)) is not None:
            _ray.kill(actor.handle, no_restart=False)

    def receive(self, timeout_s: float) -> Sequence[tuple[int, Event]]:
        if not raylet_is_alive():  # Ray ends this process too, some seconds later
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
        if raylet_is_alive():  # else calls to it would wait until Ray ends this process
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
            wants = f"{options['num_gpus']:g} GPUs and {options['num_cpus']:g} processors"
            self._actors[number] = _Actor(number, actor_class.options(**options).remote(number, *arguments), wants)
            self._actors[number].start()

    def _ask_first(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        """The models of `setups`, as the first actor that runs finds them."""
        while True:
            for _, event in self.receive(1.0):
                if isinstance(event, Left) and event.error is not None:
                    raise event.error
            if (actor := next((actor for actor in self._actors.values() if actor.name), None)) is not None:
                try:
                    return _ray.get(actor.handle.specs.remote(setups))
                except RayError as error:
                    self._lose(actor, actor.failure(error))

    def _on_node(self, setup: Setup) -> Setup:
        """The setup as an actor sees it: Ray shows it one GPU, which is `cuda` whatever its number."""
        devices = self._plan.settings.devices
        moved = setup.on_device(devices[0].partition(":")[0] if devices else None)
        return replace(moved, strategy=re.sub(r"cuda:\d+", "cuda", moved.strategy))

    def _serve(self, actor: _Actor) -> None:
        assert self._setup is not None
        actor.call = actor.handle.serve.remote(self._on_node(self._setup), self._identities[self._setup])

    def _read(self, actor: _Actor) -> None:
        try:
            answer = _ray.get(next(actor.call) if actor.serving else actor.call)
        except RayError as error:
            self._lose(actor, actor.failure(error))
            return
        if not actor.serving:
            actor.name, actor.call = answer, None
            if self._setup is not None:
                self._serve(actor)
            return
        self._restarts.observe(answer)
        if isinstance(answer, Left):
            error = None if answer.error is None else answer.error.add_place(actor.name)
            self._lose(actor, replace(answer, error=error))
            return
        if isinstance(answer, Joined):
            actor.joined = answer
        self._events.append((actor.number, answer))

    def _lose(self, actor: _Actor, left: Left) -> None:
        """Report that a worker lost its tasks, and wait until Ray has restarted it."""
        left = self._restarts.check(left)
        self._events.append((actor.number, left))
        if left.restartable:
            actor.start()
        else:
            _ray.kill(self._actors.pop(actor.number).handle)

    def _check_room(self) -> None:
        """Warn of actors that the cluster has no room for; they may still start. No actor at all is an error."""
        none_runs = not any(actor.name for actor in self._actors.values())
        for actor in self._actors.values():
            if actor.name or time.monotonic() - actor.since_s < PLACEMENT_S:
                continue
            if none_runs:
                problem = f"the cluster had no room for a worker with {actor.wants} within {PLACEMENT_S:g} s"
                hint = "`ray status` shows what is taken; ask for less with --workers and --threads"
                raise WorkerError(problem, hint=hint)
            actor.since_s = math.inf
            _log.warning("the cluster has no room for worker %d with %s; it may join later", actor.number, actor.wants)


def connect(address: str, num_cpus: int) -> bool:
    """Connect to a cluster; `local` starts one with `num_cpus` processors. False: the caller must not disconnect.

    Raises `UsageError` when this process is connected to some other cluster, and `NoClusterError` when there is none or
    it runs other versions.
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
        raise NoClusterError(f"--ray {address}: {' '.join(str(error).split())}", hint=_START_HINT) from None
    return True


def check_listening(address: str) -> None:
    """Raise `ConnectionError` when nothing listens at HOST:PORT, where Ray tries for minutes; other forms are Ray's."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(f"nothing listens there: {error}") from None


def raylet_is_alive() -> bool:
    """Whether the raylet that this process started still runs; True where another program started it."""
    node: Any = getattr(worker, "_global_node", None)
    started: list[Any] = [] if node is None else node.all_processes.get("raylet", [])
    return all(info.process.poll() is None for info in started)
