"""A slash command, and the reading of a line that holds one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rwkvbatch.chat.context import Chat
from rwkvbatch.errors import UsageError

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
    hint = (
        f"did you mean {' or '.join('/' + found for found in close)}?"
        if close
        else "/help lists the commands"
    )
    raise UsageError(
        f"there is no command /{name}", hint=f"{hint} (a message that begins with / is sent with //)"
    )


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
