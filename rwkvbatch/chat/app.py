"""`Chat`: a session with its view and its transcript; and `View`, which the two front ends implement."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import RenderableType
from rich.table import Table

from rwkvbatch.chat.session import Session, ShouldStop
from rwkvbatch.chat.storage import Transcript
from rwkvbatch.chat.tree import Exchange
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import RwkvBatchError, TargetExistsError
from rwkvbatch.signals import stopping_on_interrupt

_Written = TypeVar("_Written")

_END_NOTES = {
    "length": "stopped at {tokens} tokens · /set max_tokens N allows more",
    "time": "stopped by the time limit",
    "cancelled": "stopped",
}


@dataclass(frozen=True)
class OutputFile:
    """A file that a command writes; `replace` after a `!`."""

    path: Path
    replace: bool = False


class View(Protocol):
    """Shows a session."""

    folded: bool
    """Whether thinking parts are hidden."""

    def begin_reply(self, begun: str) -> None:
        """A reply begins; `begun` is the part of it that the prompt contains."""

    def piece(self, text: str) -> None:
        """The next text of the reply."""

    def tick(self) -> None:
        """The model has made a step."""

    def end_reply(self, exchange: Exchange | None) -> None:
        """The reply is complete, or (None) has failed."""

    def gap(self) -> None:
        """An empty row, unless the last row is empty."""

    def note(self, text: str) -> None:
        """A message of the program."""

    def problem(self, error: RwkvBatchError) -> None:
        """An error and its hint."""

    def confirm(self, question: str) -> bool:
        """Whether a person answers yes; false where nobody can be asked."""
        ...

    def show(self, content: RenderableType) -> None:
        """The output of a command."""

    def replay(self, exchanges: Sequence[Exchange]) -> None:
        """Earlier messages and replies."""

    def alternatives(self, exchanges: Sequence[Exchange]) -> None:
        """The replies of `/again`."""


@dataclass
class Chat:
    """A running session.

    Attributes:
        load_engine: loads an engine over the model in a file.
        is_terminal: whether input and output are a terminal.
        left: set by `/quit`.
    """

    session: Session
    view: View
    transcript: Transcript
    load_engine: Callable[[str], Engine]
    is_terminal: bool = False
    left: bool = False

    def ask(self, message: str) -> None:
        """Send `message` and show the reply."""
        self.reply(partial(self.session.ask, message))

    def reply(self, make: Callable[..., Exchange]) -> None:
        """Show a reply while it is generated; Ctrl-C stops it.

        Args:
            make: generates it, with the keyword arguments `on_text` and `should_stop` of `Session.ask`.
        """

        def on_text(text: str) -> None:
            self.view.piece(text)
            self.transcript.piece(text)

        self.view.begin_reply(self.session.template.begun)
        try:
            with self.stoppable() as should_stop:
                exchange = make(on_text=on_text, should_stop=should_stop)
        except BaseException:  # Ctrl-C too must leave the screen in order
            self.view.end_reply(None)
            raise
        self.view.end_reply(exchange)
        self.transcript.record(self.session)

    def write(self, target: OutputFile, write: Callable[[bool], _Written]) -> _Written:
        """The result of `write`, which gets whether it may replace the file; a person is asked if it may not.

        Raises:
            TargetExistsError: the file exists and is to stay.
        """
        try:
            return write(target.replace)
        except TargetExistsError as error:
            if not self.view.confirm(f"{error.message}. Replace it?"):
                raise
        return write(True)

    @contextlib.contextmanager
    def stoppable(self) -> Generator[ShouldStop]:
        """Yields a function that is polled after every step, and returns true after Ctrl-C."""
        with stopping_on_interrupt() as interrupts, unechoed_input() if self.is_terminal else contextlib.nullcontext():

            def should_stop() -> bool:
                self.view.tick()
                return bool(interrupts)

            yield should_stop


@contextlib.contextmanager
def unechoed_input() -> Generator[None]:
    """The terminal does not echo what is typed inside; the next line input reads it."""
    try:
        import termios

        descriptor = sys.stdin.fileno()
        before: list[Any] = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError):
        yield
        return
    quiet = before.copy()
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    try:
        termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def uncut(content: RenderableType) -> RenderableType:
    """`content`; text too wide for its column of a table is folded instead of cut."""
    for column in content.columns if isinstance(content, Table) else ():
        column.overflow = "fold"
    return content


def end_note(exchange: Exchange) -> str:
    """Why the reply ended; empty after a normal end."""
    return _END_NOTES.get(exchange.finish_reason, "").format(tokens=len(exchange.ids))
