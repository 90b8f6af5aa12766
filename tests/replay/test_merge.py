"""Parts of a run put together, against the run that was never cut."""

from __future__ import annotations

import errno
import json
import random
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
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.row_index import Shard
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.results.lock import DirectoryLock
from rwkvbatch.results.row import decode_row, encode_row
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.reader import SkippedLine
from tests.replay.disks import CountedFiles, FailingFiles, PowerCutFiles
from tests.replay.fakes import FakeLoader, make_conversation, make_plan
from tests.replay.runs import results


def run(directory: Path, plan: Plan, steps: int | None = None, **options: Any) -> FakeLoader:
    """Run `plan`, or no more than `steps` steps of it."""
    loader = FakeLoader()
    left = iter(range(steps)) if steps is not None else None
    stop = (lambda: False) if left is None else (lambda: next(left, None) is None)
    execute(plan, loader, RunOptions(out=directory, should_stop=stop, **options))
    return loader


def figures(directory: Path) -> dict[str, Any]:
    """The summary without what tells of the process that wrote it."""
    return {k: v for k, v in json.loads((directory / "summary.json").read_text()).items() if k != "session"}


def identity(directory: Path) -> Any:
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

    def cut(self, part: int, lines: int) -> None:
        """Leave `lines` rows of a part."""
        path = self.paths[part - 1] / "results.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))

    def change_line(self, part: int, line: int, content: bytes) -> None:
        path = self.paths[part - 1] / "results.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[line - 1] = content
        path.write_bytes(b"".join(lines))

    def line(self, part: int, line: int) -> bytes:
        return results(self.paths[part - 1]).splitlines(keepends=True)[line - 1]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    found = Parts(tmp_path, tmp_path / "whole", [tmp_path / f"part-{part}" for part in (1, 2, 3)])
    run(found.whole, found.plan())
    for number, path in enumerate(found.paths, start=1):
        run(path, found.plan(number), command=f"rwkvbatch run 'a b.jsonl' --shard {number}/3 --out {path}")
    return found


class TestWhole:
    def test_rows_manifest_and_summary_are_those_of_the_undivided_run(self, parts: Parts) -> None:
        merged = parts.merge(3, 1, 2)
        assert results(parts.out) == results(parts.whole)
        assert identity(parts.out) == identity(parts.whole)
        assert figures(parts.out) == figures(parts.whole)
        assert (merged.rows, merged.planned, merged.missing) == (merged.planned, parts.plan().num_rows, ())
        status = json.loads((parts.out / "status.json").read_text())
        assert (status["state"], status["rows_done"], status["rows_total"]) == ("done", merged.rows, merged.rows)

    @settings(max_examples=25)
    @given(data=st.data())
    def test_it_is_so_for_any_script_cut_anyhow_and_continued(self, data: st.DataObject) -> None:
        turns = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=9), label="turns")
        num_parts = data.draw(st.integers(1, 5), label="parts")
        repeats = data.draw(st.integers(1, 3), label="repeats")
        order = data.draw(st.permutations(range(1, num_parts + 1)), label="order")
        conversations = [make_conversation(f"c{n}", count) for n, count in enumerate(turns)]

        def plan(shard: Shard | None) -> Plan:
            batch_size = data.draw(st.integers(1, 8), label="batch size")
            return make_plan(conversations=conversations, repeats=repeats, shard=shard, batch_size=batch_size)

        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            run(root / "whole", plan(None))
            for part in order:
                shard = Shard(part, num_parts)
                run(root / str(part), plan(shard), steps=data.draw(st.integers(0, 20), label="steps"))
                if data.draw(st.booleans(), label="continued"):
                    run(root / str(part), plan(shard))
            paths = [root / str(part) for part in order]
            merged = merge(paths, root / "out", allow_missing=True)
            assert (merged.rows == merged.planned) == (not merged.missing)
            run(root / "out", plan(None))
            assert results(root / "out") == results(root / "whole")

    def test_a_run_into_the_merged_directory_has_nothing_to_do(self, parts: Parts) -> None:
        parts.merge()
        assert run(parts.out, parts.plan()).num_generated == 0
        assert results(parts.out) == results(parts.whole)

    def test_the_manifest_says_what_the_parts_were(self, parts: Parts) -> None:
        parts.merge()
        about = json.loads((parts.out / "manifest.json").read_text())["about"]
        assert about["command"] == "rwkvbatch merge"
        assert list(about["parts"]) == ["1/3", "2/3", "3/3"]
        assert "--shard 2/3" in about["parts"]["2/3"]["command"]

    def test_the_script_s_bad_lines_come_along(self, parts: Parts) -> None:
        bad = b'{"broken\r'
        skipped = [SkippedLine(SourceLine("s.jsonl", 1), bad, True, ScriptError("bad"))]
        run(parts.paths[1], parts.plan(2), skipped=skipped)
        parts.merge()
        assert (parts.out / "skipped.jsonl").read_bytes() == bad + b"\n"

    def test_parts_made_by_other_code_are_noted(self, parts: Parts) -> None:
        assert parts.merge().notes == ()
        path = parts.paths[0] / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["about"]["code_sha256"] = "0"
        path.write_text(json.dumps(manifest))
        assert "different code" in parts.merge().notes[0]


class TestMissing:
    def test_nothing_is_written_and_what_is_missing_is_said(self, parts: Parts) -> None:
        there = len(results(parts.paths[1]).splitlines())
        first = decode_row(parts.line(2, 4)).key
        parts.cut(2, 3)
        merged = parts.merge(1, 2)
        assert merged.summary is None
        assert not parts.out.exists()
        incomplete, absent = merged.missing
        assert (incomplete.shard, incomplete.path, incomplete.rows) == (Shard(2, 3), parts.paths[1], there - 3)
        assert incomplete.command is not None
        assert "--shard 2/3" in incomplete.command
        assert incomplete.first == first
        assert (absent.shard, absent.path, absent.rows) == (Shard(3, 3), None, None)

    def test_an_incomplete_merge_is_gone_on_with_by_an_undivided_run(self, parts: Parts) -> None:
        parts.cut(2, 3)
        merged = parts.merge(1, 2, allow_missing=True)
        assert merged.summary is not None
        assert merged.summary.planned == parts.plan().num_rows
        assert not merged.summary.complete
        assert json.loads((parts.out / "status.json").read_text())["state"] == "interrupted"
        assert run(parts.out, parts.plan()).num_generated > 0
        assert results(parts.out) == results(parts.whole)
        assert figures(parts.out) == figures(parts.whole)

    def test_the_command_that_runs_the_rest_is_the_part_s_for_the_whole(self, parts: Parts) -> None:
        rest = parts.merge(1, 2, allow_missing=True).rest_command
        assert rest == f"rwkvbatch run 'a b.jsonl' --out {parts.out}"

    def test_what_a_crash_left_at_the_end_of_a_part_is_no_row(self, parts: Parts) -> None:
        path = parts.paths[1] / "results.jsonl"
        content = path.read_bytes()
        path.write_bytes(content[:-20])
        merged = parts.merge()
        assert [(missing.shard, missing.rows) for missing in merged.missing] == [(Shard(2, 3), 1)]

    def test_a_part_that_has_not_begun_is_missing_in_full(self, parts: Parts) -> None:
        there = len(results(parts.paths[1]).splitlines())
        (parts.paths[1] / "results.jsonl").unlink()
        assert [missing.rows for missing in parts.merge().missing] == [there]


class TestRefusals:
    def test_parts_of_different_runs_with_the_difference(self, parts: Parts) -> None:
        other = parts.root / "other"
        run(other, parts.plan(2, max_tokens=9))
        with pytest.raises(RunMismatchError) as caught:
            merge([parts.paths[0], other], parts.out)
        assert "cells.temp=0.3.max_tokens: this part: 9; " in str(caught.value)
        assert str(other) in str(caught.value)
        assert f"{parts.paths[0]}: 256" in str(caught.value)
        assert not parts.out.exists()

    def test_parts_of_different_numbers_of_parts(self, parts: Parts) -> None:
        other = parts.root / "other"
        run(other, make_plan(7, repeats=2, shard=Shard(2, 4)))
        with pytest.raises(RunMismatchError, match=r"is part 2/4, and .*part-1 is part 1/3"):
            merge([parts.paths[0], other], parts.out)

    def test_a_part_that_is_given_twice(self, parts: Parts) -> None:
        with pytest.raises(RunDirectoryError, match="is part 1/3, and so is "):
            parts.merge(1, 2, 1)

    def test_a_whole_run(self, parts: Parts) -> None:
        with pytest.raises(RunDirectoryError, match="holds a whole run, not a part of one"):
            merge([parts.paths[0], parts.whole], parts.out)

    @pytest.mark.parametrize("name", ["nowhere", "empty"])
    def test_what_is_no_run(self, parts: Parts, name: str) -> None:
        (parts.root / "empty").mkdir()
        with pytest.raises(RunDirectoryError, match=r"holds no run|no such directory"):
            merge([parts.root / name], parts.out)

    @pytest.mark.parametrize(
        "shard", [3, {}, {"part": 0, "parts": 3, "rows_of_run": 1}, {"part": "1", "parts": 3, "rows_of_run": 1}]
    )
    def test_a_manifest_that_does_not_say_which_part_it_is(self, parts: Parts, shard: Any) -> None:
        path = parts.paths[0] / "manifest.json"
        manifest = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
        path.write_text(json.dumps({**manifest, "shard": shard}))
        with pytest.raises(RunDirectoryError, match="does not say which part"):
            parts.merge()

    def test_parts_whose_conversations_do_not_make_up_the_run(self, parts: Parts) -> None:
        taken = (parts.paths[1] / "shard.jsonl").read_bytes()
        (parts.paths[0] / "shard.jsonl").write_bytes(taken)
        with pytest.raises(RunDirectoryError, match=r"\(shard\.jsonl\) do not make up the run"):
            parts.merge()

    def test_a_conversation_that_no_part_has(self, parts: Parts) -> None:
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
    def test_a_damaged_row_with_its_line_and_the_way_out(self, parts: Parts, change: Any, problem: str) -> None:
        parts.change_line(1, 2, change(parts))
        with pytest.raises(RunDamagedError, match=rf"part-1/results\.jsonl:2: .*{problem}") as caught:
            parts.merge()
        assert "--shard 1/3" in str(caught.value.hint)
        assert "--repair" in str(caught.value.hint)
        assert not parts.out.exists()

    def test_a_row_of_another_version_with_its_line(self, parts: Parts) -> None:
        body = json.loads(parts.line(1, 3))
        del body["crc"], body["timing"]
        text = json.dumps(body).encode()
        parts.change_line(1, 3, b'%s,"crc":"%08x"}\n' % (text[:-1], crc32(text)))
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

    @pytest.mark.parametrize("now", [(1, 2), (3,)])
    def test_rows_that_the_parts_do_not_have_are_not_lost(self, parts: Parts, now: tuple[int, ...]) -> None:
        parts.merge()
        with pytest.raises(RunMismatchError, match=r"out/results\.jsonl:\d+: the parts lack this row"):
            parts.merge(*now, allow_missing=True)
        assert results(parts.out) == results(parts.whole)

    def test_a_row_that_came_out_otherwise_is_not_lost(self, parts: Parts) -> None:
        parts.merge()
        row = decode_row(parts.line(1, 2))
        changed = encode_row(replace(row, timing=replace(row.timing, total_s=99.0)))
        parts.change_line(1, 2, changed)
        with pytest.raises(RunMismatchError, match="another one in its place"):
            parts.merge()

    def test_another_run_is_refused_before_the_parts_are_read(self, parts: Parts) -> None:
        run(parts.out, parts.plan(seed=4))
        parts.change_line(1, 2, b"{}\n")
        with pytest.raises(RunMismatchError, match="seed: existing run: 4; this command: 0"):
            parts.merge()

    def test_a_part_is_no_place_for_the_whole(self, parts: Parts) -> None:
        with pytest.raises(RunMismatchError, match='shard: existing run: "1/3"; this command: nothing'):
            merge(parts.paths, parts.paths[0])

    def test_a_directory_of_something_else_is_refused(self, parts: Parts) -> None:
        parts.out.mkdir()
        (parts.out / "thesis.tex").touch()
        with pytest.raises(RunDirectoryError, match="is not empty and holds no run"):
            parts.merge()

    def test_another_writer_keeps_the_merge_out(self, parts: Parts) -> None:
        parts.out.mkdir()
        lock = DirectoryLock(parts.out)
        with pytest.raises(RunLockedError):
            parts.merge()
        lock.release()


class TestDurability:
    def test_a_merge_that_failed_at_any_write_is_done_by_the_next_one(self, parts: Parts) -> None:
        counted = CountedFiles()
        parts.merge(files=counted)
        expected = results(parts.whole)
        assert len(counted.calls) > 12
        for at in range(len(counted.calls)):
            for before in (False, True):
                out = parts.root / f"out-{at}-{before}"
                if before:
                    merge(parts.paths[:1], out, allow_missing=True)
                old = results(out) if before else None
                failing = FailingFiles(at, errno.EIO, forever=True, short=True)
                try:
                    merge(parts.paths, out, files=failing)
                except (StorageError, RunDirectoryError):
                    there = out / "results.jsonl"
                    assert (there.read_bytes() if there.exists() else None) in (old, expected)
                merge(parts.paths, out)
                assert results(out) == expected
                assert figures(out) == figures(parts.whole)

    @pytest.mark.parametrize("seed", range(8))
    def test_a_power_cut_after_it_takes_nothing(self, parts: Parts, seed: int) -> None:
        files = PowerCutFiles()
        parts.merge(files=files)
        chance = random.Random(seed)
        files.cut_power(lambda most: chance.randint(0, most))
        assert results(parts.out) == results(parts.whole)
        assert identity(parts.out) == identity(parts.whole)
        assert figures(parts.out) == figures(parts.whole)
