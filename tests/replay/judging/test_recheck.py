"""`rwkvbatch check`: replies are judged again without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.errors import RowError, RunDamagedError, RunDirectoryError, RunLockedError, RunMismatchError
from rwkvbatch.files import OS_FILES
from rwkvbatch.replay.judging.recheck import recheck
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.results.lock import DirectoryLock
from rwkvbatch.results.manifest import FORMER
from rwkvbatch.results.row_codec import decode_row, digest_of, encode_row, with_digest
from rwkvbatch.results.summary import read_part
from rwkvbatch.script.checks import parse_checks
from rwkvbatch.script.reader import read_scripts
from tests.manifests import manifest_of, save_manifest
from tests.replay.fakes import FakeLoader, make_plan
from tests.replay.runs import results, run
from tests.script.writing import write


def lines(
    expect: Any, *, num_conversations: int = 3, tags: tuple[str, ...] = (), **changes: Any
) -> list[dict[str, Any]]:
    ask = [{"role": "user", "content": f"Say {turn}", "expect": expect} for turn in range(2)]
    messages = [{"role": "system", "content": "Be brief."}, *ask]
    return [{"id": f"c{n}", "messages": messages, "tags": list(tags), **changes} for n in range(num_conversations)]


def plan_of(path: str) -> Plan:
    return make_plan(conversations=read_scripts([path]).conversations, repeats=2)


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    run(tmp_path / "run", plan_of(write(tmp_path / "old.jsonl", *lines({"contains": "elm"}))))
    return tmp_path / "run"


def test_rows_equal_those_of_a_run_with_the_new_checks(run_directory: Path, tmp_path: Path) -> None:
    new_lines = [*lines({"contains": "fir"}, tags=("t",)), *lines({"regex": "a"}, num_conversations=1, id="x")]
    new = write(tmp_path / "new.jsonl", *new_lines)
    result = recheck(run_directory, [new])
    plan = plan_of(write(tmp_path / "same.jsonl", *lines({"contains": "fir"}, tags=("t",))))
    fresh = run(tmp_path / "fresh", plan)
    assert results(run_directory) == results(tmp_path / "fresh")
    assert (run_directory / "script.jsonl").read_bytes() == (tmp_path / "fresh" / "script.jsonl").read_bytes()
    assert result.summary == fresh.summary
    assert (result.rows, result.changed, result.left_out) == (24, 24, 1)
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (run_directory, tmp_path / "fresh")]
    assert manifests[0]["identity"] == manifests[1]["identity"]
    assert FORMER not in manifests[0]
    loader = FakeLoader()
    again = run(run_directory, plan, loader)
    assert loader.num_generated == 0
    assert again.reuse is not None
    assert (again.reuse.judged_again, again.reuse.kept) == (0, 24)


def test_without_a_script_the_checks_of_the_copy_are_used(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = results(run_directory)
    assert recheck(run_directory).changed == 0
    assert results(run_directory) == before


def test_changed_verdicts_are_counted(run_directory: Path, tmp_path: Path) -> None:
    passed = recheck(run_directory).summary.checks_passed
    result = recheck(run_directory, [write(tmp_path / "all.jsonl", *lines({"min_tokens": 1}))])
    assert (result.now_pass, result.now_fail, result.judged) == (24 - passed, 0, 24)
    result = recheck(run_directory, [write(tmp_path / "none.jsonl", *lines({"contains": "no such text"}))])
    assert (result.now_pass, result.now_fail) == (0, 24)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda lines: lines[1]["messages"].__setitem__(2, {"role": "user", "content": "Say more"}), "turn 1, user"),
        (lambda lines: lines[1]["messages"].__setitem__(0, {"role": "system", "content": "Be long."}), "system"),
        (lambda lines: lines[1]["messages"].append({"role": "user", "content": "And?"}), "turns: replayed: 2"),
        (lambda lines: lines[1]["messages"].append({"role": "assistant", "content": "Yes"}), "turn 1, reference"),
        (lambda lines: lines[1].__setitem__("params", {"top_k": 3}), "params"),
        (lambda lines: lines.pop(1), "no conversation 'c1'"),
    ],
)
def test_a_script_of_other_conversations_is_refused(
    run_directory: Path, tmp_path: Path, change: Callable[[list[dict[str, Any]]], None], difference: str
) -> None:
    before = {path.name: path.read_bytes() for path in run_directory.iterdir()}
    content = json.loads(json.dumps(lines({"contains": "fir"})))
    change(content)
    with pytest.raises(RunMismatchError) as caught:
        recheck(run_directory, [write(tmp_path / "new.jsonl", *content)])
    assert difference in str(caught.value)
    assert {path.name: path.read_bytes() for path in run_directory.iterdir()} == before


def test_a_broken_check_changes_nothing(run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = write(tmp_path / "new.jsonl", *lines({"max_tokens": 3}))
    rule = type(parse_checks({"max_tokens": 3}, None)[0].rule)  # type: ignore[arg-type]

    def breaks(*_: object) -> None:
        raise RowError("broken")

    before = {path.name: path.read_bytes() for path in run_directory.iterdir() if path.name != "manifest.json"}
    monkeypatch.setattr(rule, "judge", breaks)
    with pytest.raises(RowError, match="nothing was changed"):
        recheck(run_directory, [new])
    assert {path.name: path.read_bytes() for path in run_directory.iterdir() if path.name != "manifest.json"} == before
    assert FORMER not in json.loads((run_directory / "manifest.json").read_text())


def test_a_directory_without_a_run_or_script_copy_is_refused(run_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no such run"):
        recheck(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (run_directory / "script.jsonl").unlink()
    with pytest.raises(RunDirectoryError, match="no copy of its script"):
        recheck(run_directory)


def test_the_hints_of_a_directory_that_cannot_be_changed_are_those_of_this_command(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = DirectoryLock(run_directory)
    with pytest.raises(RunLockedError, match="is locked") as locked:
        recheck(run_directory)
    lock.release()
    monkeypatch.setattr(OS_FILES, "open_append", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(RunDirectoryError, match="cannot be written to") as unwritable:
        recheck(run_directory)
    assert [locked.value.hint, unwritable.value.hint] == [
        "wait until it ends, or stop it",
        "make it writable, or judge a copy of it",
    ]


def test_a_run_with_an_interrupted_extension_is_refused(run_directory: Path) -> None:
    save_manifest(run_directory, {**manifest_of(run_directory), FORMER: {"identity": {"cells": {}}, "by": "run"}})
    with pytest.raises(RunDirectoryError, match="the last `rwkvbatch run` in it was interrupted"):
        recheck(run_directory)


def test_a_torn_last_line_is_left_for_the_next_run(run_directory: Path, tmp_path: Path) -> None:
    path = run_directory / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    new = write(tmp_path / "new.jsonl", *lines({"contains": "fir"}))
    assert recheck(run_directory, [new]).rows == 23
    run(run_directory, plan_of(new))
    run(tmp_path / "fresh", plan_of(new))
    assert results(run_directory) == results(tmp_path / "fresh")


def test_the_command_imports_no_torch_and_reports_its_counts(run_directory: Path, tmp_path: Path) -> None:
    new = write(tmp_path / "new.jsonl", *lines({"contains": "fir"}))
    code = (
        "import sys; from rwkvbatch.cli.app import invoke\n"
        f"status = invoke(['check', {str(run_directory)!r}, '--script', {new!r}, '--json'])\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.FAILED, done.stderr
    assert json.loads(done.stdout)["rows"] == 24
    assert "24 of 24 rows judged again: " in done.stderr
    assert "; 24 rows with another verdict, check or tag" in " ".join(done.stderr.split())


def test_the_command_exits_with_0_when_all_checks_pass(run_directory: Path, tmp_path: Path) -> None:
    new = write(tmp_path / "new.jsonl", *lines({"min_tokens": 1}))
    assert invoke(["check", str(run_directory), "--script", new, "--quiet"]) == ExitCode.DONE


def change_first_row(run_directory: Path, **changes: Any) -> None:
    """Change the values of the first row, which keeps its digests."""
    path = run_directory / "results.jsonl"
    first, *others = path.read_bytes().splitlines(keepends=True)
    digest = digest_of(first)
    path.write_bytes(b"".join([with_digest(encode_row(replace(decode_row(first), **changes)), digest), *others]))


def test_conversations_without_rows_and_error_rows_are_noted(
    run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = write(
        tmp_path / "new.jsonl", *lines({"min_tokens": 1}), *lines({"min_tokens": 1}, num_conversations=1, id="x")
    )
    failed = {"finish_reason": "error", "error": "out of memory", "checks": (), "reply": "", "reply_ids": ()}
    change_first_row(run_directory, **failed)
    assert invoke(["check", str(run_directory), "--script", new]) == ExitCode.FAILED
    messages = capsys.readouterr().err
    assert "note: the run has no rows of 1 conversation of the script" in messages
    assert "note: 1 row ended in an error; their checks count as failed" in messages


def test_former_verdicts_that_decided_the_repetitions_are_noted(
    run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = manifest_of(run_directory)
    content["identity"]["until_ci"] = 0.5
    save_manifest(run_directory, content)
    new = write(tmp_path / "new.jsonl", *lines({"min_tokens": 1}))
    assert invoke(["check", str(run_directory), "--script", new]) == ExitCode.DONE
    assert "note: the former verdicts decided which rows the run has" in capsys.readouterr().err


def test_a_row_of_a_conversation_outside_the_script_is_refused_as_damage(run_directory: Path) -> None:
    change_first_row(run_directory, conversation="c9")
    with pytest.raises(RunDamagedError, match="which the script's copy does not have"):
        recheck(run_directory, [])


@pytest.mark.parametrize("line", [1, 23])
def test_a_row_without_digests_is_refused_as_damage(line: int, run_directory: Path) -> None:
    path = run_directory / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    without = encode_row(decode_row(lines[line]))
    path.write_bytes(b"".join([*lines[:line], without, *lines[line + 1 :]]))
    before = path.read_bytes()
    with pytest.raises(RunDamagedError, match=rf"results\.jsonl:{line + 1}: the row is damaged: it lacks"):
        recheck(run_directory)
    assert path.read_bytes() == before


def test_a_row_of_a_cell_that_the_manifest_lacks_is_refused_as_damage(run_directory: Path) -> None:
    change_first_row(run_directory, cell="other")
    before = results(run_directory)
    with pytest.raises(
        RunDamagedError, match=r"results\.jsonl:1: .* c0, cell other, repeat 0, turn 0, .* no such cell"
    ):
        recheck(run_directory)
    assert results(run_directory) == before


def test_the_result_of_a_race_is_kept_and_marked_when_verdicts_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, other = tmp_path / "old.jsonl", tmp_path / "other.jsonl"
    conversations = read_scripts([write(script, *lines({"contains": "a"}))]).conversations
    ended = run(tmp_path / "run", make_plan(conversations=conversations, repeats=4, race=True))
    assert ended.race is not None

    recheck(tmp_path / "run", [write(other, *lines({"contains": "a"}, tags=("t",)))])
    assert read_part(tmp_path / "run", "race") == json.loads(json.dumps(ended.race.as_dict()))

    assert not any("former verdicts" in note for note in recheck(tmp_path / "run").notes)
    result = recheck(tmp_path / "run", [write(other, *lines({"not": {"contains": "a"}}))])
    assert any("former verdicts" in note for note in result.notes)
    assert invoke(["show", str(tmp_path / "run")]) == ExitCode.DONE
    messages = capsys.readouterr().err
    assert f"leader: {ended.race.leader}," in messages
    assert "by the verdicts before `rwkvbatch check`" in messages
