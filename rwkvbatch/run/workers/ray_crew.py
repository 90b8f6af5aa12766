"""Workers as actors of a Ray cluster. Ray carries the messages that pipes carry between processes.

Each actor is asked by one call after the other (`RayWorker.exchange`) that takes orders along and returns when there is
something to report. Ray restarts nothing and repeats no call: what died is replaced here, as worker processes are.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from rwkvbatch.errors import RwkvBatchError, WorkerError
from rwkvbatch.run.directory.manifest import cell_identities
from rwkvbatch.run.planning.plan import Plan
from rwkvbatch.run.planning.settings import ENVIRONMENT_PREFIX, RunSettings
from rwkvbatch.run.planning.setups import Setup, setups_of
from rwkvbatch.run.workers import ray_cluster
from rwkvbatch.run.workers.deaths import Deaths
from rwkvbatch.run.workers.hiring import processors
from rwkvbatch.run.workers.messages import ASKED_TO_LEAVE, Event, Joined, Left, Order, Signal
from rwkvbatch.run.workers.processes import replace_device
from rwkvbatch.run.workers.ray_actor import RayWorker, Terms, versions
from rwkvbatch.run.workers.ray_slots import Slot, make_slots
from rwkvbatch.run.workshop import ModelShop

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


class RayCrew:
    """Actors on a cluster, whose number and places `make_slots` decides.

    Args:
        plan: its settings' `ray` is the cluster's address.
        make_shop: makes the models' shop out of settings, on every node and here; picklable.
        placement_s: how long actors may wait for room when no other is at work.
    """

    def __init__(
        self,
        plan: Plan,
        make_shop: Callable[[RunSettings], ModelShop],
        *,
        placement_s: float = PLACEMENT_S,
    ) -> None:
        self._plan = plan
        self._make_shop = make_shop
        self._placement_s = placement_s
        self._connected = False
        self._ours = False
        self._plan_there: Any = None
        self._slots: list[Slot] = []
        self._deaths = Deaths(0)
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
        self._deaths = Deaths(len(self._slots))
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
                answer = ray_cluster.result_of(
                    hand.actor.specs.remote(self._plan_there, self._terms(hand), wanted)
                )
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
