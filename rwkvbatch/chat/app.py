"""A chat: a session with its view and its transcript; and the interface of views, which the front ends implement."""

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
    """A file that a command writes; `replace` allows replacing it (`!` before the name)."""

    path: Path
    replace: bool = False


class View(Protocol):
    """Shows a session."""

    folded: bool
    """Whether thinking parts are hidden."""

    def begin_reply(self, reply_start: str) -> None:
        """Begin a reply; `reply_start`: part of the reply that is in the prompt already."""

    def piece(self, text: str) -> None:
        """Show the next piece of the reply."""

    def tick(self) -> None:
        """Update the display after a step of the model."""

    def end_reply(self, exchange: Exchange | None) -> None:
        """End the reply; `exchange` is None if it failed."""

    def gap(self) -> None:
        """Show an empty row, unless the last row is empty."""

    def note(self, text: str) -> None:
        """Show a message of the program."""

    def problem(self, error: RwkvBatchError) -> None:
        """Show an error and its hint."""

    def confirm(self, question: str) -> bool:
        """Whether the user answers yes; false if the user cannot be asked."""
        ...

    def show(self, content: RenderableType) -> None:
        """Show the output of a command."""

    def replay(self, exchanges: Sequence[Exchange]) -> None:
        """Show earlier messages and replies."""

    def alternatives(self, exchanges: Sequence[Exchange]) -> None:
        """Show the replies of `/again`."""


@dataclass
class Chat:
    """A running session.

    Attributes:
        load_engine: makes an engine for the model in a file.
        is_terminal: whether input and output are a terminal.
        left: whether the user has left with `/quit`.
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
            make: generates the reply; takes the keyword arguments `on_text` and `should_stop` of `Session.ask`.
        """

        def on_text(text: str) -> None:
            self.view.piece(text)
            self.transcript.piece(text)

        self.view.begin_reply(self.session.template.reply_start)
        try:
            with self.stoppable() as should_stop:
                exchange = make(on_text=on_text, should_stop=should_stop)
        except BaseException:  # also KeyboardInterrupt: the display must be completed
            self.view.end_reply(None)
            raise
        self.view.end_reply(exchange)
        self.transcript.record(self.session)

    def write(self, target: OutputFile, write: Callable[[bool], _Written]) -> _Written:
        """Write a file, and ask the user before an existing one is replaced. Returns the result of `write`.

        Args:
            write: writes the file; takes whether it may replace an existing one.

        Raises:
            TargetExistsError: the file exists, and the user did not agree to replace it.
        """
        try:
            return write(target.replace)
        except TargetExistsError as error:
            if not self.view.confirm(f"{error.message}. Replace it?"):
                raise
        return write(True)

    @contextlib.contextmanager
    def stoppable(self) -> Generator[ShouldStop]:
        """Yield a function that is called after every step, and returns true after Ctrl-C."""
        with stopping_on_interrupt() as interrupts, unechoed_input() if self.is_terminal else contextlib.nullcontext():

            def should_stop() -> bool:
                self.view.tick()
                return bool(interrupts)

            yield should_stop


@contextlib.contextmanager
def unechoed_input() -> Generator[None]:
    """Turn off the echo of the terminal within the context. Text typed meanwhile stays in the terminal's input."""
    try:
        import termios

        descriptor = sys.stdin.fileno()
        former_attributes: list[Any] = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError):
        yield
        return
    attributes = former_attributes.copy()
    attributes[0] &= ~termios.ICRNL
    attributes[3] &= ~(termios.ECHO | termios.ICANON)
    try:
        termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, former_attributes)


def without_truncation(content: RenderableType) -> RenderableType:
    """`content`; in a table, text that is too wide for its column is folded, not cut."""
    for column in content.columns if isinstance(content, Table) else ():
        column.overflow = "fold"
    return content


def end_note(exchange: Exchange) -> str:
    """A note on why a reply ended; empty after a normal end."""
    limit = exchange.settings.get("max_tokens")
    if exchange.finish_reason == "length" and limit not in (None, len(exchange.ids)):
        # A served model: `ids` are the text's tokens in the local vocabulary, and the server may have a limit too.
        return f"stopped at max_tokens {limit}, or at a limit of the server"
    return _END_NOTES.get(exchange.finish_reason, "").format(tokens=len(exchange.ids))
