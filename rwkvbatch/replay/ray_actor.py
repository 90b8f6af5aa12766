"""A worker as an actor of a Ray cluster: what runs on the nodes, beside `ray_pool`, which runs in the driver."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import ray

from rwkvbatch.errors import RwkvBatchError, WorkerError
from rwkvbatch.replay.identity import cell_identities
from rwkvbatch.replay.models import ModelLoader, Setup
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import Event, Left, Order
from rwkvbatch.replay.ray_cluster import versions
from rwkvbatch.replay.worker import LogCollector, Worker, collecting_logs, serve
from rwkvbatch.setting_names import ENVIRONMENT_PREFIX
from rwkvbatch.signals import end_process

_ray = cast("Any", ray)  # most of its functions have no types
MakeLoader = Callable[[], ModelLoader]


def own_variables() -> dict[str, str]:
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
        for name in own_variables():
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
            end_process(1)
        gpus = _ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        return f"{socket.gethostname()}, {f'cuda:{gpus[0]}' if gpus else 'cpu'}"

    @_ray.method(concurrency_group="control")
    def send(self, order: Order) -> None:
        """Pass an order to the worker that `serve` runs."""
        self._orders.put(order)

    def specs(self, make_loader: MakeLoader, name: str, setups: Sequence[Setup]) -> dict[Setup, Any]:
        """The models of the setups."""
        with collecting_logs(self._logs), _locating_errors(name):
            return self._load(make_loader).specs(setups)

    def serve(
        self, make_loader: MakeLoader, name: str, setup: Setup, plan: Plan, expected: Mapping[str, Any]
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

    def _load(self, make_loader: MakeLoader) -> ModelLoader:
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
