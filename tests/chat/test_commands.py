"""Commands of a chat without a terminal: effects, output, errors, completions, editor."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from rwkvbatch.chat.actions import edit_text
from rwkvbatch.chat.commands import COMMANDS, run_lines
from rwkvbatch.chat.session import Session
from rwkvbatch.chat.terminal import CommandCompleter, status_line
from rwkvbatch.chat.tree_codec import tree_values
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import StorageError, UsageError
from rwkvbatch.model.checkpoints.checkpoint import open_tensors
from tests.chat.scripted_model import REPLY_PREFIX, ScriptedModel, echo
from tests.chat.sessions import GREEDY, PipeChat, new_chat


@pytest.fixture
def chat() -> PipeChat:
    return new_chat()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/help nothing", "there is no command /nothing"),
        ("/help set", "Settings: temp"),
        ("/help quit", "Leave"),
        ("/params x", "/params takes no argument"),
        ("/set", "max_tokens"),
        ("/set nothing 1", "/set: expected one of temp"),
        ("/set temp", "the value is missing"),
        ("/set seed 9", "seed 9"),
        ("/set ban 0,5", "ban 0,5"),
        ("/set ban none", "ban none"),
        ("/set stop \\n,日本", "stop '\\n','日本'"),
        ("/set stop 日本\\n", "stop '日本\\n'"),
        ('/set stop "a, b",c', "stop 'a, b','c'"),
        ("/set stop ' a', \"it's\" ", "stop ' a',\"it's\""),
        ("/set stop a\\,b, \\x41\\u0042", "stop 'a,b','AB'"),
        ('/set stop "', "stop '\"'"),
        ('/set stop "a, b', 'the quotation mark of "a is not closed'),
        ("/set stop \\x", "there is no escape \\x"),
        ("/set stop C:\\", "there is no escape \\"),
        ("/set max_seconds none", "max_seconds none"),
        ("/set --top-p=0.5", "top_p 0.5"),
        ("/preset nothing", "/preset NAME: expected one of"),
        ("/preset creative", "temp 1"),
        ("/think", "think off"),
        ("/think hard", "/think [MODE]: expected one of"),
        ("/think on", "think on"),
        ("/fold maybe", "/fold [on|off]: expected one of on, off; got 'maybe'"),
        ("/fold", "hidden"),
        ("/fold off", "shown"),
        ("/seed", "seed 0"),
        ("/seed -1", "must be in 0"),
        ("/seed x", "whole number"),
        ("/undo", "/undo"),
        ("/retry", "there is none yet"),
        ("/retry x", "/retry takes no argument"),
        ("/again", "there is none yet"),
        ("/pick", "whole number"),
        ("/edit", "there is none yet"),
        ("/edit x", "/edit takes no argument"),
        ("/branch two words", "one word"),
        ("/branch main", "'main' exists"),
        ("/branches x", "takes no argument"),
        ("/branches", "(empty)"),
        ("/switch nowhere", "one of main; got 'nowhere'"),
        ("/system", "(no system message)"),
        ("/system User: x", "role-line"),
        ("/stats!", "/stats takes no `!`: it replaces no file"),
        ("/save", "/save FILE: the file name is missing"),
        ("/load /nonexistent", "cannot be read"),
        ("/state", "expected save or load"),
        ("/state save", "the file name is missing"),
        ("/state load /nonexistent", "nonexistent"),
        ("/export /tmp/x.jsonl", "/export: the branch has no messages"),
        ("/model", "scripted.pth"),
        ("/tokens", "there is none yet"),
        ("/top", "the conversation is empty"),
        ("/top hello", "'Y'"),
        ("/stats x", "takes no argument"),
        ("/stats", "0 turns"),
        ("/temp 0.5", "/set temp VALUE changes the setting"),
        ("/max-tokens", "/set max-tokens VALUE changes the setting"),
        ("/s", "did you mean"),
        ("/zzzz", "/help lists the commands"),
        ("/", "there is no command"),
        ("//slash", "You said: /slash"),
        ("   ", "/help"),
    ],
)
def test_the_output_of_a_command(chat: PipeChat, line: str, expected: str) -> None:
    assert expected in chat.send(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(chat: PipeChat, name: str) -> None:
    document = (Path(__file__).parents[2] / "docs" / "chat.md").read_text(encoding="utf-8")
    assert f"`/{name}" in document
    assert f"/{name}" in chat.send("/help")


def test_a_refused_command_changes_nothing(chat: PipeChat) -> None:
    chat.send("hello")
    before = tree_values(chat.chat.session.tree)
    for line in ("/undo 2", "/pick 1", "/switch x", "/again 0", "/set temp -1", "/load /nonexistent"):
        chat.send(line)
        assert not chat.success
    assert tree_values(chat.chat.session.tree) == before
    assert chat.chat.session.settings == GREEDY


def test_an_endless_line_is_refused(chat: PipeChat) -> None:
    class Endless(io.StringIO):
        def readline(self, size: int | None = -1, /) -> str:
            assert size is not None
            assert size > 0
            return "x" * size

    with pytest.raises(UsageError, match="10,000,000 characters"):
        run_lines(chat.chat, Endless())


def test_retrying_a_greedy_reply_gets_a_note(chat: PipeChat) -> None:
    chat.send("hello")
    assert "greedy" in chat.send("/retry")
    assert "greedy" in chat.send("/again 2")
    chat.send("/set temp 1")
    chat.send("/set top_p 0.9")
    assert "greedy" not in chat.send("/again 2")


def test_an_invalid_template_leaves_the_settings_unchanged(chat: PipeChat, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{{ unknown(")
    chat.chat.session.settings = GREEDY.replace(template=str(path))
    assert "t.jinja" in chat.send("/think on")
    assert chat.chat.session.settings.think == "off"


def test_a_session_is_saved_loaded_and_continued(chat: PipeChat, tmp_path: Path) -> None:
    chat.send("hello")
    assert "saved" in chat.send(f"/save {tmp_path / 's.json'}")
    other = new_chat()
    assert "You said: hello" in other.send(f"/load {tmp_path / 's.json'}")
    assert other.send("more") == "You said: more\n"


def test_a_saved_state_starts_a_conversation(chat: PipeChat, tmp_path: Path) -> None:
    chat.send("hello")
    assert "the state after" in chat.send(f"/state save {tmp_path / 'x'}")
    path = tmp_path / "x.safetensors"
    assert "on branch branch-2" in chat.send(f"/state load {path}")
    assert chat.send("more") == "You said: more\n"
    assert "initial state of the current model" in chat.send("/model other.pth")
    assert chat.send(f"/save {tmp_path / 's.json'}")
    other = new_chat()
    assert "loaded" in other.send(f"/load {tmp_path / 's.json'}")
    path.write_bytes(b"something else")
    assert "the initial state has changed" in other.send(f"/load {tmp_path / 's.json'}")
    # After an initial state the tokens do not determine the state.
    chat.send(f"/state save {tmp_path / 'y.safetensors'}")
    with open_tensors(tmp_path / "y.safetensors") as file:
        assert "tokens" not in file.metadata


@pytest.mark.parametrize("is_confirmed", [False, True])
def test_replacing_a_file_or_session_needs_confirmation_on_a_terminal(
    is_confirmed: bool, chat: PipeChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []

    def confirm(question: str) -> bool:
        questions.append(question)
        return is_confirmed

    chat.chat.is_terminal = True
    monkeypatch.setattr(chat.chat.view, "confirm", confirm)
    chat.send("hello")
    path = tmp_path / "s.json"
    chat.send(f"/save {path}")
    before = path.read_bytes()
    chat.send("more")
    assert ("already exists" in chat.send(f"/save {path}")) != is_confirmed
    assert (path.read_bytes() != before) == is_confirmed
    output = chat.send(f"/load {path}")
    assert ("not loaded; /save FILE saves this session" in output) != is_confirmed
    assert [question.split(". ")[-1] for question in questions] == ["Replace it?", "Load another one?"]
    assert "loaded" in chat.send(f"/load! {path}")
    assert len(questions) == 2


def test_an_export_lists_replies_that_a_run_does_not_repeat(chat: PipeChat, tmp_path: Path) -> None:
    chat.send("hello")
    chat.send("more")
    tree = chat.chat.session.tree
    tree.exchanges[1] = replace(tree.exchanges[1], finish_reason="cancelled")
    output = chat.send(f"/export {tmp_path / 'e.jsonl'}")
    assert "It does not make all of the same replies:\n  the reply of turn 2 was stopped" in output
    assert "makes the same replies" not in output


def test_an_export_has_no_reference_for_an_empty_reply(chat: PipeChat, tmp_path: Path) -> None:
    chat.send("/set stop You")
    chat.send("hello")
    chat.send(f"/export {tmp_path / 'e.jsonl'}")
    record = json.loads((tmp_path / "e.jsonl").read_text())
    assert [message["role"] for message in record["messages"]] == ["user"]


def test_another_system_message_starts_a_branch(chat: PipeChat) -> None:
    chat.send("hello")
    assert "on branch branch-2; /switch main goes back" in chat.send("/system Be brief.")
    assert chat.send("/system") == "Be brief.\n"
    assert "on branch branch-3" in chat.send("/system none")
    assert "1 turn" in chat.send("/switch main")


def test_another_model_continues_the_conversation(chat: PipeChat) -> None:
    chat.send("hello")
    assert "reads the conversation" in chat.send("/model other.pth")
    assert chat.send("more") == "MORE\n"


def test_an_export_has_the_prelude_and_the_settings_of_each_turn(chat: PipeChat, tmp_path: Path) -> None:
    chat.chat.session.begin(system="Be brief.", prelude="User: a\n\nAssistant: b\n\n")
    chat.send("/set max_tokens 3")
    assert "stopped at 3 tokens" in chat.send("hello")
    chat.send("/think fake")
    chat.send("more")
    output = chat.send(f"/export {tmp_path / 'e.jsonl'}")
    assert f"--prelude {tmp_path / 'e.jsonl.prelude.txt'}" in output
    record = json.loads((tmp_path / "e.jsonl").read_text())
    assert record["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [message.get("params") for message in record["messages"][1::2]] == [None, {"think": "fake"}]


def test_a_reply_prefix_starts_replies_until_it_is_removed(chat: PipeChat) -> None:
    assert f"set reply_prefix {REPLY_PREFIX}" in chat.send(f"/set reply_prefix {REPLY_PREFIX}")
    assert chat.send("hello") == f"{REPLY_PREFIX}{echo('hello')}\n"
    assert "set reply_prefix none" in chat.send("/set reply_prefix none")
    assert chat.send("more") == f"{echo('more')}\n"


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ("So, well", "So, well"),
        ('"So "', "So "),
        ("' So'", " So"),
        (r"```json\n", "```json\n"),
        (r'"a \"b\""', 'a "b"'),
        (r"\\boxed{", r"\boxed{"),
        ('"a", "b"', '"a", "b"'),
        ('"Dear', '"Dear'),
        ('""', ""),
        ("", ""),
    ],
)
def test_a_reply_prefix_may_have_quotation_marks_and_escapes(chat: PipeChat, given: str, prefix: str) -> None:
    chat.send("/set reply_prefix x")
    chat.send(f"/set reply_prefix {given}")
    assert chat.chat.session.settings.reply_prefix == prefix


def test_an_unwritable_file_is_refused_and_an_unwritable_transcript_ends_the_chat(tmp_path: Path) -> None:
    chat = new_chat(tmp_path / "t.jsonl")
    chat.send("hello")
    assert "nowhere" in chat.send(f"/save {tmp_path / 'nowhere' / 's.json'}")
    assert str(tmp_path / "t.jsonl") in chat.send("/stats")
    with pytest.MonkeyPatch.context() as patch:

        def full(_descriptor: int, _data: bytes) -> int:
            raise OSError(28, "No space left on device")

        write = os.write

        def nearly_full(descriptor: int, data: bytes) -> int:
            return write(descriptor, data) if b'"typed"' in data else full(descriptor, data)

        for failing_write in (full, nearly_full):  # before the message is sent, and after its reply
            patch.setattr("rwkvbatch.chat.storage.os.write", failing_write)
            with pytest.raises(StorageError, match="transcript cannot be written: No space left"):
                chat.send("more")
    chat.chat.transcript.close()


def test_lines_are_read_until_quit(chat: PipeChat) -> None:
    prompts = io.StringIO()
    lines = io.StringIO("hello\r\n/nothing\n/quit\nnever\n")
    assert not run_lines(chat.chat, lines, prompts)
    assert chat.out.getvalue() == "You said: hello\n"
    assert prompts.getvalue() == "> > > "


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/pre", ["/preset"]),
        ("/preset cr", ["creative"]),
        ("/set ", ["temp", "seed"]),
        ("/set think o", ["off", "on"]),
        ("/set temp 0.3 ", []),
        ("/set top_k ", []),
        ("/think f", ["fake"]),
        ("/fold o", ["on", "off"]),
        ("/help un", ["undo"]),
        ("/switch ", ["side"]),
        ("/pick ", []),
        ("/state ", ["save", "load"]),
        ("/nothing x", []),
        ("hello /pre", []),
        ("/pre\nx", []),
    ],
)
def test_completions_of_a_line(chat: PipeChat, line: str, expected: list[str]) -> None:
    chat.send("/branch side")
    chat.send("/switch main")
    found = [c.text for c in CommandCompleter(chat.chat).get_completions(Document(line), CompleteEvent())]
    assert set(expected) <= set(found)
    assert bool(found) == bool(expected)


def test_file_names_are_completed(chat: PipeChat, tmp_path: Path) -> None:
    (tmp_path / "session.json").touch()
    for command in ("/load", "/state load"):
        document = Document(f"{command} {tmp_path}/ses")
        found = [c.text for c in CommandCompleter(chat.chat).get_completions(document, CompleteEvent())]
        assert found == ["sion.json"]


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_the_status_line_fits_the_terminal(chat: PipeChat, columns: int) -> None:
    chat.send("hello")
    chat.send("/think on")
    line = status_line(chat.chat, columns)
    assert len(line) < columns
    assert line.startswith("main · turn 2")
    assert ("think on" in line) == (columns >= 80)


@pytest.mark.parametrize("editor", ["/nonexistent/editor", "false", "'unclosed"])
def test_an_editor_that_fails_changes_nothing(editor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", editor)
    with pytest.raises(UsageError, match="the editor"):
        edit_text("text")


def test_the_default_editor_is_not_started_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    with pytest.raises(UsageError, match="needs a terminal"):
        edit_text("text")


def test_an_unknown_setting_lists_the_known_ones(chat: PipeChat) -> None:
    assert "temp, top_p" in chat.send("/set tmep 1")
    assert "seed; got 'tmep'" in chat.send("/set tmep 1")


def test_counts_of_1_are_singular(chat: PipeChat) -> None:
    chat.send("hello")
    output = chat.send("/stats")
    assert "1 turn," in output
    assert "1 reply," in output


@pytest.mark.parametrize(
    ("script", "reply"), [("true", "unchanged"), (": >", "unchanged"), ("echo new >", "You said: new")]
)
def test_edit_replaces_the_last_message(
    chat: PipeChat, script: str, reply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\n{script} "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    chat.send("hello")
    assert reply in chat.send("/edit")
    assert chat.chat.session.tree.num_turns() == 1


def test_tokens_that_are_not_text_are_shown_as_bytes(chat: PipeChat) -> None:
    chat.chat.session.use_engine(Engine(ScriptedModel(lambda _: "é日")))
    chat.send("hello")
    output = chat.send("/tokens")
    assert "c3" in output
    assert "a9" in output
    assert "and 8 more; /tokens 13 shows all of them" in chat.send("/tokens 5")


@pytest.mark.parametrize("logprobs", [(), (-1.0,)])
def test_tokens_without_log_probabilities_are_listed_without(
    chat: PipeChat, logprobs: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A served model may give none, or those of tokens of its own vocabulary."""
    chat.send("hello")
    last = chat.chat.session.tree.last
    assert last is not None
    assert len(last.ids) > 1
    monkeypatch.setattr(Session, "logprobs", lambda *_: logprobs)
    output = chat.send("/tokens")
    assert all(str(token) in output for token in last.ids)
    assert "%" not in output
    assert "the server gives no log-probabilities of these tokens" in output
