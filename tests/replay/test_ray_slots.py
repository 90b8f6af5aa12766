"""What workers reserve on a cluster, and settings that are refused before one is started."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from rwkvbatch.config import RunSettings
from rwkvbatch.errors import MissingExtraError, UsageError, WorkerError
from rwkvbatch.replay.pool import check_ray, pool_for
from rwkvbatch.replay.ray_cluster import Node, Slot, make_slots

SMALL, BIG = Node("small", 4, 0), Node("big", 8, 0)
GPUS = [Node("a", 16, 2), Node("b", 16, 2)]


def slots(nodes: list[Node], **settings: Any) -> list[Slot]:
    return make_slots(nodes, RunSettings(**settings), [settings.get("strategy", "auto")])


def test_without_gpus_every_node_gets_one_worker_with_all_its_processors() -> None:
    assert slots([SMALL, BIG]) == [Slot(4, 0, 4, node="small"), Slot(8, 0, 8, node="big")]


@pytest.mark.parametrize(("count", "cpus"), [(1, 8), (2, 4), (3, 4), (4, 2), (12, 1)])
def test_workers_reserve_the_largest_share_of_which_all_fit(count: int, cpus: int) -> None:
    assert slots([SMALL, BIG], workers=count) == [Slot(cpus, 0, cpus)] * count


def test_more_workers_than_processors_share_them() -> None:
    assert slots([Node("n", 2, 0)], workers=3) == [Slot(0.6666, 0, 1)] * 3


def test_threads_limit_what_is_reserved() -> None:
    assert slots([BIG], workers=2, threads=1) == [Slot(1, 0, 1)] * 2


def test_every_gpu_gets_a_worker() -> None:
    assert slots(GPUS) == [Slot(1, 1, 8)] * 4


@pytest.mark.parametrize(("count", "gpus"), [(4, 1), (5, 0.5), (6, 0.5), (8, 0.5), (9, 0.3333)])
def test_more_workers_than_gpus_share_them(count: int, gpus: float) -> None:
    assert [slot.gpus for slot in slots(GPUS, workers=count)] == [gpus] * count


def test_devices_give_the_number_of_workers_and_their_kind() -> None:
    found = slots(GPUS, devices=("cuda:0", "cuda:1", "cuda:2"))
    assert [(slot.gpus, slot.device) for slot in found] == [(1, "cuda")] * 3


@pytest.mark.parametrize("settings", [{"strategy": "cpu"}, {"devices": ("cpu", "cpu")}])
def test_gpus_are_left_alone_by_runs_on_cpus(settings: dict[str, Any]) -> None:
    found = slots(GPUS, **settings)
    assert [(slot.cpus, slot.gpus) for slot in found] == [(16, 0)] * 2


def test_a_head_node_without_processors_gets_no_worker() -> None:
    assert [slot.node for slot in slots([Node("head", 0, 0), SMALL])] == ["small"]


@pytest.mark.parametrize("settings", [{"strategy": "cuda fp16"}, {"devices": ("cuda",)}])
def test_gpus_that_are_not_there_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(WorkerError, match="the cluster has none"):
        slots([BIG], **settings)


def test_the_ray_client_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"Ray Client.*proxy"):
        pool_for(RunSettings(ray="ray://head:10001"))
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UsageError, match="Ray Client"):
        check_ray("auto", ())


def test_devices_of_two_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match="must be of one kind"):
        pool_for(RunSettings(ray="auto", devices=("cpu", "cuda")))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else found(name, *rest))
    with pytest.raises(MissingExtraError) as error:
        pool_for(RunSettings(ray="auto"))
    assert "pip install 'rwkvbatch[ray]'" in str(error.value.hint)
