"""Options that are generated from the declaration of the settings, and options that several commands share."""

from __future__ import annotations

import functools
import inspect
import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from typer.core import TyperCommand, TyperOption

from rwkvbatch.cli.exits import message
from rwkvbatch.errors import UsageError
from rwkvbatch.model import MODEL_VARIABLE, READ_SUFFIXES

if TYPE_CHECKING:
    from typer._click import Context
    from typer._click.core import Parameter

OUTPUT_PANEL = "Output"


class Command(TyperCommand):
    """A command that refuses an option with one value that is given twice, and empty paths.

    Typer would use the last value, and the current directory. The paragraphs of its help are filled to the width of
    the terminal; Typer would keep the docstring's line ends.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs) or None

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the arguments as Typer does.

        Raises:
            UsageError: an option with one value is given twice; the hint shows its comma list if it takes one.
                A path is empty, as that of a shell variable without a value. A value is not a number of the option's
                range, or none of its words.
        """
        values, _, given_params = self.make_parser(ctx).parse_args(args=list(args))
        counts = Counter(param for param in given_params if isinstance(param, TyperOption) and _takes_one_value(param))
        for option, count in counts.items():
            if count > 1:
                raise _given_twice(option, args, grid=self.name == "run")
        for param in given_params:
            if param.metavar in _PATHS:
                _check_path(param, values.get(param.name or ""))
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            value = values.get((error.param and error.param.name) or "")
            allowed = _allowed(error.param)
            if error.param is None or allowed is None or not isinstance(value, str):  # a missing value is None
                raise
            from rwkvbatch.errors import shown_value

            raise UsageError(f"{_name_of(error.param)} must be {allowed}, got {shown_value(value)}") from None

    def invoke(self, ctx: Context) -> Any:
        """Run the command as Typer does, except that `EOFError` is an internal error.

        Typer would treat it as a user who cancels a prompt, and exit with code 1.
        """
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError(f"a stream ended early: {error}") from error


_PATHS = {"FILE", "FILE...", "DIR", "IN", "OUT", "MODEL", "PART...", "RUN", "RUN...", "SCRIPT", "SCRIPT..."}
"""The metavariables of options and arguments that are paths."""


def _check_path(param: Parameter, value: object) -> None:
    """Raises `UsageError` if `value`, or one of several values, is empty or white space."""
    paths = cast("Sequence[object]", value) if isinstance(value, list | tuple) else [value]
    for path in paths:
        if isinstance(path, str) and not path.strip():
            hint = "a variable of the shell may have no value"
            raise UsageError(f"{_name_of(param)} must be a path, got {path!r}", hint=hint)


def _name_of(param: Parameter) -> str:
    """The longest name of an option; the metavariable of an argument."""
    if isinstance(param, TyperOption):
        return max(param.opts, key=len)
    return (param.metavar or param.name or "").removesuffix("...")


def _allowed(param: Parameter | None) -> str | None:
    """What the value of an option or argument must be; None if it is neither a number nor one of several words."""
    # These attributes are not part of Typer's documentation.
    annotation: Any = getattr(getattr(param, "type_descriptor", None), "annotation", None)
    lowest, highest = getattr(param, "min", None), getattr(param, "max", None)
    if words := get_args(annotation):
        listed = ", ".join(map(str, words))
        return f"one of {listed}" if len(words) > 1 else listed
    kind = {int: "a whole number", float: "a number"}.get(annotation)
    if kind is None or lowest is None:
        return kind
    return f"{kind}, at least {lowest}" if highest is None else f"{kind} in [{lowest}, {highest}]"


def _takes_one_value(option: TyperOption) -> bool:
    return not (option.multiple or option.is_flag or option.count)


def _given_twice(option: TyperOption, args: Sequence[str], *, grid: bool) -> UsageError:
    """The error for an option that is given twice; `grid` tells whether the command takes comma lists as a grid."""
    from rwkvbatch.config import CellSettings
    from rwkvbatch.config.names import full_name

    name = max(option.opts, key=len)
    values: list[str] = []
    for arg, value in pairwise((*args, "")):
        if arg in option.opts:
            values.append(value)
        elif arg.startswith(f"{name}="):
            values.append(arg.partition("=")[2])
    takes_list = "," in (option.metavar or "") or option.metavar == "LIST"
    if takes_list or (grid and full_name(option.name or "") in CellSettings.model_fields):
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
    option(
        "--config", "TOML file with settings. The command line and $RWKVBATCH_* take precedence.", "FILE", OUTPUT_PANEL
    ),
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


def thread_count(value: str | int | None) -> int | None:
    """The number of threads that --threads gives.

    Raises:
        UsageError: the value is not a number.
    """
    if value is None:
        return None
    from rwkvbatch.config import MAX_THREADS
    from rwkvbatch.errors import shown_value

    text = str(value).strip()
    if not re.fullmatch(r"0*[1-9]\d{0,3}", text, re.ASCII) or int(text) > MAX_THREADS:
        raise UsageError(f"--threads must be a whole number in [1, {MAX_THREADS}], got {shown_value(value)}")
    return int(text)


def command_app(**options: Any) -> typer.Typer:
    """A Typer application for one command of the program, or for a group of commands."""
    return typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False, **options)


def examples(*commands: str) -> str:
    """Example command lines, for the end of `--help`."""
    return "\n\n  ".join(["[bold]Examples[/]", *commands])


def with_settings(
    *names: str, panel: str | None = None, **help_texts: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of settings to a command, which gets the given ones as `**settings`: by full name, as text.

    Args:
        names: names of the settings; none for all that have an option.
        panel: the group of all these options in `--help`, shown last; None for the settings' own groups.
        help_texts: by the setting's name, help that differs for this command.
    """
    from rwkvbatch.config import FLAGS, LISTS, SETTINGS, TEXTS
    from rwkvbatch.config.names import option_name
    from rwkvbatch.config.setting import PANELS

    chosen = [name for name in names or SETTINGS if SETTINGS[name].panel is not None]
    chosen.sort(key=lambda name: PANELS.index(SETTINGS[name].panel))

    def parameter(name: str) -> inspect.Parameter:
        setting = SETTINGS[name]
        typer_option = option(
            option_name(name),
            help_texts.get(name, setting.help),
            setting.metavar or None,
            panel or setting.panel,
            flag=None if panel else setting.flag,
        )
        # Values stay text here: a comma list makes a grid, and the settings validate their values.
        value_type: Any = str | None
        if name in FLAGS:
            value_type = bool
        elif name in LISTS | TEXTS:
            value_type = list[str] | None
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if name in FLAGS else None,
            annotation=Annotated[value_type, typer_option],
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

        # Typer shows groups of options in the order of the parameters: the settings' own panels first, or `panel` last.
        of_settings = [parameter(name) for name in chosen]
        of_command = [
            command_parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for command_parameter in inspect.signature(command, eval_str=True).parameters.values()
            if command_parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        parameters = [*of_settings, *of_command] if panel is None else [*of_command, *of_settings]
        call.__annotations__ = {each.name: each.annotation for each in parameters}
        call.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorate


_READ_AHEAD_BYTES = 8 << 20
_LOADED_ELSEWHERE = {"endpoint", "workers", "devices", "ray"}
"""Settings with which another process loads the model."""


def read_ahead(settings: Mapping[str, Any]) -> threading.Thread | None:
    """Make the system read a command's checkpoint into its page cache while the program imports its libraries.

    This only saves time. Returns the thread that requests it; None if this process will not load a file.
    """
    name = settings.get("model") or os.environ.get(MODEL_VARIABLE)
    if not isinstance(name, str) or settings.keys() & _LOADED_ELSEWHERE or not hasattr(os, "posix_fadvise"):
        return None
    try:
        candidates = (Path(f"{name}{suffix}").expanduser() for suffix in ("", *READ_SUFFIXES))
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
    except (OSError, ValueError, RuntimeError):  # not a valid file name; loading reports it
        return None
    if path is None:
        return None
    thread = threading.Thread(target=_request_pages, args=(path,), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _request_pages(path: Path) -> None:
    with suppress(OSError), path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        # A file that takes more than half of the memory could evict its own first pages.
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
"""The settings of commands that ask a judge about existing rows."""

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
    """The path of the checkpoint `model`, or of a temporary one with random weights of the shape `random`.

    Args:
        named: name of the option or argument of `model` in errors.
        sparsity: share of zeros in the channel mix's hidden layer, with `random` only; None for about a half.

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
