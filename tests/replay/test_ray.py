"""Actors of a Ray cluster of two nodes (both on this machine): the same rows as one process, whatever happens."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.engine.request import Reply, Request
from rwkvbatch.errors import CheckpointError, UsageError, WorkerError
from rwkvbatch.replay.grid import make_cells
from rwkvbatch.replay.models import setups_of
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import Joined
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from rwkvbatch.replay.settings import RunSettings
from tests.replay.fakes import Deadly, FakeLoader, FakeSpec, Slow, make_conversation, make_plan

ray = pytest.importorskip("ray", reason="Ray is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")

# A real cluster has clocks of its own: on a busy machine it takes a node for dead that is only late.
pytestmark = pytest.mark.flaky(reruns=2)

ray_crew = pytest.importorskip("rwkvbatch.replay.ray_pool")
ray_cluster = pytest.importorskip("rwkvbatch.replay.ray_pool")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of two processors, which this process is connected to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        cluster.add_node(num_cpus=2)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@dataclass(frozen=True)
class Together:
    """Holds every reply back until `count` processes reply; then makes it take a moment."""

    meeting: Path
    count: int
    seconds: float

    def __call__(self, request: Request, reply: Reply) -> Reply:
        (self.meeting / str(os.getpid())).touch()
        deadline = time.monotonic() + 120
        while len(list(self.meeting.iterdir())) < self.count and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(self.seconds)
        return reply


@dataclass(frozen=True)
class DiesOnce:
    """Kills its process at the first reply, once in all processes together."""

    mark: Path

    def __call__(self, request: Request, reply: Reply) -> Reply:
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return reply
        os.kill(os.getpid(), signal.SIGKILL)
        return reply


def fake_shop(settings: RunSettings, change: Any = None) -> FakeLoader:
    del settings
    return FakeLoader(change=change)


@dataclass(frozen=True)
class OtherWeights:
    """A loader that finds other weights in every process but the first that asks."""

    mark: Path

    def __call__(self, settings: RunSettings) -> FakeLoader:
        del settings
        try:
            with self.mark.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return FakeLoader(FakeSpec(weights_sha256="e" * 64))
        return FakeLoader(change=Slow(0.5))


class NoModel(FakeLoader):
    def specs(self, setups: Any) -> Any:
        raise CheckpointError("there is no such file", path="weights.pth", hint="put it there")


def no_model(settings: RunSettings) -> FakeLoader:
    del settings
    return NoModel()


def run(out: Path | None, plan: Plan, change: Any = None, *, make_loader: Any = None, **options: Any) -> RunResult:
    placement_s = options.pop("placement_s", 60.0)
    crew = partial(make_crew, make_loader=make_loader or partial(fake_shop, change=change), placement_s=placement_s)
    return execute(plan, FakeLoader(), RunOptions(out=out, pool=crew, **options))


def make_crew(plan: Plan, *, make_loader: Any, placement_s: float) -> Any:
    return ray_crew.RayPool(plan, make_loader, placement_s=placement_s)


def ray_plan(num_conversations: int = 12, **settings: Any) -> Plan:
    return make_plan(num_conversations, ray="auto", **settings)


def alone(directory: Path, plan: Plan) -> bytes:
    execute(plan, FakeLoader(), RunOptions(out=directory))
    return rows_in(directory)


def rows_in(directory: Path) -> bytes:
    return (directory / "results.jsonl").read_bytes()


class Watcher:
    """An observer that remembers, and does something once when some rows are there."""

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
    result = run(tmp_path / "ray", plan, Together(tmp_path / "meeting", 2, 0.0), observer=watcher)
    assert rows_in(tmp_path / "ray") == alone(tmp_path / "one", plan)
    assert result.summary.complete
    assert watcher.most_workers == 2
    assert all(name.startswith("worker ") and name.endswith(", cpu") for name in watcher.names)


def test_an_actor_whose_process_is_killed_costs_nothing_but_time(cluster: Any, tmp_path: Path) -> None:
    plan = ray_plan(batch_size=2)
    watcher = Watcher()
    run(tmp_path / "ray", plan, DiesOnce(tmp_path / "mark"), observer=watcher)
    assert (tmp_path / "mark").exists()
    assert watcher.latest is not None
    assert watcher.latest.lost_workers == 1
    assert rows_in(tmp_path / "ray") == alone(tmp_path / "one", plan)


def test_a_node_that_dies_costs_nothing_but_time_and_the_others_go_on(cluster: Any, tmp_path: Path) -> None:
    victim = cluster.add_node(num_cpus=2)
    plan = ray_plan(30, batch_size=2)
    (tmp_path / "meeting").mkdir()
    watcher = Watcher(rows=6, act=partial(cluster.remove_node, victim, allow_graceful=False))
    run(tmp_path / "ray", plan, Together(tmp_path / "meeting", 3, 0.05), observer=watcher)
    assert watcher.most_workers == 3
    assert watcher.latest is not None
    assert watcher.latest.lost_workers == 1
    assert len(watcher.latest.workers) == 2
    assert rows_in(tmp_path / "ray") == alone(tmp_path / "one", plan)


def test_a_conversation_that_kills_three_actors_becomes_error_rows(cluster: Any, tmp_path: Path) -> None:
    plan = make_plan(conversations=[make_conversation(f"c{n}", 2) for n in range(6)], ray="auto")
    result = run(tmp_path / "ray", plan, Deadly("c3"))
    errors = {(row.conversation, row.turn): row.error or "" for row in result.rows() if row.finish_reason == "error"}
    assert set(errors) == {("c3", 0), ("c3", 1)}
    assert "3 workers" in errors["c3", 0]
    assert "\n" not in errors["c3", 0]


def test_several_models_are_served_one_after_the_other(cluster: Any, tmp_path: Path) -> None:
    plan = ray_plan(4, cells=make_cells({"model": ["a.pth", "b.pth"]}))
    run(tmp_path / "ray", plan)
    assert rows_in(tmp_path / "ray") == alone(tmp_path / "one", plan)


def test_a_run_goes_on_with_ray_where_it_was_stopped_without_and_the_other_way_round(
    cluster: Any, tmp_path: Path
) -> None:
    plan = ray_plan(20, batch_size=2)
    expected = alone(tmp_path / "one", plan)
    calls = iter(range(1000))
    execute(plan, FakeLoader(), RunOptions(out=tmp_path / "a", should_stop=lambda: next(calls) > 3))
    assert 0 < rows_in(tmp_path / "a").count(b"\n") < plan.num_rows
    assert run(tmp_path / "a", plan).summary.complete
    assert rows_in(tmp_path / "a") == expected

    stop = threading.Event()
    watcher = Watcher(rows=6, act=stop.set)
    stopped = run(tmp_path / "b", plan, Slow(0.05), observer=watcher, should_stop=stop.is_set)
    assert stopped.interrupted
    assert watcher.latest is not None
    assert watcher.latest.workers == ()  # all of them said good-bye
    assert 6 <= stopped.summary.rows < plan.num_rows
    execute(plan, FakeLoader(), RunOptions(out=tmp_path / "b"))
    assert rows_in(tmp_path / "b") == expected


def test_another_version_is_refused_by_name(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ray_crew.versions()
    monkeypatch.setattr(ray_crew, "versions", lambda: {**here, "rwkvbatch": "9.9"})
    with pytest.raises(WorkerError, match=r"runs rwkvbatch \d+\.\d+\.\d+, not 9\.9$"):
        run(None, ray_plan(2))


def test_other_weights_on_another_node_are_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"worker \d on .*: weights_sha256 of cell .* is eee.* but fff"):
        run(tmp_path / "run", ray_plan(40), make_loader=OtherWeights(tmp_path / "mark"))


def test_a_model_that_is_not_on_the_node_is_the_error_that_it_is(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"worker \d on .*weights.pth: there is no such file") as error:
        run(tmp_path / "run", ray_plan(2), make_loader=no_model)
    assert error.value.hint == "put it there"
    assert not (tmp_path / "run").exists()


class Holder:
    """An actor that takes processors away."""

    def here(self) -> bool:
        return True


def hold(num_cpus: int) -> Any:
    holder = ray.remote(Holder).options(num_cpus=num_cpus).remote()
    assert ray.get(holder.here.remote())
    return holder


def test_a_run_goes_on_with_fewer_workers_where_there_is_no_room(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + hurry[0], sleep=time.sleep)
    monkeypatch.setattr(ray_crew, "time", clock)
    holder = hold(2)
    plan = ray_plan(20, batch_size=2)
    watcher = Watcher(rows=6, act=lambda: hurry.__setitem__(0, 100.0))
    result = run(tmp_path / "ray", plan, Slow(0.02), observer=watcher)
    ray.kill(holder)
    assert result.summary.complete
    assert watcher.most_workers == 1
    assert "no room for worker" in caplog.text


def test_a_cluster_without_any_room_is_an_error(cluster: Any) -> None:
    holders = [hold(2), hold(2)]
    with pytest.raises(WorkerError, match="no room for a worker with 0 GPUs and 2 processors within 1 s"):
        run(None, ray_plan(2), placement_s=1.0)
    for holder in holders:
        ray.kill(holder)


def test_an_actor_is_coming_from_when_it_is_told_to_serve_until_it_has_joined(cluster: Any) -> None:
    plan = ray_plan(2)
    crew = ray_crew.RayPool(plan, partial(fake_shop, change=None))
    try:
        crew.specs(setups_of(plan))
        assert crew.num_starting == 0
        crew.begin(setups_of(plan)[0])
        assert crew.num_starting >= 1
        num_joined = 0
        while num_joined < 2:
            num_joined += sum(isinstance(event, Joined) for _, event in crew.receive(1.0))
        assert crew.num_starting == 0
    finally:
        crew.close()


def test_no_actor_outlives_the_run(cluster: Any) -> None:
    run(None, ray_plan(2))
    deadline = time.monotonic() + 20
    while ray.util.list_named_actors() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.util.list_named_actors() == []


def test_a_process_that_is_connected_elsewhere_is_refused(cluster: Any) -> None:
    with pytest.raises(UsageError, match="connected to a Ray cluster already"):
        run(None, make_plan(2, ray="local"))


def test_ctrl_c_ends_a_run_on_a_cluster_of_its_own_and_it_goes_on_without_ray(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"temperature": 1.0, "limit": 6, "max_tokens": 24, "repeats": 12}
    command = [
        sys.executable, "-m", "rwkvbatch", "run", "datasets/demo.jsonl", "--temp", "1", "--limit", "6",
        "--max-tokens", "24", "--repeats", "12", "--batch-size", "1", "--ray", "local", "--workers", "2",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    results = tmp_path / "run" / "results.jsonl"
    deadline = time.monotonic() + 200
    while not (results.exists() and results.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To go on:" in said
    for chatter in ("raylet", "WARNING", "INFO", "usage", "Traceback"):
        assert chatter not in said
    num_rows = len(results.read_bytes().splitlines())
    one = rwkvbatch.run(ROOT / "datasets/demo.jsonl", **settings)
    assert 0 < num_rows < one.summary.rows
    whole = rwkvbatch.run(ROOT / "datasets/demo.jsonl", out=tmp_path / "run", **settings)
    assert plain_rows(whole) == plain_rows(one)
    assert len(plain_rows(whole)) == one.summary.planned


def plain_rows(result: RunResult) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.as_dict().items() if key != "timing"} for row in result.rows()]


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        with pytest.raises(WorkerError, match="nobody listens there"):
            ray_cluster.reach(f"127.0.0.1:{taken.getsockname()[1]}")


class WarningLoader(FakeLoader):
    """Warns where the model is loaded, and where an engine is made."""

    def specs(self, setups: Any) -> Any:
        warnings.warn("the model is slow", UserWarning, stacklevel=2)
        return super().specs(setups)

    def engine(self, setup: Any, plan: Any, batch: int) -> Any:
        warnings.warn("the engine is slow", UserWarning, stacklevel=2)
        return super().engine(setup, plan, batch)


def warning_shop(settings: RunSettings) -> FakeLoader:
    del settings
    return WarningLoader()


def test_warnings_of_actors_are_in_the_drivers_log(cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    run(None, ray_plan(6, workers=1), make_loader=warning_shop)
    said = [record.getMessage() for record in caplog.records if record.name == "rwkvbatch.warnings"]
    assert set(said) == {"the engine is slow", "the model is slow"}
