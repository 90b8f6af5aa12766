"""Views of a chat: terminals of any width, pipes, notes, folded thinking."""

from __future__ import annotations

import io
import sys
import threading
from dataclasses import replace

import pytest
from rich.text import Text

from rwkvbatch.chat.app import Chat, View, unechoed_input
from rwkvbatch.chat.commands import handle_line
from rwkvbatch.chat.pipe import PlainView
from rwkvbatch.chat.storage import Transcript
from rwkvbatch.chat.terminal import TerminalView
from rwkvbatch.chat.tree import Exchange
from rwkvbatch.errors import UsageError
from rwkvbatch.signals import stopping_on_interrupt
from tests.chat.screen import ScreenFile
from tests.chat.sessions import new_session

PLAIN = Exchange(0, None, 0, 0, 0, 0, "hi", (1,), (2, 3), (2, 3), "A *reply*.", "A *reply*.", "stop", None, {})
THINKING = replace(PLAIN, reply="<think>\nSome thoughts.\n</think>\nAn answer.")


def lines_of(view: View, file: ScreenFile, pieces: list[str], exchange: Exchange | None) -> list[str]:
    view.begin_reply("")
    view.tick()
    for piece in pieces:
        view.piece(piece)
        view.tick()
    view.end_reply(exchange)
    return file.lines()


def terminal(columns: int = 60) -> tuple[TerminalView, ScreenFile]:
    file = ScreenFile(columns, 24)
    return TerminalView(file.console()), file


def test_empty_and_truncated_replies_get_a_note() -> None:
    view, file = terminal()
    assert lines_of(view, file, [], replace(PLAIN, reply="", ids=(), finish_reason="length")) == [
        "(an empty reply)",
        "[stopped at 0 tokens · /set max_tokens N allows more]",
    ]
    view, file = terminal()
    served = replace(PLAIN, ids=tuple(range(55)), finish_reason="length", settings={"max_tokens": 40})
    assert lines_of(view, file, ["A"], served)[-1] == "[stopped at max_tokens 40, or at a limit of the server]"
    view, file = terminal()
    in_process = replace(served, ids=tuple(range(40)))
    assert lines_of(view, file, ["A"], in_process)[-1] == "[stopped at 40 tokens · /set max_tokens N allows more]"
    view, file = terminal()
    assert lines_of(view, file, ["A"], replace(PLAIN, finish_reason="time"))[-1] == "[stopped by the time limit]"


def test_the_text_of_a_failed_reply_is_kept() -> None:
    view, file = terminal()
    assert lines_of(view, file, ["half a", " reply"], None) == ["half a reply"]
    view, file = terminal()
    assert lines_of(view, file, [], None) == [""]


@pytest.mark.parametrize("folded", [False, True])
def test_unfinished_thinking_is_shown_unless_folded(folded: bool) -> None:
    view, file = terminal()
    view.folded = folded
    view.begin_reply(" <think")
    for piece in [">\nhm", "m\n"]:
        view.piece(piece)
    view.end_reply(replace(THINKING, finish_reason="cancelled"))
    assert ("hmm" in " ".join(file.lines())) != folded
    assert file.lines()[-1] == "[stopped]"


@pytest.mark.parametrize(
    ("folded", "thinking"), [(False, "Some thoughts."), (True, "▸ 2 words of thinking · /fold off")]
)
def test_a_reply_that_arrives_at_once_replaces_the_status(folded: bool, thinking: str) -> None:
    view, file = terminal()
    view.folded = folded
    shown = lines_of(view, file, [THINKING.reply], THINKING)
    assert [line for line in shown if line] == [thinking, "An answer."]


def test_an_error_is_shown_with_its_hint() -> None:
    view, file = terminal()
    view.problem(UsageError("something \x1b[31mis wrong", hint="do this"))
    view.problem(UsageError("something else"))
    assert file.lines() == ["something \\x1b[31mis wrong", "do this", "something else"]


@pytest.mark.parametrize("columns", [40, 100])
def test_alternatives_are_side_by_side_on_wide_terminals(columns: int) -> None:
    view, file = terminal(columns)
    view.alternatives([PLAIN, THINKING])
    lines = file.lines()
    row = next(line for line in lines if "A reply." in line)
    assert ("Some thoughts." in row) == (columns == 100)
    assert "An answer." in "\n".join(lines)


def test_replayed_replies_fold_their_thinking() -> None:
    view, file = terminal(40)
    view.folded = True
    view.replay([THINKING])
    assert file.lines() == ["› hi", "▸ 2 words of thinking · /fold off", "An answer."]


def test_consecutive_gaps_are_one_empty_line() -> None:
    view, file = terminal()
    view.show(Text("one"))
    view.gap()
    view.gap()
    view.note("two")
    assert file.lines() == ["one", "", "two"]


def plain(*, raw: bool = False, quiet: bool = False) -> tuple[PlainView, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return PlainView(out, err, raw=raw, quiet=quiet), out, err


@pytest.mark.parametrize("raw", [False, True])
def test_a_pipe_gets_control_characters_only_with_raw(raw: bool) -> None:
    view, out, _ = plain(raw=raw)
    view.begin_reply(" <think")
    for piece in (">x\x1b", "[31m", " \n"):
        view.piece(piece)
    view.end_reply(PLAIN)
    assert out.getvalue() == ("<think>x\x1b[31m\n" if raw else "<think>x\\x1b[31m\n")


def test_a_failed_reply_is_a_line_of_its_own_in_a_pipe() -> None:
    view, out, _ = plain()
    view.begin_reply("")
    view.end_reply(None)
    assert out.getvalue() == ""
    view.begin_reply("")
    view.piece("half")
    view.end_reply(None)
    assert out.getvalue() == "half\n"


def test_a_pipe_has_alternatives_on_standard_output_and_messages_on_standard_error() -> None:
    view, out, err = plain()
    view.end_reply(replace(PLAIN, finish_reason="length"))
    view.alternatives([PLAIN])
    view.replay([PLAIN])
    view.gap()
    view.problem(UsageError("wrong", hint="do this"))
    assert out.getvalue() == "\n[1] A *reply*.\n"
    assert "stopped at 2 tokens" in err.getvalue()
    assert "> hi\nA *reply*." in err.getvalue()
    assert "rwkvbatch: wrong\n  do this\n" in err.getvalue()
    quiet, out, err = plain(quiet=True)
    quiet.replay([PLAIN])
    quiet.problem(UsageError("wrong"))
    assert err.getvalue() == "rwkvbatch: wrong\n"


def test_input_that_is_not_a_terminal_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("typed"))
    with unechoed_input():
        assert sys.stdin.read() == "typed"


def test_interrupts_are_not_handled_in_other_threads() -> None:
    signals: list[list[int]] = []

    def other() -> None:
        with stopping_on_interrupt() as numbers:
            signals.append(numbers)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert signals == [[]]


@pytest.mark.parametrize("folded", [False, True])
def test_without_colours_thinking_and_answer_have_labels(folded: bool) -> None:
    view, file = terminal()
    view.console.no_color = True
    view.folded = folded
    pieces = ["<think>\nSome", " thoughts.\n", "</think>\nAn", " answer."]
    labels = ["[thinking]", "[answer]"]
    lines = lines_of(view, file, pieces, THINKING)
    assert [line for line in lines if line in labels] == ([] if folded else labels)
    if not folded:
        assert (
            lines.index(labels[0]) < lines.index("Some thoughts.") < lines.index(labels[1]) < lines.index("An answer.")
        )
    view._last_frame_s = 0.0
    view.tick()  # draws nothing after the end
    assert file.lines() == lines


def test_stats_of_a_reply_without_log_probabilities_have_no_perplexity() -> None:
    session = new_session()
    view, file = terminal(100)
    chat = Chat(session, view, Transcript(None), lambda _: session.engine)
    exchange = session.ask("a")
    assert "nats per token" in _output_of(chat, file, "/stats")
    session.tree.exchanges[-1] = replace(exchange, logprobs=())
    found = _output_of(chat, file, "/stats")
    assert "prompt tokens read" in found
    assert "nats per token" not in found
    session.tree.exchanges[-1] = replace(exchange, logprobs=(-1000.0,))
    assert "1000.000 nats per token, perplexity >1e308" in _output_of(chat, file, "/stats")
    session.tree.exchanges[-1] = replace(exchange, ids=(0, 65))
    assert "(end of text)" in _output_of(chat, file, "/tokens")


def _output_of(chat: Chat, file: ScreenFile, line: str) -> str:
    before = len(file.lines())
    assert handle_line(chat, line)
    return "\n".join(file.lines()[before:])
