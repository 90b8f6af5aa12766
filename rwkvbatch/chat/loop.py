"""Lines in, replies out, until there are no more: with an input line on a terminal, or from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rwkvbatch.chat.command import as_message, is_command
from rwkvbatch.chat.commands import run_command
from rwkvbatch.chat.context import Chat
from rwkvbatch.errors import RwkvBatchError, StorageError, UsageError
from rwkvbatch.text.safe import printable

if TYPE_CHECKING:
    from rwkvbatch.chat.line_input import LineInput

EMPTY_INPUT = "say something, or /help"
MAX_LINE_CHARACTERS = 10_000_000
"""From a pipe; a line may have no end."""


def handle(chat: Chat, line: str) -> bool:
    """Act upon one line; whether that went well. Errors are shown, and the session goes on.

    Raises:
        StorageError: the transcript cannot be written, so nothing would be safe.
    """
    if not line.strip():
        chat.view.note(EMPTY_INPUT)
        return True
    chat.transcript.typed(line)
    try:
        if is_command(line):
            run_command(chat, line.strip())
        else:
            chat.ask(as_message(line))
    except StorageError as error:
        if chat.transcript.path is not None and str(chat.transcript.path) in error.message:
            raise
        chat.view.problem(error)
        return False
    except RwkvBatchError as error:
        chat.view.problem(error)
        return False
    return True


def talk(chat: Chat, history_path: Path | None) -> None:
    """The loop on a terminal; ends with Ctrl-D or `/quit`."""
    from rwkvbatch.chat.line_input import LineInput

    line_input = LineInput(chat, history_path, lambda columns: status_line(chat, columns))
    while not chat.left:
        line = _read(chat, line_input)
        if line is None:
            break
        try:
            handle(chat, line)
        except KeyboardInterrupt:
            chat.view.note("stopped")
        chat.view.gap()


def talk_plainly(chat: Chat, lines: TextIO, prompt: Callable[[], None] = lambda: None) -> bool:
    """The loop over a pipe: each line is a message or a command. Returns whether all of them went well."""
    good = True
    for line in _lines(lines, prompt):
        good = handle(chat, line) and good
        if chat.left:
            break
    return good


def status_line(chat: Chat, columns: int) -> str:
    """What stands below the input line: the most telling parts that there is room for."""
    session = chat.session
    last = session.dialogue.last
    settings = session.settings
    greedy = settings.sampling.greedy
    parts = [session.dialogue.current, f"turn {session.dialogue.num_turns() + 1}"]
    if last is not None:
        parts.append(f"{len(last.ids)} tokens")
        if last.tokens_per_s:
            parts.append(f"{last.tokens_per_s:.0f}/s")
        parts.append(f"first {last.first_token_s * 1000:.0f} ms")
    parts.append("greedy" if greedy else f"temp {settings.temperature:g} top_p {settings.top_p:g}")
    if settings.think != "off":
        parts.append(f"think {settings.think}")
    parts += [f"seed {session.identity.seed}", Path(session.engine.model.spec.path).stem]
    line = ""
    for part in parts:
        longer = f"{line} · {part}" if line else part
        if len(longer) > columns - 1:
            break
        line = longer
    return printable(line, keep_newlines=False)


def _read(chat: Chat, line_input: LineInput) -> str | None:
    while True:
        try:
            return line_input.read()
        except KeyboardInterrupt:
            chat.view.note("Ctrl-D leaves")
        except EOFError:
            return None


def _lines(lines: TextIO, prompt: Callable[[], None]) -> Iterator[str]:
    while True:
        prompt()
        line = lines.readline(MAX_LINE_CHARACTERS + 1)
        if not line:
            return
        if len(line) > MAX_LINE_CHARACTERS:
            raise UsageError(f"a line may have {MAX_LINE_CHARACTERS:,} characters, and this one has more")
        yield line.removesuffix("\n").removesuffix("\r")


def plain_prompt(err: TextIO) -> Callable[[], None]:
    """Shows that a line is waited for, where a person types but the replies go elsewhere."""

    def prompt() -> None:
        if sys.stdin.isatty():
            err.write("> ")
            err.flush()

    return prompt
