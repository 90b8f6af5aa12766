"""Options made from the declaration of the settings, and options that several commands share."""

from __future__ import annotations

import functools
import inspect
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from rwkvbatch.cli.exits import message
from rwkvbatch.errors import UsageError
from rwkvbatch.model import MODEL_VARIABLE, READ_SUFFIXES

if TYPE_CHECKING:
    from typer._click import Context

OUTPUT_PANEL = "Output"


class Command(TyperCommand):
    """A command that refuses an option of one value that is given twice, instead of taking the last value.

    The paragraphs of its help are filled to the width of the terminal: Typer keeps the line ends of the docstring.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs) or None

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """As Typer's.

        Raises:
            UsageError: an option that takes one value is there twice; the message shows its comma form if it has one.
        """
        *_, order = self.make_parser(ctx).parse_args(args=list(args))
        times = Counter(param for param in order if isinstance(param, TyperOption) and _takes_one_value(param))
        for option, count in times.items():
            if count > 1:
                raise _given_twice(option, args, grid=self.name == "run")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Context) -> Any:
        """As Typer's, which would take an `EOFError` for a user who cancels a question, and end with exit code 1."""
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError(f"a stream ended early: {error}") from error


def _takes_one_value(option: TyperOption) -> bool:
    return not (option.multiple or option.is_flag or option.count)


def _given_twice(option: TyperOption, args: Sequence[str], *, grid: bool) -> UsageError:
    from rwkvbatch.config import CellSettings
    from rwkvbatch.setting_names import full_name

    name = max(option.opts, key=len)
    values: list[str] = []
    for arg, value in pairwise((*args, "")):
        if arg in option.opts:
            values.append(value)
        elif arg.startswith(f"{name}="):
            values.append(arg.partition("=")[2])
    lists = "," in (option.metavar or "") or option.metavar == "LIST"
    if lists or (grid and full_name(option.name or "") in CellSettings.model_fields):
        return UsageError(f"{name} is given twice", hint=f"several values go into a list: {name} {','.join(values)}")
    return UsageError(f"{name} is given twice", hint="it takes one value: give it once")


def option(
    name: str, help: str, metavar: str | None = None, panel: str | None = None, *, flag: str | None = None, **more: Any
) -> Any:
    """An option for `Annotated`; `panel` is its group in `--help`, `flag` its one-letter name."""
    names = (name,) if flag is None else (name, flag)
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **more)


JsonOption = Annotated[bool, option("--json", "Print the result as JSON on standard output.", panel=OUTPUT_PANEL)]
QuietOption = Annotated[bool, option("--quiet", "Print only errors on standard error.", panel=OUTPUT_PANEL, flag="-q")]
VerboseOption = Annotated[bool, option("--verbose", "Log more on standard error.", panel=OUTPUT_PANEL, flag="-v")]
RunOutOption = Annotated[
    Path | None,
    option(
        "--out",
        "Run directory, new or one to continue. [dim]Default: runs/NAME-TIME[/]",
        "DIR",
        OUTPUT_PANEL,
        flag="-o",
    ),
]
ConfigOption = Annotated[
    Path | None,
    option("--config", "TOML file with settings. The command line and $RWKVBATCH_* win over it.", "FILE", OUTPUT_PANEL),
]
SparsityOption = Annotated[
    float | None,
    option(
        "--sparsity",
        "With --random: so large a part of the channel mix's hidden layer is zero after relu squared.",
        "SHARE",
    ),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="Checkpoint: a file, whose ending may be left out, or a directory. "
        "[dim]Default: $RWKVBATCH_MODEL, else the bundled one.[/]",
    ),
]
Force = Annotated[bool, option("--force", "Replace the file if it exists.")]
AdapterOption = Annotated[
    str,
    option("--adapter", "Adapter to merge: 'FILE alpha=NUMBER' (LoRA), 'FILE init=FILE' (PiSSA), FILE, none.", "TEXT"),
]
RandomOption = Annotated[
    str | None, option("--random", "Take random weights of this shape, such as 12x768.", "LAYERSxWIDTH")
]


def thread_count(given: str | int | None) -> int | None:
    """The value of --threads.

    Raises:
        UsageError: it is not a number.
    """
    if given is not None and not str(given).isdecimal():
        raise UsageError(f"--threads must be a number, got {given!r}")
    return None if given is None else int(given)


def command_app(**options: Any) -> typer.Typer:
    """A Typer application for one command of the program, or for a group of commands."""
    return typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False, **options)


def examples(*commands: str) -> str:
    """Example command lines, for the end of `--help`."""
    return "\n\n  ".join(["[bold]Examples[/]", *commands])


def with_settings(
    *names: str, panel: str | None = None, **help_texts: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of settings; it gets those that were given as `**settings`, by full name, as text.

    Args:
        names: of the settings; none for all that have an option.
        panel: the group of all these options in `--help`, which then comes last; None for the settings' own.
        help_texts: help that differs for this command, by the setting's name.
    """
    from rwkvbatch.config import FLAGS, LISTS, SETTINGS, TEXTS
    from rwkvbatch.setting import PANELS
    from rwkvbatch.setting_names import option_name

    chosen = [name for name in names or SETTINGS if SETTINGS[name].panel is not None]
    chosen.sort(key=lambda name: PANELS.index(SETTINGS[name].panel))

    def parameter(name: str) -> inspect.Parameter:
        setting = SETTINGS[name]
        text = help_texts.get(name, setting.help)
        made = option(
            option_name(name),
            text,
            setting.metavar or None,
            panel or setting.panel,
            flag=None if panel else setting.flag,
        )
        # Text: a comma list makes a grid, and the settings themselves say what they may be.
        kind: Any = bool if name in FLAGS else list[str] | None if name in LISTS | TEXTS else str | None
        default = False if name in FLAGS else None
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made]
        )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(**values: Any) -> None:
            for name in chosen:
                value = values[name]
                if value is None or value is False or value == []:
                    del values[name]
                elif SETTINGS[name].text:
                    values[name] = value[0] if len(value) == 1 else value
                elif SETTINGS[name].split:
                    values[name] = [part.strip() for text in value for part in text.split(",")]
            command(**values)

        # Typer groups options in the order of the parameters: the settings' panels come first, a panel of all last.
        of_settings = [parameter(name) for name in chosen]
        own = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for each in inspect.signature(command, eval_str=True).parameters.values()
            if each.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        parameters = [*of_settings, *own] if panel is None else [*own, *of_settings]
        call.__annotations__ = {made.name: made.annotation for made in parameters}
        call.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorate


_READ_AHEAD_BYTES = 8 << 20
_MODEL_IS_ELSEWHERE = {"endpoint", "workers", "devices", "ray"}


def read_ahead(settings: Mapping[str, Any]) -> threading.Thread | None:
    """Have the system read a command's checkpoint into its page cache while the program imports its libraries.

    Nothing but time depends on it. Returns the thread that asks for it; None where this process will not load a file.
    """
    named = settings.get("model") or os.environ.get(MODEL_VARIABLE)
    if not isinstance(named, str) or settings.keys() & _MODEL_IS_ELSEWHERE or not hasattr(os, "posix_fadvise"):
        return None
    try:
        found = (Path(f"{named}{suffix}").expanduser() for suffix in ("", *READ_SUFFIXES))
        path = next((each for each in found if each.is_file()), None)
    except (OSError, ValueError, RuntimeError):  # a name that is none; loading says so
        return None
    if path is None:
        return None
    thread = threading.Thread(target=_ask_for_pages, args=(path,), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _ask_for_pages(path: Path) -> None:
    with suppress(OSError), path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        # What does not fit well would push out its own first pages.
        if 2 * size <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            for start in range(0, size, _READ_AHEAD_BYTES):
                os.posix_fadvise(file.fileno(), start, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


JUDGE_SETTINGS = (
    "judge",
    "judge_strategy",
    "judge_vocab",
    "judge_url",
    "judge_model",
    "judge_body",
    "batch_size",
    "threads",
    "concurrency",
    "max_requests",
    "endpoint_timeout",
    "endpoint_retries",
)
"""The settings of commands that ask a judge about rows that exist."""

JUDGE_PANEL = "Judge"
JUDGE_HELP = {
    "batch_size": "Texts that a judge of this machine reads at the same time. Changes no verdict. [dim]Default: 32[/]",
    "threads": "CPU threads of the judge.",
    "concurrency": "Requests at a time to the judge's server. [dim]Default: 8[/]",
    "max_requests": "Send at most N requests to it, retries included; verdicts that need more are missing.",
    "endpoint_timeout": "Seconds for a whole answer of the server, at most. [dim]Default: 600[/]",
}


@contextmanager
def model_path(
    model: str | None, random: str | None, *, named: str, quiet: bool, sparsity: float | None = None
) -> Generator[str | None]:
    """The path of the checkpoint `model`, which errors call `named`, or of one with random weights of shape `random`.

    Args:
        sparsity: of the channel mix's hidden layer, with `random` only; None for about a half.

    Raises:
        UsageError: both are given, or the shape or sparsity is wrong.
    """
    if sparsity is not None:
        if random is None:
            raise UsageError("--sparsity is of random weights: give --random LAYERSxWIDTH too")
        if not 0 <= sparsity < 1:
            raise UsageError(f"--sparsity must be in [0, 1), got {sparsity:g}")
    if random is None:
        yield model
        return
    if model is not None:
        raise UsageError(f"--random makes its own checkpoint: it cannot be given together with {named}")
    from rwkvbatch.bench.measure import write_random

    with tempfile.TemporaryDirectory(prefix="rwkvbatch-random-") as folder:
        message(f"making a random checkpoint, {random}", quiet=quiet)
        yield str(write_random(random, Path(folder), sparsity))
