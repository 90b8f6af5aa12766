"""What the driver needs of its workers, whatever they are; and the simplest crew, one worker in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rwkvbatch.run.planning.plan import Plan
from rwkvbatch.run.planning.setups import Setup
from rwkvbatch.run.workers.messages import ASKED_TO_LEAVE, Joined, Leave, Left, Order, Signal
from rwkvbatch.run.workers.worker import Worker
from rwkvbatch.run.workshop import ModelShop


class Crew(Protocol):
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


class LocalCrew:
    """One worker, in this process: a step of its engine is made whenever the driver listens.

    Args:
        shop: where the models come from.
    """

    def __init__(self, plan: Plan, shop: ModelShop) -> None:
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
