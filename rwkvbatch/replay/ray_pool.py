"""Workers as actors of a Ray cluster.

Ray places the actors by the processors and GPUs that they reserve, restarts those whose process or node ends, and
repeats their first call until it is answered. The driver sends orders by `RayWorker.send` and reads events from the
stream that `RayWorker.serve` returns. A stream that breaks is reported as `Left`, and the restarted actor as `Joined`.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import queue
import re
import signal
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rwkvbatch import __version__
from rwkvbatch.config import ENVIRONMENT_PREFIX, RunSettings
from rwkvbatch.errors import NoClusterError, RwkvBatchError, UsageError, WorkerError
from rwkvbatch.replay.identity import cell_identities, code_sha256
from rwkvbatch.replay.models import ModelLoader, Setup, setups_of
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import Event, Joined, Left, Order, RestartLimit, processors
from rwkvbatch.replay.worker import LogCollector, Worker, collecting_logs, serve

CONNECT_S = 5.0
LOCAL_OBJECT_STORE_BYTES = 256 * 2**20
"""Object store of a cluster that `--ray local` starts: it holds the plan and events in transit."""
PLACEMENT_S = 60.0
"""How long an actor may wait for room on the cluster before a warning or an error."""

_START_HINT = "start a cluster with `ray start --head`, or give local"

_ray = cast("Any", ray)  # most of its functions have no types
_log = logging.getLogger(__name__)
_MakeLoader = Callable[[], ModelLoader]


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, and what it offers."""

    id: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Slot:
    """What one worker reserves: `cpus` or `gpus` below one where workers share it, and threads of its kernels.

    Its strategies are moved to the kind of device `device`, unless that is None. Without `node`, the id of the
    preferred one, Ray spreads the workers.
    """

    cpus: float
    gpus: float
    threads: int
    device: str | None = None
    node: str | None = None


def make_slots(nodes: Sequence[Node], settings: RunSettings, strategies: Sequence[str]) -> list[Slot]:
    """Slots of a run's workers: as many as were asked for; else one a GPU; else one a node, with all its processors."""
    device = settings.devices[0].partition(":")[0] if settings.devices else None
    on_cpu = device == "cpu" or (device is None and all(text.startswith("cpu") for text in strategies))
    num_gpus = int(sum(node.gpus for node in nodes))
    if not on_cpu and not num_gpus and (device == "cuda" or any("cuda" in text for text in strategies)):
        raise WorkerError("GPUs are asked for, and the cluster has none", hint="give --strategy cpu")
    count = settings.workers or len(settings.devices)
    if num_gpus and not on_cpu:
        count = count or num_gpus
        workers_per_gpu = math.ceil(count / num_gpus)
        cpus = min(_share(node.cpus, int(node.gpus) * workers_per_gpu) for node in nodes if node.gpus)
        threads = settings.threads or max(1, int(cpus))
        return [Slot(min(1.0, cpus), _share(1.0, workers_per_gpu), threads, device)] * count

    def slot(cpus: float, node: str | None = None) -> Slot:
        threads = settings.threads or max(1, int(cpus))
        return Slot(min(float(threads), cpus), 0.0, threads, device, node)

    if not any(node.cpus for node in nodes):
        raise WorkerError("the cluster offers no processors")
    if count:
        return [slot(_largest_share([node.cpus for node in nodes], count))] * count
    return [slot(node.cpus, node.id) for node in nodes if node.cpus]


def _largest_share(amounts: Sequence[float], count: int) -> float:
    """The largest share of which `count` fit on nodes that have `amounts`."""
    counts = [0] * len(amounts)
    for _ in range(count):
        best = max(range(len(amounts)), key=lambda node: amounts[node] / (counts[node] + 1))
        counts[best] += 1
    return min(_share(amount, num) for amount, num in zip(amounts, counts, strict=True) if num)


def _share(amount: float, count: int) -> float:
    """An even share, as Ray can reserve it: a whole number, or below 1 a multiple of 0.0001."""
    share = amount / count
    return float(int(share)) if share >= 1 else int(share * 10_000) / 10_000


def connect(address: str, num_cpus: int) -> bool:
    """Connect this process to a cluster; `local` starts one on this machine, with `num_cpus` processors.

    Returns False when the process was connected before; the caller must not close that connection. Raises `UsageError`
    when it is connected to some other cluster, and `NoClusterError` when there is none or it runs other versions.
    """
    if _ray.is_initialized():
        if address != "auto":
            problem = f"--ray {address}: this process is connected to a Ray cluster already"
            raise UsageError(problem, hint="give auto to use it, or call ray.shutdown() first")
        return False
    check_listening(_auto_address() if address == "auto" else address)
    options: dict[str, Any] = {}
    if address == "local":
        options = {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE_BYTES}
    try:
        with _quiet_ray():
            namespace = f"rwkvbatch-{uuid.uuid4().hex[:8]}"
            _ray.init(address, namespace=namespace, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (OSError, RuntimeError, ValueError) as error:
        _ray.shutdown()
        raise NoClusterError(f"--ray {address}: {' '.join(str(error).split())}", hint=_START_HINT) from None
    return True


def _auto_address() -> str:
    """What `auto` means for Ray: `RAY_ADDRESS`, or the cluster of `ray start` on this machine; empty if there is none.

    Source: `read_ray_address` in https://github.com/ray-project/ray/blob/master/python/ray/_private/services.py.
    """
    if given := os.environ.get("RAY_ADDRESS"):
        return given
    try:
        return (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def check_listening(address: str) -> None:
    """Raise `NoClusterError` when nothing listens at HOST:PORT, where Ray tries for minutes; other forms are Ray's."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise NoClusterError(f"--ray {address}: nothing listens there: {error}", hint=_START_HINT) from None


@contextmanager
def _quiet_ray() -> Generator[None]:
    """Ignore Ray's warnings, and restore the signal handlers that `ray.init` replaces."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def versions() -> dict[str, str]:
    """What must be the same on every node, by name."""
    return {
        "rwkvbatch": __version__,
        "rwkvbatch's code": code_sha256()[:12],
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "Ray": metadata.version("ray"),
    }


def _own_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}


class RayWorker:
    """The actor. Ray constructs it again, from the same arguments, after each restart.

    The arguments are the driver's `versions`, working directory and environment variables of this program, as builtin
    types, which another version of this program can read. A node with other versions raises `WorkerError`.
    """

    def __init__(self, expected: Mapping[str, str], directory: str, variables: Mapping[str, str]) -> None:
        here = versions()
        if different := [key for key, value in expected.items() if here.get(key) != value]:
            shown = ", ".join(f"{key} {here.get(key, 'unknown')}, not {expected[key]}" for key in different)
            raise WorkerError(f"node {socket.gethostname()} runs {shown}")
        if Path(directory).is_dir():
            os.chdir(directory)
        for name in _own_variables():
            del os.environ[name]
        os.environ.update(variables)
        self._loader: ModelLoader | None = None
        self._logs = LogCollector()
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._served = False

    @_ray.method(concurrency_group="control", max_task_retries=-1)
    def place(self) -> str:
        """Host name and device. A process that served before ends instead: Ray restarts it and repeats the call."""
        if self._served:
            os._exit(1)
        gpus = _ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        return f"{socket.gethostname()}, {f'cuda:{gpus[0]}' if gpus else 'cpu'}"

    @_ray.method(concurrency_group="control")
    def send(self, order: Order) -> None:
        """Pass an order to the worker that `serve` runs."""
        self._orders.put(order)

    def specs(self, make_loader: _MakeLoader, name: str, setups: Sequence[Setup]) -> dict[Setup, Any]:
        """The models of the setups."""
        with collecting_logs(self._logs), _locating_errors(name):
            return self._load(make_loader).specs(setups)

    def serve(
        self, make_loader: _MakeLoader, name: str, setup: Setup, plan: Plan, expected: Mapping[str, Any]
    ) -> Generator[Event]:
        """Load the setup's model, whose cells must have the identity `expected`; yield events, the last one `Left`."""

        def make_worker() -> Worker:
            with _locating_errors(name):
                loader = self._load(make_loader)
                _check_identities(cell_identities(plan, loader.specs([setup]), loader.tokenizer), expected)
                return Worker(plan, loader, setup)

        self._served = True
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        channel = SimpleNamespace(recv=self._orders.get, send=events.put)
        threading.Thread(target=serve, args=(channel, make_worker, name, self._logs), daemon=True).start()
        event = None
        while not isinstance(event, Left):
            event = events.get()
            yield event

    def _load(self, make_loader: _MakeLoader) -> ModelLoader:
        self._loader = self._loader or make_loader()
        return self._loader


@contextmanager
def _locating_errors(name: str) -> Generator[None]:
    """Put the worker's name before the message of an error."""
    try:
        yield
    except RwkvBatchError as error:
        error.message = f"{name}: {error.message}"
        error.args = (error.message,)
        raise


def _check_identities(here: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse other weights or another kind of device: the rows would belong to a different run."""
    for cell, values in expected.items():
        for key, value in values.items():
            if here[cell][key] != value:
                hint = "the same files must be in the same places on every node, and all devices of one kind"
                raise WorkerError(f"{key} of cell {cell} is {here[cell][key]} here, but {value} elsewhere", hint=hint)


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
        self._check_node()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        if not _node_is_alive():  # calls to it would wait until Ray ends this process
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
        alive = {node["NodeID"]: node["Resources"] for node in _ray.nodes() if node["Alive"]}
        nodes = [Node(name, offered.get("CPU", 0.0), offered.get("GPU", 0.0)) for name, offered in alive.items()]
        slots = make_slots(nodes, settings, [setup.strategy for setup in setups_of(self._plan)])
        self._restarts = RestartLimit(len(slots))
        self._plan_ref = _ray.put(self._plan)
        actor_class = _ray.remote(concurrency_groups={"control": 1})(RayWorker)
        for number, slot in enumerate(slots):
            strategy = NodeAffinitySchedulingStrategy(slot.node, soft=True) if slot.node else "SPREAD"
            reserved = {"num_cpus": slot.cpus, "num_gpus": slot.gpus, "scheduling_strategy": strategy}
            placed = actor_class.options(name=f"worker {number}", max_restarts=-1, **reserved)
            self._actors[number] = _Actor(slot, placed.remote(versions(), str(Path.cwd()), _own_variables()))
            self._actors[number].start()

    def _specs_on_first(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        """The models of `setups`, as the first actor that runs finds them."""
        while True:
            while not any(actor.name for actor in self._actors.values()):
                for _, event in self.receive(1.0):
                    if isinstance(event, Left) and event.error is not None:
                        raise event.error
            number, actor = next((number, actor) for number, actor in self._actors.items() if actor.name)
            there = [_setup_on(actor.slot, setup) for setup in setups]
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
        setup = _setup_on(actor.slot, self._setup)
        expected = self._identities[self._setup]
        actor.call = actor.handle.serve.remote(self._loader_for(actor), actor.name, setup, self._plan_ref, expected)

    def _loader_for(self, actor: _Actor) -> _MakeLoader:
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

    def _check_node(self) -> None:
        """End the run when Ray's process on this node has ended: Ray ends this process too, some seconds later."""
        if not _node_is_alive():
            problem = "Ray's process on this machine (the raylet) has ended"
            self._events.append(
                (-1, Left(problem, WorkerError(problem, hint="start the cluster again, or give local")))
            )

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


def _node_is_alive() -> bool:
    """Whether the raylet that this process started still runs; True where another program started it."""
    worker: Any = getattr(_ray._private, "worker", None)
    node: Any = getattr(worker, "_global_node", None)
    started: list[Any] = [] if node is None else node.all_processes.get("raylet", [])
    return all(info.process.poll() is None for info in started)


def _reason(error: RayError) -> str:
    """Why a call failed, in one line."""
    if isinstance(error, ActorUnavailableError):
        return "its process or node ended, or cannot be reached"
    return re.sub(r"^[\w.]+Error: ", "", str(error).strip().rpartition("\n")[2].strip())


def _start_error(name: str, error: RayError) -> WorkerError:
    hint = "the driver and every node need the same rwkvbatch (one wheel), plug-ins, Python 3.x and Ray"
    return WorkerError(f"{name} cannot start: {_reason(error)}", hint=hint)


def _setup_on(slot: Slot, setup: Setup) -> Setup:
    """The setup as an actor sees it: Ray shows it one GPU, which is `cuda` whatever its number."""
    moved = setup.on_device(slot.device)
    device = None if moved.device is None else re.sub(r"cuda:\d+", "cuda", moved.device)
    return replace(moved, strategy=re.sub(r"cuda:\d+", "cuda", moved.strategy), device=device)
