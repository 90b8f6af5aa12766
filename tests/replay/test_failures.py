"""Failing rows, memory and disks: what a run keeps and reports, and how it continues."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.engine.request import Reply, Request
from rwkvbatch.errors import RunDirectoryError, StorageError
from rwkvbatch.replay.driver import FAILURES_SHOWN, TooManyFailuresError
from rwkvbatch.replay.planning.grid import Cell
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.runner import read_rows
from rwkvbatch.script.records import Check
from tests.replay.disks import CountedFiles, FailingFiles
from tests.replay.fakes import FakeLoader, RaisingCheck, make_conversation, make_plan
from tests.replay.runs import ProgressRecorder, results, run


class TestFailedRows:
    def test_a_run_killed_after_a_failed_row_adds_the_rows_not_reached(self, tmp_path: Path) -> None:
        broken = make_conversation("broken", 3, checks=[Check("mine", 1, RaisingCheck())])
        plan = make_plan(conversations=[broken], cells=[Cell("base", {})])
        run(tmp_path / "run", plan)
        whole = results(tmp_path / "run")
        first = whole[: whole.index(b"\n") + 1]
        (tmp_path / "run" / "results.jsonl").write_bytes(first)
        loader = FakeLoader()
        assert run(tmp_path / "run", plan, loader).summary.complete
        assert loader.num_generated == 0
        assert results(tmp_path / "run") == whole

    def test_a_check_that_raises_ends_its_conversation_only(self, tmp_path: Path) -> None:
        broken = make_conversation("broken", 3, checks=[Check("mine", 1, RaisingCheck())])
        plan = make_plan(conversations=[broken, make_conversation("fine", 2)], cells=[Cell("base", {})])
        result = run(tmp_path / "run", plan)
        rows = list(result.rows())
        assert [row.finish_reason == "error" for row in rows] == [True, True, True, False, False]
        assert rows[0].error == "the check 'mine' failed with ZeroDivisionError: broken plug-in"
        assert rows[0].reply
        assert rows[1].error == "not reached: turn 0 of this conversation failed"
        assert (result.summary.errors, result.summary.passed, result.summary.complete) == (3, False, True)

    def test_a_prompt_that_is_too_long_fails_at_its_turn(self) -> None:
        plan = make_plan(conversations=[make_conversation("c", 6)], cells=[Cell("base", {})], max_prompt_tokens=150)
        rows = list(run(None, plan).rows())
        assert rows[0].finish_reason != "error"
        assert rows[-1].error is not None
        failed = next(row for row in rows if row.finish_reason == "error")
        assert failed.error is not None
        assert "--max-prompt-tokens allows 150" in failed.error
        assert all(row.tokens.prompt <= 150 for row in rows)

    def test_nan_logits_fail_only_their_conversation(self) -> None:
        def change(request: Request, reply: Reply) -> Reply:
            if request.noise.conversation == "c2":
                return replace(reply, finish_reason="error", error="the logits contain NaN")
            return replace(reply, logprobs=(float("nan"),)) if request.noise.conversation == "c3" else reply

        rows = list(run(None, make_plan(5), FakeLoader(change=change)).rows())
        assert {row.conversation for row in rows if row.finish_reason == "error"} == {"c2", "c3"}
        assert any(row.error == "the logits contain NaN" for row in rows)

    def test_the_time_limit_ends_a_reply_and_not_its_conversation(self) -> None:
        loader = FakeLoader(change=lambda request, reply: replace(reply, finish_reason="time", stopped_by=None))
        rows = list(run(None, make_plan(3), loader).rows())
        assert {row.finish_reason for row in rows} == {"time"}

    def test_turns_that_were_not_reached_do_not_count_for_max_failures(self, tmp_path: Path) -> None:
        conversations = [make_conversation(f"c{n}", 5, checks=[Check("mine", 1, RaisingCheck())]) for n in range(2)]
        plan = make_plan(conversations=conversations, cells=[Cell("base", {})], max_failures=2)
        assert run(tmp_path / "run", plan).summary.errors == 10

    def test_failed_rows_are_logged_with_their_keys_and_only_the_first_as_warnings(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        conversations = [make_conversation(f"c{n}", 2, checks=[Check("mine", 1, RaisingCheck())]) for n in range(30)]
        plan = make_plan(conversations=conversations, cells=[Cell("base", {})], batch_size=1)
        with caplog.at_level("INFO"):
            run(tmp_path / "run", plan)
        failures = [record for record in caplog.records if ": failed: " in record.message]
        assert len(failures) == 60
        warnings = [record.message for record in failures if record.levelname == "WARNING"]
        assert len(warnings) == FAILURES_SHOWN
        assert warnings[0].startswith("conversation c0, cell base, repeat 0, turn 0: failed: the check 'mine' failed")

    def test_max_failures_ends_the_run_and_keeps_finished_rows(self, tmp_path: Path) -> None:
        conversations = [make_conversation(f"c{n}", 1, checks=[Check("mine", 1, RaisingCheck())]) for n in range(9)]
        plan = make_plan(conversations=conversations, cells=[Cell("base", {})], max_failures=2, batch_size=1)
        with pytest.raises(TooManyFailuresError, match="--max-failures allows 2"):
            run(tmp_path / "run", plan)
        assert len(list(read_rows(tmp_path / "run"))) == 3
        assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"

    def test_retry_errors_runs_failed_rows_again_and_no_others(self, tmp_path: Path) -> None:
        run(tmp_path / "whole", make_plan(6))

        def change(request: Request, reply: Reply) -> Reply:
            broken = request.noise.conversation == "c3" and request.noise.turn == 1
            return replace(reply, finish_reason="error", error="a temporary fault") if broken else reply

        plan = make_plan(6)
        assert run(tmp_path / "run", plan, FakeLoader(change=change)).summary.errors == 2 * 3
        assert run(tmp_path / "run", plan).summary.errors == 2 * 3
        loader = FakeLoader()
        assert run(tmp_path / "run", plan, loader, retry_errors=True).summary.errors == 0
        assert loader.num_generated == 2 * 3
        assert results(tmp_path / "run") == results(tmp_path / "whole")


class TestMemory:
    def test_out_of_memory_halves_the_batch_and_changes_no_row(self) -> None:
        class SmallMemoryLoader(FakeLoader):
            def engine(self, setup: Any, plan: Plan, batch: int) -> Any:
                engine = super().engine(setup, plan, batch)
                if batch > 2:
                    step = engine.step
                    engine.step = lambda: (_ for _ in ()).throw(MemoryError("no room")) if engine.submitted else step()
                return engine

        loader = SmallMemoryLoader()
        rows = list(run(None, make_plan(6, batch_size=9), loader).rows())
        assert [engine.max_batch for engine in loader.engines] == [9, 4, 2]
        assert rows == list(run(None, make_plan(6)).rows())

    def test_a_row_that_does_not_fit_alone_fails(self) -> None:
        def change(request: Request, reply: Reply) -> Reply:
            if request.noise.conversation == "c1":
                raise MemoryError("no room")
            return reply

        rows = list(run(None, make_plan(4, batch_size=3), FakeLoader(change=change)).rows())
        assert len(rows) == make_plan(4).num_rows
        assert {row.conversation for row in rows if row.finish_reason == "error"} == {"c1"}

    def test_any_other_error_of_the_engine_ends_the_run_and_keeps_its_rows(self, tmp_path: Path) -> None:
        def change(request: Request, reply: Reply) -> Reply:
            if request.noise.conversation == "c4":
                raise RuntimeError("a bug")
            return reply

        plan = make_plan(6, batch_size=1)
        with pytest.raises(RuntimeError, match="a bug"):
            run(tmp_path / "run", plan, FakeLoader(change=change))
        assert len(list(read_rows(tmp_path / "run"))) > 4
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert (status["state"], status["error"]) == ("failed", "RuntimeError: a bug")


class TestFailingDisk:
    def test_a_run_stopped_by_an_error_at_any_write_can_be_resumed(self, tmp_path: Path) -> None:
        counted = CountedFiles()
        run(tmp_path / "whole", files=counted)
        stopped = 0
        for at in range(len(counted.calls)):
            directory = tmp_path / str(at)
            code = (errno.ENOSPC, errno.EIO, errno.EDQUOT)[at % 3]
            recorder = ProgressRecorder()
            try:
                run(directory, files=FailingFiles(at, code, forever=True, short=at % 2 == 0), observers=[recorder])
            except (StorageError, RunDirectoryError):
                stopped += 1
            rows = list(read_rows(directory)) if (directory / "results.jsonl").exists() else []
            assert len(rows) >= max((progress.rows_done for progress in recorder.seen), default=0)
            run(directory)
            assert results(directory) == results(tmp_path / "whole")
        # Only writing the status may fail silently.
        assert stopped > len(counted.calls) // 2

    def test_a_run_stopped_by_a_full_disk_resumes_on_a_larger_one(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=False).returncode:
            pytest.skip("file systems cannot be mounted here")
        try:
            plan = make_plan(60)
            recorder = ProgressRecorder()
            with pytest.raises(StorageError, match="No space left"):
                run(disk / "run", plan, observers=[recorder])
            num_rows = len(list(read_rows(disk / "run")))
            assert recorder.seen[-1].rows_done <= num_rows < plan.num_rows
            subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
            run(disk / "run", plan)
            run(tmp_path / "whole", plan)
            assert results(disk / "run") == results(tmp_path / "whole")
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_a_file_size_limit_stops_the_run_with_a_message(self, tmp_path: Path) -> None:
        program = (
            "import resource, sys; from pathlib import Path; from tests.replay.runs import run\n"
            "from rwkvbatch.errors import StorageError\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
            "try: run(Path(sys.argv[1]))\n"
            "except StorageError as error: print(error)"
        )
        root = Path(__file__).parent.parent.parent
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "run")],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "File too large" in done.stdout, done.stderr
        run(tmp_path / "whole")
        run(tmp_path / "run")
        assert results(tmp_path / "run") == results(tmp_path / "whole")
