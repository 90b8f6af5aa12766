"""Merging the parts of a run, compared with the undivided run."""

from __future__ import annotations

import errno
import json
import random
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvbatch.errors import (
    RunDamagedError,
    RunDirectoryError,
    RunLockedError,
    RunMismatchError,
    ScriptError,
    StorageError,
)
from rwkvbatch.files import OS_FILES, Files
from rwkvbatch.replay.merge import Merged, merge
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.row_index import Shard
from rwkvbatch.results.lock import DirectoryLock
from rwkvbatch.results.row_codec import decode_row, encode_row
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.reader import SkippedLine
from tests.manifests import manifest_of, save_manifest
from tests.memory import memory_folder
from tests.replay.disks import CountedFiles, FailingFiles, PowerCutFiles
from tests.replay.fakes import FakeLoader, make_conversation, make_plan
from tests.replay.runs import StopAfter, results, run


def summary_of(directory: Path) -> dict[str, Any]:
    """The summary without the session of the process that wrote it."""
    return {k: v for k, v in json.loads((directory / "summary.json").read_text()).items() if k != "session"}


def identity_of(directory: Path) -> Any:
    return json.loads((directory / "manifest.json").read_text())["identity"]


@dataclass
class Parts:
    """A run of seven conversations in three parts, and the same run undivided."""

    root: Path
    whole: Path
    paths: list[Path]

    @property
    def out(self) -> Path:
        return self.root / "out"

    def plan(self, part: int | None = None, **settings: Any) -> Plan:
        return make_plan(7, repeats=2, shard=None if part is None else Shard(part, 3), **settings)

    def merge(self, *parts: int, files: Files = OS_FILES, allow_missing: bool = False) -> Merged:
        paths = [self.paths[part - 1] for part in parts or (1, 2, 3)]
        return merge(paths, self.out, files=files, allow_missing=allow_missing, command="rwkvbatch merge")

    def truncate(self, part: int, lines: int) -> None:
        """Leave `lines` rows of a part."""
        path = self.paths[part - 1] / "results.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))

    def replace_line(self, part: int, line: int, content: bytes) -> None:
        path = self.paths[part - 1] / "results.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[line - 1] = content
        path.write_bytes(b"".join(lines))

    def line(self, part: int, line: int) -> bytes:
        return results(self.paths[part - 1]).splitlines(keepends=True)[line - 1]


def parts_in(root: Path) -> Parts:
    return Parts(root, root / "whole", [root / f"part-{part}" for part in (1, 2, 3)])


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undivided run and its parts, of which each test gets a copy."""
    parts = parts_in(tmp_path_factory.mktemp("runs"))
    run(parts.whole, parts.plan())
    for number, path in enumerate(parts.paths, start=1):
        run(path, parts.plan(number), command=f"rwkvbatch run 'a b.jsonl' --shard {number}/3 --out {path}")
    return parts.root


@pytest.fixture
def parts(finished_runs: Path, tmp_path: Path) -> Parts:
    shutil.copytree(finished_runs, tmp_path, dirs_exist_ok=True)
    return parts_in(tmp_path)


class TestCompleteMerge:
    def test_rows_manifest_and_summary_are_those_of_the_undivided_run(self, parts: Parts) -> None:
        merged = parts.merge(3, 1, 2)
        assert results(parts.out) == results(parts.whole)
        assert identity_of(parts.out) == identity_of(parts.whole)
        assert summary_of(parts.out) == summary_of(parts.whole)
        assert (merged.rows, merged.planned, merged.missing) == (merged.planned, parts.plan().num_rows, ())
        status = json.loads((parts.out / "status.json").read_text())
        assert (status["state"], status["rows_done"], status["rows_total"]) == ("done", merged.rows, merged.rows)

    @settings(max_examples=25)
    @given(data=st.data())
    def test_any_division_of_any_script_merges_into_the_undivided_run(self, data: st.DataObject) -> None:
        turns = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=9), label="turns")
        num_parts = data.draw(st.integers(1, 5), label="parts")
        repeats = data.draw(st.integers(1, 3), label="repeats")
        order = data.draw(st.permutations(range(1, num_parts + 1)), label="order")
        conversations = [make_conversation(f"c{n}", count) for n, count in enumerate(turns)]

        def plan(shard: Shard | None) -> Plan:
            batch_size = data.draw(st.integers(1, 8), label="batch size")
            return make_plan(conversations=conversations, repeats=repeats, shard=shard, batch_size=batch_size)

        with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
            root = Path(name)
            run(root / "whole", plan(None))
            for part in order:
                shard = Shard(part, num_parts)
                run(root / str(part), plan(shard), should_stop=StopAfter(data.draw(st.integers(0, 20), label="steps")))
                if data.draw(st.booleans(), label="continued"):
                    run(root / str(part), plan(shard))
            paths = [root / str(part) for part in order]
            merged = merge(paths, root / "out", allow_missing=True)
            assert (merged.rows == merged.planned) == (not merged.missing)
            run(root / "out", plan(None))
            assert results(root / "out") == results(root / "whole")

    def test_a_run_into_the_merged_directory_generates_nothing(self, parts: Parts) -> None:
        parts.merge()
        loader = FakeLoader()
        run(parts.out, parts.plan(), loader)
        assert loader.num_generated == 0
        assert results(parts.out) == results(parts.whole)

    def test_parts_may_differ_in_explicit_settings_that_override_no_params(self, parts: Parts) -> None:
        shutil.rmtree(parts.paths[1])
        run(parts.paths[1], parts.plan(2, explicit=["temperature", "turn_end"]))
        parts.merge()
        loader = FakeLoader()
        run(parts.out, parts.plan(explicit=["turn_end"]), loader)
        parts.merge()
        assert loader.num_generated == 0
        assert results(parts.out) == results(parts.whole)

    @pytest.mark.parametrize("where", ["conversation", "turn"])
    def test_parts_that_differ_in_explicit_settings_that_override_params_are_refused(
        self, where: str, tmp_path: Path
    ) -> None:
        params = {"temperature": 0.5}
        made = [make_conversation(f"c{n}", 2) for n in range(4)]
        if where == "conversation":
            made[3] = replace(made[3], params=params)
        else:
            made[3] = replace(made[3], turns=(made[3].turns[0], replace(made[3].turns[1], params=params)))
        for part, explicit in ((1, ["top_k"]), (2, ["temperature"])):
            run(tmp_path / str(part), make_plan(conversations=made, shard=Shard(part, 2), explicit=explicit))
        with pytest.raises(RunMismatchError, match=r"settings given for all.*this part: temperature; .*: none$"):
            merge([tmp_path / "1", tmp_path / "2"], tmp_path / "out")

    def test_the_script_is_copied_from_a_part_with_an_intact_copy(self, tmp_path: Path) -> None:
        conversations = [make_conversation(f"c{n}") for n in range(4)]
        paths, out = [tmp_path / "1", tmp_path / "2"], tmp_path / "out"
        for part, path in enumerate(paths, start=1):
            run(path, make_plan(conversations=conversations, shard=Shard(part, 2)))
        copy = (paths[1] / "script.jsonl").read_bytes()
        (paths[0] / "script.jsonl").write_bytes(copy.replace(b"asks", b"says"))
        merge(paths, out)
        assert (out / "script.jsonl").read_bytes() == copy
        (paths[1] / "script.jsonl").write_bytes(b"{}\n")
        merge(paths, out)
        assert (out / "script.jsonl").read_bytes() == copy

    def test_a_script_with_a_check_that_is_not_installed_is_copied(self, parts: Parts) -> None:
        parts.merge()  # their check `longer` is no check of the program
        assert (parts.out / "script.jsonl").read_bytes() == (parts.whole / "script.jsonl").read_bytes()

    def test_the_manifest_has_the_commands_of_the_parts(self, parts: Parts) -> None:
        parts.merge()
        about = json.loads((parts.out / "manifest.json").read_text())["about"]
        assert about["command"] == "rwkvbatch merge"
        assert list(about["parts"]) == ["1/3", "2/3", "3/3"]
        assert "--shard 2/3" in about["parts"]["2/3"]["command"]

    def test_skipped_lines_of_the_script_are_copied(self, parts: Parts) -> None:
        bad = b'{"broken\r'
        skipped = [SkippedLine(SourceLine("s.jsonl", 1), bad, True, ScriptError("bad"))]
        run(parts.paths[1], parts.plan(2), skipped=skipped)
        parts.merge()
        assert (parts.out / "skipped.jsonl").read_bytes() == bad + b"\n"

    def test_parts_made_by_other_code_are_reported(self, parts: Parts) -> None:
        assert parts.merge().notes == ()
        path = parts.paths[0] / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["about"]["code_sha256"] = "0"
        path.write_text(json.dumps(manifest))
        assert "different code" in parts.merge().notes[0]


class TestMissing:
    def test_an_incomplete_merge_writes_nothing_and_lists_the_missing_rows(self, parts: Parts) -> None:
        num_rows = len(results(parts.paths[1]).splitlines())
        first = decode_row(parts.line(2, 4)).key
        parts.truncate(2, 3)
        merged = parts.merge(1, 2)
        assert merged.summary is None
        assert not parts.out.exists()
        incomplete, absent = merged.missing
        assert (incomplete.shard, incomplete.path, incomplete.rows) == (Shard(2, 3), parts.paths[1], num_rows - 3)
        assert incomplete.command is not None
        assert "--shard 2/3" in incomplete.command
        assert incomplete.first == first
        assert (absent.shard, absent.path, absent.rows) == (Shard(3, 3), None, None)

    def test_an_incomplete_merge_can_be_resumed_by_an_undivided_run(self, parts: Parts) -> None:
        parts.truncate(2, 3)
        merged = parts.merge(1, 2, allow_missing=True)
        assert merged.summary is not None
        assert merged.summary.planned == parts.plan().num_rows
        assert not merged.summary.complete
        assert json.loads((parts.out / "status.json").read_text())["state"] == "interrupted"
        loader = FakeLoader()
        run(parts.out, parts.plan(), loader)
        assert loader.num_generated > 0
        assert results(parts.out) == results(parts.whole)
        assert summary_of(parts.out) == summary_of(parts.whole)

    def test_the_command_for_missing_rows_is_that_of_a_part_without_its_shard(self, parts: Parts) -> None:
        rest = parts.merge(1, 2, allow_missing=True).rest_command
        assert rest == f"rwkvbatch run 'a b.jsonl' --out {parts.out}"

    def test_a_torn_last_line_of_a_part_is_a_missing_row(self, parts: Parts) -> None:
        path = parts.paths[1] / "results.jsonl"
        content = path.read_bytes()
        path.write_bytes(content[:-20])
        merged = parts.merge()
        assert [(missing.shard, missing.rows) for missing in merged.missing] == [(Shard(2, 3), 1)]

    def test_all_rows_of_a_part_without_results_are_missing(self, parts: Parts) -> None:
        num_rows = len(results(parts.paths[1]).splitlines())
        (parts.paths[1] / "results.jsonl").unlink()
        assert [missing.rows for missing in parts.merge().missing] == [num_rows]


class TestRefusals:
    def test_parts_of_different_runs_are_refused_with_the_difference(self, parts: Parts) -> None:
        other = parts.root / "other"
        run(other, parts.plan(2, max_tokens=9))
        with pytest.raises(RunMismatchError) as caught:
            merge([parts.paths[0], other], parts.out)
        assert "cells.temp=0.3.max_tokens: this part: 9; " in str(caught.value)
        assert str(other) in str(caught.value)
        assert f"{parts.paths[0]}: 256" in str(caught.value)
        assert not parts.out.exists()

    def test_parts_of_different_divisions_are_refused(self, parts: Parts) -> None:
        other = parts.root / "other"
        run(other, make_plan(7, repeats=2, shard=Shard(2, 4)))
        with pytest.raises(RunMismatchError, match=r"is part 2/4, and .*part-1 is part 1/3"):
            merge([parts.paths[0], other], parts.out)

    def test_a_part_given_twice_is_refused(self, parts: Parts) -> None:
        with pytest.raises(RunDirectoryError, match="is part 1/3, and so is "):
            parts.merge(1, 2, 1)

    def test_a_whole_run_is_refused(self, parts: Parts) -> None:
        with pytest.raises(RunDirectoryError, match="contains a whole run, not a part of one"):
            merge([parts.paths[0], parts.whole], parts.out)

    @pytest.mark.parametrize("name", ["nowhere", "empty"])
    def test_a_directory_without_a_run_is_refused(self, parts: Parts, name: str) -> None:
        (parts.root / "empty").mkdir()
        with pytest.raises(RunDirectoryError, match=r"contains no run|no such directory"):
            merge([parts.root / name], parts.out)

    @pytest.mark.parametrize(
        "shard", [3, {}, {"part": 0, "parts": 3, "rows_of_run": 1}, {"part": "1", "parts": 3, "rows_of_run": 1}]
    )
    def test_a_manifest_without_a_valid_shard_is_refused(self, parts: Parts, shard: Any) -> None:
        save_manifest(parts.paths[0], {**manifest_of(parts.paths[0]), "shard": shard})
        with pytest.raises(RunDirectoryError, match="does not say which part"):
            parts.merge()

    def test_parts_with_the_same_conversations_are_refused(self, parts: Parts) -> None:
        taken = (parts.paths[1] / "shard.jsonl").read_bytes()
        (parts.paths[0] / "shard.jsonl").write_bytes(taken)
        with pytest.raises(RunDirectoryError, match=r"\(shard\.jsonl\) do not make up the run"):
            parts.merge()

    def test_parts_that_lack_a_conversation_are_refused(self, parts: Parts) -> None:
        path = parts.paths[0] / "shard.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
        with pytest.raises(RunDirectoryError, match="do not make up the run"):
            parts.merge()

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda parts: parts.line(1, 2).replace(b"c", b"k", 1), "its checksum does not match"),
            (lambda parts: parts.line(1, 1), "an earlier line has the same turn"),
            (lambda parts: parts.line(2, 1), "its conversation, cell, repeat or turn is not in this run"),
            (lambda parts: b"{}\n", "it does not end in a checksum"),
        ],
    )
    def test_a_damaged_row_is_refused_with_its_line_and_the_command_to_repair_it(
        self, parts: Parts, change: Any, problem: str
    ) -> None:
        parts.replace_line(1, 2, change(parts))
        with pytest.raises(RunDamagedError, match=rf"part-1/results\.jsonl:2: .*{problem}") as caught:
            parts.merge()
        assert "--shard 1/3" in str(caught.value.hint)
        assert "--repair" in str(caught.value.hint)
        assert not parts.out.exists()

    def test_a_row_of_another_version_is_refused_with_its_line(self, parts: Parts) -> None:
        body = json.loads(parts.line(1, 3))
        del body["crc"], body["timing"]
        text = json.dumps(body).encode()
        parts.replace_line(1, 3, b'%s,"crc":"%08x"}\n' % (text[:-1], crc32(text)))
        with pytest.raises(RunDamagedError, match=r"part-1/results\.jsonl:3: .*not a row of this version"):
            parts.merge()
        assert not (parts.out / "results.jsonl").exists()
        assert not list(parts.out.glob("*.tmp"))


class TestExistingDirectory:
    def test_the_same_merge_again_leaves_the_same_bytes(self, parts: Parts) -> None:
        parts.merge()
        parts.merge()
        assert results(parts.out) == results(parts.whole)

    def test_a_merge_of_more_parts_replaces_one_of_fewer(self, parts: Parts) -> None:
        parts.merge(1, allow_missing=True)
        parts.merge(2, 1, allow_missing=True)
        parts.merge()
        assert results(parts.out) == results(parts.whole)
        assert len(json.loads((parts.out / "manifest.json").read_text())["about"]["parts"]) == 3

    @pytest.mark.parametrize("merged_parts", [(1, 2), (3,)])
    def test_a_merge_that_would_drop_rows_is_refused(self, parts: Parts, merged_parts: tuple[int, ...]) -> None:
        parts.merge()
        with pytest.raises(RunMismatchError, match=r"out/results\.jsonl:\d+: the parts lack this row"):
            parts.merge(*merged_parts, allow_missing=True)
        assert results(parts.out) == results(parts.whole)

    def test_a_merge_that_would_change_a_row_is_refused(self, parts: Parts) -> None:
        parts.merge()
        row = decode_row(parts.line(1, 2))
        changed = encode_row(replace(row, timing=replace(row.timing, total_s=99.0)))
        parts.replace_line(1, 2, changed)
        with pytest.raises(RunMismatchError, match="another one in its place"):
            parts.merge()

    def test_the_directory_of_another_run_is_refused_before_the_parts_are_read(self, parts: Parts) -> None:
        run(parts.out, parts.plan(seed=4))
        parts.replace_line(1, 2, b"{}\n")
        with pytest.raises(RunMismatchError, match="seed: existing run: 4; this command: 0"):
            parts.merge()

    def test_merging_into_a_part_is_refused(self, parts: Parts) -> None:
        with pytest.raises(RunMismatchError, match='shard: existing run: "1/3"; this command: nothing'):
            merge(parts.paths, parts.paths[0])

    def test_a_directory_with_other_files_is_refused(self, parts: Parts) -> None:
        parts.out.mkdir()
        (parts.out / "thesis.tex").touch()
        with pytest.raises(RunDirectoryError, match="is not empty and contains no run"):
            parts.merge()

    def test_a_directory_locked_by_another_writer_is_refused(self, parts: Parts) -> None:
        parts.out.mkdir()
        lock = DirectoryLock(parts.out)
        with pytest.raises(RunLockedError):
            parts.merge()
        lock.release()


class TestDurability:
    def test_a_merge_that_failed_at_any_write_is_completed_by_the_next_one(self, parts: Parts) -> None:
        counted = CountedFiles()
        parts.merge(files=counted)
        expected = results(parts.whole)
        assert len(counted.calls) > 12
        for at in range(len(counted.calls)):
            for is_partial in (False, True):
                out = parts.root / f"out-{at}-{is_partial}"
                if is_partial:
                    merge(parts.paths[:1], out, allow_missing=True)
                old = results(out) if is_partial else None
                failing = FailingFiles(at, errno.EIO, forever=True, short=True)
                try:
                    merge(parts.paths, out, files=failing)
                except (StorageError, RunDirectoryError):
                    path = out / "results.jsonl"
                    assert (path.read_bytes() if path.exists() else None) in (old, expected)
                merge(parts.paths, out)
                assert results(out) == expected
                assert summary_of(out) == summary_of(parts.whole)

    @pytest.mark.parametrize("seed", range(8))
    def test_a_power_cut_after_a_merge_loses_nothing(self, parts: Parts, seed: int) -> None:
        files = PowerCutFiles()
        parts.merge(files=files)
        generator = random.Random(seed)
        files.cut_power(lambda maximum: generator.randint(0, maximum))
        assert results(parts.out) == results(parts.whole)
        assert identity_of(parts.out) == identity_of(parts.whole)
        assert summary_of(parts.out) == summary_of(parts.whole)
