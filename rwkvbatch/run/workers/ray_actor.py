"""The far end of a Ray worker: an actor that holds one `Worker` in a thread and speaks with the driver."""

from __future__ import annotations

import asyncio
import os
import platform
import queue
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rwkvbatch import __version__
from rwkvbatch.errors import RwkvBatchError, WorkerError
from rwkvbatch.run.directory.manifest import cell_identities, code_sha256
from rwkvbatch.run.planning.plan import Plan
from rwkvbatch.run.planning.settings import ENVIRONMENT_PREFIX, RunSettings
from rwkvbatch.run.planning.setups import Setup
from rwkvbatch.run.workers.messages import Event, Order
from rwkvbatch.run.workers.serve import NoteTaker, noted, serve
from rwkvbatch.run.workers.worker import Worker
from rwkvbatch.run.workshop import ModelShop


@dataclass(frozen=True)
class Terms:
    """What an actor needs besides the plan.

    Attributes:
        make_shop: makes the models' shop out of settings; picklable.
        threads: of this worker. name: for people.
        directory: the driver's, from which relative paths count. variables: this program's, where the driver is.
    """

    make_shop: Callable[[RunSettings], ModelShop]
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
        self._shop: ModelShop | None = None
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

    async def specs(
        self, plan: Plan, terms: Terms, setups: Sequence[Setup]
    ) -> dict[Setup, Any] | RwkvBatchError:
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

    def _shop_for(self, plan: Plan, terms: Terms) -> ModelShop:
        if self._shop is None:
            _be_where_the_driver_is(terms)
            self._shop = terms.make_shop(plan.settings.replace(threads=terms.threads))
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
