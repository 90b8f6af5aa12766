"""A Ray cluster: connects to it, and decides what every worker of a run reserves on its nodes."""

from __future__ import annotations

import logging
import math
import os
import platform
import re
import signal
import socket
import threading
import uuid
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import ray

from rwkvbatch import __version__
from rwkvbatch.config import RunSettings
from rwkvbatch.errors import NoClusterError, UsageError, WorkerError
from rwkvbatch.replay.identity import code_sha256
from rwkvbatch.replay.models import Setup

CONNECT_S = 5.0
LOCAL_OBJECT_STORE_BYTES = 256 * 2**20
"""Object store of a cluster that `--ray local` starts: it holds the plan and events in transit."""

_START_HINT = "start a cluster with `ray start --head`, or give local"

_ray = cast("Any", ray)  # most of its functions have no types


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

    def setup(self, setup: Setup) -> Setup:
        """The setup as the slot's actor sees it: Ray shows it one GPU, which is `cuda` whatever its number."""
        moved = setup.on_device(self.device)
        device = None if moved.device is None else re.sub(r"cuda:\d+", "cuda", moved.device)
        return replace(moved, strategy=re.sub(r"cuda:\d+", "cuda", moved.strategy), device=device)


def cluster_nodes() -> list[Node]:
    """The machines of the cluster that this process is connected to."""
    alive = {node["NodeID"]: node["Resources"] for node in _ray.nodes() if node["Alive"]}
    return [Node(name, offered.get("CPU", 0.0), offered.get("GPU", 0.0)) for name, offered in alive.items()]


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


def raylet_is_alive() -> bool:
    """Whether the raylet that this process started still runs; True where another program started it."""
    worker: Any = getattr(_ray._private, "worker", None)
    node: Any = getattr(worker, "_global_node", None)
    started: list[Any] = [] if node is None else node.all_processes.get("raylet", [])
    return all(info.process.poll() is None for info in started)
