"""The table of slash commands, and what a line of input does."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rwkvbatch.chat import session_commands as session
from rwkvbatch.chat import tree_commands as tree
from rwkvbatch.chat.app import Chat
from rwkvbatch.chat.session import SEED_LIMIT
from rwkvbatch.config import PRESETS, ThinkMode
from rwkvbatch.errors import RwkvBatchError, StorageError, UsageError

MIN_LIST_WIDTH = 60
EMPTY_INPUT = "type a message, or /help"

KEYS = (
    ("Enter", "send"),
    ("Alt-Enter", "new line"),
    ("Ctrl-C", "stop the reply, or clear the line"),
    ("Ctrl-D", "leave"),
    ("Ctrl-R", "search earlier input"),
    ("Ctrl-X Ctrl-E", "write the message in $EDITOR"),
    ("Tab", "complete"),
)

Choices = Callable[[Chat, str], Iterable[str]]
"""Completions of the last word of an argument, given the words before it."""


@dataclass(frozen=True)
class Argument:
    """What follows a command's name.

    Attributes:
        usage: as the help shows it; optional in brackets.
        parse: the argument's value, given its text and the command's usage; raises `UsageError`.
        choices: its completions. is_file: its last word is a file name.
    """

    usage: str
    parse: Callable[[str, str], Any]
    choices: Choices | None = None
    is_file: bool = False


def _none(text: str, usage: str) -> None:
    if text:
        raise UsageError(f"{usage} takes no argument, got {text[:60]!r}")


def _text(text: str, _usage: str) -> str:
    return text


def _path(text: str, usage: str) -> Path:
    if not text:
        raise UsageError(f"{usage}: the file name is missing")
    return Path(text).expanduser()


def _state_file(text: str, usage: str) -> tuple[str, Path]:
    action, _, name = text.partition(" ")
    if action not in ("save", "load"):
        raise UsageError(f"{usage}: expected save or load, got {text[:60]!r}")
    return action, _path(name.strip(), usage)


def number(usage: str, lowest: int = 1, highest: int = 10**9, default: int | None = None) -> Argument:
    """A whole number in [lowest, highest]; without one, `default` where `usage` is in brackets."""

    def parse(text: str, usage_of_command: str) -> int | None:
        if not text and usage.startswith("["):
            return default
        try:
            value = int(text)
        except ValueError:
            raise UsageError(f"{usage_of_command}: expected a whole number, got {text[:60]!r}") from None
        if not lowest <= value <= highest:
            raise UsageError(f"{usage_of_command}: the number must be in {lowest} to {highest}, got {value}")
        return value

    return Argument(usage, parse)


def one_of(usage: str, values: Sequence[str]) -> Argument:
    """One of `values`; empty text is allowed where `usage` is in brackets."""

    def parse(text: str, usage_of_command: str) -> str:
        if text not in values and not (text == "" and usage.startswith("[")):
            raise UsageError(f"{usage_of_command}: expected one of {', '.join(values)}; got {text[:60]!r}")
        return text

    return Argument(usage, parse, lambda _chat, before: () if before else values)


NOTHING = Argument("", _none)
FILE = Argument("FILE", _path, is_file=True)


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: without the slash.
        help: one line; `more` is what `/help NAME` adds.
        run: executes it, given the argument's value.
    """

    name: str
    argument: Argument
    help: str
    run: Callable[[Chat, Any], None]
    more: str = ""

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.argument.usage}".rstrip()


def handle_line(chat: Chat, line: str) -> bool:
    """Execute a command or send a message. Errors are shown; returns whether there was none.

    Raises:
        StorageError: the transcript cannot be written.
    """
    if not line.strip():
        chat.view.note(EMPTY_INPUT)
        return True
    chat.transcript.typed(line)
    try:
        if line.startswith("/") and not line.startswith("//"):
            run_command(chat, line.strip())
        else:
            # A message that begins with a slash is sent by doubling it.
            chat.ask(line.removeprefix("/"))
    except RwkvBatchError as error:
        path = chat.transcript.path
        if isinstance(error, StorageError) and path is not None and str(path) in error.message:
            raise
        chat.view.problem(error)
        return False
    return True


def run_command(chat: Chat, line: str) -> None:
    """Execute a line that begins with a slash.

    Raises:
        RwkvBatchError: it failed; the session is unchanged.
    """
    command, argument = _find(line)
    command.run(chat, command.argument.parse(argument, command.usage))


def _find(line: str) -> tuple[Command, str]:
    """The command of a line, and the text of its argument. An unambiguous beginning of a name is enough.

    Raises:
        UsageError: no command has that name.
    """
    name, _, argument = line[1:].partition(" ")
    matches = [name] if name in COMMANDS else [known for known in COMMANDS if name and known.startswith(name)]
    if len(matches) == 1:
        return COMMANDS[matches[0]], argument.strip()
    close = matches or difflib.get_close_matches(name, COMMANDS, n=3)
    hint = f"did you mean {' or '.join('/' + match for match in close)}?" if close else "/help lists the commands"
    raise UsageError(f"there is no command /{name[:60]}", hint=f"{hint} (start a message that begins with / with //)")


def _help(chat: Chat, name: str) -> None:
    if not name:
        rows = [(command.usage, command.help) for command in COMMANDS.values()]
        chat.view.show(_List([*rows, ("", ""), *KEYS] if chat.is_terminal else rows))
        return
    command, _ = _find("/" + name.lstrip("/"))
    chat.view.show(Text.assemble((command.usage, "cyan"), f"\n{command.help}"))
    if command.more:
        chat.view.show(Text(command.more, style="dim"))


@dataclass(frozen=True)
class _List:
    """Names and their descriptions: side by side, or one below the other on a narrow terminal."""

    rows: Sequence[tuple[str, str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= MIN_LIST_WIDTH:
            table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
            table.add_column(no_wrap=True)
            table.add_column()
            for name, description in self.rows:
                table.add_row(Text(name, style="cyan"), description)
            yield table
            return
        for name, description in self.rows:
            yield Text(name, style="cyan")
            if description:
                yield Padding(Text(description), (0, 0, 0, 2))


def _quit(chat: Chat, _argument: None) -> None:
    chat.left = True


def _other_branches(chat: Chat, _before: str) -> Iterable[str]:
    return [name for name in chat.session.tree.branches if name != chat.session.tree.current]


def _alternatives(chat: Chat, _before: str) -> Iterable[str]:
    return [str(number + 1) for number in range(len(chat.session.alternatives))]


COMMANDS: Mapping[str, Command] = {
    command.name: command
    for command in (
        Command(
            "help",
            Argument("[COMMAND]", _text, lambda _chat, before: () if before else COMMANDS),
            "Show this list, or more about one command.",
            _help,
        ),
        Command("params", NOTHING, "Show all settings.", session.params),
        Command(
            "set",
            Argument("NAME VALUE", _text, session.setting_choices),
            "Change a setting of the next replies, such as /set temp 0.7.",
            session.set_value,
            more=f"Settings: {', '.join(session.SETTABLE)}, seed. Lists (ban, stop) are separated by commas.",
        ),
        Command("preset", one_of("NAME", tuple(PRESETS)), "Use a preset of sampling settings.", session.use_preset),
        Command(
            "think", one_of("[MODE]", get_args(ThinkMode)), "Thinking mode: off, on, fake, short, long.", session.think
        ),
        Command("fold", one_of("[on|off]", ("on", "off")), "Hide or show thinking parts.", session.fold),
        Command("seed", number("[N]", 0, SEED_LIMIT - 1), "Show or change the seed.", session.seed),
        Command("undo", number("[N]", default=1), "Remove the last turn, or the last N turns.", tree.undo),
        Command("retry", NOTHING, "Replace the last reply by one with another seed.", tree.retry),
        Command("edit", NOTHING, "Edit the last message in $EDITOR and send it in place of the old one.", tree.edit),
        Command(
            "again",
            number("[N]", 1, 64, default=3),
            "Make N more replies to the last message as one batch, and show them side by side.",
            tree.again,
            more="/pick N continues from one of them. Until then the conversation is unchanged. N is 3 if not given.",
        ),
        Command("pick", Argument("N", number("N").parse, _alternatives), "Continue from reply N of /again.", tree.pick),
        Command("branch", Argument("[NAME]", _text), "Start a branch here; the current one stays.", tree.branch),
        Command("branches", NOTHING, "List the branches.", tree.branches),
        Command("switch", Argument("NAME", _text, _other_branches), "Go to a branch.", tree.switch),
        Command(
            "system",
            Argument("[TEXT|none]", _text),
            "Show the system message, or start a conversation with another one.",
            tree.system,
            more="The current conversation stays as a branch.",
        ),
        Command("save", FILE, "Save the session: all branches and the settings.", session.save),
        Command("load", FILE, "Continue a saved session, or a session from its transcript.", session.load),
        Command(
            "state",
            Argument(
                "save|load FILE", _state_file, lambda _chat, before: () if before else ("save", "load"), is_file=True
            ),
            "Save the model's state, or start a conversation with a saved one.",
            session.state,
            more="Files are .safetensors; load also reads state-tuned .pth files.",
        ),
        Command(
            "export",
            Argument("FILE.jsonl", _path, is_file=True),
            "Write this branch as a script that `rwkvbatch run` replays to the same replies.",
            session.export_script,
        ),
        Command(
            "model",
            Argument("[PATH]", _text, is_file=True),
            "Show the model, or continue with another one, which reads the conversation again.",
            session.model,
        ),
        Command("stats", NOTHING, "Statistics of the last reply, the session and the engine.", tree.stats),
        Command("tokens", number("[N]", default=200), "The last reply's token ids and log-probabilities.", tree.tokens),
        Command(
            "top",
            Argument("[MESSAGE]", _text),
            "The most likely next tokens: of the conversation, or of the reply to MESSAGE.",
            tree.top,
        ),
        Command("quit", NOTHING, "Leave, as Ctrl-D does.", _quit),
    )
}
"""By name, in the order of the help."""
