"""Worker processes: the rows of one process, whatever happens to the workers."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.engine.request import Reply, Request
from rwkvbatch.errors import CheckpointError, UsageError, WorkerError
from rwkvbatch.replay.planning.grid import make_cells
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import Setup, setups_of
from rwkvbatch.replay.pools.pool import Leave, WorkerReady
from rwkvbatch.replay.pools.pool_kinds import pool_for
from rwkvbatch.replay.pools.processes import ProcessPool, _describe, _uses_gpu
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.runner import RunResult
from tests.replay.fakes import Delayed, FakeLoader, KillsProcess, NoModel, make_conversation, make_plan
from tests.replay.pools.worker_processes import children_of, run_in_processes
from tests.replay.runs import StopAfter, results, results_of, run


@dataclass(frozen=True)
class Failing:
    """RaisingCheck an exception that the worker does not expect."""

    def __call__(self, request: Request, reply: Reply) -> Reply:
        raise ZeroDivisionError("a bug")


class NoEngine(FakeLoader):
    def engine(self, setup: Setup, plan: Plan, batch: int) -> Any:
        raise UsageError("no memory for states", hint="raise --state-memory")


class KillOnce:
    """An observer that kills a worker after `rows` rows."""

    def __init__(self, rows: int = 6) -> None:
        self.rows = rows
        self.killed = 0
        self.latest: Progress | None = None

    def started(self, progress: Progress) -> None: ...

    def moved(self, progress: Progress) -> None:
        self.latest = progress
        if not self.killed and sum(worker.rows for worker in progress.workers) >= self.rows:
            os.kill(children_of(children_of(os.getpid())[-1])[0], signal.SIGKILL)
            self.killed += 1

    def ended(self, progress: Progress) -> None:
        self.latest = progress


def test_worker_processes_give_the_rows_of_one_process(tmp_path: Path) -> None:
    plan = make_plan(12, repeats=2)
    result = run_in_processes(tmp_path / "many", plan, num_workers=3)
    assert results(tmp_path / "many") == results_of(tmp_path / "one", plan)
    assert result.summary.complete
    assert not result.interrupted


def test_a_killed_worker_loses_no_row(tmp_path: Path) -> None:
    plan = make_plan(12, batch_size=2)
    observer = KillOnce()
    run_in_processes(tmp_path / "many", plan, Delayed(0.01), observers=[observer])
    assert observer.killed == 1
    assert observer.latest is not None
    assert observer.latest.lost_workers == 1
    assert results(tmp_path / "many") == results_of(tmp_path / "one", plan)


def test_a_conversation_that_kills_three_workers_becomes_error_rows_and_others_are_replayed(tmp_path: Path) -> None:
    plan = make_plan(conversations=[make_conversation(f"c{n}", 2) for n in range(6)])
    result = run_in_processes(tmp_path / "run", plan, KillsProcess("c3"))
    rows = list(result.rows())
    assert len(rows) == plan.num_rows
    errors = {(row.conversation, row.turn): row.error or "" for row in rows if row.finish_reason == "error"}
    assert set(errors) == {("c3", 0), ("c3", 1)}
    assert "3 workers" in errors["c3", 0]
    assert "SIGKILL" in errors["c3", 0]
    assert errors["c3", 1].startswith("not reached")


def test_an_unexpected_exception_is_an_error_row_with_its_traceback_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(conversations=[make_conversation("c", 1)])
    result = run_in_processes(tmp_path / "run", plan, Failing())
    assert all("ZeroDivisionError: a bug" in (row.error or "") for row in result.rows())
    assert "Traceback" in caplog.text


@pytest.mark.slow
def test_several_models_are_run_one_after_the_other(tmp_path: Path) -> None:
    plan = make_plan(4, cells=make_cells({"model": ["a.pth", "b.pth"]}))
    run_in_processes(tmp_path / "many", plan)
    assert results(tmp_path / "many") == results_of(tmp_path / "one", plan)


def test_a_run_is_resumed_with_workers_and_without_in_either_order(tmp_path: Path) -> None:
    plan = make_plan(10, batch_size=2)
    expected = results_of(tmp_path / "one", plan)
    run(tmp_path / "a", plan, should_stop=StopAfter(4))
    assert run_in_processes(tmp_path / "a", plan).summary.complete
    assert results(tmp_path / "a") == expected

    stop = StopAfterRows()
    stopped = run_in_processes(tmp_path / "b", plan, Delayed(0.05), observers=[stop], should_stop=stop)
    assert stopped.interrupted
    assert results_of(tmp_path / "b", plan) == expected


class StopAfterRows:
    """An observer and stop condition: stops the run after 4 rows."""

    def __init__(self) -> None:
        self.rows = 0

    def started(self, progress: Progress) -> None: ...

    def moved(self, progress: Progress) -> None:
        self.rows = sum(worker.rows for worker in progress.workers)

    def ended(self, progress: Progress) -> None: ...

    def __call__(self) -> bool:
        return self.rows >= 4


def test_rows_finished_before_a_stop_are_kept(tmp_path: Path) -> None:
    plan = make_plan(conversations=[make_conversation(f"c{n}", 1) for n in range(40)], batch_size=2)
    stop = StopAfterRows()
    result = run_in_processes(tmp_path / "run", plan, Delayed(0.1), observers=[stop], should_stop=stop)
    assert result.interrupted
    assert 4 <= result.summary.rows < plan.num_rows


def test_no_worker_outlives_the_run(tmp_path: Path) -> None:
    before = set(children_of(os.getpid()))
    run_in_processes(tmp_path / "run", make_plan(3))
    assert set(children_of(os.getpid())) == before


def test_the_error_of_a_model_that_cannot_be_loaded_is_raised_by_the_driver(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file") as caught:
        run_in_processes(tmp_path / "run", make_plan(2), make_loader=NoModel)
    assert caught.value.hint == "put it there"
    assert not (tmp_path / "run").exists()


def test_the_error_of_an_engine_that_cannot_be_made_is_raised_by_the_driver(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no memory") as caught:
        run_in_processes(tmp_path / "run", make_plan(2), make_loader=NoEngine)
    assert caught.value.hint == "raise --state-memory"


def test_a_run_ends_when_workers_crash_without_a_row(tmp_path: Path) -> None:
    plan = make_plan(conversations=[make_conversation("c", 1)], repeats=40)
    with pytest.raises(WorkerError, match="workers ended without a row"):
        run_in_processes(tmp_path / "run", plan, KillsProcess("c"))


def test_a_plan_can_be_pickled() -> None:
    plan = make_plan(5, repeats=3, batch_size=7)
    sent = pickle.loads(pickle.dumps(plan))
    assert [sent.task(n) for n in range(sent.num_tasks)] == [plan.task(n) for n in range(plan.num_tasks)]
    assert sent.settings == plan.settings


@pytest.mark.parametrize(
    ("strategy", "device", "expected"),
    [("auto", "cuda:1", "cuda:1"), ("cuda fp16", "cuda:1", "cuda:1 fp16"), ("cpu bf16", None, "cpu bf16")],
)
def test_a_device_replaces_that_of_the_strategy(strategy: str, device: str | None, expected: str) -> None:
    assert Setup(None, strategy, "auto", (0,)).on_device(device).strategy == expected


def test_a_loaded_model_with_workers_is_refused() -> None:
    with pytest.raises(UsageError, match="in the memory of this process"):
        pool_for(make_plan(1, workers=2).settings, model_given=True)


def test_fewer_workers_than_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="names 2 devices for 1 worker"):
        pool_for(make_plan(1, workers=1, devices=("cuda:0", "cuda:1")).settings)


class PrivateMemory:
    """An observer that records the private memory of each worker."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def started(self, progress: Progress) -> None: ...

    def moved(self, progress: Progress) -> None:
        if not self.bytes and sum(worker.reply_tokens > 0 for worker in progress.workers) == 2:
            workers = children_of(children_of(os.getpid())[-1])
            self.bytes = [private_bytes(worker) for worker in workers]

    def ended(self, progress: Progress) -> None: ...


def private_bytes(process: int) -> int:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports shared memory")
def test_workers_share_the_memory_of_the_weights(tmp_path: Path) -> None:
    import rwkvbatch
    from rwkvbatch.bench.measure import write_random

    path = write_random("1x256", tmp_path)
    script = tmp_path / "a.jsonl"
    script.write_text(
        "".join(json.dumps({"id": f"c{n}", "messages": [{"role": "user", "content": "hi"}]}) + "\n" for n in range(8))
    )
    observer = PrivateMemory()
    rwkvbatch.run(
        script, model=path, workers=2, batch_size=2, max_tokens=8, state_memory="16M", observer=observer,
        out=tmp_path / "run",
    )  # fmt: skip
    assert len(observer.bytes) == 2
    assert max(observer.bytes) < path.stat().st_size / 2


def test_worker_processes_give_the_rows_of_the_bundled_model(tmp_path: Path) -> None:
    import rwkvbatch

    settings: dict[str, Any] = {"temperature": 1.0, "limit": 6, "max_tokens": 24}
    expected = rwkvbatch.run("datasets/demo.jsonl", **settings)
    messages: list[str] = []
    result = rwkvbatch.run("datasets/demo.jsonl", workers=2, out=tmp_path / "run", notify=messages.append, **settings)
    assert messages.count("using the bundled demonstration model; --model FILE takes another one") == 1

    def plain(result: RunResult) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.as_dict().items() if k != "timing"} for row in result.rows()]

    assert plain(result) == plain(expected)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    # On a busy machine the first worker may finish all tasks before the second joins.
    assert {worker["name"] for worker in status["workers"]} <= {"worker 0", "worker 1"}
    assert sum(worker["rows"] for worker in status["workers"]) >= result.summary.rows


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_early_signal_to_the_process_group_does_not_end_the_template(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen: Any = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        process = popen(*arguments, **options)
        process.send_signal(number)
        return process

    monkeypatch.setattr("rwkvbatch.replay.pools.processes.subprocess.Popen", start)
    plan = make_plan(3)
    pool = ProcessPool(plan, FakeLoader, 1)
    try:
        assert pool.specs(setups_of(plan))
    finally:
        pool.close()


def test_workers_count_as_starting_until_they_join() -> None:
    plan = make_plan(3)
    pool = ProcessPool(plan, FakeLoader, 2)
    try:
        pool.specs(setups_of(plan))
        assert pool.num_starting == 0
        pool.begin(setups_of(plan)[0])
        assert pool.num_starting == 2
        num_joined = 0
        while num_joined < 2:
            num_joined += sum(isinstance(event, WorkerReady) for _, event in pool.receive(1.0))
            assert pool.num_starting == 2 - num_joined
    finally:
        pool.close()


def test_orders_to_an_unknown_worker_are_ignored() -> None:
    plan = make_plan(2)
    pool = ProcessPool(plan, partial(FakeLoader), 1)
    pool.send(7, Leave())
    pool.kill(7)
    assert list(pool.receive(0.0)) == []


@pytest.mark.parametrize(
    ("status", "text"), [(None, "ended"), (3 << 8, "ended with exit code 3"), (9, "was ended by SIGKILL")]
)
def test_exit_statuses_are_described(status: int | None, text: str) -> None:
    assert _describe(status) == text


@pytest.mark.parametrize(
    ("strategy", "is_available", "uses_gpu"),
    [("auto", True, True), ("auto", False, False), ("cuda fp16", False, True), ("cpu", True, False)],
)
def test_a_gpu_is_used_when_the_strategy_names_it_or_auto_finds_one(
    strategy: str, is_available: bool, uses_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: is_available)
    (setup,) = setups_of(make_plan(1, strategy=strategy))
    assert _uses_gpu(setup) == uses_gpu
