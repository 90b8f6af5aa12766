"""Runs that cannot complete normally: checks that hang or exit, loaders and drivers that are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.errors import WorkerError
from rwkvbatch.replay import driver
from rwkvbatch.replay.planning.setups import setups_of
from rwkvbatch.replay.pools.dispatch import Dispatcher
from rwkvbatch.replay.pools.processes import ProcessPool
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from rwkvbatch.script.records import Check, ReplyFacts, Verdict
from tests.replay.fakes import FakeLoader, make_conversation, make_plan
from tests.replay.pools.worker_processes import children_of, is_alive, process_pool, run_in_processes


@dataclass(frozen=True)
class HangingCheck:
    """A check that never returns to the interpreter: a regular expression with exponential backtracking."""

    def judge(self, facts: ReplyFacts) -> Verdict:
        re.match(r"(a|aa)+$", "a" * 200 + "b")
        raise AssertionError("the match returned")


@dataclass(frozen=True)
class ExitingCheck:
    """A check that raises an exception that is not an `Exception`."""

    exception: type[BaseException] = SystemExit

    def judge(self, facts: ReplyFacts) -> Verdict:
        raise self.exception(0)


def with_check(rule: Any, num_others: int = 4) -> list[Any]:
    """One conversation with the check, and others without."""
    others = [make_conversation(f"c{number}", 2) for number in range(num_others)]
    return [make_conversation("bad", 2, checks=[Check("bad", None, rule)]), *others]


class TestHangingChecks:
    def test_a_conversation_that_hangs_two_workers_becomes_error_rows_and_others_are_replayed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "JUDGING_S", 0.3)
        result = run_in_processes(tmp_path / "run", make_plan(conversations=with_check(HangingCheck()), repeats=1))
        rows = list(result.rows())
        assert len(rows) == result.plan.num_rows
        failed = [row for row in rows if row.finish_reason == "error"]
        assert {row.conversation for row in failed} == {"bad"}
        assert failed[0].error == (
            "2 workers were killed while they judged this conversation: a check gave no verdict within 0.3 s"
        )
        assert failed[1].error is not None
        assert failed[1].error.startswith("not reached")

    def test_other_tasks_of_a_hanging_worker_keep_their_attempts(self) -> None:
        dispatcher = Dispatcher([0, 1, 2], lambda _: 0)
        dispatcher.add_worker(0, 3)
        assert [a.tasks for a in dispatcher.assignments()] == [(0, 1, 2)]
        assert dispatcher.left(0, hung_by=0) == []
        dispatcher.add_worker(1, 3)
        assert [a.tasks for a in dispatcher.assignments()] == [(0,)]  # alone
        assert dispatcher.left(1, hung_by=0) == [0]
        for worker in (2, 3):  # the others have all their attempts
            dispatcher.add_worker(worker, 3)
            assert [sorted(a.tasks) for a in dispatcher.assignments()] == [[1, 2]]
            assert dispatcher.left(worker) == []
        assert not dispatcher.finished

    def test_a_hanging_copy_of_a_straggler_counts_as_an_attempt(self) -> None:
        now = [0.0]
        dispatcher = Dispatcher([0, 1], lambda task: task, clock=lambda: now[0])
        dispatcher.add_worker(0, 1)
        dispatcher.add_worker(1, 1)
        dispatcher.assignments()
        dispatcher.finish(1, 1)
        now[0] = 100.0
        (copy,) = dispatcher.assignments()
        assert (copy.worker, copy.tasks) == (1, (0,))
        assert dispatcher.left(0, 0) == []
        assert dispatcher.left(1, 0) == [0]
        assert dispatcher.finished

    def test_hanging_workers_end_when_their_driver_is_killed(self, tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path\n"
            "from tests.replay.test_endings import HangingCheck, make_plan, run_in_processes, with_check\n"
            "run_in_processes(Path(sys.argv[1]), make_plan(conversations=with_check(HangingCheck(), 0), repeats=2))\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")])
        deadline = time.monotonic() + 60
        processes: list[int] = []
        while len(processes) < 3 or not all(map(is_busy, processes[1:])):
            assert time.monotonic() < deadline
            assert process.poll() is None
            template = children_of(process.pid)
            processes = [*template, *(children_of(template[0]) if template else [])]
            time.sleep(0.1)
        process.kill()
        process.wait()
        while any(map(is_alive, processes)):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def is_busy(process: int) -> bool:
    """Whether a process has used half a second of processor time."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return False
    return int(fields[11]) / os.sysconf("SC_CLK_TCK") >= 0.5


class TestExitingChecks:
    @pytest.mark.parametrize("exception", [SystemExit, GeneratorExit])
    def test_a_check_that_raises_no_exception_subclass_ends_its_conversation(
        self, tmp_path: Path, exception: type[BaseException]
    ) -> None:
        result = execute(
            make_plan(conversations=with_check(ExitingCheck(exception))), FakeLoader(), RunOptions(out=tmp_path / "x")
        )
        rows = list(result.rows())
        assert len(rows) == result.plan.num_rows
        failed = [row for row in rows if row.finish_reason == "error"]
        assert {row.conversation for row in failed} == {"bad"}
        assert f"check 'bad' failed: {exception.__name__}" in str(failed[0].error)

    def test_system_exit_in_a_worker_ends_its_conversation(self, tmp_path: Path) -> None:
        result = run_in_processes(tmp_path / "run", make_plan(conversations=with_check(ExitingCheck())))
        assert {row.conversation for row in result.rows() if row.error} == {"bad"}

    def test_keyboard_interrupt_in_a_check_interrupts_the_run(self, tmp_path: Path) -> None:
        plan = make_plan(conversations=with_check(ExitingCheck(KeyboardInterrupt)))
        with pytest.raises(KeyboardInterrupt):
            execute(plan, FakeLoader(), RunOptions(out=tmp_path / "x"))
        assert json.loads((tmp_path / "x" / "status.json").read_text())["state"] == "interrupted"


class TestLoaderKilled:
    def test_a_template_killed_before_workers_start_is_loaded_again(self, tmp_path: Path) -> None:
        class KillsTemplate(ProcessPool):
            def begin(self, setup: Any) -> None:
                template = self._template
                assert template is not None
                template._process.kill()  # pyright: ignore[reportPrivateUsage]
                template._process.wait()  # pyright: ignore[reportPrivateUsage]
                super().begin(setup)

        plan = make_plan(6)
        result = execute(plan, FakeLoader(), RunOptions(out=tmp_path, pool=lambda p: KillsTemplate(p, FakeLoader, 2)))
        assert result.summary.complete

    def test_a_template_that_is_killed_every_time_ends_the_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = ProcessPool(make_plan(3), FakeLoader, 2)

        def fail(_: Any) -> None:
            raise EOFError("the process that loads the model ended with -9")

        try:
            setup = setups_of(make_plan(3))[0]
            pool.specs([setup])
            monkeypatch.setattr(pool, "_start", fail)
            monkeypatch.setattr(pool, "_load", lambda _: None)
            with pytest.raises(WorkerError, match=r"the process that starts workers is gone.*ended with -9"):
                pool.begin(setup)
        finally:
            pool.close()


class TestExitCode:
    @pytest.fixture
    def script(self, tmp_path: Path) -> Path:
        path = tmp_path / "s.jsonl"
        line = {"messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "And?"}]}
        path.write_text("".join(json.dumps({"id": f"c{n}", **line}) + "\n" for n in range(3)))
        return path

    @pytest.mark.parametrize(
        ("kind", "arguments"),
        [
            (WorkerError, ("no worker is left",)),
            (EOFError, ("x",)),
            (SystemExit, (0,)),
            (OSError, (5, "I/O error")),
            (ValueError, ()),
        ],
    )
    def test_an_unfinished_run_exits_with_5_and_can_be_resumed(
        self,
        script: Path,
        tmp_path: Path,
        kind: type[BaseException],
        arguments: tuple[Any, ...],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def fail(*_: object) -> bool:
            raise kind(*arguments)  # a new one: its traceback holds the model, and parameters live as long as the tests

        out = tmp_path / "out"
        command = ["run", str(script), "--out", str(out), "--max-tokens", "2", "--quiet"]
        with monkeypatch.context() as patch:
            patch.setattr("rwkvbatch.replay.driver.LocalDriver.run", fail)
            assert invoke(command) == 5
        assert "unfinished: 0 of 6 rows are safe. To continue: rwkvbatch" in capsys.readouterr().err
        assert json.loads((out / "status.json").read_text())["state"] != "running"
        assert invoke(command) in (0, 1)

    def test_eof_of_a_stream_is_an_internal_error_and_not_an_interruption(
        self, script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def end(*_: object, **__: object) -> RunResult:
            raise EOFError("half a message")

        monkeypatch.setattr("rwkvbatch.replay.api.prepare", end)
        assert invoke(["run", str(script)]) == 4
        assert "half a message" in capsys.readouterr().err


class KillTemplate:
    """An observer that kills the process which loads the model, when the run begins."""

    def started(self, progress: Progress) -> None:
        for child in children_of(os.getpid()):
            os.kill(child, signal.SIGKILL)

    def moved(self, progress: Progress) -> None: ...

    def ended(self, progress: Progress) -> None: ...


def test_a_run_completes_when_the_loader_is_killed_while_workers_start(tmp_path: Path) -> None:
    plan = make_plan(4)
    pool = partial(process_pool, make_loader=FakeLoader, num_workers=2)
    result = execute(plan, FakeLoader(), RunOptions(out=tmp_path / "x", pool=pool, observers=[KillTemplate()]))
    assert result.summary.complete
