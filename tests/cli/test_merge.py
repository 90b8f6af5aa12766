"""`rwkvbatch run --shard` on the bundled model, and `rwkvbatch merge`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.replay.planning.grid import Cell
from rwkvbatch.replay.planning.row_index import Shard
from rwkvbatch.replay.runner import RunOptions, execute, read_rows
from tests.manifests import manifest_of, save_manifest
from tests.replay.fakes import FakeLoader, make_plan

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A run of five conversations in two parts."""
    paths = [tmp_path / "part-1", tmp_path / "part-2"]
    for number, path in enumerate(paths, start=1):
        command = f"rwkvbatch run s.jsonl --shard {number}/2 -o {path}"
        execute(make_plan(5, shard=Shard(number, 2)), FakeLoader(), RunOptions(out=path, command=command))
    return paths


def merge(parts: list[Path], out: Path, *more: str) -> int:
    return invoke(["merge", *map(str, parts), "--out", str(out), *more])


def test_a_sharded_run_of_the_bundled_model_merges_into_the_rows_of_the_undivided_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "s.jsonl"
    users = (["I am Eli.", "Who am I?"], ["What is 2 + 3?"], ["Hello."])
    script.write_text(
        "".join(
            json.dumps({"id": f"c{n}", "messages": [{"role": "user", "content": user} for user in turns]}) + "\n"
            for n, turns in enumerate(users)
        )
    )
    arguments = ["run", str(script), "--temp", "0.5,1", "--max-tokens", "6", "--repeats", "2"]
    assert invoke([*arguments, "-q", "-o", str(tmp_path / "whole")]) == 0
    for part in ("1", "2"):
        out = tmp_path / f"part-{part}"
        assert invoke([*arguments, "--shard", f"{part}/2", "-o", str(out)]) == 0
        assert "next, when all 2 parts are done: rwkvbatch merge" in capsys.readouterr().err
    assert merge([tmp_path / "part-1", tmp_path / "part-2"], tmp_path / "out") == 0
    assert "16 of 16 rows are in" in capsys.readouterr().err

    def rows(directory: Path) -> list[dict[str, object]]:
        return [{k: v for k, v in row.as_dict().items() if k != "timing"} for row in read_rows(directory)]

    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert invoke([*arguments, "-o", str(tmp_path / "out")]) == 0
    assert "all rows already existed" in capsys.readouterr().err


def test_missing_rows_are_exit_code_1_and_the_way_on(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = parts[0] / "results.jsonl"
    results.write_bytes(b"".join(results.read_bytes().splitlines(keepends=True)[:1]))
    assert merge(parts[:1], tmp_path / "out", "--quiet") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"part 1/2 ({parts[0]}): " in captured.err
    assert f"to continue: rwkvbatch run s.jsonl --shard 1/2 -o {parts[0]}" in captured.err
    assert "part 2/2 was not given; run it with --shard 2/2" in captured.err
    assert "nothing was written" in captured.err
    assert not (tmp_path / "out").exists()


def test_a_merge_that_may_be_incomplete_says_how_to_run_the_rest(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert merge(parts[:1], out, "--allow-missing") == 0
    assert f"to run the rest: rwkvbatch run s.jsonl --out {out}" in capsys.readouterr().err


def test_quiet_says_nothing_and_json_goes_to_standard_output(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(parts, tmp_path / "out", "--quiet", "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    content = json.loads(captured.out)
    assert content["written"] is True
    assert content["rows"] == content["planned"] == content["summary"]["rows"]
    assert content["missing"] == []


def test_json_says_what_is_missing(parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge(parts[:1], tmp_path / "out", "--json", "--quiet") == 1
    content = json.loads(capsys.readouterr().out)
    assert content["written"] is False
    assert content["summary"] is None
    assert content["missing"] == [{"part": "2/2", "directory": None, "rows": None, "first": None}]


def test_a_merged_run_is_shown_and_compared(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(parts, tmp_path / "out") == 0
    assert invoke(["show", str(tmp_path / "out"), "c1"]) == 0
    assert invoke(["compare", str(tmp_path / "out")]) == 0
    assert "temp=1" in capsys.readouterr().out


def test_of_many_missing_parts_some_are_told_and_a_grid_is_to_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [Cell(name, {}) for name in "ab"]
    paths: list[Path] = []
    for number in (1, 2):
        plan = make_plan(50, cells=cells, shard=Shard(number, 2))
        execute(plan, FakeLoader(), RunOptions(out=tmp_path / str(number), command="rwkvbatch run s.jsonl"))
        paths.append(tmp_path / str(number))
    assert merge(paths, tmp_path / "out") == 0
    assert f"next: rwkvbatch compare {tmp_path / 'out'}" in capsys.readouterr().err
    few = tmp_path / "few"
    execute(make_plan(50, cells=cells, shard=Shard(1, 50)), FakeLoader(), RunOptions(out=few, command="rwkvbatch run"))
    assert merge([few], tmp_path / "more") == 1
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("and ") and line.endswith(" more parts") for line in lines)


def test_a_part_is_shown_with_a_note_that_it_is_one(parts: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["show", str(parts[0])]) == 0
    assert "is one part of a run; `rwkvbatch merge`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "s.jsonl", "--shard", "3/2"], 2, "--shard must be I/N"),
        (["merge", "--out", "x"], 2, "Missing argument"),
        (["merge", "nowhere"], 2, "Missing option '--out'"),
        (["merge", "nowhere", "--out", "x"], 3, "nowhere: there is no such directory"),
    ],
)
def test_bad_input_is_one_message_and_an_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_part_whose_rows_were_being_adapted_is_to_be_run_again(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = manifest_of(parts[1])
    save_manifest(parts[1], {**content, "former": {"identity": content["identity"]}})
    assert merge(parts, tmp_path / "out") == 3
    said = capsys.readouterr().err
    assert "a command was interrupted while it adapted the rows of this part" in said
    assert "run the part's command again" in said


def test_merging_loads_no_model_library(parts: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom rwkvbatch.cli.app import invoke\n"
        f"assert invoke({['merge', *map(str, parts), '--out', str(tmp_path / 'out'), '-q']!r}) == 0\n"
        "print(*sorted({'torch', 'numpy', 'pandas', 'rwkv', 'rwkvbatch.engine.engine'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_comparing_parts_of_one_run_is_answered_with_the_command_that_merges_them(
    parts: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = map(str, parts)
    assert invoke(["compare", one, other]) == 3
    said = capsys.readouterr().err
    assert f"{one} is part 1/2 and {other} is part 2/2 of the same run" in said
    assert f"rwkvbatch merge {one} {other} --out DIR" in said


def test_comparing_different_parts_of_two_runs_is_answered_with_merging_both(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        plan = make_plan(5, shard=Shard(number, 2), seed=9)
        execute(plan, FakeLoader(), RunOptions(out=tmp_path / f"other-{number}"))
    assert invoke(["compare", str(parts[0]), str(tmp_path / "other-2")]) == 3
    assert "parts of each run with `rwkvbatch merge" in capsys.readouterr().err
    assert invoke(["compare", str(parts[0]), str(tmp_path / "other-1")]) == 0


def test_a_part_without_a_conversation_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    assert invoke(["run", str(script), "--shard", "2/2", "-o", str(tmp_path / "part")]) == 0
    assert "this part of the run has no conversation" in capsys.readouterr().err
