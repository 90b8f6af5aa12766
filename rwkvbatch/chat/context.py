"""What a command may use: the session, where its words go, and how a reply is made to stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

from rwkvbatch.chat.dialogue import Exchange
from rwkvbatch.chat.files import describe
from rwkvbatch.chat.interrupt import stopping_on_interrupt, unechoed_input
from rwkvbatch.chat.replies import GoOn
from rwkvbatch.chat.session import Session
from rwkvbatch.chat.transcript import Transcript
from rwkvbatch.chat.view import View
from rwkvbatch.engine.core import Engine
from rwkvbatch.errors import UsageError

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
