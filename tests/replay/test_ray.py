"""Runs on a Ray cluster of two nodes, both on this machine: their rows are those of one process, whatever fails."""

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
from rwkvbatch.replay.grid import make_cells
from rwkvbatch.replay.models import setups_of
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import Joined
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from tests.replay.crash_harness.processes import wait_until
from tests.replay.fakes import Deadly, FakeLoader, Slow, make_conversation, make_plan
from tests.replay.ray_fakes import (
    FailsOnce,
    Holder,
    OnlyHere,
    OtherWeights,
    Together,
    fake_loader,
    no_model,
    recorder,
    warning_loader,
)

ray = pytest.importorskip("ray", reason="Ray is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")

ray_pool = pytest.importorskip("rwkvbatch.replay.ray_pool")

ROOT = Path(__file__).parents[2]

PATIENT = {
    "health_check_timeout_ms": 120_000,  # a node on a busy machine is late, not dead;
    "health_check_period_ms": 500,  # one whose process is gone refuses connections at once
    "worker_register_timeout_seconds": 300,
    "memory_monitor_refresh_ms": 0,  # no worker is killed because other programs need memory
}
"""Ray's settings, so that nothing dies but what a test kills."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of two processors, which this process is connected to."""
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
    """On a busy machine an actor may take more than a minute to start; that is not a lack of room."""
    monkeypatch.setattr(ray_pool, "PLACEMENT_S", 240.0)


def run(out: Path | None, plan: Plan, change: Any = None, *, make_loader: Any = None, **options: Any) -> RunResult:
    pool = partial(ray_pool.RayPool, make_loader=make_loader or partial(fake_loader, change=change))
    return execute(plan, FakeLoader(), RunOptions(out=out, pool=pool, **options))


def ray_plan(num_conversations: int = 12, **settings: Any) -> Plan:
    return make_plan(num_conversations, ray="auto", **settings)


def in_one_process(directory: Path, plan: Plan) -> bytes:
    execute(plan, FakeLoader(), RunOptions(out=directory))
    return rows_in(directory)


def rows_in(directory: Path) -> bytes:
    return (directory / "results.jsonl").read_bytes()


class Watcher:
    """An observer that records progress, and calls `act` once when some rows are there."""

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


def test_the_rows_are_those_of_one_process(cluster: Any, tmp_path: Path) -> None:
    plan = ray_plan(repeats=2, batch_size=2)
    (tmp_path / "meeting").mkdir()
    watcher = Watcher()
    result = run(tmp_path / "ray", plan, Together(tmp_path / "meeting", 2, 0.0), observers=[watcher])
    assert rows_in(tmp_path / "ray") == in_one_process(tmp_path / "one", plan)
    assert result.summary.complete
    assert watcher.most_workers == 2
    assert all(name.startswith("worker ") and name.endswith(", cpu") for name in watcher.names)


@pytest.mark.parametrize("error", [None, ZeroDivisionError("a fault in the engine")])
def test_ray_restarts_an_actor_that_is_killed_or_fails(cluster: Any, tmp_path: Path, error: Any) -> None:
    plan = ray_plan(batch_size=2, workers=1)
    watcher = Watcher()
    run(tmp_path / "ray", plan, FailsOnce(tmp_path / "mark", error), observers=[watcher])
    assert (tmp_path / "mark").exists()
    assert watcher.latest is not None
    assert watcher.latest.lost_workers == 1
    assert len(watcher.names) == 1
    assert rows_in(tmp_path / "ray") == in_one_process(tmp_path / "one", plan)


def test_the_others_go_on_when_a_node_is_killed(cluster: Any, tmp_path: Path) -> None:
    victim = cluster.add_node(num_cpus=2)
    plan = ray_plan(30, batch_size=2)
    (tmp_path / "meeting").mkdir()
    watcher = Watcher(rows=6, act=partial(cluster.remove_node, victim, allow_graceful=False))
    run(tmp_path / "ray", plan, Together(tmp_path / "meeting", 3, 0.05), observers=[watcher])
    assert watcher.most_workers == 3
    assert watcher.latest is not None
    assert watcher.latest.lost_workers == 1
    assert len(watcher.latest.workers) == 2
    assert rows_in(tmp_path / "ray") == in_one_process(tmp_path / "one", plan)
    assert wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2, 240)


@pytest.mark.slow
def test_the_program_goes_on_when_a_node_of_a_cluster_that_others_started_is_killed(
    cluster: Any, tmp_path: Path
) -> None:
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
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode in (0, 1), said
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["rows_done"]) == ("done", status["rows_total"])
    assert "is lost" in said


def test_each_actor_has_a_gpu_of_its_own(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=2, num_gpus=2)  # Ray takes our word for it
    (tmp_path / "meeting").mkdir()
    watcher = Watcher()
    run(None, ray_plan(devices=("cuda", "cuda")), Together(tmp_path / "meeting", 2, 0.0), observers=[watcher])
    cluster.remove_node(node)
    assert {name.rpartition(", ")[2] for name in watcher.names} == {"cuda:0", "cuda:1"}


def test_a_conversation_that_kills_three_actors_becomes_error_rows(cluster: Any, tmp_path: Path) -> None:
    plan = make_plan(conversations=[make_conversation(f"c{n}", 2) for n in range(6)], ray="auto", workers=1)
    result = run(tmp_path / "ray", plan, Deadly("c3"))
    errors = {(row.conversation, row.turn): row.error or "" for row in result.rows() if row.finish_reason == "error"}
    assert set(errors) == {("c3", 0), ("c3", 1)}
    assert errors["c3", 0].startswith("3 workers ")
    assert "\n" not in errors["c3", 0]


def test_several_models_are_served_one_after_the_other(cluster: Any, tmp_path: Path) -> None:
    plan = ray_plan(4, workers=1, cells=make_cells({"model": ["a.pth", "b.pth"]}))
    run(tmp_path / "ray", plan)
    assert rows_in(tmp_path / "ray") == in_one_process(tmp_path / "one", plan)


def test_a_run_is_continued_with_ray_and_without_in_either_order(cluster: Any, tmp_path: Path) -> None:
    plan = ray_plan(20, batch_size=2, workers=2)
    expected = in_one_process(tmp_path / "one", plan)
    calls = iter(range(1000))
    execute(plan, FakeLoader(), RunOptions(out=tmp_path / "a", should_stop=lambda: next(calls) > 3))
    assert 0 < rows_in(tmp_path / "a").count(b"\n") < plan.num_rows
    assert run(tmp_path / "a", plan).summary.complete
    assert rows_in(tmp_path / "a") == expected

    stop = threading.Event()
    watcher = Watcher(rows=6, act=stop.set)
    stopped = run(tmp_path / "b", plan, Slow(0.05), observers=[watcher], should_stop=stop.is_set)
    assert stopped.interrupted
    assert watcher.latest is not None
    assert watcher.latest.workers == ()  # all of them left on request
    assert 6 <= stopped.summary.rows < plan.num_rows
    execute(plan, FakeLoader(), RunOptions(out=tmp_path / "b"))
    assert rows_in(tmp_path / "b") == expected


def test_another_version_is_refused_by_name(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ray_pool.versions()
    monkeypatch.setattr(ray_pool, "versions", lambda: {**here, "rwkvbatch": "9.9"})
    with pytest.raises(WorkerError, match=r"node .* runs rwkvbatch \d+\.\d+\.\d+, not 9\.9$") as error:
        run(None, ray_plan(2, workers=1))
    assert "every node" in str(error.value.hint)


def test_other_weights_on_another_node_are_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"worker \d on .*: weights_sha256 of cell .* is eee.* but fff"):
        run(tmp_path / "run", ray_plan(40), make_loader=OtherWeights(tmp_path / "mark"))


def test_a_model_that_is_not_on_the_node_is_the_error_that_it_is(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"worker \d on .*weights.pth: there is no such file") as error:
        run(tmp_path / "run", ray_plan(2, workers=1), make_loader=no_model)
    assert error.value.hint == "put it there"
    assert not (tmp_path / "run").exists()


def test_a_plugin_that_is_not_on_the_node_is_named(cluster: Any) -> None:
    with pytest.raises(WorkerError, match=r"worker 0 on .* cannot start: .*no_such_plugin") as error:
        run(None, ray_plan(2, workers=1), make_loader=OnlyHere())
    assert "plug-ins" in str(error.value.hint)


def hold(num_cpus: int) -> Any:
    holder = ray.remote(Holder).options(num_cpus=num_cpus).remote()
    assert ray.get(holder.here.remote())
    return holder


def test_a_run_goes_on_with_fewer_workers_where_there_is_no_room(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped_s = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + skipped_s[0], sleep=time.sleep)
    monkeypatch.setattr(ray_pool, "time", clock)
    holder = hold(2)
    plan = ray_plan(20, batch_size=2)
    watcher = Watcher(rows=6, act=lambda: skipped_s.__setitem__(0, 1000.0))
    result = run(tmp_path / "ray", plan, Slow(0.02), observers=[watcher])
    ray.kill(holder)
    assert result.summary.complete
    assert watcher.most_workers == 1
    assert "no room for worker" in caplog.text


def test_a_cluster_without_any_room_is_an_error(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "PLACEMENT_S", 1.0)
    holders = [hold(2), hold(2)]
    with pytest.raises(WorkerError, match="no room for a worker with 0 GPUs and 2 processors within 1 s"):
        run(None, ray_plan(2))
    for holder in holders:
        ray.kill(holder)


def test_an_actor_is_coming_until_it_has_joined_and_ends_with_the_pool(cluster: Any) -> None:
    plan = ray_plan(2)
    pool = ray_pool.RayPool(plan, partial(fake_loader, change=None))
    try:
        pool.specs(setups_of(plan))
        assert pool.num_starting == 0
        pool.begin(setups_of(plan)[0])
        assert pool.num_starting >= 1
        num_joined = 0
        while num_joined < 2:
            num_joined += sum(isinstance(event, Joined) for _, event in pool.receive(1.0))
        assert pool.num_starting == 0
        assert not ray.available_resources().get("CPU")
    finally:
        pool.close()
    assert wait_until(lambda: ray.available_resources().get("CPU") == 4, 240)


def test_relative_paths_and_variables_are_those_of_the_driver(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RWKVBATCH_OF_THE_DRIVER", "1")
    run(None, ray_plan(2, workers=1), make_loader=recorder)
    assert (tmp_path / "found.txt").read_text() == "RWKVBATCH_OF_THE_DRIVER"


def test_a_process_that_is_connected_elsewhere_is_refused(cluster: Any) -> None:
    with pytest.raises(UsageError, match="connected to a Ray cluster already"):
        run(None, make_plan(2, ray="local"))


def test_warnings_of_actors_are_in_the_drivers_log(cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    run(None, ray_plan(6, workers=1), make_loader=warning_loader)
    messages = [record.getMessage() for record in caplog.records if record.name == "rwkvbatch.warnings"]
    assert set(messages) == {"the engine is slow", "the model is slow"}
