"""`rwkvbatch check`: replies judged again without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.errors import RowError, RunDamagedError, RunDirectoryError, RunMismatchError
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.recheck import recheck
from rwkvbatch.results.manifest import FORMER
from rwkvbatch.results.row import decode_row, encode_row
from rwkvbatch.results.summary import read_race
from rwkvbatch.script.checks import parse_checks
from rwkvbatch.script.reader import read_scripts
from tests.replay.fakes import FakeLoader, make_plan
from tests.replay.runs import results, run


def lines(expect: Any, *, number: int = 3, tags: tuple[str, ...] = (), **changes: Any) -> list[dict[str, Any]]:
    ask = [{"role": "user", "content": f"Say {turn}", "expect": expect} for turn in range(2)]
    messages = [{"role": "system", "content": "Be brief."}, *ask]
    return [{"id": f"c{n}", "messages": messages, "tags": list(tags), **changes} for n in range(number)]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in content))
    return path


def plan_of(path: Path) -> Plan:
    return make_plan(conversations=read_scripts([str(path)]).conversations, repeats=2)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    run(tmp_path / "run", plan_of(write(tmp_path / "old.jsonl", lines({"contains": "elm"}))))
    return tmp_path / "run"


def test_the_rows_are_those_of_a_run_with_these_checks(made: Path, tmp_path: Path) -> None:
    new = write(
        tmp_path / "new.jsonl", [*lines({"contains": "fir"}, tags=("t",)), *lines({"regex": "a"}, number=1, id="x")]
    )
    result = recheck(made, [str(new)])
    plan = plan_of(write(tmp_path / "same.jsonl", lines({"contains": "fir"}, tags=("t",))))
    fresh = run(tmp_path / "fresh", plan)
    assert results(made) == results(tmp_path / "fresh")
    assert (made / "script.jsonl").read_bytes() == (tmp_path / "fresh" / "script.jsonl").read_bytes()
    assert result.summary == fresh.summary
    assert (result.rows, result.changed, result.left_out) == (24, 24, 1)
    manifests = [json.loads((where / "manifest.json").read_text()) for where in (made, tmp_path / "fresh")]
    assert manifests[0]["identity"] == manifests[1]["identity"]
    assert FORMER not in manifests[0]
    loader = FakeLoader()
    again = run(made, plan, loader)
    assert loader.num_generated == 0
    assert again.reuse is not None
    assert (again.reuse.judged_again, again.reuse.kept) == (0, 24)


def test_without_a_script_the_copy_s_checks_judge(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = results(made)
    assert recheck(made).changed == 0
    assert results(made) == before


def test_what_became_of_the_verdicts_is_counted(made: Path, tmp_path: Path) -> None:
    passed = recheck(made).summary.checks_passed
    result = recheck(made, [str(write(tmp_path / "all.jsonl", lines({"min_tokens": 1})))])
    assert (result.now_pass, result.now_fail, result.judged) == (24 - passed, 0, 24)
    result = recheck(made, [str(write(tmp_path / "none.jsonl", lines({"contains": "no such text"})))])
    assert (result.now_pass, result.now_fail) == (0, 24)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda made: made[1]["messages"].__setitem__(2, {"role": "user", "content": "Say more"}), "turn 1, user"),
        (lambda made: made[1]["messages"].__setitem__(0, {"role": "system", "content": "Be long."}), "system"),
        (lambda made: made[1]["messages"].append({"role": "user", "content": "And?"}), "turns: replayed: 2"),
        (lambda made: made[1]["messages"].append({"role": "assistant", "content": "Yes"}), "turn 1, reference"),
        (lambda made: made[1].__setitem__("params", {"top_k": 3}), "params"),
        (lambda made: made.pop(1), "no conversation 'c1'"),
    ],
)
def test_a_script_of_other_conversations_is_refused(
    made: Path, tmp_path: Path, change: Callable[[list[dict[str, Any]]], None], named: str
) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    content = json.loads(json.dumps(lines({"contains": "fir"})))
    change(content)
    with pytest.raises(RunMismatchError) as caught:
        recheck(made, [str(write(tmp_path / "new.jsonl", content))])
    assert named in str(caught.value)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_a_check_that_breaks_changes_nothing(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = write(tmp_path / "new.jsonl", lines({"max_tokens": 3}))
    rule = type(parse_checks({"max_tokens": 3}, None)[0].rule)  # type: ignore[arg-type]

    def breaks(*_: object) -> None:
        raise RowError("broken")

    before = {path.name: path.read_bytes() for path in made.iterdir() if path.name != "manifest.json"}
    monkeypatch.setattr(rule, "judge", breaks)
    with pytest.raises(RowError, match="nothing was changed"):
        recheck(made, [str(new)])
    assert {path.name: path.read_bytes() for path in made.iterdir() if path.name != "manifest.json"} == before
    assert FORMER not in json.loads((made / "manifest.json").read_text())


def test_a_directory_without_a_run_or_a_copy_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no such run"):
        recheck(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (made / "script.jsonl").unlink()
    with pytest.raises(RunDirectoryError, match="no copy of its script"):
        recheck(made)


def test_an_interrupted_extension_is_to_be_finished_first(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps({**manifest, "former": {"identity": {}, "by": "run"}}))
    with pytest.raises(RunDirectoryError, match="interrupted"):
        recheck(made)


def test_a_torn_last_line_stays_for_the_run_to_repair(made: Path, tmp_path: Path) -> None:
    path = made / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    new = write(tmp_path / "new.jsonl", lines({"contains": "fir"}))
    assert recheck(made, [str(new)]).rows == 23
    run(made, plan_of(new))
    run(tmp_path / "fresh", plan_of(new))
    assert results(made) == results(tmp_path / "fresh")


def test_the_command_needs_no_torch_and_says_what_changed(made: Path, tmp_path: Path) -> None:
    new = write(tmp_path / "new.jsonl", lines({"contains": "fir"}))
    code = (
        "import sys; from rwkvbatch.cli.app import invoke\n"
        f"status = invoke(['check', {str(made)!r}, '--script', {str(new)!r}, '--json'])\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.FAILED, done.stderr
    assert json.loads(done.stdout)["rows"] == 24
    assert "24 of 24 rows judged again" in done.stderr


def test_a_run_without_failures_ends_with_0(made: Path, tmp_path: Path) -> None:
    new = write(tmp_path / "new.jsonl", lines({"min_tokens": 1}))
    assert invoke(["check", str(made), "--script", str(new), "--quiet"]) == ExitCode.DONE


def test_conversations_without_rows_and_rows_without_replies_are_told(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = write(tmp_path / "new.jsonl", [*lines({"min_tokens": 1}), *lines({"min_tokens": 1}, number=1, id="x")])
    rows = [decode_row(line) for line in (made / "results.jsonl").read_bytes().splitlines(keepends=True)]
    rows[0] = replace(rows[0], finish_reason="error", error="out of memory", checks=(), reply="", reply_ids=())
    (made / "results.jsonl").write_bytes(b"".join(map(encode_row, rows)))
    assert invoke(["check", str(made), "--script", str(new)]) == ExitCode.FAILED
    said = capsys.readouterr().err
    assert "note: the run has no rows of 1 conversation of the script" in said
    assert "note: 1 row ended in an error; their checks count as failed" in said


def test_former_verdicts_that_chose_the_rows_are_noted_and_a_row_of_another_script_is_damage(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    content["identity"]["until_ci"] = 0.5
    path.write_text(json.dumps(content))
    new = write(tmp_path / "new.jsonl", lines({"min_tokens": 1}))
    assert invoke(["check", str(made), "--script", str(new)]) == ExitCode.DONE
    assert "note: the former verdicts decided which rows the run has" in capsys.readouterr().err
    rows = (made / "results.jsonl").read_bytes().splitlines(keepends=True)
    stranger = replace(decode_row(rows[0]), conversation="c9")
    (made / "results.jsonl").write_bytes(b"".join([encode_row(stranger), *rows[1:]]))
    with pytest.raises(RunDamagedError, match="which the script's copy does not have"):
        recheck(made, [])


def test_the_result_of_a_race_stays_and_says_when_it_is_of_former_verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, other = tmp_path / "old.jsonl", tmp_path / "other.jsonl"
    conversations = read_scripts([str(write(script, lines({"contains": "a"})))]).conversations
    ended = run(tmp_path / "run", make_plan(conversations=conversations, repeats=4, race=True))
    assert ended.race is not None

    recheck(tmp_path / "run", [str(write(other, lines({"contains": "a"}, tags=("t",))))])
    assert read_race(tmp_path / "run") == json.loads(json.dumps(ended.race.as_dict()))

    assert not any("former verdicts" in note for note in recheck(tmp_path / "run").notes)
    result = recheck(tmp_path / "run", [str(write(other, lines({"not": {"contains": "a"}})))])
    assert any("former verdicts" in note for note in result.notes)
    assert invoke(["show", str(tmp_path / "run")]) == ExitCode.DONE
    told = capsys.readouterr().err
    assert f"leader: {ended.race.leader}," in told
    assert "by the verdicts before `rwkvbatch check`" in told
