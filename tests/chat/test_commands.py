"""Every command, without a terminal: what it does, what it answers, what it refuses."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from rwkvbatch.chat.command import Chat
from rwkvbatch.chat.loop import CommandCompleter, handle, status_line, talk_plainly
from rwkvbatch.chat.pipe import PlainView
from rwkvbatch.chat.session import Session
from rwkvbatch.chat.storage import Transcript, describe
from rwkvbatch.chat.tree import dialogue_values
from rwkvbatch.chat.tree_commands import edit_text
from rwkvbatch.config import CellSettings
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import StorageError, UsageError
from rwkvbatch.model.states import load_saved_state
from tests.chat.scripted_model import ScriptedModel

SETTINGS = CellSettings(temperature=0.0, top_p=0.0, max_tokens=200)


@dataclass
class Talk:
    """A session whose words can be read."""

    chat: Chat
    out: io.StringIO
    err: io.StringIO

    def say(self, line: str) -> str:
        """What was answered to `line`, wherever it went."""
        for stream in (self.out, self.err):
            stream.seek(0)
            stream.truncate()
        self.went_well = handle(self.chat, line)
        return self.out.getvalue() + self.err.getvalue()


def new_talk(transcript: Path | None = None) -> Talk:
    out, err = io.StringIO(), io.StringIO()
    session = Session(Engine(ScriptedModel()), SETTINGS)
    session.begin()
    chat = Chat(session, PlainView(out, err), Transcript(transcript), lambda _: Engine(ScriptedModel(str.upper)))
    chat.transcript.start(session, describe(session))
    return Talk(chat, out, err)


@pytest.fixture
def talk() -> Talk:
    return new_talk()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/help nothing", "there is no command /nothing"),
        ("/help set", "Settings: temp"),
        ("/help quit", "Leave"),
        ("/params x", "/params takes nothing"),
        ("/set", "max_tokens"),
        ("/set nothing 1", "/set needs one of temp"),
        ("/set temp", "needs a value"),
        ("/set seed 9", "seed 9"),
        ("/set ban 0,5", "ban 0,5"),
        ("/set ban none", "ban none"),
        ("/set stop \\n,日本", "stop '\\n','日本'"),
        ("/set max_seconds none", "max_seconds none"),
        ("/set --top-p=0.5", "top_p 0.5"),
        ("/preset nothing", "/preset needs one of"),
        ("/preset creative", "from now on"),
        ("/think", "think off"),
        ("/think hard", "/think needs one of"),
        ("/think on", "think on"),
        ("/fold maybe", "/fold needs on or off"),
        ("/fold", "hidden"),
        ("/fold off", "shown"),
        ("/seed -1", "must be in 0"),
        ("/seed x", "whole number"),
        ("/undo", "/undo: there is no turn to take back"),
        ("/retry", "there is none yet"),
        ("/retry x", "/retry takes nothing"),
        ("/again", "there is none yet"),
        ("/pick", "whole number"),
        ("/edit", "there is none yet"),
        ("/edit x", "/edit takes nothing"),
        ("/branch two words", "one word"),
        ("/branch main", "there is a branch 'main' already"),
        ("/branches x", "takes nothing"),
        ("/branches", "(nothing said yet)"),
        ("/switch nowhere", "/switch needs one of main"),
        ("/system", "(no system message)"),
        ("/save", "a file name is missing"),
        ("/load /nonexistent", "cannot be read"),
        ("/state", "/state needs save FILE or load FILE"),
        ("/state load /nonexistent", "nonexistent"),
        ("/export /tmp/x.jsonl", "needs something that was said"),
        ("/model", "scripted.pth"),
        ("/tokens", "there is none yet"),
        ("/top", "nothing was said yet"),
        ("/top hello", "'Y'"),
        ("/stats x", "takes nothing"),
        ("/stats", "0 turns"),
        ("/s", "did you mean"),
        ("/zzzz", "/help lists the commands"),
        ("/", "there is no command"),
        ("//slash", "You said: /slash"),
        ("   ", "say something, or /help"),
    ],
)
def test_what_a_command_answers(talk: Talk, line: str, said: str) -> None:
    assert said in talk.say(line)


def test_a_command_that_is_refused_changes_nothing(talk: Talk) -> None:
    talk.say("hello")
    before = dialogue_values(talk.chat.session.dialogue)
    for line in ("/undo 2", "/pick 1", "/switch x", "/again 0", "/set temp -1", "/load /nonexistent"):
        talk.say(line)
        assert not talk.went_well
    assert dialogue_values(talk.chat.session.dialogue) == before
    assert talk.chat.session.settings == SETTINGS


def test_a_line_without_an_end_is_not_waited_for(talk: Talk) -> None:
    class Endless(io.StringIO):
        def readline(self, size: int | None = -1, /) -> str:
            assert size is not None
            assert size > 0
            return "x" * size

    with pytest.raises(UsageError, match="a line may have 10,000,000 characters"):
        talk_plainly(talk.chat, Endless())


def test_another_reply_of_greedy_sampling_is_said_to_be_the_same(talk: Talk) -> None:
    talk.say("hello")
    assert "greedy" in talk.say("/retry")
    assert "greedy" in talk.say("/again 2")
    talk.say("/set temp 1")
    talk.say("/set top_p 0.9")
    assert "greedy" not in talk.say("/again 2")


def test_a_template_that_cannot_be_used_leaves_the_settings_as_they_were(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{{ unknown(")
    talk.chat.session.settings = SETTINGS.replace(template=str(path))
    assert "t.jinja" in talk.say("/think on")
    assert talk.chat.session.settings.think == "off"


def test_a_session_is_saved_loaded_and_goes_on(talk: Talk, tmp_path: Path) -> None:
    talk.say("hello")
    assert "saved" in talk.say(f"/save {tmp_path / 's.json'}")
    other = new_talk()
    assert "You said: hello" in other.say(f"/load {tmp_path / 's.json'}")
    assert other.say("more") == "You said: more\n"


def test_a_state_is_saved_and_a_dialogue_begins_with_it(talk: Talk, tmp_path: Path) -> None:
    talk.say("hello")
    assert "the state after" in talk.say(f"/state save {tmp_path / 'x'}")
    path = tmp_path / "x.safetensors"
    assert "on branch branch-2" in talk.say(f"/state load {path}")
    assert talk.say("more") == "You said: more\n"
    assert "initial state of the model so far" in talk.say("/model other.pth")
    assert talk.say(f"/save {tmp_path / 's.json'}")
    other = new_talk()
    assert "loaded" in other.say(f"/load {tmp_path / 's.json'}")
    path.write_bytes(b"something else")
    assert "is not the initial state that this session began with" in other.say(f"/load {tmp_path / 's.json'}")
    # The tokens alone would not tell what this branch's state has read.
    talk.say(f"/state save {tmp_path / 'y.safetensors'}")
    assert load_saved_state(tmp_path / "y.safetensors", talk.chat.session.engine.model.spec).tokens is None


def test_another_system_message_begins_a_dialogue_of_its_own(talk: Talk) -> None:
    talk.say("hello")
    assert "on branch branch-2; /switch main goes back" in talk.say("/system Be brief.")
    assert talk.say("/system") == "Be brief.\n"
    assert "on branch branch-3" in talk.say("/system none")
    assert "1 turn" in talk.say("/switch main")


def test_another_model_goes_on(talk: Talk) -> None:
    talk.say("hello")
    assert "reads the dialogue so far" in talk.say("/model other.pth")
    assert talk.say("more") == "MORE\n"


def test_the_replay_command_names_the_prelude_and_the_caveats(talk: Talk, tmp_path: Path) -> None:
    talk.chat.session.begin(system="Be brief.", prelude="User: a\n\nAssistant: b\n\n")
    talk.say("/set max_tokens 3")
    assert "stopped at 3 tokens" in talk.say("hello")
    talk.say("/think fake")
    talk.say("more")
    said = talk.say(f"/export {tmp_path / 'e.jsonl'}")
    assert f"--prelude {tmp_path / 'e.jsonl.prelude.txt'}" in said
    assert "but: the thinking mode changed" in said
    record = json.loads((tmp_path / "e.jsonl").read_text())
    assert record["messages"][0] == {"role": "system", "content": "Be brief."}


def test_a_wrong_file_name_is_an_error_and_a_lost_transcript_is_the_end(tmp_path: Path) -> None:
    talk = new_talk(tmp_path / "t.jsonl")
    talk.say("hello")
    assert "s.json: write failed: No such file" in talk.say(f"/save {tmp_path / 'nowhere' / 's.json'}")
    assert str(tmp_path / "t.jsonl") in talk.say("/stats")
    with pytest.MonkeyPatch.context() as patch:

        def full(_descriptor: int, _data: bytes) -> int:
            raise OSError(28, "No space left on device")

        patch.setattr("rwkvbatch.chat.storage.os.write", full)
        with pytest.raises(StorageError, match="transcript cannot be written: No space left"):
            talk.say("more")
    talk.chat.transcript.close()


def test_lines_end_with_quit_and_their_ends_do_not_count(talk: Talk) -> None:
    prompts: list[None] = []
    lines = io.StringIO("hello\r\n/nothing\n/quit\nnever\n")
    assert not talk_plainly(talk.chat, lines, lambda: prompts.append(None))
    assert talk.out.getvalue() == "You said: hello\n"
    assert len(prompts) == 3


@pytest.mark.parametrize(
    ("typed", "offered"),
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
def test_completion_offers_what_may_stand_there(talk: Talk, typed: str, offered: list[str]) -> None:
    talk.say("/branch side")
    talk.say("/switch main")
    found = [c.text for c in CommandCompleter(talk.chat).get_completions(Document(typed), CompleteEvent())]
    assert set(offered) <= set(found)
    assert bool(found) == bool(offered)


def test_completion_of_file_names(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "session.json").touch()
    for command in ("/load", "/state load"):
        document = Document(f"{command} {tmp_path}/ses")
        found = [c.text for c in CommandCompleter(talk.chat).get_completions(document, CompleteEvent())]
        assert found == ["sion.json"]


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_the_status_line_says_what_there_is_room_for(talk: Talk, columns: int) -> None:
    talk.say("hello")
    talk.say("/think on")
    line = status_line(talk.chat, columns)
    assert len(line) < columns
    assert line.startswith("main · turn 2")
    assert ("think on" in line) == (columns >= 80)


@pytest.mark.parametrize("editor", ["/nonexistent/editor", "false", "'unclosed"])
def test_an_editor_that_fails_changes_nothing(editor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", editor)
    with pytest.raises(UsageError, match="the editor"):
        edit_text("text")


def test_the_editor_that_everybody_has_is_not_started_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    with pytest.raises(UsageError, match="needs a terminal"):
        edit_text("text")


def test_a_setting_that_is_none_names_all_there_are(talk: Talk) -> None:
    assert "temp, top_p" in talk.say("/set tmep 1")
    assert "seed; got 'tmep'" in talk.say("/set tmep 1")


def test_one_turn_is_not_said_to_be_turns(talk: Talk) -> None:
    talk.say("hello")
    said = talk.say("/stats")
    assert "1 turn," in said
    assert "1 reply," in said


@pytest.mark.parametrize(
    ("script", "reply"), [("true", "unchanged"), (": >", "unchanged"), ("echo new >", "You said: new")]
)
def test_editing_the_last_message(
    talk: Talk, script: str, reply: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\n{script} "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    talk.say("hello")
    assert reply in talk.say("/edit")
    assert talk.chat.session.dialogue.num_turns() == 1


def test_tokens_that_are_no_text_are_shown_as_bytes(talk: Talk) -> None:
    talk.chat.session.use_engine(Engine(ScriptedModel(lambda _: "é日")))
    talk.say("hello")
    said = talk.say("/tokens")
    assert "c3" in said
    assert "a9" in said
    assert "and 2 more; /tokens 7 shows them all" in talk.say("/tokens 5")
