"""Worker processes: the same rows as one process, whatever happens to them."""

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
from rwkvbatch.replay.models import Setup, setups_of
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import Joined, Leave, pool_for
from rwkvbatch.replay.processes import ProcessPool, _describe, _uses_gpu
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from tests.replay.fakes import Deadly, FakeLoader, Slow, make_conversation, make_plan


@dataclass(frozen=True)
class Faulty:
    """Raises what nobody expects."""

    def __call__(self, request: Request, reply: Reply) -> Reply:
        raise ZeroDivisionError("a bug")


class NoModel(FakeLoader):
    def specs(self, setups: Any) -> Any:
        raise CheckpointError("the file is damaged", path="weights.pth", hint="get it again")


class NoEngine(FakeLoader):
    def engine(self, setup: Setup, plan: Plan, batch: int) -> Any:
        raise UsageError("no memory for states", hint="raise --state-memory")


def run(directory: Path | None, plan: Plan, change: Any = None, workers: int = 2, **options: Any) -> RunResult:
    make_loader = partial(FakeLoader, change=change)
    pool = partial(process_pool, make_loader=make_loader, count=workers)
    return execute(plan, FakeLoader(), RunOptions(out=directory, pool=pool, **options))


def process_pool(plan: Plan, *, make_loader: Any, count: int) -> ProcessPool:
    return ProcessPool(plan, make_loader, count)


def alone(directory: Path, plan: Plan) -> bytes:
    execute(plan, FakeLoader(), RunOptions(out=directory))
    return (directory / "results.jsonl").read_bytes()


class KillOnce:
    """An observer that kills a worker when some rows are there."""

    def __init__(self, directory: Path, rows: int = 6) -> None:
        self.directory = directory
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


def children_of(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split() if Path(f"/proc/{word}").exists()]


def test_the_rows_are_those_of_one_process(tmp_path: Path) -> None:
    plan = make_plan(12, repeats=2)
    result = run(tmp_path / "many", plan, workers=3)
    assert (tmp_path / "many" / "results.jsonl").read_bytes() == alone(tmp_path / "one", plan)
    assert result.summary.complete
    assert not result.interrupted


def test_a_worker_that_is_killed_costs_nothing_but_time(tmp_path: Path) -> None:
    plan = make_plan(12, batch_size=2)
    observer = KillOnce(tmp_path)
    run(tmp_path / "many", plan, Slow(0.01), observers=[observer])
    assert observer.killed == 1
    assert observer.latest is not None
    assert observer.latest.lost_workers == 1
    assert (tmp_path / "many" / "results.jsonl").read_bytes() == alone(tmp_path / "one", plan)


def test_a_conversation_that_kills_three_workers_becomes_error_rows_and_the_others_go_on(tmp_path: Path) -> None:
    plan = make_plan(conversations=[make_conversation(f"c{n}", 2) for n in range(6)])
    result = run(tmp_path / "run", plan, Deadly("c3"))
    rows = list(result.rows())
    assert len(rows) == plan.num_rows
    errors = {(row.conversation, row.turn): row.error or "" for row in rows if row.finish_reason == "error"}
    assert set(errors) == {("c3", 0), ("c3", 1)}
    assert "3 workers" in errors["c3", 0]
    assert "SIGKILL" in errors["c3", 0]
    assert errors["c3", 1].startswith("not reached")


def test_a_fault_of_the_program_is_an_error_row_too_and_its_traceback_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(conversations=[make_conversation("c", 1)])
    result = run(tmp_path / "run", plan, Faulty())
    assert all("ZeroDivisionError: a bug" in (row.error or "") for row in result.rows())
    assert "Traceback" in caplog.text


@pytest.mark.slow
def test_several_models_are_served_one_after_the_other(tmp_path: Path) -> None:
    from rwkvbatch.replay.grid import make_cells

    plan = make_plan(4, cells=make_cells({"model": ["a.pth", "b.pth"]}))
    run(tmp_path / "many", plan)
    assert (tmp_path / "many" / "results.jsonl").read_bytes() == alone(tmp_path / "one", plan)


def test_a_run_goes_on_with_workers_where_it_was_stopped_without_and_the_other_way_round(tmp_path: Path) -> None:
    plan = make_plan(10, batch_size=2)
    expected = alone(tmp_path / "one", plan)
    calls = iter(range(1000))
    execute(plan, FakeLoader(), RunOptions(out=tmp_path / "a", should_stop=lambda: next(calls) > 3))
    assert run(tmp_path / "a", plan).summary.complete
    assert (tmp_path / "a" / "results.jsonl").read_bytes() == expected

    stop = StopWhenSomeAreThere()
    stopped = run(tmp_path / "b", plan, Slow(0.05), observers=[stop], should_stop=stop)
    assert stopped.interrupted
    execute(plan, FakeLoader(), RunOptions(out=tmp_path / "b"))
    assert (tmp_path / "b" / "results.jsonl").read_bytes() == expected


class StopWhenSomeAreThere:
    """An observer that asks for an end when workers have finished a few rows."""

    def __init__(self) -> None:
        self.rows = 0

    def started(self, progress: Progress) -> None: ...

    def moved(self, progress: Progress) -> None:
        self.rows = sum(worker.rows for worker in progress.workers)

    def ended(self, progress: Progress) -> None: ...

    def __call__(self) -> bool:
        return self.rows >= 4


def test_what_was_finished_when_the_run_was_stopped_is_kept(tmp_path: Path) -> None:
    plan = make_plan(conversations=[make_conversation(f"c{n}", 1) for n in range(40)], batch_size=2)
    stop = StopWhenSomeAreThere()
    result = run(tmp_path / "run", plan, Slow(0.1), observers=[stop], should_stop=stop)
    assert result.interrupted
    assert 4 <= result.summary.rows < plan.num_rows


def test_no_worker_outlives_the_run(tmp_path: Path) -> None:
    before = set(children_of(os.getpid()))
    run(tmp_path / "run", make_plan(3))
    assert set(children_of(os.getpid())) == before


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_model_that_cannot_be_loaded_is_the_error_that_it_is(tmp_path: Path) -> None:
    pool = partial(process_pool, make_loader=NoModel, count=2)
    with pytest.raises(CheckpointError, match="damaged") as error:
        execute(make_plan(2), FakeLoader(), RunOptions(out=tmp_path / "run", pool=pool))
    assert error.value.hint == "get it again"
    assert not (tmp_path / "run").exists()


def test_an_engine_that_cannot_be_made_ends_the_run(tmp_path: Path) -> None:
    pool = partial(process_pool, make_loader=NoEngine, count=2)
    with pytest.raises(UsageError, match="no memory") as error:
        execute(make_plan(2), FakeLoader(), RunOptions(out=tmp_path / "run", pool=pool))
    assert error.value.hint == "raise --state-memory"


def test_workers_that_only_ever_die_end_the_run(tmp_path: Path) -> None:
    plan = make_plan(conversations=[make_conversation("c", 1, params=None) for _ in range(1)], repeats=40)
    with pytest.raises(WorkerError, match="workers ended without a row"):
        run(tmp_path / "run", plan, Deadly("c"))


def test_a_plan_can_be_sent_to_another_process() -> None:
    plan = make_plan(5, repeats=3, batch_size=7)
    sent = pickle.loads(pickle.dumps(plan))
    assert [sent.task(n) for n in range(sent.num_tasks)] == [plan.task(n) for n in range(plan.num_tasks)]
    assert sent.settings == plan.settings


@pytest.mark.parametrize(
    ("strategy", "device", "wanted"),
    [("auto", "cuda:1", "cuda:1"), ("cuda fp16", "cuda:1", "cuda:1 fp16"), ("cpu bf16", None, "cpu bf16")],
)
def test_a_device_takes_the_place_of_the_strategys(strategy: str, device: str | None, wanted: str) -> None:
    assert Setup(None, strategy, "auto", (0,)).on_device(device).strategy == wanted


def test_a_loaded_model_cannot_be_given_to_processes() -> None:
    with pytest.raises(UsageError, match="loaded already"):
        pool_for(make_plan(1, workers=2).settings, model_given=True)


def test_fewer_workers_than_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="names 2 devices for 1 worker"):
        pool_for(make_plan(1, workers=1, devices=("cuda:0", "cuda:1")).settings)


class PrivateMemory:
    """An observer that looks how much memory each worker has for itself alone."""

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
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what memory is shared")
def test_the_weights_are_in_memory_once(tmp_path: Path) -> None:
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


def test_the_bundled_models_rows_are_the_same(tmp_path: Path) -> None:
    import rwkvbatch

    settings: dict[str, Any] = {"temperature": 1.0, "limit": 6, "max_tokens": 24}
    one = rwkvbatch.run("datasets/demo.jsonl", **settings)
    many = rwkvbatch.run("datasets/demo.jsonl", workers=2, out=tmp_path / "run", **settings)

    def plain(result: RunResult) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.as_dict().items() if k != "timing"} for row in result.rows()]

    assert plain(one) == plain(many)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    # On a busy machine the first may have done everything before the second is there.
    assert {worker["name"] for worker in status["workers"]} <= {"worker 0", "worker 1"}
    assert sum(worker["rows"] for worker in status["workers"]) >= many.summary.rows


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_does_not_end_the_process_that_loads_however_early_it_comes(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen: Any = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        process = popen(*arguments, **options)
        process.send_signal(number)
        return process

    monkeypatch.setattr("rwkvbatch.replay.processes.subprocess.Popen", start)
    plan = make_plan(3)
    pool = ProcessPool(plan, FakeLoader, 1)
    try:
        assert pool.specs(setups_of(plan))
    finally:
        pool.close()


def test_a_worker_is_coming_until_it_has_joined() -> None:
    plan = make_plan(3)
    pool = ProcessPool(plan, FakeLoader, 2)
    try:
        pool.specs(setups_of(plan))
        assert pool.num_starting == 0
        pool.begin(setups_of(plan)[0])
        assert pool.num_starting == 2
        num_joined = 0
        while num_joined < 2:
            num_joined += sum(isinstance(event, Joined) for _, event in pool.receive(1.0))
            assert pool.num_starting == 2 - num_joined
    finally:
        pool.close()


def test_orders_to_a_worker_that_is_gone_go_nowhere() -> None:
    plan = make_plan(2)
    pool = ProcessPool(plan, partial(FakeLoader), 1)
    pool.send(7, Leave())
    pool.kill(7)
    assert list(pool.receive(0.0)) == []


@pytest.mark.parametrize(
    ("status", "text"), [(None, "ended"), (3 << 8, "ended with exit code 3"), (9, "was ended by SIGKILL")]
)
def test_the_end_of_a_process_is_described(status: int | None, text: str) -> None:
    assert _describe(status) == text


@pytest.mark.parametrize(
    ("strategy", "there", "wants"),
    [("auto", True, True), ("auto", False, False), ("cuda fp16", False, True), ("cpu", True, False)],
)
def test_a_gpu_is_used_if_the_strategy_names_it_or_auto_finds_one(
    strategy: str, there: bool, wants: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    (setup,) = setups_of(make_plan(1, strategy=strategy))
    assert _uses_gpu(setup) == wants
