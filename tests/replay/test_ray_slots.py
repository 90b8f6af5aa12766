"""Who goes where on a cluster, and what is refused before there is one."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from rwkvbatch.config import RunSettings
from rwkvbatch.errors import MissingExtraError, UsageError, WorkerError
from rwkvbatch.replay.pool import check_ray, pool_for
from rwkvbatch.replay.ray_pool import Node, Slot, make_slots

SMALL, BIG = Node("small", 4, 0), Node("big", 8, 0)
GPUS = [Node("a", 16, 2), Node("b", 16, 2)]


def slots(nodes: list[Node], **settings: Any) -> list[Slot]:
    return make_slots(nodes, RunSettings(**settings), [settings.get("strategy", "auto")])


def test_without_gpus_every_node_gets_one_worker_with_all_its_processors() -> None:
    assert slots([SMALL, BIG]) == [Slot("small", 4, 0, 4), Slot("big", 8, 0, 8)]


def test_workers_go_where_there_are_most_processors_for_each() -> None:
    found = slots([SMALL, BIG], workers=3)
    assert [(slot.node, slot.threads) for slot in found] == [("small", 4), ("big", 4), ("big", 4)]


def test_more_workers_than_processors_share_them() -> None:
    assert slots([Node("n", 2, 0)], workers=3) == [Slot("n", 0.6666, 0, 1)] * 3


def test_threads_limit_what_is_reserved() -> None:
    assert slots([BIG], workers=2, threads=1) == [Slot("big", 1, 0, 1)] * 2


def test_every_gpu_gets_a_worker() -> None:
    assert slots(GPUS) == [Slot(node, 1, 1, 8) for node in "aabb"]


def test_more_workers_than_gpus_share_them() -> None:
    assert [slot.gpus for slot in slots(GPUS, workers=6)] == [0.6666] * 3 + [0.6666] * 3


def test_devices_give_the_number_of_workers_and_their_kind() -> None:
    found = slots(GPUS, devices=("cuda:0", "cuda:1", "cuda:2"))
    assert [(slot.node, slot.gpus, slot.device) for slot in found] == [
        ("a", 1, "cuda"),
        ("a", 1, "cuda"),
        ("b", 1, "cuda"),
    ]


@pytest.mark.parametrize("settings", [{"strategy": "cpu"}, {"devices": ("cpu", "cpu")}])
def test_gpus_are_left_alone_by_runs_on_cpus(settings: dict[str, Any]) -> None:
    found = slots(GPUS, **settings)
    assert [(slot.node, slot.cpus, slot.gpus) for slot in found] == [("a", 16, 0), ("b", 16, 0)]


def test_a_head_without_processors_gets_no_worker() -> None:
    assert [slot.node for slot in slots([Node("head", 0, 0), SMALL])] == ["small"]


@pytest.mark.parametrize("settings", [{"strategy": "cuda fp16"}, {"devices": ("cuda",)}])
def test_gpus_that_are_not_there_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(WorkerError, match="the cluster has none"):
        slots([BIG], **settings)


def test_the_ray_client_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="Ray Client do not serve, because it sends every call through a proxy"):
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
