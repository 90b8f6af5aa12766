"""`rwkvbatch script convert`: conversations of other programs as lines to which checks can be added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.script.reader import read_scripts

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "My name is Ada."}]},
    {"role": "assistant", "content": "Hi Ada!"},
]
OPENAI = {"model": "x", "messages": MESSAGES, "temperature": 0.5}
SHAREGPT = {"id": 7, "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Hello."}]}
MT_BENCH = {"question_id": 81, "category": "writing", "turns": ["a?", "b?"]}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_lines_of_other_forms_become_lines_to_which_checks_can_be_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", OPENAI, SHAREGPT, MT_BENCH)
    out = tmp_path / "out.jsonl"
    assert invoke(["script", "convert", str(source), "--out", str(out)]) == ExitCode.DONE
    said = capsys.readouterr().err
    assert "3 conversations" in said
    assert "no reply is checked yet" in said
    assert read_scripts([str(out)]).conversations == read_scripts([str(source)]).conversations
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    lines[0]["messages"][1]["expect"] = {"contains": "Ada"}
    write(out, *lines)
    assert read_scripts([str(out)]).conversations[0].turns[0].checks
    assert invoke(["script", "convert", str(source), "--out", str(out)]) == ExitCode.USAGE
    assert invoke(["script", "convert", str(source), "--out", str(out), "--force"]) == ExitCode.DONE
    assert "expect" not in out.read_text()


def test_a_file_does_not_replace_itself_and_plain_texts_have_no_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", {"text": "abc"}, {"messages": []})
    before = source.read_bytes()
    command = ["script", "convert", str(source), "--force", "--skip-bad", "--out"]
    assert invoke([*command, str(tmp_path / "." / "in.jsonl")]) == ExitCode.USAGE
    assert "is one of the files to convert" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert invoke([*command, str(tmp_path / "out.jsonl")]) == ExitCode.DONE
    assert "expect" not in capsys.readouterr().err


def test_bad_lines_are_refused_or_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "in.jsonl", OPENAI, {"messages": []}), tmp_path / "out.jsonl"
    assert invoke(["script", "convert", str(source), "--out", str(out)]) != ExitCode.DONE
    assert "in.jsonl:2" in capsys.readouterr().err
    assert not out.exists()
    command = ["script", "convert", str(source), "--skip-bad", "--json", "--out", str(out)]
    assert invoke(command) == ExitCode.DONE
    said = capsys.readouterr()
    assert json.loads(said.out) == {"conversations": 1, "left_out": 1, "out": str(out)}
    assert "left out: " in said.err
    assert "in.jsonl:2" in said.err


def test_a_line_of_another_program_with_checks_names_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", OPENAI | {"expect": {"contains": "Ada"}})
    assert invoke(["run", str(source), "--dry-run"]) != ExitCode.DONE
    said = " ".join(capsys.readouterr().err.split())
    assert "unknown key 'model'" in said
    assert "rwkvbatch script convert" in said
