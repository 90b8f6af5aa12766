"""Files of format 1, as the version before wrote them: `tests/fixtures/format_1`.

Rows, sessions and transcripts have `finish` for `finish_reason`, and short names of penalties and banned tokens.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.chat.session import Session
from rwkvbatch.chat.storage import load_session
from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.comparison import load
from rwkvbatch.config import CellSettings
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row import Row

FORMAT_1 = Path(__file__).parent / "fixtures" / "format_1"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixture, as the current directory: manifests have relative paths."""
    directory = tmp_path / "old"
    shutil.copytree(FORMAT_1, directory)
    monkeypatch.chdir(directory)
    return directory


def rows(directory: Path) -> list[dict[str, Any]]:
    """The rows without their timing, which differs between two runs of the same thing."""
    return [without_timing(row) for row in read_results(directory / "results.jsonl")]


def without_timing(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.as_dict().items() if key != "timing"}


def keys(directory: Path) -> list[set[str]]:
    return [set(json.loads(line)) for line in (directory / "results.jsonl").read_bytes().splitlines()]


def test_the_fixture_has_the_old_names() -> None:
    assert all("finish" in found and "finish_reason" not in found for found in keys(FORMAT_1 / "whole"))
    cells = json.loads((FORMAT_1 / "whole" / "manifest.json").read_text())["identity"]["cells"]
    assert all({"presence", "frequency", "decay", "ban"} <= set(cell) for cell in cells.values())


def test_an_interrupted_run_is_continued_to_the_rows_of_a_whole_one(old: Path) -> None:
    manifest = json.loads((old / "interrupted" / "manifest.json").read_text())
    command = shlex.split(manifest["about"]["command"])
    command[command.index("--out") + 1] = "interrupted"
    num_before = len(rows(old / "interrupted"))
    assert invoke(command[1:]) in (ExitCode.DONE, ExitCode.FAILED)
    assert rows(old / "interrupted") == rows(old / "whole")
    assert num_before < len(rows(old / "whole"))
    # Lines of both versions stand in one file; none was written anew.
    assert sum("finish" in found for found in keys(old / "interrupted")) == num_before
    assert json.loads((old / "interrupted" / "manifest.json").read_text()) == manifest


def test_runs_are_compared(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = load(old / "whole")
    found = list(read_results(old / "whole" / "results.jsonl"))
    assert list(table["finish_reason"]) == [row.finish_reason for row in found]
    assert list(table["score"].dropna()) == [row.score for row in found if row.score is not None]
    a, b, *_ = dict.fromkeys(table["cell"])
    assert invoke(["compare", f"whole::{a}", f"whole::{b}", "--json"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)


def test_dialogues_are_shown(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["show", "whole", "--json"]) == ExitCode.DONE
    turns = [turn for line in capsys.readouterr().out.splitlines() for turn in json.loads(line)["turns"]]
    reasons = sorted(row.finish_reason for row in read_results(old / "whole" / "results.jsonl"))
    assert sorted(turn["finish_reason"] for turn in turns) == reasons


def test_parts_are_merged_into_the_whole_run(old: Path) -> None:
    assert invoke(["merge", "part-1", "part-2", "--out", "merged", "-q"]) in (ExitCode.DONE, ExitCode.FAILED)
    assert rows(old / "merged") == rows(old / "whole")
    ours, theirs = (json.loads((old / name / "manifest.json").read_text()) for name in ("merged", "whole"))
    assert ours["identity"]["script"] == theirs["identity"]["script"]


@pytest.mark.parametrize("name", ["session.json", "transcript.jsonl"])
def test_a_saved_chat_is_continued(
    name: str, old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    import rwkvbatch

    session = Session(rwkvbatch.Engine(rwkvbatch.load_model(None, threads=1)), CellSettings())
    load_session(session, old / name)
    last = session.tree.last
    assert last is not None
    assert last.finish_reason == "stop"
    assert session.settings.frequency_penalty == last.settings["frequency_penalty"] == 0.3
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"And now?\n")))
    assert invoke(["chat", "--load", name, "--json", "--no-transcript", "--threads", "1"]) == ExitCode.DONE
    reply = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert reply["turn"] == last.turn + 1
    assert reply["finish_reason"] in ("stop", "eos", "length")


def test_a_run_is_extended_by_new_conversations_and_repeats(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((old / "whole" / "manifest.json").read_text())
    command = shlex.split(manifest["about"]["command"])[1:]
    before = rows(old / "whole")
    script = old / next(word for word in command if word.endswith(".jsonl"))
    script.write_text(
        script.read_text() + json.dumps({"id": "new", "messages": [{"role": "user", "content": "Hi"}]}) + "\n"
    )
    for name in ("whole", "fresh"):
        command[command.index("--out") + 1] = name
        assert invoke(command) in (ExitCode.DONE, ExitCode.FAILED)
    assert rows(old / "whole") == rows(old / "fresh")
    assert [row for row in rows(old / "whole") if row["conversation"] != "new"] == before
    # Rows get what they were made from when they are taken over.
    assert all("content" in found for found in keys(old / "whole"))


def test_a_changed_script_whose_former_text_is_gone_is_refused(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((old / "whole" / "manifest.json").read_text())
    command = shlex.split(manifest["about"]["command"])[1:]
    command[command.index("--out") + 1] = "whole"
    script = old / next(word for word in command if word.endswith(".jsonl"))
    first, *others = script.read_text().splitlines(keepends=True)
    script.write_text("".join([*others, first]))
    before = (old / "whole" / "results.jsonl").read_bytes()
    assert invoke(command) == ExitCode.BAD_INPUT
    assert "kept no copy" in capsys.readouterr().err
    assert (old / "whole" / "results.jsonl").read_bytes() == before
