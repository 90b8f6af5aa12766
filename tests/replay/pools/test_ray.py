"""Runs on a Ray cluster of two nodes on this machine: the rows of one process, whatever fails."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rwkvbatch.errors import CheckpointError, UsageError, WorkerError
from rwkvbatch.replay.planning.grid import make_cells
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import setups_of
from rwkvbatch.replay.pools.pool import WorkerReady
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from tests.replay.crash_harness.processes import wait_until
from tests.replay.fakes import Delayed, FakeLoader, KillsProcess, make_conversation, make_plan
from tests.replay.pools.ray_fakes import (
    CpuHolder,
    FailsOnce,
    NotOnTheNode,
    OtherWeights,
    WaitForProcesses,
    environment_recorder,
    fake_loader,
    no_model,
    warning_loader,
)
from tests.replay.runs import StopAfter, results, results_of, run

ray = pytest.importorskip("ray", reason="Ray is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")

ray_pool = pytest.importorskip("rwkvbatch.replay.pools.ray_pool")

ROOT = Path(__file__).parents[3]

PATIENT = {
    "health_check_timeout_ms": 120_000,  # nodes on a busy machine answer late
    "health_check_period_ms": 500,  # a killed node is found at once: it refuses connections
    "worker_register_timeout_seconds": 300,
    "memory_monitor_refresh_ms": 0,  # no worker is killed for the memory of other programs
}
"""Ray's settings, with which only the processes that a test kills end."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of two processors; this process is connected to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RWKVBATCH_OF_THE_NODE", "1")
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, "_system_config": PATIENT}
        )
        cluster.add_node(num_cpus=2)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow actors of a busy machine more than a minute to start."""
    monkeypatch.setattr(ray_pool, "PLACEMENT_S", 240.0)


def run_on_cluster(
    out: Path | None, plan: Plan, change: Any = None, *, make_loader: Any = None, **options: Any
) -> RunResult:
    pool = partial(ray_pool.RayPool, make_loader=make_loader or partial(fake_loader, change=change))
    return execute(plan, FakeLoader(), RunOptions(out=out, pool=pool, **options))


def ray_plan(num_conversations: int = 12, **settings: Any) -> Plan:
    return make_plan(num_conversations, ray="auto", **settings)


class RowWatcher:
    """An observer that records workers and progress, and calls `act` once after `rows` rows."""

    def __init__(self, rows: int = 6, act: Any = None) -> None:
        self.rows = rows
        self.act = act
        self.names: dict[str, None] = {}
        self.most_workers = 0
        self.latest: Progress | None = None

    def started(self, progress: Progress) -> None: ...

    def moved(self, progress: Progress) -> None:
        self.latest = progress
        self.most_workers = max(self.most_workers, len(progress.workers))
        self.names.update(dict.fromkeys(worker.name for worker in progress.workers))
        if self.act is not None and sum(worker.rows for worker in progress.workers) >= self.rows:
            self.act()
            self.act = None

    def ended(self, progress: Progress) -> None:
        self.latest = progress


def test_actors_give_the_rows_of_one_process(cluster: Any, tmp_path: Path) -> None:
    plan = ray_plan(repeats=2, batch_size=2)
    (tmp_path / "processes").mkdir()
    watcher = RowWatcher()
    result = run_on_cluster(
        tmp_path / "ray", plan, WaitForProcesses(tmp_path / "processes", 2, 0.0), observers=[watcher]
    )
    assert results(tmp_path / "ray") == results_of(tmp_path / "one", plan)
    assert result.summary.complete
    assert watcher.most_workers == 2
    assert all(name.startswith("worker ") and name.endswith(", cpu") for name in watcher.names)


@pytest.mark.parametrize("error", [None, ZeroDivisionError("a fault in the engine")])
def test_an_actor_that_is_killed_or_fails_is_restarted(cluster: Any, tmp_path: Path, error: Any) -> None:
    plan = ray_plan(batch_size=2, workers=1)
    watcher = RowWatcher()
    run_on_cluster(tmp_path / "ray", plan, FailsOnce(tmp_path / "marker", error), observers=[watcher])
    assert (tmp_path / "marker").exists()
    assert watcher.latest is not None
    assert watcher.latest.lost_workers == 1
    assert len(watcher.names) == 1
    assert results(tmp_path / "ray") == results_of(tmp_path / "one", plan)


def test_a_run_completes_on_other_nodes_when_a_node_is_killed(cluster: Any, tmp_path: Path) -> None:
    victim = cluster.add_node(num_cpus=2)
    plan = ray_plan(30, batch_size=2)
    (tmp_path / "processes").mkdir()
    watcher = RowWatcher(rows=6, act=partial(cluster.remove_node, victim, allow_graceful=False))
    run_on_cluster(tmp_path / "ray", plan, WaitForProcesses(tmp_path / "processes", 3, 0.05), observers=[watcher])
    assert watcher.most_workers == 3
    assert watcher.latest is not None
    assert watcher.latest.lost_workers == 1
    assert len(watcher.latest.workers) == 2
    assert results(tmp_path / "ray") == results_of(tmp_path / "one", plan)
    assert wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2, 240)


@pytest.mark.slow
def test_the_program_completes_when_a_node_of_an_existing_cluster_is_killed(cluster: Any, tmp_path: Path) -> None:
    victim = cluster.add_node(num_cpus=2)
    out = tmp_path / "out"
    command = ["run", "datasets/demo.jsonl", "--ray", "auto", "--repeats", "6", "--max-tokens", "16", "--temp", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rwkvbatch", *command, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 240
        while not (out / "results.jsonl").exists() or not (out / "results.jsonl").stat().st_size:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cluster.remove_node(victim, allow_graceful=False)
        _, messages = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode in (0, 1), messages
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["rows_done"]) == ("done", status["rows_total"])
    assert "is lost" in messages


def test_each_actor_has_its_own_gpu(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=2, num_gpus=2)  # Ray does not check that they exist
    (tmp_path / "processes").mkdir()
    watcher = RowWatcher()
    run_on_cluster(
        None, ray_plan(devices=("cuda", "cuda")), WaitForProcesses(tmp_path / "processes", 2, 0.0), observers=[watcher]
    )
    cluster.remove_node(node)
    assert {name.rpartition(", ")[2] for name in watcher.names} == {"cuda:0", "cuda:1"}


def test_a_conversation_that_kills_three_actors_becomes_error_rows(cluster: Any, tmp_path: Path) -> None:
    plan = make_plan(conversations=[make_conversation(f"c{n}", 2) for n in range(6)], ray="auto", workers=1)
    result = run_on_cluster(tmp_path / "ray", plan, KillsProcess("c3"))
    errors = {(row.conversation, row.turn): row.error or "" for row in result.rows() if row.finish_reason == "error"}
    assert set(errors) == {("c3", 0), ("c3", 1)}
    assert errors["c3", 0].startswith("3 workers ")
    assert "\n" not in errors["c3", 0]


def test_several_models_are_run_one_after_the_other(cluster: Any, tmp_path: Path) -> None:
    plan = ray_plan(4, workers=1, cells=make_cells({"model": ["a.pth", "b.pth"]}))
    run_on_cluster(tmp_path / "ray", plan)
    assert results(tmp_path / "ray") == results_of(tmp_path / "one", plan)


def test_a_run_is_resumed_with_ray_and_without_in_either_order(cluster: Any, tmp_path: Path) -> None:
    plan = ray_plan(20, batch_size=2, workers=2)
    expected = results_of(tmp_path / "one", plan)
    run(tmp_path / "a", plan, should_stop=StopAfter(4))
    assert 0 < results(tmp_path / "a").count(b"\n") < plan.num_rows
    assert run_on_cluster(tmp_path / "a", plan).summary.complete
    assert results(tmp_path / "a") == expected

    stop = threading.Event()
    watcher = RowWatcher(rows=6, act=stop.set)
    stopped = run_on_cluster(tmp_path / "b", plan, Delayed(0.05), observers=[watcher], should_stop=stop.is_set)
    assert stopped.interrupted
    assert watcher.latest is not None
    assert watcher.latest.workers == ()  # all ended by order
    assert 6 <= stopped.summary.rows < plan.num_rows
    assert results_of(tmp_path / "b", plan) == expected


def test_a_node_with_another_version_is_refused_with_both_versions(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = ray_pool.versions()
    monkeypatch.setattr(ray_pool, "versions", lambda: {**versions, "rwkvbatch": "9.9"})
    with pytest.raises(WorkerError, match=r"node .* runs rwkvbatch \d+\.\d+\.\d+, not 9\.9$") as error:
        run_on_cluster(None, ray_plan(2, workers=1))
    assert "every node" in str(error.value.hint)


def test_other_weights_on_another_node_are_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"worker \d on .*: weights_sha256 of cell .* is eee.* but fff"):
        run_on_cluster(tmp_path / "run", ray_plan(40), make_loader=OtherWeights(tmp_path / "marker"))


def test_the_error_of_a_model_missing_on_a_node_is_raised_by_the_driver(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"worker \d on .*weights.pth: there is no such file") as error:
        run_on_cluster(tmp_path / "run", ray_plan(2, workers=1), make_loader=no_model)
    assert error.value.hint == "put it there"
    assert not (tmp_path / "run").exists()


def test_a_plugin_missing_on_a_node_is_named(cluster: Any) -> None:
    with pytest.raises(WorkerError, match=r"worker 0 on .* cannot start: .*no_such_plugin") as error:
        run_on_cluster(None, ray_plan(2, workers=1), make_loader=NotOnTheNode())
    assert "plug-ins" in str(error.value.hint)


def reserve(num_cpus: int) -> Any:
    holder = ray.remote(CpuHolder).options(num_cpus=num_cpus).remote()
    assert ray.get(holder.is_ready.remote())
    return holder


def test_a_run_completes_with_fewer_workers_when_processors_are_reserved(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped_s = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + skipped_s[0], sleep=time.sleep)
    monkeypatch.setattr(ray_pool, "time", clock)
    holder = reserve(2)
    plan = ray_plan(20, batch_size=2)
    watcher = RowWatcher(rows=6, act=lambda: skipped_s.__setitem__(0, 1000.0))
    result = run_on_cluster(tmp_path / "ray", plan, Delayed(0.02), observers=[watcher])
    ray.kill(holder)
    assert result.summary.complete
    assert watcher.most_workers == 1
    assert "no room for worker" in caplog.text


def test_a_cluster_without_free_processors_is_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "PLACEMENT_S", 1.0)
    holders = [reserve(2), reserve(2)]
    with pytest.raises(WorkerError, match="no room for a worker with 0 GPUs and 2 processors within 1 s"):
        run_on_cluster(None, ray_plan(2))
    for holder in holders:
        ray.kill(holder)


def test_actors_count_as_starting_until_they_join_and_end_with_the_pool(cluster: Any) -> None:
    plan = ray_plan(2)
    pool = ray_pool.RayPool(plan, partial(fake_loader, change=None))
    try:
        pool.specs(setups_of(plan))
        assert pool.num_starting == 0
        pool.begin(setups_of(plan)[0])
        assert pool.num_starting >= 1
        num_joined = 0
        while num_joined < 2:
            num_joined += sum(isinstance(event, WorkerReady) for _, event in pool.receive(1.0))
        assert pool.num_starting == 0
        assert not ray.available_resources().get("CPU")
    finally:
        pool.close()
    assert wait_until(lambda: ray.available_resources().get("CPU") == 4, 240)


def test_actors_have_the_directory_and_variables_of_the_driver(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RWKVBATCH_OF_THE_DRIVER", "1")
    run_on_cluster(None, ray_plan(2, workers=1), make_loader=environment_recorder)
    assert (tmp_path / "found.txt").read_text() == "RWKVBATCH_OF_THE_DRIVER"


def test_a_process_connected_to_another_cluster_is_refused(cluster: Any) -> None:
    with pytest.raises(UsageError, match="connected to a Ray cluster already"):
        run_on_cluster(None, make_plan(2, ray="local"))


def test_warnings_of_actors_are_in_the_log_of_the_driver(cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    run_on_cluster(None, ray_plan(6, workers=1), make_loader=warning_loader)
    messages = [record.getMessage() for record in caplog.records if record.name == "rwkvbatch.warnings"]
    assert set(messages) == {"the engine is slow", "the model is slow"}
