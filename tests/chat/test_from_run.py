"""`chat --from`: continuing a run at one of its turns with its settings, files and replies."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.chat.runs import export, read_point, refuse_other_files, replay, settings_of
from rwkvbatch.chat.session import Identity, Session
from rwkvbatch.cli.app import invoke
from rwkvbatch.config import CellSettings
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import RunDirectoryError, UsageError
from rwkvbatch.model.load import load_model
from rwkvbatch.model.model_files import BUNDLED_MODEL
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row import Row
from tests.chat.sessions import new_session
from tests.manifests import manifest_of, save_manifest

TURNS = ("My name is Ada.", "What is my name?", "And what is 1 plus 2?")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    messages = [{"role": "system", "content": "Be brief."}, *({"role": "user", "content": text} for text in TURNS)]
    script = directory / "s.jsonl"
    script.write_text(json.dumps({"id": "c:1", "messages": messages}) + "\n")
    out = directory / "out"
    status = invoke(["run", str(script), "--temp", "1.0", "--top-p", "0.9", "--seed", "4", "--repeats", "2",
                     "--out", str(out), "--quiet"])  # fmt: skip
    assert status == 0
    return out


def rows(run: Path, repeat: int) -> list[Row]:
    found = [row for row in read_results(run / "results.jsonl") if row.repeat == repeat]
    return sorted(found, key=lambda row: row.turn)


@pytest.mark.parametrize("repeat", [0, 1])
def test_the_next_replies_equal_those_of_the_run(run: Path, repeat: int) -> None:
    point = read_point(f"{run}:c:1:0", repeat=repeat)
    assert point.system == "Be brief."
    row = point.rows[-1]
    settings = CellSettings(**settings_of(point))
    session = Session(Engine(load_model()), settings, Identity(row.seed, row.conversation, row.repeat))
    session.begin(system=point.system)
    replay(session, point)
    assert [session.ask(text).ids for text in TURNS[1:]] == [row.reply_ids for row in rows(run, repeat)[1:]]


def test_a_missing_turn_conversation_or_cell_is_refused_with_the_existing_ones(run: Path) -> None:
    for name, expected in (
        ("x", "RUN:CONVERSATION:TURN"),
        (f"{run}:c:1:9", "0 to 2"),
        (f"{run}:other:0", "no rows of conversation 'other'"),
    ):
        with pytest.raises(UsageError, match=expected):
            read_point(name)
    with pytest.raises(UsageError, match="--cell"):
        read_point(f"{run}:c:1:0", cell="none")
    with pytest.raises(RunDirectoryError, match="no manifest"):
        read_point(f"{run.parent}:c:1:0")


def test_another_model_or_prelude_is_refused(run: Path) -> None:
    point = read_point(f"{run}:c:1:1")
    with pytest.raises(UsageError, match="weights"):
        replay(new_session(), point)
    session = Session(Engine(load_model()), CellSettings(**settings_of(point)))
    session.begin(system=point.system, prelude="User: a\n\nAssistant: b\n\n")
    with pytest.raises(UsageError, match="prompt of turn 0"):
        replay(session, point)


def test_turns_of_a_run_with_gold_history_follow_the_references(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello, and good morning to you."},
        {"role": "user", "content": "What is my name?"},
        {"role": "user", "content": "And what is 1 plus 2?"},
    ]
    script, out = tmp_path / "s.jsonl", tmp_path / "out"
    script.write_text(json.dumps({"id": "c", "messages": messages}) + "\n")
    options = ["--preset", "greedy", "--history", "gold", "--out", str(out), "--quiet"]
    assert invoke(["run", str(script), *options]) == 0
    point = read_point(f"{out}:c:1")
    session = Session(Engine(load_model()), CellSettings(**settings_of(point)), Identity(0, "c"))
    session.begin()
    replay(session, point)
    first, second = session.tree.path()
    assert (first.reply, first.ids) == ("Hello, and good morning to you.", ())
    assert second.reply == rows(out, 0)[1].reply
    assert session.ask("And what is 1 plus 2?").ids == rows(out, 0)[2].reply_ids
    (caveat,) = export(session, tmp_path / "e.jsonl").caveats
    assert "turn 1 is the run's reference" in caveat


def copy_with_manifest(run: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a run with a changed manifest."""
    out = run.parent / f"changed-{len(list(run.parent.iterdir()))}"
    shutil.copytree(run, out)
    content = manifest_of(out)
    change(content)
    save_manifest(out, content)
    return out


def test_without_a_copy_of_the_script_the_run_is_refused(run: Path) -> None:
    out = copy_with_manifest(run, lambda content: None)
    (copy,) = out.glob("script*")
    copy.unlink()
    with pytest.raises(RunDirectoryError, match="'c:1' is unknown: the script's copy is missing") as caught:
        read_point(f"{out}:c:1:0")
    assert "given again" in (caught.value.hint or "")


def test_another_vocabulary_is_refused(run: Path) -> None:
    cell = read_point(f"{run}:c:1:0").cell
    point = replace(read_point(f"{run}:c:1:0"), cell={**cell, "tokenizer_sha256": "ab" * 32})
    session = Session(Engine(load_model()), CellSettings(**settings_of(point)))
    session.begin(system=point.system)
    with pytest.raises(UsageError, match="has another vocabulary: expected SHA-256 abababababab, found"):
        replay(session, point)


def test_preludes_that_the_run_does_not_have_or_name_are_refused(run: Path, tmp_path: Path) -> None:
    point = read_point(f"{run}:c:1:0")
    refuse_other_files(point, CellSettings())
    prelude = tmp_path / "prelude.txt"
    prelude.write_text("User: hi\n\nAssistant: Hi.\n")
    with pytest.raises(UsageError, match="began without a prelude, got --prelude"):
        refuse_other_files(point, CellSettings(prelude=str(prelude)))
    with pytest.raises(UsageError, match="began with a prelude that its manifest does not name"):
        refuse_other_files(replace(point, cell={**point.cell, "prelude_sha256": "ab" * 32}), CellSettings())


def test_a_run_is_continued_without_its_script_file(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    script = run.parent / "s.jsonl"
    content = script.read_text()
    try:
        script.write_text(content.replace("Be brief.", "Be long."))
        assert read_point(f"{moved}:c:1:1").system == "Be brief."
        script.unlink()
        assert read_point(f"{moved}:c:1:1").system == "Be brief."
    finally:
        script.write_text(content)


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}}}]


def test_params_and_tools_of_the_script_are_applied(tmp_path: Path) -> None:
    """Each row is read with its own settings, which those of the command line override."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": TURNS[0], "params": {"think": "fake", "max_tokens": 3}},
        {"role": "tool", "content": "{}", "reply_prefix": "Well,"},
        {"role": "user", "content": TURNS[2], "reply_prefix": ""},
    ]
    line = {"id": "c", "messages": messages, "params": {"turn_end": "next-role", "max_tokens": 9}, "tools": TOOLS}
    script, out = tmp_path / "s.jsonl", tmp_path / "out"
    script.write_text(json.dumps(line) + "\n")
    options = ["--preset", "greedy", "--max-tokens", "6", "--system", "Be kind.", "--out", str(out), "--quiet"]
    assert invoke(["run", str(script), *options]) in (0, 1)
    point = read_point(f"{out}:c:1")
    assert (point.system or "").startswith("Be kind.\nTools:\n[\n")
    session = Session(Engine(load_model()), CellSettings(**settings_of(point)), Identity(0, "c"))
    session.begin(system=point.system)
    replay(session, point)
    first, second = session.tree.path()
    assert [first.settings[name] for name in ("think", "max_tokens", "reply_prefix")] == ["fake", 6, "```json"]
    assert [second.settings[name] for name in ("think", "turn_end", "reply_prefix")] == ["off", "next-role", "Well,"]
    assert session.ask(TURNS[2]).ids == rows(out, 0)[2].reply_ids


def test_a_missing_vocabulary_and_another_system_message_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(run, tmp_path / "out")
    content = json.loads((out / "manifest.json").read_text())
    content["about"]["vocab"] = str(tmp_path / "gone.txt")
    (out / "manifest.json").write_text(json.dumps(content))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hi\n")))
    assert invoke(["chat", "--from", f"{out}:c:1:0", "--no-transcript"]) in (2, 3)
    assert "gone.txt" in capsys.readouterr().err
    assert invoke(["chat", "--from", f"{run}:c:1:0", "--no-transcript", "--system", "Other."]) == 2
    assert "began with another system message" in capsys.readouterr().err


def test_state_prompt_settings_and_prelude_of_the_run_are_used_or_refused_when_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state, prelude = tmp_path / "state.safetensors", tmp_path / "prelude.txt"
    shutil.copyfile(BUNDLED_MODEL.with_name("uppercase-state.safetensors"), state)
    prelude.write_text("User: hi\n\nAssistant: Hi.\n")
    script, out = tmp_path / "s.jsonl", tmp_path / "out"
    messages = [{"role": "user", "content": text} for text in TURNS[:2]]
    script.write_text(json.dumps({"id": "c", "messages": messages}) + "\n")
    options = ["--preset", "greedy", "--bos", "on", "--turn-end", "next-role", "--reply-prefix", "Well,"]
    files = ["--state", str(state), "--prelude", str(prelude)]
    assert invoke(["run", str(script), *options, *files, "--out", str(out), "--quiet"]) == 0
    chat = ["chat", "--from", f"{out}:c:0", "--json", "--no-transcript", "--quiet"]

    def reply() -> dict[str, Any]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{TURNS[1]}\n".encode())))
        assert invoke(chat) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    expected = rows(out, 0)[1]
    assert reply()["reply_ids"] == list(expected.reply_ids)
    prelude.write_text("User: hi\n\nAssistant: Hello.\n")
    assert invoke(chat) == 2
    assert "--prelude" in (problem := capsys.readouterr().err)
    assert "changed since" in problem
    prelude.unlink()
    state.unlink()
    assert invoke(chat) == 3
    assert "--state" in capsys.readouterr().err


def test_invalid_utf8_on_standard_input_is_refused_and_a_byte_order_mark_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["chat", "--json", "--no-transcript", "--quiet"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfhi\n")))
    assert invoke(command) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "hi"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("hi\n\nich hör\n".encode() + b"\xc3\xa4h\xff\nhi\n")))
    assert invoke(command) == 3
    printed = capsys.readouterr()
    assert [json.loads(line)["prompt"] for line in printed.out.splitlines()] == ["hi", "ich hör"]
    assert "<standard input>:4: messages must be UTF-8; found 0xff as byte 4 of the line" in printed.err
