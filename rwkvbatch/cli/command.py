"""Shared by all commands: `Command`, whose errors name option and limits, `command_app`, `examples` for the help."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast, get_args

import typer
from typer.core import TyperCommand, TyperOption

from rwkvbatch.errors import UsageError, shown_value

if TYPE_CHECKING:
    from typer._click import Context
    from typer._click.core import Parameter


def command_app(**options: Any) -> typer.Typer:
    """A Typer application for one command of the program, or for a group of commands."""
    return typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False, **options)


def examples(*commands: str, note: str = "") -> str:
    """Example command lines and a note, for the end of `--help`."""
    return "\n\n  ".join(["[bold]Examples[/]", *commands]) + (f"\n\n{note}" if note else "")


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
