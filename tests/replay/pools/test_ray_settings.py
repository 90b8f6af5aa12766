"""Resources that workers reserve on a Ray cluster, and settings that are refused before one starts."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.config import RunSettings
from rwkvbatch.errors import MissingExtraError, NoClusterError, UsageError, WorkerError
from rwkvbatch.replay.pools.pool_kinds import check_ray, pool_for

pytest.importorskip("ray", reason="Ray is not installed")

from rwkvbatch.replay.pools import ray_pool
from rwkvbatch.replay.pools.pool import Leave
from rwkvbatch.replay.pools.ray_actor import RayWorker, versions
from rwkvbatch.replay.pools.ray_pool import RayPool, _Actor, connect, reservations
from tests.replay.fakes import FakeLoader, make_plan

SMALL, BIG = {"5" * 56: {"CPU": 4.0}}, {"b" * 56: {"CPU": 8.0, "memory": 1e9}}
GPUS = {"1" * 56: {"CPU": 16.0, "GPU": 2.0}, "2" * 56: {"CPU": 16.0, "GPU": 2.0}}


def reserved(nodes: dict[str, dict[str, float]], **settings: Any) -> list[tuple[float, float]]:
    """CPUs and GPUs of each worker."""
    options_of_workers = reservations(nodes, RunSettings(**settings), [settings.get("strategy", "auto")])
    return [(options["num_cpus"], options["num_gpus"]) for options in options_of_workers]


def test_without_gpus_every_node_gets_one_worker_with_all_its_processors() -> None:
    found = reservations(SMALL | BIG, RunSettings(), ["auto"])
    placed = {options["scheduling_strategy"].node_id: options["num_cpus"] for options in found}
    assert placed == {"5" * 56: 4, "b" * 56: 8}


def test_workers_are_spread_by_ray_when_their_number_is_set() -> None:
    found = reservations(SMALL | BIG, RunSettings(workers=2), ["auto"])
    assert [options["scheduling_strategy"] for options in found] == ["SPREAD"] * 2


@pytest.mark.parametrize(("count", "cpus"), [(1, 8), (2, 4), (3, 4), (4, 2), (12, 1)])
def test_workers_reserve_the_largest_share_with_which_all_fit(count: int, cpus: int) -> None:
    assert reserved(SMALL | BIG, workers=count) == [(cpus, 0)] * count


def test_more_workers_than_processors_share_them() -> None:
    assert reserved({"3" * 56: {"CPU": 2.0}}, workers=3) == [(0.6666, 0)] * 3


def test_threads_limit_what_is_reserved() -> None:
    assert reserved(BIG, workers=2, threads=1) == [(1, 0)] * 2
    assert reserved(GPUS, threads=1) == [(1, 1)] * 4


def test_every_gpu_gets_a_worker_with_its_share_of_the_processors() -> None:
    assert reserved(GPUS) == [(8, 1)] * 4
    assert reserved(GPUS | {"3" * 56: {"CPU": 4.0, "GPU": 1.0}} | BIG) == [(4, 1)] * 5


@pytest.mark.parametrize(("count", "gpus"), [(4, 1), (5, 0.5), (6, 0.5), (8, 0.5), (9, 0.3333)])
def test_more_workers_than_gpus_share_them(count: int, gpus: float) -> None:
    assert [found for _, found in reserved(GPUS, workers=count)] == [gpus] * count


def test_devices_give_the_number_of_workers() -> None:
    assert reserved(GPUS, devices=("cuda:0", "cuda:1", "cuda:2")) == [(8, 1)] * 3


@pytest.mark.parametrize("settings", [{"strategy": "cpu"}, {"devices": ("cpu", "cpu")}])
def test_runs_on_cpus_reserve_no_gpu(settings: dict[str, Any]) -> None:
    assert reserved(GPUS, **settings) == [(16, 0)] * 2


def test_a_head_node_without_processors_gets_no_worker() -> None:
    assert reserved({"0" * 56: {}} | SMALL) == [(4, 0)]


@pytest.mark.parametrize("settings", [{"strategy": "cuda fp16"}, {"devices": ("cuda",)}])
def test_missing_gpus_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(WorkerError, match="the cluster has none"):
        reserved(BIG, **settings)


@pytest.mark.parametrize("auto", [False, True])
def test_an_address_where_nothing_listens_is_refused(auto: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        option = "auto" if auto else address
        with pytest.raises(NoClusterError, match=f"--ray {option}: nothing listens there"):
            connect(option, 1)


def test_the_ray_client_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"Ray Client.*proxy"):
        pool_for(RunSettings(ray="ray://head:10001"))
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UsageError, match="Ray Client"):
        check_ray("auto", ())


def test_devices_of_two_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match="must be of one kind"):
        pool_for(RunSettings(ray="auto", devices=("cpu", "cuda")))


def test_without_ray_the_hint_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    original_find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else original_find_spec(name, *rest)
    )
    with pytest.raises(MissingExtraError) as error:
        pool_for(RunSettings(ray="auto"))
    assert "pip install 'rwkvbatch[ray]'" in str(error.value.hint)


def test_a_cluster_without_processors_is_refused() -> None:
    with pytest.raises(WorkerError, match="the cluster offers no processors"):
        reserved({"5" * 56: {"memory": 1e9}})


def test_a_node_with_another_version_is_refused_before_it_changes_its_directory(tmp_path: Path) -> None:
    before = Path.cwd()
    expected = {**versions(), "rwkvbatch": "9.9", "python": "2.7"}
    with pytest.raises(WorkerError, match=r"runs .*rwkvbatch .+, not 9\.9") as caught:
        RayWorker(0, expected, str(tmp_path), {}, [])
    assert "python" in str(caught.value)
    assert Path.cwd() == before


def test_orders_to_an_unknown_actor_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(ray_pool._ray, "kill", lambda handle, no_restart: killed.append((handle, no_restart)))
    pool = RayPool(make_plan(1), lambda _: FakeLoader())
    pool.send(3, Leave())
    pool.kill(3)
    assert killed == []
    assert list(pool.receive(0.0)) == []
    pool._actors[3] = _Actor(3, "handle", "1 processor")
    pool.send(3, Leave())  # ignored: the actor does not serve yet
    pool.kill(3)
    assert killed == [("handle", False)]
