"""Options made from the declaration of the settings, and options that several commands share."""

from __future__ import annotations

import functools
import inspect
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from rwkvbatch.cli.exits import message
from rwkvbatch.errors import UsageError

OUTPUT_PANEL = "Output"


def option(
    name: str, help: str, metavar: str | None = None, panel: str | None = None, *, flag: str | None = None, **more: Any
) -> Any:
    """An option for `Annotated`: its long name, help text, placeholder, group in `--help` and one-letter name."""
    names = (name,) if flag is None else (name, flag)
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **more)


JsonOption = Annotated[bool, option("--json", "Print the result as JSON on standard output.", panel=OUTPUT_PANEL)]
QuietOption = Annotated[bool, option("--quiet", "Print only errors on standard error.", panel=OUTPUT_PANEL, flag="-q")]
ConfigOption = Annotated[
    Path | None,
    option("--config", "TOML file with settings. The command line and $RWKVBATCH_* win over it.", "FILE", OUTPUT_PANEL),
]
RandomOption = Annotated[
    str | None, option("--random", "Take random weights of this shape, such as 12x768.", "LAYERSxWIDTH")
]


def command_app(**options: Any) -> typer.Typer:
    """A Typer application for one command of the program, or for a group of commands."""
    return typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False, **options)


def with_settings(*names: str, **help_texts: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of settings; it gets those that were given as `**settings`, by full name, as text.

    Args:
        names: of the settings; none for all that have an option.
        help_texts: help that differs for this command, by the setting's name.
    """
    from rwkvbatch.config import FLAGS, LISTS, PANELS, SETTINGS, option_name

    chosen = names or tuple(name for name, setting in SETTINGS.items() if setting.has_option)
    chosen = sorted(chosen, key=lambda name: PANELS.index(SETTINGS[name].panel))

    def parameter(name: str) -> inspect.Parameter:
        setting = SETTINGS[name]
        text = help_texts.get(name, setting.help)
        made = option(option_name(name), text, setting.metavar or None, setting.panel, flag=setting.flag)
        # Text: a comma list makes a grid, and the settings themselves say what they may be.
        kind: Any = bool if name in FLAGS else list[str] | None if name in LISTS else str | None
        default = False if name in FLAGS else None
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made]
        )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]

        @functools.wraps(command)
        def call(**values: Any) -> None:
            for name in chosen:
                value = values[name]
                if value is None or value is False or value == []:
                    del values[name]
                elif SETTINGS[name].split:
                    values[name] = [part.strip() for text in value for part in text.split(",")]
            command(**values)

        # Typer groups options in the order of the parameters: the settings' panels come first.
        options = [parameter(name) for name in chosen]
        arguments = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        whole = inspect.Signature([*options, *arguments])
        call.__annotations__ = {p.name: p.annotation for p in whole.parameters.values()}
        call.__signature__ = whole  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorate


@contextmanager
def checkpoint_of(model: str | None, random: str | None, *, named: str, quiet: bool) -> Generator[str | None]:
    """The checkpoint's path, or that of one with random weights of the shape `random`, which exists inside.

    Args:
        named: what the command line calls the model, for the error.

    Raises:
        UsageError: both are given, or the shape is wrong.
    """
    if random is None:
        yield model
        return
    if model is not None:
        raise UsageError(f"--random makes its own checkpoint: it cannot be given together with {named}")
    from rwkvbatch.bench.measure import write_random

    with tempfile.TemporaryDirectory(prefix="rwkvbatch-random-") as folder:
        message(f"making a random checkpoint, {random}", quiet=quiet)
        yield str(write_random(random, Path(folder)))
