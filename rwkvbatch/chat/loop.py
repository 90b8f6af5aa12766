"""Lines in, replies out, until there are no more: with an input line on a terminal, or from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from rwkvbatch.chat.command import Chat, as_message, is_command
from rwkvbatch.chat.commands import COMMANDS, run_command
from rwkvbatch.chat.storage import open_private
from rwkvbatch.errors import RwkvBatchError, StorageError, UsageError
from rwkvbatch.prompt.escaping import printable

STYLE = Style.from_dict(
    {"mark": "bold ansicyan", "bottom-toolbar": "noreverse ansibrightblack", "completion-menu": "noinherit"}
)


class CommandCompleter(Completer):
    """Commands, their arguments, and file names."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor
        if not line.startswith("/") or "\n" in line:
            return
        name, space, argument = line[1:].partition(" ")
        if not space:
            for command in COMMANDS.values():
                if command.name.startswith(name):
                    yield Completion(f"/{command.name}", -len(line), display=command.usage, display_meta=command.help)
            return
        command = COMMANDS.get(name)
        if command is None:
            return
        before, _, word = argument.rpartition(" ")
        if command.choices is not None:
            for choice in command.choices(self._chat, before):
                if choice.startswith(word):
                    yield Completion(choice, -len(word))
        if command.takes_file and (before or command.choices is None):
            yield from self._paths.get_completions(Document(word, len(word)), complete_event)


class LineInput:
    """Reads messages and commands from a terminal.

    Args:
        history_path: where lines are kept between sessions; None for nowhere.
        status: what stands in the row at the bottom, for so many columns.
    """

    def __init__(self, chat: Chat, history_path: Path | None, status: Callable[[int], str]) -> None:
        self._status = status
        self._session: PromptSession[str] = PromptSession(
            history=_history(history_path),
            completer=CommandCompleter(chat),
            complete_while_typing=Condition(_in_command),
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation="  ",
            bottom_toolbar=self._toolbar,
            enable_open_in_editor=True,
            enable_suspend=True,
            tempfile_suffix=".md",
            style=STYLE,
            reserve_space_for_menu=6,
        )

    def read(self) -> str:
        """The next line, without its end.

        Raises:
            EOFError: Ctrl-D.
            KeyboardInterrupt: Ctrl-C.
        """
        return self._session.prompt(FormattedText([("class:mark", "› ")]))

    def _toolbar(self) -> FormattedText:
        return FormattedText([("", self._status(get_app().output.get_size().columns))])


def _history(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    import os

    try:
        os.close(open_private(path))
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def _in_command() -> bool:
    return get_app().current_buffer.text.startswith("/")


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=~Condition(_is_searching))
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None
        buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _is_searching() -> bool:
    return get_app().layout.is_searching


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
