"""The input line: history, search, several lines, completion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from rwkvbatch.chat.commands import COMMANDS
from rwkvbatch.chat.context import Chat
from rwkvbatch.chat.transcript import open_private

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
                    yield Completion(
                        f"/{command.name}", -len(line), display=command.usage, display_meta=command.help
                    )
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
