"""Workers as actors of a Ray cluster. Ray carries the messages that pipes carry between processes.

Each actor is asked by one call after the other (`RayWorker.exchange`) that takes orders along and returns when there is
something to report. Ray restarts nothing and repeats no call: what died is replaced here, as worker processes are.
"""

from __future__ import annotations

import asyncio
import logging
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
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rwkvbatch import __version__
from rwkvbatch.errors import RwkvBatchError, UsageError, WorkerError
from rwkvbatch.replay import ray_pool as ray_cluster
from rwkvbatch.replay.identity import cell_identities, code_sha256
from rwkvbatch.replay.messages import ASKED_TO_LEAVE, Event, Joined, Left, Order, Signal
from rwkvbatch.replay.models import ModelProvider, Setup, setups_of
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import RestartLimit, processors
from rwkvbatch.replay.process_worker import NoteTaker, noted, serve
from rwkvbatch.replay.processes import replace_device
from rwkvbatch.replay.settings import ENVIRONMENT_PREFIX, RunSettings
from rwkvbatch.replay.worker import Worker


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, and what it offers."""

    id: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Slot:
    """A worker's place.

    Attributes:
        node: where it should go; another node serves when that one is lost.
        cpus, gpus: what it reserves; a part of one where workers share it.
        threads: of its kernels.
        device: that its strategies are moved to; None leaves them as they are.
    """

    node: str
    cpus: float
    gpus: float
    threads: int
    device: str | None = None


def make_slots(nodes: Sequence[Node], settings: RunSettings, strategies: Sequence[str]) -> list[Slot]:
    """Places for a run's workers: as many as were asked for; else one a GPU; else one a node.

    Args:
        strategies: of the run's models.

    Raises:
        WorkerError: GPUs are asked for, and the cluster has none; or it has no processors.
    """
    kind = settings.devices[0].partition(":")[0] if settings.devices else None
    num_gpus = int(sum(node.gpus for node in nodes))
    on_cpu = kind == "cpu" or (kind is None and all(text.startswith("cpu") for text in strategies))
    must = kind == "cuda" or any("cuda" in text for text in strategies)
    if must and not on_cpu and not num_gpus:
        raise WorkerError("GPUs are asked for, and the cluster has none", hint="give --strategy cpu")
    on_gpu = num_gpus > 0 and not on_cpu
    amounts = [node.gpus if on_gpu else node.cpus for node in nodes]
    wanted = settings.workers or len(settings.devices)
    counts = _spread(wanted or (num_gpus if on_gpu else sum(amount > 0 for amount in amounts)), amounts)
    slots: list[Slot] = []
    for node, count in zip(nodes, counts, strict=True):
        cpus = _share(node.cpus, count)
        threads = settings.threads or max(1, int(cpus))
        if on_gpu:
            slot = Slot(node.id, min(1.0, cpus), min(1.0, _share(node.gpus, count)), threads, kind)
        else:
            slot = Slot(node.id, min(float(threads), cpus), 0.0, threads, kind)
        slots += [slot] * count
    return slots


def _spread(count: int, amounts: Sequence[float]) -> list[int]:
    """`count` things dealt out one by one, each to where there is most for it."""
    if not any(amounts):
        raise WorkerError("the cluster offers no processors")
    counts = [0] * len(amounts)
    for _ in range(count):
        best = max(range(len(amounts)), key=lambda number: amounts[number] / (counts[number] + 1))
        counts[best] += 1
    return counts


def _share(amount: float, count: int) -> float:
    """An even share. Ray gives whole things, or parts of one in steps of a ten-thousandth."""
    if count == 0:
        return 0.0
    share = amount / count
    return float(int(share)) if share >= 1 else int(share * 10_000) / 10_000


_ray = cast("Any", ray)  # its types are unknown in many places

CONNECT_S = 5.0
LOCAL_OBJECT_STORE_BYTES = 256 * 2**20
"""Of a cluster that we start: it holds the plan, and reports on their way."""


def connect(address: str, num_cpus: int) -> bool:
    """Connect this process to a cluster.

    Args:
        address: of the cluster; `local` starts one on this machine, with `num_cpus` processors.

    Returns:
        False when the process was connected before; that connection is not ours to close.

    Raises:
        UsageError: the process is connected to some other cluster.
        WorkerError: there is no such cluster, or it runs other versions of Ray or Python.
    """
    if _ray.is_initialized():
        if address != "auto":
            raise UsageError(
                f"--ray {address}: this process is connected to a Ray cluster already",
                hint="give auto to use it, or call ray.shutdown() first",
            )
        return False
    reach(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
    options: dict[str, Any] = {"namespace": f"rwkvbatch-{uuid.uuid4().hex[:8]}"}
    if address == "local":
        options |= {
            "num_cpus": num_cpus,
            "include_dashboard": False,
            "object_store_memory": LOCAL_OBJECT_STORE_BYTES,
        }
    try:
        with _quiet_ray():
            _ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (OSError, RuntimeError, ValueError) as error:
        _ray.shutdown()
        raise WorkerError(
            f"--ray {address}: {_flat(error)}",
            hint="start a cluster with `ray start --head`, or give local",
        ) from None
    return True


def reach(address: str) -> None:
    """Refuse an address at which nobody listens; Ray itself would try for minutes before it says so.

    Raises:
        WorkerError: nobody answers at HOST:PORT. Other forms of addresses are left to Ray.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise WorkerError(
            f"--ray {address}: nobody listens there: {error}",
            hint="start a cluster with `ray start --head`, or give local",
        ) from None


@contextmanager
def _quiet_ray() -> Generator[None]:
    """Ray neither warns nor reports its use to its makers inside, and leaves the handling of signals as it was."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    name = "RAY_USAGE_STATS_ENABLED"
    usage = os.environ.get(name)
    os.environ[name] = "0"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.pop(name)
        if usage is not None:
            os.environ[name] = usage
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def nodes() -> list[Node]:
    """The machines that are there now."""
    return [
        Node(node["NodeID"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in _ray.nodes()
        if node["Alive"]
    ]


def start_actor(kind: type, name: str, slot: Slot) -> Any:
    """An actor of class `kind`, which Ray starts when there is room; it never repeats anything by itself."""
    return (
        _ray.remote(kind)
        .options(
            name=name,
            num_cpus=slot.cpus,
            num_gpus=slot.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(slot.node, soft=True),
        )
        .remote()
    )


def kill_actor(actor: Any) -> None:
    """End an actor, wherever it is; or take back that one was wanted."""
    _ray.kill(actor)


def wait_for(calls: Sequence[Any], timeout_s: float) -> list[Any]:
    """Those of `calls` that have ended, as soon as there are any."""
    _ray.wait(list(calls), num_returns=1, timeout=timeout_s)
    return _ray.wait(list(calls), num_returns=len(calls), timeout=0)[0]


def result_of(call: Any) -> Any:
    """What a call returned; waits for it.

    Raises:
        RayError: the actor is gone, or the call raised something.
    """
    return _ray.get(call)


def put(value: Any) -> Any:
    """A value that actors are to have, as an argument for their calls. It travels once to each node."""
    return _ray.put(value)


def disconnect() -> None:
    """Leave the cluster; one that `connect` started ends."""
    _ray.shutdown()


def farewell(error: RayError, *, started: bool) -> Left:
    """How an actor ended, in a line.

    Args:
        started: the actor had answered before. One that cannot even start will not do better elsewhere.
    """
    if isinstance(error, ActorUnavailableError):
        return Left("its process ended, or cannot be reached")
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]  # those are ids
    reason = _flat("\n".join(lines).removeprefix(ActorDiedError.BASE_ERROR_MSG)).partition(". ")[0][:300]
    if started or "creation task" not in str(error):
        return Left(reason)
    cause = _flat(lines[-1])
    return Left(
        reason,
        WorkerError(f"a worker cannot be started: {cause}", hint="install rwkvbatch on every node of the cluster"),
    )


def _flat(text: object) -> str:
    return " ".join(str(text).split())


@dataclass(frozen=True)
class Terms:
    """What an actor needs besides the plan.

    Attributes:
        make_loader: makes the models' shop out of settings; picklable.
        threads: of this worker. name: for people.
        directory: the driver's, from which relative paths count. variables: this program's, where the driver is.
    """

    make_loader: Callable[[RunSettings], ModelProvider]
    threads: int
    name: str
    directory: str
    variables: Mapping[str, str]


def versions() -> dict[str, str]:
    """What must be the same on every node, by name."""
    return {
        "rwkvbatch": __version__,
        "rwkvbatch's code": code_sha256()[:12],
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "Ray": metadata.version("ray"),
    }


class RayWorker:
    """Runs as an actor. Everything here happens in the actor's event loop, but the worker, which has a thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "worker")
        self._shop: ModelProvider | None = None
        self._notes = NoteTaker()
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._events: list[Event] = []
        self._changed = asyncio.Event()
        self._turn = 0
        self._newest = 0

    async def about(self) -> dict[str, Any]:
        """Versions, and where this is. Plain values only, which any version of this program can read."""
        import ray

        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        device = f"cuda:{gpus[0]}" if gpus else "cpu"
        return {
            "versions": versions(),
            "node": socket.gethostname(),
            "device": device,
            "process": os.getpid(),
        }

    async def specs(self, plan: Plan, terms: Terms, setups: Sequence[Setup]) -> dict[Setup, Any] | RwkvBatchError:
        """What every setup's model is, or why it cannot be loaded."""

        def load() -> dict[Setup, Any] | RwkvBatchError:
            try:
                with noted(self._notes):
                    return self._shop_for(plan, terms).specs(setups)
            except RwkvBatchError as error:
                return _placed(error, terms.name)

        return await asyncio.get_running_loop().run_in_executor(self._thread, load)

    async def serve(self, plan: Plan, terms: Terms, setup: Setup, expected: Mapping[str, Any]) -> None:
        """Load the setup's model and begin to serve; what is said comes out of `exchange`.

        Args:
            expected: the identity of the setup's cells, by name; another one here ends the service.
        """
        loop = asyncio.get_running_loop()

        def make_worker() -> Worker:
            try:
                shop = self._shop_for(plan, terms)
                specs = shop.specs([setup])
                _refuse_differences(cell_identities(plan, specs, shop.tokenizer), expected)
                return Worker(plan, shop, setup)
            except RwkvBatchError as error:
                raise _placed(error, terms.name) from None

        channel = _Channel(self._orders, lambda event: loop.call_soon_threadsafe(self._tell, event))
        self._thread.submit(serve, channel, make_worker, terms.name, plan.settings.batch_size, self._notes)

    async def exchange(self, number: int, orders: Sequence[Order], timeout_s: float) -> list[Event]:
        """Take orders, and wait until there is something to say, the next call has come, or the time is over.

        Ray begins the calls of such an actor in any order; they take effect, and return, by `number`: 0, 1, ...
        """
        self._newest = max(self._newest, number)
        self._changed.set()
        await self._until(lambda: self._turn == number, None)
        for order in orders:
            self._orders.put(order)
        await self._until(lambda: bool(self._events) or self._newest > number, timeout_s)
        events, self._events = self._events, []
        self._turn += 1
        self._changed.set()
        return events

    async def _until(self, holds: Callable[[], bool], timeout_s: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._changed.set()

    def _shop_for(self, plan: Plan, terms: Terms) -> ModelProvider:
        if self._shop is None:
            _be_where_the_driver_is(terms)
            self._shop = terms.make_loader(plan.settings.replace(threads=terms.threads))
        return self._shop


@dataclass(frozen=True)
class _Channel:
    """The worker thread's end."""

    orders: queue.SimpleQueue[Order]
    send: Callable[[Event], Any]

    def recv(self) -> Order:
        return self.orders.get()


def _be_where_the_driver_is(terms: Terms) -> None:
    """What the command named by a relative path, or by a variable, is looked for as if it ran here."""
    if Path(terms.directory).is_dir():
        os.chdir(terms.directory)
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        del os.environ[name]
    os.environ.update(terms.variables)


def _refuse_differences(here: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Rows made with other weights, or on another kind of device, are rows of another run."""
    for cell, values in expected.items():
        for key, value in values.items():
            if here[cell][key] != value:
                raise WorkerError(
                    f"{key} of cell {cell} is {here[cell][key]} here, but {value} elsewhere",
                    hint="the same files must be in the same places on every node, and all devices of one kind",
                )


def _placed(error: RwkvBatchError, place: str) -> RwkvBatchError:
    """The error, saying where it happened."""
    error.message = f"{place}: {error.message}"
    error.args = (error.message,)
    return error


POLL_S = 10.0
"""How long a call waits at an actor that has nothing to say."""
PLACEMENT_S = 60.0
"""How long an actor may wait for room on the cluster before something is said about it."""

_log = logging.getLogger(__name__)


@dataclass
class _Hand:
    """A worker: its place, actor and outstanding calls, the oldest first.

    Attributes:
        since_s: when the actor was asked for. overdue: it was said that there is no room for it.
        name: for people, once the actor is somewhere; empty before.
        num_exchanges: calls of `exchange` so far. orders: for the next one.
        serving: it was told to serve.
    """

    slot: Slot
    actor: Any
    calls: deque[Any]
    since_s: float
    overdue: bool = False
    name: str = ""
    serving: bool = False
    num_exchanges: int = 0
    orders: list[Order] = field(default_factory=list[Order])
    joined: Joined | None = None

    def exchange(self) -> None:
        self.calls.append(self.actor.exchange.remote(self.num_exchanges, tuple(self.orders), POLL_S))
        self.num_exchanges += 1
        self.orders.clear()


class RayPool:
    """Actors on a cluster, whose number and places `make_slots` decides.

    Args:
        plan: its settings' `ray` is the cluster's address.
        make_loader: makes the models' shop out of settings, on every node and here; picklable.
        placement_s: how long actors may wait for room when no other is at work.
    """

    def __init__(
        self,
        plan: Plan,
        make_loader: Callable[[RunSettings], ModelProvider],
        *,
        placement_s: float = PLACEMENT_S,
    ) -> None:
        self._plan = plan
        self._make_shop = make_loader
        self._placement_s = placement_s
        self._connected = False
        self._ours = False
        self._plan_there: Any = None
        self._slots: list[Slot] = []
        self._deaths = RestartLimit(0)
        self._hands: dict[int, _Hand] = {}
        self._next_number = 0
        self._signals: list[Signal] = []
        self._setup: Setup | None = None
        self._identities: dict[Setup, Mapping[str, Any]] = {}

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        self._open()
        specs = self._specs_there(setups)
        tokenizer_of = self._make_shop(self._plan.settings).tokenizer
        for setup, spec in specs.items():
            self._identities[setup] = cell_identities(self._plan, {setup: spec}, tokenizer_of)
        return specs

    @property
    def num_coming(self) -> int:
        return sum(hand.serving and hand.joined is None for hand in self._hands.values())

    def begin(self, setup: Setup) -> None:
        if setup not in self._identities:
            self.specs([setup])
        if self._setup is not None and self._setup != setup:
            self._dismiss()
        self._setup = setup
        if not self._hands:
            self._hire_all()
        for number, hand in self._hands.items():
            if hand.joined is not None:
                self._signals.append((number, hand.joined))
            elif hand.name and not hand.serving:
                self._serve(hand)

    def send(self, worker: int, order: Order) -> None:
        if worker in self._hands:
            self._hands[worker].orders.append(order)

    def receive(self, timeout_s: float) -> Sequence[Signal]:
        for hand in self._hands.values():
            if hand.orders:
                hand.exchange()
        self._listen(0.0 if self._signals else timeout_s)
        self._look_for_room()
        signals, self._signals = self._signals, []
        return signals

    def close(self) -> None:
        self._dismiss()
        self._plan_there = None
        if self._ours:
            ray_cluster.disconnect()
        self._connected = self._ours = False

    def _open(self) -> None:
        if self._connected:
            return
        settings = self._plan.settings
        self._ours = ray_cluster.connect(settings.ray or "auto", processors())
        self._connected = True
        strategies = [setup.strategy for setup in setups_of(self._plan)]
        self._slots = make_slots(ray_cluster.nodes(), settings, strategies)
        self._deaths = RestartLimit(len(self._slots))
        self._plan_there = ray_cluster.put(self._plan)
        self._hire_all()

    def _specs_there(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        """What the models are, as the first worker that is somewhere finds them."""
        while True:
            while not any(hand.name for hand in self._hands.values()):
                self._raise_errors(self.receive(1.0))
            number, hand = next((n, h) for n, h in self._hands.items() if h.name)
            wanted = [_setup_on(hand.slot, setup) for setup in setups]
            try:
                answer = ray_cluster.result_of(hand.actor.specs.remote(self._plan_there, self._terms(hand), wanted))
            except RayError as error:
                self._bury(number, ray_cluster.farewell(error, started=bool(hand.name)))
                continue
            if isinstance(answer, RwkvBatchError):
                raise answer
            return {setup: answer[there] for setup, there in zip(setups, wanted, strict=True)}

    @staticmethod
    def _raise_errors(signals: Sequence[Signal]) -> None:
        for _, event in signals:
            if isinstance(event, Left) and event.error is not None:
                raise event.error

    def _hire_all(self) -> None:
        for slot in self._slots:
            self._hire(slot)

    def _hire(self, slot: Slot) -> None:
        actor = ray_cluster.start_actor(RayWorker, f"worker {self._next_number}", slot)
        hand = _Hand(slot, actor, deque([actor.about.remote()]), time.monotonic())
        self._hands[self._next_number] = hand
        self._next_number += 1

    def _listen(self, timeout_s: float) -> None:
        numbers = {hand.calls[0]: number for number, hand in self._hands.items() if hand.calls}
        if not numbers:
            time.sleep(timeout_s)
            return
        for call in ray_cluster.wait_for(list(numbers), timeout_s):
            number = numbers[call]
            hand = self._hands[number]
            hand.calls.popleft()
            try:
                self._hear(number, hand, ray_cluster.result_of(call))
            except RayError as error:
                self._bury(number, ray_cluster.farewell(error, started=bool(hand.name)))
            if hand.serving and not hand.calls:
                hand.exchange()

    def _hear(self, number: int, hand: _Hand, answer: dict[str, Any] | Sequence[Event] | None) -> None:
        match answer:
            case None:
                return
            case dict():
                self._meet(number, hand, answer)
            case _:
                for event in answer:
                    self._deaths.heard(event)
                    if isinstance(event, Left):
                        self._bury(number, event)
                        return
                    if isinstance(event, Joined):
                        hand.joined = event
                    self._signals.append((number, event))

    def _meet(self, number: int, hand: _Hand, about: Mapping[str, Any]) -> None:
        there = about["versions"]
        different = [
            f"{name} {there.get(name, 'unknown')}, not {version}"
            for name, version in versions().items()
            if there.get(name) != version
        ]
        if different:
            error = WorkerError(
                f"node {about['node']} runs {', '.join(different)}",
                hint="the driver and every node need the same rwkvbatch (one wheel), Python 3.x and Ray",
            )
            self._bury(number, Left(str(error), error))
            return
        hand.name = f"worker {number} on {about['node']}, {about['device']}"
        if self._setup is not None:
            self._serve(hand)

    def _serve(self, hand: _Hand) -> None:
        assert self._setup is not None
        setup = _setup_on(hand.slot, self._setup)
        hand.serving = True
        identity = self._identities[self._setup]
        hand.calls.append(hand.actor.serve.remote(self._plan_there, self._terms(hand), setup, identity))
        hand.exchange()

    def _terms(self, hand: _Hand) -> Terms:
        variables = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}
        return Terms(self._make_shop, hand.slot.threads, hand.name, str(Path.cwd()), variables)

    def _look_for_room(self) -> None:
        """Go on without the actors that the cluster has no room for; they may still come. None at all is an error."""
        limit = time.monotonic() - self._placement_s
        waiting = [(n, hand) for n, hand in self._hands.items() if not hand.name and hand.since_s < limit]
        nobody = all(not hand.name for hand in self._hands.values())
        for number, hand in waiting:
            wanted = f"{hand.slot.gpus:g} GPUs and {hand.slot.cpus:g} processors"
            if nobody:
                error = WorkerError(
                    f"the cluster had no room for a worker with {wanted} within {self._placement_s:g} s",
                    hint="`ray status` shows what is taken; ask for less with --workers and --threads",
                )
                self._signals.append((number, Left(str(error), error)))
                return
            if not hand.overdue:
                hand.overdue = True
                _log.warning("the cluster has no room for worker %d with %s; going on", number, wanted)

    def _bury(self, number: int, left: Left) -> None:
        hand = self._hands.pop(number)
        _kill(hand)
        left = self._deaths.judge(left)
        self._signals.append((number, left))
        if left.error is None and left.reason != ASKED_TO_LEAVE:
            self._hire(hand.slot)

    def _dismiss(self) -> None:
        for hand in self._hands.values():
            _kill(hand)
        self._hands.clear()
        self._signals.clear()
        self._setup = None


def _kill(hand: _Hand) -> None:
    hand.serving = False
    hand.calls.clear()
    ray_cluster.kill_actor(hand.actor)


def _setup_on(slot: Slot, setup: Setup) -> Setup:
    """The setup as an actor sees it: Ray shows it one GPU, which is `cuda` whatever its number."""
    moved = replace_device(setup, slot.device)
    return replace(moved, strategy=re.sub(r"cuda:\d+", "cuda", moved.strategy))
