"""Runs into an existing directory: resumed, or refused with the difference."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.errors import RunDirectoryError, RunLockedError, RunMismatchError, StorageError, UsageError
from rwkvbatch.replay.planning.grid import Cell
from rwkvbatch.replay.runner import read_rows
from rwkvbatch.results.lock import DirectoryLock
from tests.replay.fakes import FakeLoader, FakeSpec, make_conversation, make_plan
from tests.replay.runs import StopAfter, results, run


class TestContinuing:
    @pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13])
    def test_an_interrupted_run_ends_with_the_same_bytes(self, tmp_path: Path, steps: int) -> None:
        run(tmp_path / "whole")
        plan = make_plan(batch_size=3)
        assert run(tmp_path / "parts", plan, should_stop=StopAfter(steps)).interrupted
        assert not run(tmp_path / "parts", make_plan(batch_size=4)).interrupted
        assert results(tmp_path / "parts") == results(tmp_path / "whole")

    def test_existing_rows_are_not_generated_again(self, tmp_path: Path) -> None:
        plan = make_plan(6)
        run(tmp_path / "run", plan, should_stop=StopAfter(4))
        num_existing = len(list(read_rows(tmp_path / "run")))
        loader = FakeLoader()
        run(tmp_path / "run", plan, loader)
        assert 0 < num_existing < plan.num_rows
        assert loader.num_generated == plan.num_rows - num_existing
        idle = FakeLoader()
        run(tmp_path / "run", plan, idle)
        assert idle.num_generated == 0

    def test_a_run_interrupted_inside_a_conversation_resumes_at_its_next_turn(self, tmp_path: Path) -> None:
        plan = make_plan(conversations=[make_conversation("c", 5)], cells=[Cell("base", {})])
        whole = FakeLoader()
        run(tmp_path / "whole", plan, whole)
        run(tmp_path / "parts", plan, should_stop=StopAfter(4))
        loader = FakeLoader()
        run(tmp_path / "parts", plan, loader)
        assert 0 < loader.num_generated < 5
        assert loader.engines[0].submitted == whole.engines[0].submitted[-loader.num_generated :]

    @pytest.mark.parametrize(
        ("change", "difference"),
        [
            ({"max_tokens": 9}, "cells.temp=0.3.max_tokens: existing run: 256; this command: 9"),
            ({"seed": 4}, "seed: existing run: 0; this command: 4"),
            ({"max_prompt_tokens": 900}, "max_prompt_tokens: existing run: null; this command: 900"),
            (
                {"cells": [Cell("base", {"temperature": 0.4})]},
                "cells.temp=0.3 (this command: base).temperature: existing run: 0.3; this command: 0.4",
            ),
            ({"conversations": [make_conversation("other")]}, "conversation c0, cell temp=0.3, repeat 0, turn 0"),
        ],
    )
    def test_a_directory_of_another_run_is_refused_with_the_difference(
        self, tmp_path: Path, change: dict[str, Any], difference: str
    ) -> None:
        run(tmp_path / "run")
        before = results(tmp_path / "run")
        with pytest.raises(RunMismatchError) as caught:
            run(tmp_path / "run", make_plan(**change))
        assert difference in str(caught.value)
        assert results(tmp_path / "run") == before

    def test_other_weights_are_refused(self, tmp_path: Path) -> None:
        run(tmp_path / "run")
        with pytest.raises(RunMismatchError, match="weights_sha256"):
            run(tmp_path / "run", loader=FakeLoader(FakeSpec(weights_sha256="0" * 64)))

    def test_a_run_with_other_generation_rules_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(tmp_path / "run")
        monkeypatch.setattr("rwkvbatch.replay.continuing.identity.GENERATION_RULES", 99)
        with pytest.raises(RunMismatchError, match="generation_rules: existing run: 1; this command: 99"):
            run(tmp_path / "run")

    @pytest.mark.parametrize(("dtype", "refused"), [("int4", True), ("w8a8", True), ("int8", True), ("bf16", False)])
    def test_a_run_of_rounded_weights_with_other_rules_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, refused: bool
    ) -> None:
        loader = FakeLoader(FakeSpec(dtype=dtype))
        run(tmp_path / "run", loader=loader)
        monkeypatch.setattr("rwkvbatch.model.ops.ROUNDING_RULES", 99)
        with (
            pytest.raises(RunMismatchError, match="rounding_rules: existing run: 3; this command: 99")
            if refused
            else nullcontext()
        ):
            run(tmp_path / "run", loader=loader)

    @pytest.mark.parametrize("change", [{"batch_size": 1}, {"threads": 1}, {"max_failures": 3}])
    def test_a_run_resumes_with_other_settings_that_change_no_reply(
        self, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        run(tmp_path / "run", should_stop=StopAfter(3))
        assert not run(tmp_path / "run", make_plan(**change)).interrupted

    @pytest.mark.parametrize("change", [b"", b"{}\n", b"\xff", None])
    def test_a_changed_or_removed_copy_of_the_script_is_rewritten(self, change: bytes | None, tmp_path: Path) -> None:
        conversations = [make_conversation(f"c{n}") for n in range(3)]
        run(tmp_path, make_plan(conversations=conversations))
        copy, rows = (tmp_path / "script.jsonl").read_bytes(), results(tmp_path)
        if change is None:
            (tmp_path / "script.jsonl").unlink()
        else:
            (tmp_path / "script.jsonl").write_bytes(change)
        loader = FakeLoader()
        run(tmp_path, make_plan(conversations=conversations), loader)
        assert (tmp_path / "script.jsonl").read_bytes() == copy
        assert (loader.num_generated, results(tmp_path)) == (0, rows)
        written = (tmp_path / "script.jsonl").stat().st_ino
        run(tmp_path, make_plan(conversations=conversations))
        assert (tmp_path / "script.jsonl").stat().st_ino == written

    def test_a_directory_with_other_files_is_refused_and_left_unchanged(self, tmp_path: Path) -> None:
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
    def test_a_damaged_manifest_is_refused_by_its_name(self, tmp_path: Path, content: str) -> None:
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

    def test_a_file_in_place_of_the_directory_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "file", tmp_path / "file" / "run"):
            with pytest.raises(UsageError, match=r"a run is a directory, and .*file is not one"):
                run(path)

    def test_a_new_directory_is_removed_when_the_model_cannot_be_loaded(self, tmp_path: Path) -> None:
        class FailingLoader(FakeLoader):
            def specs(self, setups: Any) -> Any:
                raise StorageError("no model")

        with pytest.raises(StorageError):
            run(tmp_path / "run", loader=FailingLoader())
        assert not (tmp_path / "run").exists()
