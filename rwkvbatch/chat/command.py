"""A slash command, and the reading of a line that holds one."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rwkvbatch.chat.replies import GoOn
from rwkvbatch.chat.session import Session
from rwkvbatch.chat.storage import Transcript, describe
from rwkvbatch.chat.terminal import View
from rwkvbatch.chat.tree import Exchange
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import UsageError
from rwkvbatch.signals import stopping_on_interrupt, unechoed_input

Make = Callable[[Callable[[str], None], GoOn], Exchange]
"""Makes a reply, given what to call with its pieces and whether to go on."""


@dataclass
class Chat:
    """A running session.

    Attributes:
        load_engine: an engine over the model of a file.
        is_terminal: whether a person is at the other end.
        left: set by `/quit`.
        on_exchange: called with every reply that is complete.
    """

    session: Session
    view: View
    transcript: Transcript
    load_engine: Callable[[str], Engine]
    is_terminal: bool = False
    left: bool = False
    on_exchange: Callable[[Exchange], None] = field(default=lambda _exchange: None)

    def ask(self, message: str) -> None:
        """Send `message` and show the reply."""
        session = self.session
        self.reply(lambda on_text, go_on: session.ask(message, on_text=on_text, go_on=go_on))

    def reply(self, make: Make) -> None:
        """Show a reply while it is made; Ctrl-C ends it where it stands."""

        def on_text(text: str) -> None:
            self.view.piece(text)
            self.transcript.piece(text)

        self.view.begin_reply(self.session.template.shown_reply(""))
        try:
            with self.stoppable() as go_on:
                exchange = make(on_text, go_on)
        except BaseException:  # Ctrl-C too must leave the screen in order
            self.view.end_reply(None)
            raise
        self.view.end_reply(exchange)
        self.transcript.keep(self.session)
        self.on_exchange(exchange)

    @contextlib.contextmanager
    def stoppable(self) -> Generator[GoOn]:
        """Gives what tells whether to go on: until Ctrl-C."""
        with (
            stopping_on_interrupt() as noted,
            unechoed_input() if self.is_terminal else contextlib.nullcontext(),
        ):

            def go_on() -> bool:
                self.view.tick()
                return not noted

            yield go_on

    def restart_transcript(self) -> None:
        """Another dialogue, or another model: say so, and write down all of it."""
        self.transcript.start(self.session, describe(self.session))

    def keep_settings(self) -> None:
        """Settings have changed: a session that breaks off goes on with the new ones."""
        self.transcript.event("settings", **describe(self.session))


def file_argument(text: str, usage: str) -> Path:
    """The file that a command was given.

    Raises:
        UsageError: none was.
    """
    if not text:
        raise UsageError(f"a file name is missing: {usage}")
    return Path(text).expanduser()


Choices = Callable[[Chat, str], Iterable[str]]
"""What may stand where the last word of an argument begins, given the words before it."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: without the slash.
        arguments: as the help shows them.
        help: one line; `more` is what `/help NAME` adds.
        run: does it, given the text behind its name, stripped.
        choices: for completion. takes_file: the last argument is a file name.
    """

    name: str
    arguments: str
    help: str
    run: Callable[[Chat, str], None]
    more: str = ""
    choices: Choices | None = None
    takes_file: bool = False

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.arguments}".rstrip()


def is_command(line: str) -> bool:
    """Whether `line` is a command; a message that begins with a slash is sent by doubling it."""
    return line.startswith("/") and not line.startswith("//")


def as_message(line: str) -> str:
    """The message in a line that is no command."""
    return line[1:] if line.startswith("//") else line


def find(commands: Mapping[str, Command], line: str) -> tuple[Command, str]:
    """The command of a line, and its argument. A name may be cut short where that is clear.

    Raises:
        UsageError: there is none of that name.
    """
    name, _, argument = line[1:].partition(" ") if " " in line else (line[1:], "", "")
    name = name.strip()
    if name in commands:
        return commands[name], argument.strip()
    beginning = [known for known in commands if name and known.startswith(name)]
    if len(beginning) == 1:
        return commands[beginning[0]], argument.strip()
    close = beginning or difflib.get_close_matches(name, commands, n=3)
    hint = f"did you mean {' or '.join('/' + found for found in close)}?" if close else "/help lists the commands"
    raise UsageError(f"there is no command /{name}", hint=f"{hint} (a message that begins with / is sent with //)")


def number_argument(text: str, usage: str, default: int | None, lowest: int, highest: int) -> int:
    """The whole number that a command was given.

    Raises:
        UsageError: it is none, or out of range.
    """
    if not text and default is not None:
        return default
    try:
        number = int(text)
    except ValueError:
        raise UsageError(f"{usage} needs a whole number, got {text!r}") from None
    if not lowest <= number <= highest:
        raise UsageError(f"{usage}: the number must be in {lowest} to {highest}, got {number}")
    return number
