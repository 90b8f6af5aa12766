"""The table of slash commands, and the functions that execute lines of input."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TextIO, get_args

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rwkvbatch.chat import actions, tables
from rwkvbatch.chat.app import Chat, OutputFile
from rwkvbatch.chat.session import SEED_LIMIT
from rwkvbatch.config import PRESETS, ThinkMode
from rwkvbatch.errors import InputError, RwkvBatchError, StorageError, UsageError
from rwkvbatch.files import user_path

MIN_LIST_WIDTH = 60
MAX_LINE_CHARACTERS = 10_000_000
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


@dataclass(frozen=True)
class Argument:
    """The argument of a command.

    Attributes:
        usage: text for the help; in brackets if the argument is optional.
        parse: gives the argument's value from its text and the command's usage; raises `UsageError`.
        choices: gives the completions of the last word from the words before it.
        is_file: whether the last word is a file name.
        takes_bang: whether the argument may begin with `!`, with which the command replaces an existing file;
            `/save! FILE` is the same as `/save ! FILE`.
    """

    usage: str
    parse: Callable[[str, str], Any] = lambda text, _usage: text
    choices: Callable[[Chat, str], Iterable[str]] = lambda _chat, _before: ()
    is_file: bool = False
    takes_bang: bool = False


def _none(text: str, usage: str) -> None:
    if text:
        raise UsageError(f"{usage} takes no argument, got {text[:60]!r}")


def _path(text: str, usage: str) -> Path:
    if not text:
        raise UsageError(f"{usage}: the file name is missing")
    return user_path(text)


def _output(text: str, usage: str) -> OutputFile:
    name = text.removeprefix("!")
    return OutputFile(_path(name.strip(), usage), replace=name != text)


def _state_file(text: str, usage: str) -> tuple[str, OutputFile]:
    name = text.removeprefix("!").strip()
    bang = "!" if text.startswith("!") else ""
    action, _, name = name.partition(" ")
    if action.removesuffix("!") not in ("save", "load"):
        raise UsageError(f"{usage}: expected save or load, got {text[:60]!r}")
    bang = "!" if action.endswith("!") else bang
    return action.removesuffix("!"), _output(bang + name.strip(), usage)


def number(usage: str, lowest: int = 1, highest: int = 10**9, default: int | None = None) -> Argument:
    """An argument that is a whole number in [lowest, highest]; `default` if it is optional and not given."""

    def parse(text: str, command: str) -> int | None:
        if not text and usage.startswith("["):
            return default
        try:
            value = int(text)
        except ValueError:
            raise UsageError(f"{command}: expected a whole number, got {text[:60]!r}") from None
        if not lowest <= value <= highest:
            raise UsageError(f"{command}: the number must be in {lowest} to {highest}, got {value}")
        return value

    return Argument(usage, parse)


def one_of(usage: str, values: Sequence[str]) -> Argument:
    """An argument that is one of `values`; it may be missing if `usage` is in brackets."""

    def parse(text: str, command: str) -> str:
        if text not in values and not (text == "" and usage.startswith("[")):
            raise UsageError(f"{command}: expected one of {', '.join(values)}; got {text[:60]!r}")
        return text

    return Argument(usage, parse, _first_word(values))


def _first_word(values: Iterable[str]) -> Callable[[Chat, str], Iterable[str]]:
    return lambda _chat, before: () if before else values


NOTHING = Argument("", _none)
NEW_FILE = Argument("FILE", _output, is_file=True, takes_bang=True)
_REPLACES = (
    "An existing file of the same kind is replaced after a `!`, as in /{} FILE. Files of another kind never are."
)


def _other_branches(chat: Chat, _before: str) -> Iterable[str]:
    return [name for name in chat.session.tree.branches if name != chat.session.tree.current]


def _alternatives(chat: Chat, _before: str) -> Iterable[str]:
    return [str(number + 1) for number in range(len(chat.session.alternatives))]


@dataclass(frozen=True)
class Command:
    """A slash command.

    Attributes:
        name: the name without the slash.
        help: one line of help.
        run: executes the command with the argument's value.
        more: further help, which `/help NAME` adds.
    """

    name: str
    help: str
    run: Callable[[Chat, Any], None]
    argument: Argument = NOTHING
    more: str = ""

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.argument.usage}".rstrip()


_UNDECODED = re.compile("[\udc80-\udcff]")
"""A byte that is not UTF-8, as the error handler `surrogateescape` decodes it."""


def run_lines(chat: Chat, lines: TextIO, prompt: TextIO | None = None) -> bool:
    """Execute the lines of a pipe or file until its end or `/quit`. Returns whether all succeeded.

    Args:
        prompt: stream for a prompt before each line; None for no prompt.

    Raises:
        InputError: a line is not UTF-8.
        UsageError: a line has more than `MAX_LINE_CHARACTERS`.
        StorageError: the transcript cannot be written.
    """
    success = True
    for number in count(1):
        if chat.left:
            break
        if prompt is not None:
            print("> ", end="", file=prompt, flush=True)
        line = lines.readline(MAX_LINE_CHARACTERS + 1)
        if undecoded := _UNDECODED.search(line):
            byte = len(line[: undecoded.start()].encode()) + 1
            raise InputError(
                f"messages must be UTF-8; found 0x{ord(undecoded[0]) - 0xDC00:02x} as byte {byte} of the line",
                path="<standard input>",
                line=number,
                hint="earlier lines were answered; convert the file, for example with iconv",
            )
        if not line:
            break
        if len(line) > MAX_LINE_CHARACTERS:
            raise UsageError(f"<standard input>:{number}: a line must have at most {MAX_LINE_CHARACTERS:,} characters")
        success = handle_line(chat, line.removesuffix("\n").removesuffix("\r")) and success
    return success


def handle_line(chat: Chat, line: str) -> bool:
    """Execute a command or send a message, and show any error. Returns whether there was none.

    Raises:
        StorageError: the transcript cannot be written.
    """
    if not line.strip():
        chat.view.note(EMPTY_INPUT)
        return True
    chat.transcript.typed(line)
    try:
        if line.startswith("/") and not line.startswith("//"):
            command, argument = _find(line.strip())
            command.run(chat, command.argument.parse(argument, command.usage))
        else:
            # Two slashes at the beginning stand for one in a message.
            chat.ask(line.removeprefix("/"))
    except RwkvBatchError as error:
        path = chat.transcript.path
        if isinstance(error, StorageError) and path is not None and str(path) in error.message:
            raise
        chat.view.problem(error)
        return False
    return True


def _find(line: str) -> tuple[Command, str]:
    """The command of a line, and the text of its argument. The name may be abbreviated to an unambiguous prefix."""
    name, _, argument = line[1:].partition(" ")
    if name.endswith("!"):
        command, _ = _find(f"/{name.rstrip('!')}")
        if not command.argument.takes_bang:
            raise UsageError(f"/{command.name} takes no `!`: it replaces no file")
        return command, f"! {argument.strip()}"
    matches = [name] if name in COMMANDS else [known for known in COMMANDS if name and known.startswith(name)]
    if len(matches) == 1:
        return COMMANDS[matches[0]], argument.strip()
    if not matches and actions.is_setting(name):
        raise UsageError(f"there is no command /{name}", hint=f"/set {name} VALUE changes the setting")
    similar = matches or difflib.get_close_matches(name, COMMANDS, n=3)
    hint = f"did you mean {' or '.join('/' + match for match in similar)}?" if similar else "/help lists the commands"
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
    """A list of names and descriptions: side by side, or on a narrow terminal one below the other."""

    rows: Sequence[tuple[str, str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width < MIN_LIST_WIDTH:
            for name, description in self.rows:
                yield Text(name, style="cyan")
                yield Padding(Text(description), (0, 0, 0, 2)) if description else Text("", end="")
            return
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
        table.add_column(no_wrap=True)
        for name, description in self.rows:
            table.add_row(Text(name, style="cyan"), description)
        yield table


def _quit(chat: Chat, _argument: None) -> None:
    chat.left = True


COMMANDS: Mapping[str, Command] = {
    command.name: command
    for command in (
        Command(
            "help",
            "Show this list, or more about one command.",
            _help,
            Argument("[COMMAND]", choices=lambda _chat, before: () if before else COMMANDS),
        ),
        Command("params", "Show all settings.", tables.params),
        Command(
            "set",
            "Change a setting of the next replies, such as /set temp 0.7.",
            actions.set_value,
            Argument("NAME VALUE", choices=actions.setting_choices),
            more=f"Settings: {', '.join(actions.SETTABLE)}, seed. Lists (ban, stop, no_penalty) are separated by "
            'commas. A text with a comma is put into quotation marks: /set stop "a, b", c. \\n is a line end; \\t, '
            "\\r, \\xHH and \\uHHHH are read too, and \\\\ is a backslash. "
            "reply_prefix is one text with the same rules.",
        ),
        Command("preset", "Use a preset of sampling settings.", actions.use_preset, one_of("NAME", tuple(PRESETS))),
        Command(
            "think",
            "Thinking mode: off, on, fake, short, long, on-parens, ...; see docs/prompts.md.",
            actions.think,
            one_of("[MODE]", get_args(ThinkMode)),
        ),
        Command("fold", "Hide or show thinking parts.", actions.fold, one_of("[on|off]", ("on", "off"))),
        Command("seed", "Show or change the seed.", actions.seed, number("[N]", 0, SEED_LIMIT - 1)),
        Command(
            "undo",
            "Remove the last turn, or the last N turns.",
            actions.undo,
            number("[N]", default=1),
            more="What is cut off stays as a branch; /redo takes it back.",
        ),
        Command(
            "redo",
            "Take back the last /undo, /retry, /edit or /pick.",
            actions.redo,
            more="Until the next message or /switch; several times for several of them.",
        ),
        Command("retry", "Replace the last reply by one with another seed.", actions.retry),
        Command("edit", "Edit the last message in $EDITOR and send it in place of the old one.", actions.edit),
        Command(
            "again",
            "Make N more replies to the last message as one batch, and show them side by side.",
            actions.again,
            number("[N]", 1, 64, default=3),
            more="/pick N continues from one of them. Until then the conversation is unchanged. N is 3 if not given.",
        ),
        Command(
            "pick", "Continue from reply N of /again.", actions.pick, Argument("N", number("N").parse, _alternatives)
        ),
        Command("branch", "Start a branch here; the current one stays.", actions.branch, Argument("[NAME]")),
        Command("branches", "List the branches.", tables.branches),
        Command("switch", "Go to a branch.", actions.switch, Argument("NAME", choices=_other_branches)),
        Command(
            "system",
            "Show the system message, or start a conversation with another one.",
            actions.system,
            Argument("[TEXT|none]"),
            more="The current conversation stays as a branch.",
        ),
        Command(
            "save",
            "Save the session: all branches and the settings.",
            actions.save,
            NEW_FILE,
            more=_REPLACES.format("save!"),
        ),
        Command("load", "Continue a saved session, or a session from its transcript.", actions.load, NEW_FILE),
        Command(
            "state",
            "Save the model's state, or start a conversation with a saved one.",
            actions.state,
            Argument("save|load FILE", _state_file, _first_word(("save", "load")), is_file=True, takes_bang=True),
            more=f"Files are .safetensors; load also reads state-tuned .pth files. {_REPLACES.format('state save!')}",
        ),
        Command(
            "export",
            "Write this branch as a script that `rwkvbatch run` replays to the same replies.",
            actions.export_script,
            Argument("FILE.jsonl", _output, is_file=True, takes_bang=True),
            more=_REPLACES.format("export!"),
        ),
        Command(
            "model",
            "Show the model, or continue with another one, which reads the conversation again.",
            actions.model,
            Argument("[PATH]", is_file=True),
        ),
        Command("stats", "Statistics of the last reply, the session and the engine.", tables.stats),
        Command(
            "tokens", "The last reply's token ids and log-probabilities.", tables.tokens, number("[N]", default=200)
        ),
        Command(
            "top",
            "The most likely next tokens: of the conversation, or of the reply to MESSAGE.",
            tables.top,
            Argument("[MESSAGE]"),
        ),
        Command("quit", "Leave, as Ctrl-D does.", _quit),
    )
}
"""All commands by name, in the order of the help."""
