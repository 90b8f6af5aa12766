"""The table of commands, each of which is imported when it is called, and the function that runs a command line."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import warnings
from collections.abc import Generator, Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from rwkvbatch import __version__
from rwkvbatch.cli.exits import ExitCode, debugging, message, report
from rwkvbatch.prompt.escaping import output_as_log

COMMANDS: Mapping[str, str] = {
    "run": "Replay scripted conversations, turn by turn, many at once.",
    "score": "Measure perplexity, bits per byte and accuracy on texts.",
    "script": "Make scripts from benchmarks and other programs, and scripts that test recall in long contexts.",
    "lm-eval": "Run lm-evaluation-harness on a model, batched.",
    "plan": "Say how many conversations and repetitions it takes to find a difference.",
    "merge": "Merge the parts of a run.",
    "chat": "Talk to a model.",
    "serve": "Serve a model over HTTP with OpenAI's interface.",
    "check": "Judge the replies of a run again, without generating any.",
    "compare": "Compare runs or cells: one verdict per variant, with the uncertainty of its difference.",
    "show": "Print the conversations of a run, or the settings of one of its cells.",
    "bench": "Measure decoding, prefill, sampling, tokenizing, loading, and the machine's own limits.",
    "certify": "Say whether a served model is the network in a file: the same, rounded (how much), or damaged.",
    "model": "Make, describe and convert checkpoints, and verify that they run right on this machine.",
}
"""By name, the summary of each command. Its module in this package has the same name, with `_` for `-`."""


def load_command(name: str) -> Any:
    """Import a command, or a group of commands, with its options."""
    return get_command(importlib.import_module(f"rwkvbatch.cli.{name.replace('-', '_')}").app)


class _CommandGroup(TyperGroup):
    """Lists the commands without importing them; imports the one that is called."""

    def __init__(self, **options: Any) -> None:
        options["commands"] = {
            name: TyperCommand(name, help=summary, rich_markup_mode="rich") for name, summary in COMMANDS.items()
        }
        super().__init__(**options)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, placeholder, command_args = super().resolve_command(ctx, args)
        command = placeholder if name is None or placeholder is None else load_command(name)
        return name, command, command_args


app = typer.Typer(
    name="rwkvbatch",
    cls=_CommandGroup,
    help="Replay scripted multi-turn conversations against RWKV models, many at once, and report what changed.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"rwkvbatch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version


@contextlib.contextmanager
def _usable_width() -> Generator[None]:
    """Set `COLUMNS` to 80, for rich and typer, if neither it nor the terminal has a usable number of columns."""
    variable = os.environ.get("COLUMNS")
    if variable is None:
        columns = shutil.get_terminal_size((80, 24)).columns
    else:
        columns = int(variable) if variable.isdecimal() else 0
    if 1 < columns < 10**6:
        yield
        return
    os.environ["COLUMNS"] = "80"
    try:
        yield
    finally:
        if variable is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = variable


@contextlib.contextmanager
def _warnings_as_messages() -> Generator[None]:
    """Print each warning of the library as one line on standard error, without the source line that Python adds."""

    def print_warning(text: Warning | str, *_: object, **__: object) -> None:
        message(f"warning: {text}")

    with warnings.catch_warnings():
        warnings.showwarning = print_warning
        yield


def _is_log(arguments: Sequence[str]) -> bool:
    """Whether the output may be part of a log. The replies of a chat in a pipe are data for another program."""
    return arguments[:1] != ["chat"] and not (sys.stdout.isatty() and sys.stderr.isatty())


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line. Returns its exit code; reports every error as one message on standard error."""
    debug = debugging()
    try:
        # In Typer's standalone mode: it prints its own usage errors (exit code 2) and raises SystemExit.
        with output_as_log(_is_log(arguments)), _usable_width(), _warnings_as_messages():
            app(args=list(arguments), prog_name="rwkvbatch")
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # Typer's exit code 1 would mean a failed check
            return ExitCode.UNREAD
        if isinstance(getattr(leaving.__context__, "__cause__", None), KeyboardInterrupt):  # Typer exits silently
            return report(KeyboardInterrupt(), debug=debug)
        return leaving.code if isinstance(leaving.code, int) else ExitCode.DONE
    except BaseException as error:
        return report(error, debug=debug)
    return ExitCode.DONE
