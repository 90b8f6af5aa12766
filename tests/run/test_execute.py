"""Whole runs over an engine that answers at once."""

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
from rwkvbatch.errors import (
    RunDirectoryError,
    RunLockedError,
    RunMismatchError,
    StorageError,
)
from rwkvbatch.run.directory.lock import DirectoryLock
from rwkvbatch.run.driver import FAILURES_TOLD, TooManyFailuresError
from rwkvbatch.run.execute import RunOptions, RunResult, execute, read_rows
from rwkvbatch.run.planning.grid import Cell
from rwkvbatch.run.planning.plan import Plan
from rwkvbatch.run.progress.figures import Progress
from rwkvbatch.run.results.rows import Row
from rwkvbatch.script.records import Check
from tests.run.fakes import (
    CountedFiles,
    FailingFiles,
    FakeShop,
    FakeSpec,
    Longer,
    Raises,
    make_conversation,
    make_plan,
)


def run(
    directory: Path | None, plan: Plan | None = None, shop: FakeShop | None = None, **options: Any
) -> RunResult:
    return execute(plan or make_plan(), shop or FakeShop(), RunOptions(out=directory, **options))


def results(directory: Path) -> bytes:
    return (directory / "results.jsonl").read_bytes()


class StopAfter:
    """Ends the run after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self) -> bool:
        self.steps -= 1
        return self.steps < 0


class TestRows:
    def test_every_row_of_the_plan_is_there_once_and_in_its_order(self, tmp_path: Path) -> None:
        plan = make_plan(7, repeats=2)
        result = run(tmp_path / "run", plan)
        rows = list(result.rows())
        assert [plan.place(row.key) for row in rows] == list(range(plan.num_rows))
        assert result.summary.complete
        assert not result.interrupted

    @pytest.mark.parametrize("batch_size", [1, 2, 64])
    def test_the_bytes_do_not_depend_on_the_batch_size(self, tmp_path: Path, batch_size: int) -> None:
        run(tmp_path / "a", make_plan(9, batch_size=5))
        run(tmp_path / "b", make_plan(9, batch_size=batch_size))
        assert results(tmp_path / "a") == results(tmp_path / "b")

    def test_in_memory_they_are_the_same_as_on_the_disk(self, tmp_path: Path) -> None:
        assert list(run(None).rows()) == list(run(tmp_path / "run").rows())

    def test_a_finished_dialogue_s_place_is_taken_at_once(self) -> None:
        shop = FakeShop()
        run(None, make_plan(30, batch_size=4, cells=[Cell("base", {})]), shop)
        assert shop.engines[0].most_active <= 8  # four dialogues, each perhaps with a reference to score
        waits = len(shop.engines[0].submitted)
        assert waits == sum(1 + number % 4 for number in range(30))

    def test_a_later_turn_follows_the_reply_before_it(self) -> None:
        shop = FakeShop()
        plan = make_plan(conversations=[make_conversation("c", 3)], cells=[Cell("base", {})])
        rows = list(run(None, plan, shop).rows())
        texts = [
            bytes(token - 1 for token in request.tokens).decode() for request in shop.engines[0].submitted
        ]
        assert texts[0] == "System: Be brief.\n\nUser: c asks 0\n\nAssistant:"
        for before, text, row, turn in zip(texts, texts[1:], rows, (1, 2), strict=False):
            assert text == f"{before} {row.reply}\n\nUser: c asks {turn}\n\nAssistant:"

    def test_gold_history_shows_the_reference_in_place_of_the_reply(self) -> None:
        shop = FakeShop()
        conversation = make_conversation("c", 2, reference="What it should say")
        plan = make_plan(conversations=[conversation], cells=[Cell("base", {})], history="gold")
        run(None, plan, shop)
        text = bytes(token - 1 for token in shop.engines[0].submitted[1].tokens).decode()
        assert "Assistant: What it should say\n\nUser: c asks 1" in text

    def test_references_are_scored_after_what_the_model_has_read(self) -> None:
        rows = list(run(None).rows())
        scored = [row for row in rows if row.reference is not None]
        assert scored
        for row in scored:
            assert row.reference is not None
            assert row.reference.text == "a reference"
            assert row.reference.tokens == len(" a reference\n\n")
            assert 0 <= row.reference.matched <= 1

    def test_cells_share_their_luck(self) -> None:
        shop = FakeShop()
        run(None, make_plan(1), shop)
        first, second = (request.noise for request in shop.engines[0].submitted[:2])
        assert first == second

    def test_checks_are_judged(self) -> None:
        result = run(None)
        judged = [check for row in result.rows() for check in row.checks]
        assert {check.passed for check in judged} == {True, False}
        assert result.summary.checks == len(judged)
        assert result.summary.checks_passed == sum(check.passed for check in judged)
        assert not result.summary.passed


class TestContinuing:
    @pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13])
    def test_an_interrupted_run_ends_with_the_same_bytes(self, tmp_path: Path, steps: int) -> None:
        run(tmp_path / "whole")
        plan = make_plan(batch_size=3)
        assert run(tmp_path / "parts", plan, should_stop=StopAfter(steps)).interrupted
        assert not run(tmp_path / "parts", make_plan(batch_size=4)).interrupted
        assert results(tmp_path / "parts") == results(tmp_path / "whole")

    def test_nothing_that_is_there_is_generated_again(self, tmp_path: Path) -> None:
        plan = make_plan(6)
        run(tmp_path / "run", plan, should_stop=StopAfter(4))
        there = len(list(read_rows(tmp_path / "run")))
        shop = FakeShop()
        run(tmp_path / "run", plan, shop)
        assert 0 < there < plan.num_rows
        assert shop.num_generated == plan.num_rows - there
        idle = FakeShop()
        run(tmp_path / "run", plan, idle)
        assert idle.num_generated == 0

    def test_resuming_goes_on_inside_a_conversation(self, tmp_path: Path) -> None:
        plan = make_plan(conversations=[make_conversation("c", 5)], cells=[Cell("base", {})])
        whole = FakeShop()
        run(tmp_path / "whole", plan, whole)
        run(tmp_path / "parts", plan, should_stop=StopAfter(4))
        shop = FakeShop()
        run(tmp_path / "parts", plan, shop)
        assert 0 < shop.num_generated < 5
        assert shop.engines[0].submitted == whole.engines[0].submitted[-shop.num_generated :]

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"max_tokens": 9}, "cells.temp=0.3.max_tokens: there 256, now 9"),
            ({"seed": 4}, "seed: there 0, now 4"),
            ({"repeats": 2}, "repeats: there 1, now 2"),
            ({"num_conversations": 4}, "script.sha256"),
            ({"cells": [Cell("base", {})]}, "cells.base"),
        ],
    )
    def test_a_directory_of_another_run_is_refused_with_the_difference(
        self, tmp_path: Path, change: dict[str, Any], named: str
    ) -> None:
        run(tmp_path / "run")
        before = results(tmp_path / "run")
        with pytest.raises(RunMismatchError) as caught:
            run(tmp_path / "run", make_plan(**change))
        assert named in str(caught.value)
        assert results(tmp_path / "run") == before

    def test_other_weights_are_refused(self, tmp_path: Path) -> None:
        run(tmp_path / "run")
        with pytest.raises(RunMismatchError, match="weights_sha256"):
            run(tmp_path / "run", shop=FakeShop(FakeSpec(weights_sha256="0" * 64)))

    def test_a_run_begun_under_other_rules_of_generation_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(tmp_path / "run")
        monkeypatch.setattr("rwkvbatch.run.directory.manifest.GENERATION_RULES", 99)
        with pytest.raises(RunMismatchError, match="generation_rules: there 1, now 99"):
            run(tmp_path / "run")

    @pytest.mark.parametrize("change", [{"batch_size": 1}, {"threads": 1}, {"max_failures": 3}])
    def test_settings_that_change_no_reply_may_differ(self, tmp_path: Path, change: dict[str, Any]) -> None:
        run(tmp_path / "run", should_stop=StopAfter(3))
        assert not run(tmp_path / "run", make_plan(**change)).interrupted

    def test_a_directory_with_other_files_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(RunDirectoryError, match=r"thesis\.tex"):
            run(tmp_path)
        assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]

    def test_results_without_a_manifest_are_refused(self, tmp_path: Path) -> None:
        run(tmp_path / "run")
        (tmp_path / "run" / "manifest.json").unlink()
        with pytest.raises(RunDirectoryError, match="no manifest"):
            run(tmp_path / "run")

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"identity": 3}', '{"identity": {}, "format": 99}'])
    def test_a_damaged_manifest_is_one_clear_error(self, tmp_path: Path, content: str) -> None:
        run(tmp_path / "run")
        (tmp_path / "run" / "manifest.json").write_text(content)
        with pytest.raises(RunDirectoryError, match=r"manifest\.json"):
            run(tmp_path / "run")

    def test_a_second_writer_is_refused_and_changes_nothing(self, tmp_path: Path) -> None:
        run(tmp_path / "run", should_stop=StopAfter(2))
        before = results(tmp_path / "run")
        lock = DirectoryLock(tmp_path / "run", "the first")
        with pytest.raises(RunLockedError, match="the first"):
            run(tmp_path / "run")
        lock.release()
        assert results(tmp_path / "run") == before

    def test_a_file_in_place_of_the_directory_is_one_clear_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file" / "run"):
            with pytest.raises(RunDirectoryError, match="file"):
                run(path)

    def test_a_directory_made_for_nothing_goes_away(self, tmp_path: Path) -> None:
        class Broken(FakeShop):
            def specs(self, setups: Any) -> Any:
                raise StorageError("no model")

        with pytest.raises(StorageError):
            run(tmp_path / "run", shop=Broken())
        assert not (tmp_path / "run").exists()


class TestFailedRows:
    def test_a_run_killed_between_a_failed_row_and_those_it_cuts_off_is_completed(
        self, tmp_path: Path
    ) -> None:
        broken = make_conversation("broken", 3, checks=[Check("mine", 1, Raises())])
        plan = make_plan(conversations=[broken], cells=[Cell("base", {})])
        run(tmp_path / "run", plan)
        whole = results(tmp_path / "run")
        first = whole[: whole.index(b"\n") + 1]
        (tmp_path / "run" / "results.jsonl").write_bytes(first)
        shop = FakeShop()
        assert run(tmp_path / "run", plan, shop).summary.complete
        assert shop.num_generated == 0
        assert results(tmp_path / "run") == whole

    def test_a_check_that_raises_ends_its_dialogue_and_the_run_goes_on(self, tmp_path: Path) -> None:
        broken = make_conversation("broken", 3, checks=[Check("mine", 1, Raises())])
        plan = make_plan(conversations=[broken, make_conversation("fine", 2)], cells=[Cell("base", {})])
        result = run(tmp_path / "run", plan)
        rows = list(result.rows())
        assert [row.finish == "error" for row in rows] == [True, True, True, False, False]
        assert rows[0].error == "check 'mine' failed: ZeroDivisionError: broken plug-in"
        assert rows[0].reply
        assert rows[1].error == "not reached: turn 0 of this conversation failed"
        assert (result.summary.errors, result.summary.passed, result.summary.complete) == (3, False, True)

    def test_a_prompt_that_is_too_long_fails_when_it_is_reached(self) -> None:
        plan = make_plan(
            conversations=[make_conversation("c", 6)], cells=[Cell("base", {})], max_prompt_tokens=150
        )
        rows = list(run(None, plan).rows())
        assert rows[0].finish != "error"
        assert rows[-1].error is not None
        failed = next(row for row in rows if row.finish == "error")
        assert failed.error is not None
        assert "--max-prompt-tokens allows 150" in failed.error
        assert all(row.tokens.prompt <= 150 for row in rows)

    def test_logits_that_are_no_numbers_fail_their_row_alone(self) -> None:
        def change(request: Request, reply: Reply) -> Reply:
            if request.noise.conversation == "c2":
                return replace(reply, finish="error", error="the logits hold NaN")
            return replace(reply, logprobs=(float("nan"),)) if request.noise.conversation == "c3" else reply

        rows = list(run(None, make_plan(5), FakeShop(change=change)).rows())
        assert {row.conversation for row in rows if row.finish == "error"} == {"c2", "c3"}
        assert any(row.error == "the logits hold NaN" for row in rows)

    def test_the_time_limit_ends_a_reply_and_not_the_dialogue(self) -> None:
        shop = FakeShop(change=lambda request, reply: replace(reply, finish="time", stopped_by=None))
        rows = list(run(None, make_plan(3), shop).rows())
        assert {row.finish for row in rows} == {"time"}

    def test_turns_that_were_not_reached_do_not_count_for_max_failures(self, tmp_path: Path) -> None:
        conversations = [make_conversation(f"c{n}", 5, checks=[Check("mine", 1, Raises())]) for n in range(2)]
        plan = make_plan(conversations=conversations, cells=[Cell("base", {})], max_failures=2)
        assert run(tmp_path / "run", plan).summary.errors == 10

    def test_a_failed_row_is_told_with_its_place_and_many_only_to_the_log_file(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        conversations = [
            make_conversation(f"c{n}", 2, checks=[Check("mine", 1, Raises())]) for n in range(30)
        ]
        plan = make_plan(conversations=conversations, cells=[Cell("base", {})], batch_size=1)
        with caplog.at_level("INFO"):
            run(tmp_path / "run", plan)
        failures = [record for record in caplog.records if ": failed: " in record.message]
        assert len(failures) == 60
        told = [record.message for record in failures if record.levelname == "WARNING"]
        assert len(told) == FAILURES_TOLD
        assert told[0].startswith("conversation c0, cell base, repeat 0, turn 0: failed: check 'mine' failed")

    def test_max_failures_ends_the_run_and_keeps_what_is_done(self, tmp_path: Path) -> None:
        conversations = [make_conversation(f"c{n}", 1, checks=[Check("mine", 1, Raises())]) for n in range(9)]
        plan = make_plan(conversations=conversations, cells=[Cell("base", {})], max_failures=2, batch_size=1)
        with pytest.raises(TooManyFailuresError, match="--max-failures allows 2"):
            run(tmp_path / "run", plan)
        assert len(list(read_rows(tmp_path / "run"))) == 3
        assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"

    def test_retry_errors_runs_failed_rows_again_and_no_others(self, tmp_path: Path) -> None:
        run(tmp_path / "whole", make_plan(6))

        def change(request: Request, reply: Reply) -> Reply:
            broken = request.noise.conversation == "c3" and request.noise.turn == 1
            return replace(reply, finish="error", error="a passing trouble") if broken else reply

        plan = make_plan(6)
        assert run(tmp_path / "run", plan, FakeShop(change=change)).summary.errors == 2 * 3
        assert run(tmp_path / "run", plan).summary.errors == 2 * 3
        shop = FakeShop()
        assert run(tmp_path / "run", plan, shop, retry_errors=True).summary.errors == 0
        assert shop.num_generated == 2 * 3
        assert results(tmp_path / "run") == results(tmp_path / "whole")


class TestMemory:
    def test_out_of_memory_halves_the_batch_and_changes_no_row(self) -> None:
        class Tight(FakeShop):
            def engine(self, setup: Any, plan: Plan, batch: int) -> Any:
                engine = super().engine(setup, plan, batch)
                if batch > 2:
                    step = engine.step
                    engine.step = lambda: (
                        (_ for _ in ()).throw(MemoryError("no room")) if engine.submitted else step()
                    )
                return engine

        shop = Tight()
        rows = list(run(None, make_plan(6, batch_size=9), shop).rows())
        assert [engine.max_batch for engine in shop.engines] == [9, 4, 2]
        assert rows == list(run(None, make_plan(6)).rows())

    def test_a_row_that_does_not_fit_alone_fails(self) -> None:
        def change(request: Request, reply: Reply) -> Reply:
            if request.noise.conversation == "c1":
                raise MemoryError("no room")
            return reply

        rows = list(run(None, make_plan(4, batch_size=3), FakeShop(change=change)).rows())
        assert len(rows) == make_plan(4).num_rows
        assert {row.conversation for row in rows if row.finish == "error"} == {"c1"}

    def test_any_other_error_of_the_engine_ends_the_run_with_its_rows_kept(self, tmp_path: Path) -> None:
        def change(request: Request, reply: Reply) -> Reply:
            if request.noise.conversation == "c4":
                raise RuntimeError("a bug")
            return reply

        plan = make_plan(6, batch_size=1)
        with pytest.raises(RuntimeError, match="a bug"):
            run(tmp_path / "run", plan, FakeShop(change=change))
        assert len(list(read_rows(tmp_path / "run"))) > 4
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert (status["state"], status["error"]) == ("failed", "RuntimeError: a bug")


class TestFailingDisk:
    def test_an_error_at_any_call_ends_the_run_and_can_be_continued(self, tmp_path: Path) -> None:
        counted = CountedFiles()
        run(tmp_path / "whole", files=counted)
        stopped = 0
        for at in range(len(counted.calls)):
            directory = tmp_path / str(at)
            code = (errno.ENOSPC, errno.EIO, errno.EDQUOT)[at % 3]
            seen: list[Progress] = []
            try:
                run(
                    directory,
                    files=FailingFiles(at, code, forever=True, short=at % 2 == 0),
                    observer=Watcher(seen),
                )
            except (StorageError, RunDirectoryError):
                stopped += 1
            there = list(read_rows(directory)) if (directory / "results.jsonl").exists() else []
            assert len(there) >= max((progress.rows_done for progress in seen), default=0)
            run(directory)
            assert results(directory) == results(tmp_path / "whole")
        # Only the status, which is a courtesy, may fail without a word.
        assert stopped > len(counted.calls) // 2

    def test_a_small_disk_that_fills_up_stops_the_run_and_a_larger_one_lets_it_go_on(
        self, tmp_path: Path
    ) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=False).returncode:
            pytest.skip("file systems cannot be mounted here")
        try:
            plan = make_plan(60)
            seen: list[Progress] = []
            with pytest.raises(StorageError, match="No space left"):
                run(disk / "run", plan, observer=Watcher(seen))
            there = len(list(read_rows(disk / "run")))
            assert seen[-1].rows_done <= there < plan.num_rows
            subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
            run(disk / "run", plan)
            run(tmp_path / "whole", plan)
            assert results(disk / "run") == results(tmp_path / "whole")
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_a_file_size_limit_stops_the_run_with_a_message(self, tmp_path: Path) -> None:
        program = (
            "import resource, sys; from pathlib import Path; from tests.run.test_execute import run\n"
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


class Watcher:
    def __init__(self, seen: list[Progress]) -> None:
        self.seen = seen

    def moved(self, progress: Progress) -> None:
        self.seen.append(progress)

    started = ended = moved


class TestWatching:
    def test_the_status_says_done_at_the_end(self, tmp_path: Path) -> None:
        result = run(tmp_path / "run")
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert status["state"] == "done"
        assert status["rows_done"] == status["rows_total"] == result.plan.num_rows

    def test_the_status_says_interrupted(self, tmp_path: Path) -> None:
        run(tmp_path / "run", should_stop=StopAfter(2))
        assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted"

    def test_progress_never_counts_a_row_that_is_at_risk(self, tmp_path: Path) -> None:
        seen: list[Progress] = []
        run(tmp_path / "run", make_plan(40), observer=Watcher(seen))
        assert [p.rows_done for p in seen] == sorted(p.rows_done for p in seen)
        assert seen[-1].rows_done == seen[-1].rows_total
        assert any(0 < p.rows_done < p.rows_total for p in seen)

    def test_the_manifest_says_what_was_run(self, tmp_path: Path) -> None:
        run(tmp_path / "run", scripts=("made.jsonl",), command="rwkvbatch run made.jsonl")
        manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
        assert list(manifest["identity"]["cells"]) == ["temp=0.3", "temp=1"]
        assert manifest["identity"]["cells"]["temp=0.3"]["weights_sha256"] == FakeSpec().weights_sha256
        assert manifest["about"]["command"] == "rwkvbatch run made.jsonl"
        assert len(manifest["about"]["code_sha256"]) == 64

    def test_the_summary_can_be_made_again_from_the_rows(self, tmp_path: Path) -> None:
        from rwkvbatch.run.directory.summary import summarize

        result = run(tmp_path / "run")
        written = json.loads((tmp_path / "run" / "summary.json").read_text())
        again = summarize(read_rows(tmp_path / "run"), ["temp=0.3", "temp=1"], result.plan.num_rows)
        assert {**json.loads(json.dumps(again.as_dict())), "session": written["session"]} == written


class TestVerifying:
    def test_rows_that_come_out_the_same_are_called_bitwise(self, tmp_path: Path) -> None:
        result = run(tmp_path / "run", verify_rows=7)
        assert result.verified is not None
        assert result.verified["bitwise"]
        assert json.loads((tmp_path / "run" / "verify.json").read_text()) == result.verified

    def test_a_backend_that_depends_on_the_batch_is_found_out(self) -> None:
        class Careless(FakeShop):
            def engine(self, setup: Any, plan: Plan, batch: int) -> Any:
                def change(request: Request, reply: Reply) -> Reply:
                    ids = (
                        (*reply.ids[:3], reply.ids[3] % 256 + 1, *reply.ids[4:]) if batch == 1 else reply.ids
                    )
                    return replace(reply, ids=ids)

                self.change = change
                return super().engine(setup, plan, batch)

        result = run(None, make_plan(5, batch_size=4), Careless(), verify_rows=5)
        assert result.verified is not None
        assert not result.verified["bitwise"]
        assert {(d["where"], d["first_token"]) for d in result.verified["differences"]} == {("alone", 3)}

    def test_log_probabilities_alone_may_differ(self) -> None:
        class Rounding(FakeShop):
            def engine(self, setup: Any, plan: Plan, batch: int) -> Any:
                self.change = lambda request, reply: replace(
                    reply, logprobs=tuple(p - 1e-6 * batch for p in reply.logprobs)
                )
                return super().engine(setup, plan, batch)

        result = run(None, make_plan(5, batch_size=4), Rounding(), verify_rows=5)
        assert result.verified is not None
        assert result.verified["held"].startswith("tokens of 5 rows; log-probabilities differ by up to")


def test_settings_of_a_conversation_win_unless_the_command_line_or_the_grid_gives_them() -> None:
    conversation = make_conversation("c", 1, params={"temperature": 0.2, "max_tokens": 7, "seed": 99})
    cells = [Cell("base", {})]

    def first(plan: Plan) -> tuple[float, int, int]:
        dialogue = plan.dialogue(0)
        return dialogue.settings.temperature, dialogue.settings.max_tokens, dialogue.seed

    assert first(make_plan(conversations=[conversation], cells=cells)) == (0.2, 7, 99)
    assert first(make_plan(conversations=[conversation], cells=cells, explicit=["max_tokens"])) == (
        0.2,
        256,
        99,
    )
    assert first(make_plan(conversations=[conversation], cells=cells, seed=3, explicit=["seed"])) == (
        0.2,
        7,
        3,
    )
    swept = make_plan(conversations=[conversation], cells=[Cell("temp=0.9", {"temperature": 0.9})])
    assert first(swept) == (0.9, 7, 99)


def test_a_row_says_everything_that_replaying_it_needs(tmp_path: Path) -> None:
    rows: list[Row] = list(run(None, make_plan(8)).rows())
    assert {row.finish for row in rows} == {"stop", "eos", "length"}
    assert {row.stopped_by for row in rows if row.finish == "stop"} == {"\n\n"}


def test_the_check_used_here_can_fail() -> None:
    from rwkvbatch.script.records import ReplyFacts

    assert not Longer(3).judge(ReplyFacts("ab", "stop", 1)).passed
