"""A Ray cluster: connecting to it, and the few things that are done with it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import uuid
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rwkvbatch.errors import UsageError, WorkerError
from rwkvbatch.run.workers.messages import Left
from rwkvbatch.run.workers.ray_slots import Node, Slot

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
        WorkerError(
            f"a worker cannot be started: {cause}", hint="install rwkvbatch on every node of the cluster"
        ),
    )


def _flat(text: object) -> str:
    return " ".join(str(text).split())
