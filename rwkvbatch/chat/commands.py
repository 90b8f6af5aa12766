"""All slash commands, and their help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rwkvbatch.chat import session_commands, tree_commands
from rwkvbatch.chat.command import Chat, Command, find
from rwkvbatch.errors import UsageError

MIN_LIST_WIDTH = 60

KEYS = (
    ("Enter", "send"),
    ("Alt-Enter", "new line"),
    ("Ctrl-C", "stop the reply, or clear the line"),
    ("Ctrl-D", "leave"),
    ("Ctrl-R", "search what was typed before"),
    ("Ctrl-X Ctrl-E", "write the message in $EDITOR"),
    ("Tab", "complete"),
)


def run_command(chat: Chat, line: str) -> None:
    """Do what a line that begins with a slash says.

    Raises:
        RwkvBatchError: it cannot be done; nothing has changed.
    """
    command, argument = find(COMMANDS, line)
    command.run(chat, argument)


def _help(chat: Chat, argument: str) -> None:
    if argument:
        name = argument.lstrip("/")
        if name not in COMMANDS:
            raise UsageError(f"there is no command /{name[:60]}", hint="/help lists the commands")
        command = COMMANDS[name]
        chat.view.show(Text.assemble((command.usage, "cyan"), f"\n{command.help}"))
        if command.more:
            chat.view.show(Text(command.more, style="dim"))
        return
    rows = [(command.usage, command.help) for command in COMMANDS.values()]
    chat.view.show(_List([*rows, ("", ""), *KEYS] if chat.is_terminal else rows))


@dataclass(frozen=True)
class _List:
    """Names and what they are: side by side, or one below the other where there is no room."""

    rows: Sequence[tuple[str, str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= MIN_LIST_WIDTH:
            table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
            table.add_column(no_wrap=True)
            table.add_column()
            for name, what in self.rows:
                table.add_row(Text(name, style="cyan"), what)
            yield table
            return
        for name, what in self.rows:
            yield Text(name, style="cyan")
            if what:
                yield Padding(Text(what), (0, 0, 0, 2))


def _names(_chat: Chat, before: str) -> Iterable[str]:
    return () if before else COMMANDS


def _quit(chat: Chat, _argument: str) -> None:
    chat.left = True


COMMANDS: Mapping[str, Command] = {
    command.name: command
    for command in (
        Command("help", "[COMMAND]", "This list, or more about one command.", _help, choices=_names),
        *session_commands.SETTINGS_COMMANDS,
        *tree_commands.TREE_COMMANDS,
        *session_commands.FILE_COMMANDS,
        *tree_commands.INSPECT_COMMANDS,
        Command("quit", "", "Leave. Ctrl-D does so too.", _quit),
    )
}
"""By name, in the order of the help."""
