"""`RayWorker`, the actor of a `RayPool`: runs a worker on a node of a Ray cluster.

Ray constructs it again after each restart. The driver sends orders by `RayWorker.send` and reads events from the stream
of `RayWorker.serve`.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import ray

from rwkvbatch import __version__, signals
from rwkvbatch.config.names import ENVIRONMENT_PREFIX
from rwkvbatch.errors import WorkerError
from rwkvbatch.replay.continuing.identity import cell_identities, check_same, code_sha256
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.replay.pools.pool import Event, Order, WorkerExited
from rwkvbatch.replay.pools.worker_loop import LogCollector, collecting_logs, run_worker
from rwkvbatch.replay.worker.models import ModelLoader
from rwkvbatch.replay.worker.worker import Worker

_ray = cast("Any", ray)  # most of its functions have no types


def versions() -> dict[str, str]:
    """By name, the versions that must be equal on all nodes. Ray itself compares its own version and Python's."""
    return {"rwkvbatch": __version__, "rwkvbatch's code": code_sha256()[:12]}


def own_variables() -> dict[str, str]:
    """This program's environment variables."""
    return {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}


class RayWorker:
    """The actor. Ray constructs it again, from the same arguments, after each restart.

    All arguments but `refs` have builtin types, so that another version of this program can read them and refuse.

    Args:
        number: the worker's number.
        expected: the driver's `versions`.
        directory: the driver's working directory.
        variables: the driver's environment variables of this program.
        refs: references to the plan and to the function that makes the loader.

    Raises:
        WorkerError: this node has other versions.
    """

    def __init__(
        self, number: int, expected: Mapping[str, str], directory: str, variables: Mapping[str, str], refs: list[Any]
    ) -> None:
        found = versions()
        if different := [key for key, value in expected.items() if found.get(key) != value]:
            differences = ", ".join(f"{key} {found.get(key, 'unknown')}, not {expected[key]}" for key in different)
            raise WorkerError(f"node {socket.gethostname()} runs {differences}")
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
        self._has_served = False

    @_ray.method(concurrency_group="control", max_task_retries=-1)
    def place(self) -> str:
        """The worker's name. A process that has served ends itself instead; Ray restarts it and repeats the call."""
        if self._has_served:
            signals.end_process(1)
        return self._name

    @_ray.method(concurrency_group="control")
    def send(self, order: Order) -> None:
        """Pass an order to the worker that `run_worker` runs."""
        self._orders.put(order)

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        """The specs of the setups' models."""
        with collecting_logs(self._logs):
            return self._plan_and_loader[1].specs(setups)

    def serve(self, setup: Setup, expected: Mapping[str, Any]) -> Generator[Event]:
        """Load the setup's model and run a worker. Yields its events; the last one is `WorkerExited`.

        Args:
            expected: the identities that the setup's cells must have on this node.
        """
        plan, loader = self._plan_and_loader

        def make_worker() -> Worker:
            check_same(cell_identities(plan, loader.specs([setup]), loader.tokenizer), expected)
            return Worker(plan, loader, setup)

        self._has_served = True
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        channel = SimpleNamespace(recv=self._orders.get, send=events.put)
        threading.Thread(target=run_worker, args=(channel, make_worker, self._name, self._logs), daemon=True).start()
        event = None
        while not isinstance(event, WorkerExited):
            event = events.get()
            yield event

    @cached_property
    def _plan_and_loader(self) -> tuple[Plan, ModelLoader]:
        plan, make_loader = _ray.get(self._refs)
        cpus = _ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
        return plan, make_loader(plan.settings.replace(threads=plan.settings.threads or max(1, int(cpus))))
