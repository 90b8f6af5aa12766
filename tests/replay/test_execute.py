"""Whole runs over a fake engine: rows, checks, progress, status and summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwkvbatch.replay.planning.grid import Cell
from rwkvbatch.replay.runner import read_rows
from rwkvbatch.results.summary import summarize
from tests.replay.fakes import FakeLoader, FakeSpec, make_conversation, make_plan
from tests.replay.runs import ProgressRecorder, StopAfter, results, run


class TestRows:
    def test_a_run_has_every_row_of_the_plan_once_and_in_order(self, tmp_path: Path) -> None:
        plan = make_plan(7, repeats=2)
        result = run(tmp_path / "run", plan)
        rows = list(result.rows())
        assert [plan.row_number(row.key) for row in rows] == list(range(plan.num_rows))
        assert result.summary.complete
        assert not result.interrupted

    @pytest.mark.parametrize("batch_size", [1, 2, 64])
    def test_the_bytes_do_not_depend_on_the_batch_size(self, tmp_path: Path, batch_size: int) -> None:
        run(tmp_path / "a", make_plan(9, batch_size=5))
        run(tmp_path / "b", make_plan(9, batch_size=batch_size))
        assert results(tmp_path / "a") == results(tmp_path / "b")

    def test_rows_in_memory_equal_rows_on_disk(self, tmp_path: Path) -> None:
        assert list(run(None).rows()) == list(run(tmp_path / "run").rows())

    def test_a_finished_task_is_replaced_while_others_run(self) -> None:
        loader = FakeLoader()
        run(None, make_plan(30, batch_size=4, cells=[Cell("base", {})]), loader)
        assert loader.engines[0].most_active <= 8  # four tasks, each perhaps with a reference to score
        waits = len(loader.engines[0].submitted)
        assert waits == sum(1 + number % 4 for number in range(30))

    def test_a_later_turn_follows_the_reply_before_it(self) -> None:
        loader = FakeLoader()
        plan = make_plan(conversations=[make_conversation("c", 3)], cells=[Cell("base", {})])
        rows = list(run(None, plan, loader).rows())
        texts = [bytes(token - 1 for token in request.tokens).decode() for request in loader.engines[0].submitted]
        assert texts[0] == "System: Be brief.\n\nUser: c asks 0\n\nAssistant:"
        for before, text, row, turn in zip(texts, texts[1:], rows, (1, 2), strict=False):
            assert text == f"{before} {row.reply}\n\nUser: c asks {turn}\n\nAssistant:"

    def test_gold_history_shows_the_reference_in_place_of_the_reply(self) -> None:
        loader = FakeLoader()
        conversation = make_conversation("c", 2, reference="What it should say")
        plan = make_plan(conversations=[conversation], cells=[Cell("base", {})], history="gold")
        run(None, plan, loader)
        text = bytes(token - 1 for token in loader.engines[0].submitted[1].tokens).decode()
        assert "Assistant: What it should say\n\nUser: c asks 1" in text

    def test_references_are_scored_with_their_tokens_and_matches(self) -> None:
        rows = list(run(None).rows())
        scored = [row for row in rows if row.reference is not None]
        assert scored
        for row in scored:
            assert row.reference is not None
            assert row.reference.text == "a reference"
            assert row.reference.tokens == len(" a reference\n\n")
            assert 0 <= row.reference.matched <= 1

    def test_cells_share_random_numbers(self) -> None:
        loader = FakeLoader()
        run(None, make_plan(1), loader)
        first, second = (request.noise for request in loader.engines[0].submitted[:2])
        assert first == second

    def test_the_summary_counts_the_checks_of_all_rows(self) -> None:
        result = run(None)
        judged = [check for row in result.rows() for check in row.checks]
        assert {check.passed for check in judged} == {True, False}
        assert result.summary.checks == len(judged)
        assert result.summary.checks_passed == sum(check.passed for check in judged)
        assert not result.summary.passed


class TestFiles:
    def test_the_status_of_a_finished_run_is_done(self, tmp_path: Path) -> None:
        result = run(tmp_path / "run")
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert status["state"] == "done"
        assert status["rows_done"] == status["rows_total"] == result.plan.num_rows

    def test_the_status_of_a_stopped_run_is_interrupted(self, tmp_path: Path) -> None:
        run(tmp_path / "run", should_stop=StopAfter(2))
        assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted"

    def test_the_rows_in_progress_only_grow(self, tmp_path: Path) -> None:
        recorder = ProgressRecorder()
        run(tmp_path / "run", make_plan(40), observers=[recorder])
        rows_done = [progress.rows_done for progress in recorder.seen]
        assert rows_done == sorted(rows_done)
        assert rows_done[-1] == recorder.seen[-1].rows_total
        assert any(0 < count < rows_done[-1] for count in rows_done)

    def test_the_manifest_has_the_command_cells_and_weights(self, tmp_path: Path) -> None:
        run(tmp_path / "run", scripts=("made.jsonl",), command="rwkvbatch run made.jsonl")
        manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
        assert list(manifest["identity"]["cells"]) == ["temp=0.3", "temp=1"]
        assert manifest["identity"]["cells"]["temp=0.3"]["weights_sha256"] == FakeSpec().weights_sha256
        assert manifest["about"]["command"] == "rwkvbatch run made.jsonl"
        assert len(manifest["about"]["code_sha256"]) == 64

    def test_the_summary_can_be_derived_from_the_rows(self, tmp_path: Path) -> None:
        result = run(tmp_path / "run")
        written = json.loads((tmp_path / "run" / "summary.json").read_text())
        derived = summarize(read_rows(tmp_path / "run"), ["temp=0.3", "temp=1"], result.plan.num_rows)
        assert {**json.loads(json.dumps(derived.as_dict())), "session": written["session"]} == written


def test_rows_have_finish_reasons_and_stop_strings() -> None:
    rows = list(run(None, make_plan(8)).rows())
    assert {row.finish_reason for row in rows} == {"stop", "eos", "length"}
    assert {row.stopped_by for row in rows if row.finish_reason == "stop"} == {"\n\n"}
