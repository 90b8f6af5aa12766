"""Who of a run's workers goes where on a Ray cluster. Does not need Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rwkvbatch.errors import WorkerError
from rwkvbatch.run.planning.settings import RunSettings


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
