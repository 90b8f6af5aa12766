"""The chat in a pseudo-terminal, with its screen read back."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chat.scripted_chat import LONG
from tests.chat.terminal import Terminal

pytest.importorskip("termios")


def start(directory: Path, step_s: float = 0.0, **options: object) -> Terminal:
    terminal = Terminal(["-m", "tests.chat.scripted_chat", str(directory), str(step_s)], **options)  # type: ignore[arg-type]
    terminal.wait_for_prompt()
    return terminal


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat")


@pytest.fixture(scope="module")
def shared(directory: Path) -> Iterator[Terminal]:
    """A session that most tests share, because starting takes seconds."""
    editor = directory / "editor"
    editor.write_text('#!/bin/sh\necho edited > "$1"\n')
    editor.chmod(0o755)
    environment = {"EDITOR": str(editor), "VISUAL": ""}
    with start(directory, columns=90, rows=40, environment=environment) as terminal:
        yield terminal


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A session with slow replies."""
    with start(tmp_path_factory.mktemp("slow"), 0.003, columns=80, rows=24) as terminal:
        yield terminal


def after(terminal: Terminal, line: str) -> list[str]:
    """The rows below `line` after it has been executed."""
    terminal.submit(line)
    lines = terminal.lines
    at = max(number for number, shown in enumerate(lines) if shown.startswith(f"› {line[:40]}"))
    end = max(number for number, shown in enumerate(lines) if shown.rstrip() == "›")
    return [shown for shown in lines[at + 1 : end] if shown]


def turn_of(terminal: Terminal) -> str:
    """The branch and the next turn, from the status line."""
    return " · ".join(terminal.lines[-1].split(" · ")[:2])


def test_a_message_is_answered(shared: Terminal) -> None:
    assert after(shared, "hello") == ["You said: hello"]


def test_markdown_is_rendered(shared: Terminal) -> None:
    shown = after(shared, "markdown")
    assert shown == ["Some bold words.", "  def f(x):", "      return x + 1", " • one", " • two", "Done."]


def test_control_characters_are_shown_escaped(shared: Terminal) -> None:
    shared.raw = b""
    shown = " ".join(after(shared, "escapes"))
    assert "red \\x1b[31mtext\\x1b[0m \\x1b]0;stolen title\\x07 \\u202eback \\x9b2J end" in shown
    assert b"\x1b]0;" not in shared.raw
    assert "\u202e" not in shared.raw.decode()


def test_wide_and_combining_characters_are_shown(shared: Terminal) -> None:
    shown = "".join(after(shared, "wide"))
    # The terminal composes letters and accents.
    assert "".join(shown.split()) == "日本語の文章です。" * 8 + "ééend"


def test_a_long_reply_is_complete_in_the_scrollback(shared: Terminal) -> None:
    assert after(shared, "long") == LONG.split("\n")


def test_an_empty_line_gets_a_note(shared: Terminal) -> None:
    shared.send("\r")
    shared.wait_for("type a message, or /help")
    shared.wait_for_prompt()


def test_an_unknown_command_names_close_ones(shared: Terminal) -> None:
    assert "did you mean /undo" in " ".join(after(shared, "/undoo"))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/help", "/export FILE.jsonl"),
        ("/help set", "Settings: temp, top_p"),
        ("/params", "max_tokens"),
        ("/set temp 0.7", "temp 0.7"),
        ("/set temp hot", "[0, 100], got hot"),
        ("/preset greedy", "temp 0.0"),
        ("/think", "think off"),
        ("/fold on", "hidden"),
        ("/fold off", "shown"),
        ("/seed 7", "seed 7"),
        ("/system", "(no system message)"),
        ("/branch side", "on branch side"),
        ("/branches", "* side"),
        ("/switch main", "on branch main"),
        ("/retry", "You said: start"),
        ("/again 2", "/pick N continues"),
        ("/pick 1", "continuing from"),
        ("/tokens 3", "id probability logprob text"),
        ("/top", "probability"),
        ("/stats", "MiB"),
        ("/undo", "removed 1 turn"),
    ],
)
def test_commands_print_their_results(shared: Terminal, command: str, expected: str) -> None:
    if command in ("/retry", "/again 2", "/tokens 3", "/undo", "/top"):
        shared.submit("start")
    assert expected in " ".join(" ".join(after(shared, command)).split())


def test_commands_and_values_are_completed(shared: Terminal) -> None:
    for typed, offered, whole in (("/pre", "/preset NAME", "/preset"), (" gre", "  greedy", "/preset greedy")):
        shared.send(typed)
        shared.wait(lambda offered=offered: any(offered in line for line in shared.screen.display), offered)
        shared.send("\t")
        shared.wait(lambda whole=whole: f"› {whole}" in shared.lines, whole)
    shared.send("\r")
    shared.wait_for_prompt()


def test_alt_enter_adds_a_line_to_the_message(shared: Terminal) -> None:
    shared.send("one\x1b\rtwo")
    shared.wait_for("  two")
    shared.send("\r")
    shared.wait_for("You said: one")
    shared.wait_for_prompt()


def test_a_paste_of_a_thousand_lines_is_one_message(shared: Terminal) -> None:
    pasted = "\n".join(f"pasted line {number}" for number in range(1000))
    shared.send(f"\x1b[200~{pasted}\x1b[201~")
    shared.wait_for("pasted line 999")
    shared.send("\r")
    shared.wait_for(f"You said: {len(pasted)} characters")
    shared.wait_for_prompt()


def test_the_history_can_be_searched_and_is_private(shared: Terminal, directory: Path) -> None:
    shared.submit("a rare word: xylophone")
    shared.submit("something else")
    shared.send("\x12xylo")
    shared.wait_for("I-search backward")
    shared.send("\r")
    shared.wait(lambda: "I-search" not in shared.text, "the end of the search")
    shared.send("\r")
    shared.wait(lambda: shared.text.count("You said: a rare word: xylophone") == 2, "the line found")
    shared.wait_for_prompt()
    path = directory / "history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "xylophone" in path.read_text()
    assert stat.S_IMODE((directory / "transcript.jsonl").stat().st_mode) == 0o600


def test_thinking_is_dimmed_and_can_be_folded(shared: Terminal) -> None:
    shared.submit("/think on")
    shown = after(shared, "think aloud")
    assert shown == ["Let me think.", "One and one.", "It is two."]
    shared.submit("/fold on")
    shown = after(shared, "think again")
    assert shown == ["▸ 6 words of thinking · /fold off", "It is two."]
    shared.submit("/fold off")
    shared.submit("/think off")


def test_the_editor_changes_the_last_message(shared: Terminal) -> None:
    shared.submit("first")
    turn = turn_of(shared)
    num_prompts = shared.num_prompts
    shared.send("/edit\r")
    shared.wait(lambda: shared.num_prompts > num_prompts, "the edited message")
    shared.wait_for("You said: edited")
    shared.wait_for_prompt()
    assert turn_of(shared) == turn


def test_sessions_exports_and_states_are_written_and_read(shared: Terminal, directory: Path) -> None:
    shared.submit("remember")
    for name, command in (("s.json", "/save"), ("e.jsonl", "/export"), ("st.safetensors", "/state save")):
        assert "rror" not in " ".join(after(shared, f"{command} {directory / name}"))
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
    assert "loaded" in " ".join(after(shared, f"/load {directory / 's.json'}"))
    assert "other model" not in " ".join(after(shared, "/model other.pth"))
    assert after(shared, "hello") == ["other: hello"]


def test_ctrl_c_stops_the_reply_and_the_conversation_continues(tmp_path: Path) -> None:
    with start(tmp_path, 0.01) as terminal:
        terminal.send("long\r")
        terminal.wait_for("line 1 of")
        terminal.wait_for("Ctrl-C stops")
        terminal.send("\x03")
        terminal.wait_for("[stopped]")
        terminal.wait_for_prompt()
        assert "Ctrl-C stops" not in terminal.text
        terminal.submit("hi")
        assert "You said: hi" in terminal.text
        events = [json.loads(line) for line in (tmp_path / "transcript.jsonl").read_text().splitlines()]
        replies = [event for event in events if event["event"] == "exchange"]
        assert [exchange["finish_reason"] for exchange in replies] == ["cancelled", "stop"]
        assert replies[0]["reply"].startswith("line 0 of a long reply")
        terminal.send("\x03")
        terminal.wait_for("Ctrl-D leaves")
        terminal.send("\x04")
        terminal.wait_for("left cleanly")


def test_text_typed_during_a_reply_is_the_next_input(slow: Terminal) -> None:
    slow.send("paragraph\r")
    slow.wait_for("w3w")
    slow.send("typed ahead")
    slow.wait_for("› typed ahead")
    assert slow.text.count("typed ahead") == 1
    slow.send("\x15")
    slow.wait_for_prompt()


def test_a_resize_during_a_reply_loses_no_line(slow: Terminal) -> None:
    slow.send("long\r")
    slow.wait_for("line 5 of")
    slow.resize(50, 24)
    slow.wait_for("line 39 of a long reply")
    slow.wait_for_prompt()
    words = " ".join(slow.text.split())
    for number in range(40):
        assert f"line {number} of" in words


def test_a_narrow_terminal_without_colour_shows_complete_texts(tmp_path: Path) -> None:
    with start(tmp_path, columns=40, rows=20, environment={"NO_COLOR": "1"}) as terminal:
        terminal.submit("markdown")
        terminal.submit("/params")
        help_text = " ".join(after(terminal, "/help"))
        assert "…" not in help_text
        assert "token ids and log-probabilities." in " ".join(help_text.split())
        assert not any(code in terminal.raw for code in (b"\x1b[31m", b"\x1b[36m", b"38;5;", b"38;2;"))
        assert "return x + 1" in terminal.text


@pytest.mark.slow
def test_the_transcript_of_a_killed_process_has_all_messages_and_text(tmp_path: Path) -> None:
    with start(tmp_path, 0.01) as terminal:
        terminal.submit("first")
        terminal.send("long\r")
        terminal.wait_for("line 6 of")
        os.kill(terminal.process.pid, signal.SIGKILL)
        time.sleep(0.1)
    events = [json.loads(line) for line in (tmp_path / "transcript.jsonl").read_text().splitlines()]
    assert [event["text"] for event in events if event["event"] == "typed"] == ["first", "long"]
    pieces = "".join(event["text"] for event in events if event["event"] == "piece")
    assert "line 3 of a long reply" in pieces
    other = tmp_path / "other"
    other.mkdir()
    with start(other) as terminal:
        terminal.submit(f"/load {tmp_path / 'transcript.jsonl'}")
        assert "loaded" in terminal.text
        assert "You said: first" in terminal.text
