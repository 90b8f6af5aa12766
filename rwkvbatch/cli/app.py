"""The commands of the program, each loaded when it is called; and the boundary at which errors end."""

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
    "script": "Make scripts from the files of published benchmarks.",
    "lm-eval": "Run lm-evaluation-harness on a model, batched.",
    "plan": "Say how many conversations and repetitions it takes to find a difference.",
    "merge": "Merge the parts of a run.",
    "chat": "Talk to a model.",
    "serve": "Serve a model over HTTP with OpenAI's interface.",
    "check": "Judge the replies of a run again, without generating any.",
    "compare": "Compare runs or cells: one verdict per variant, with the uncertainty of its difference.",
    "show": "Print the conversations of a run.",
    "bench": "Measure decoding, prefill, sampling, tokenizing, loading, and the machine's own limits.",
    "certify": "Say whether a served model is the network in a file: the same, rounded (how much), or damaged.",
    "model": "Make, describe and convert checkpoints, and verify that they run right on this machine.",
}
"""What each command does. Its module here has its name, with `_` for `-`, and is imported when it is called."""


def load_command(name: str) -> Any:
    """The command with its options, or the group of commands."""
    return get_command(importlib.import_module(f"rwkvbatch.cli.{name.replace('-', '_')}").app)


class _CommandGroup(TyperGroup):
    """Lists the commands without importing them."""

    def __init__(self, **options: Any) -> None:
        listed = {name: TyperCommand(name, help=summary, rich_markup_mode="rich") for name, summary in COMMANDS.items()}
        options["commands"] = listed
        super().__init__(**options)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed if name is None or listed is None else load_command(name), rest


app = typer.Typer(
    name="rwkvbatch",
    cls=_CommandGroup,
    help="Replay scripted multi-turn conversations against RWKV models, many at once, and report what changed.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(wanted: bool) -> None:
    if wanted:
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
    """80 columns where the terminal or `COLUMNS` has no usable number, for all that format text (rich, typer)."""
    given = os.environ.get("COLUMNS")
    columns = shutil.get_terminal_size((80, 24)).columns if given is None else int(given) if given.isdecimal() else 0
    if 1 < columns < 10**6:
        yield
        return
    os.environ["COLUMNS"] = "80"
    try:
        yield
    finally:
        if given is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = given


@contextlib.contextmanager
def _warnings_as_messages() -> Generator[None]:
    """Each warning of the library as one line on standard error, without the source line that Python adds."""

    def show(text: Warning | str, *_: object, **__: object) -> None:
        message(f"warning: {text}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _is_log(arguments: Sequence[str]) -> bool:
    """Whether the output may get into a log. The replies of a chat in a pipe are data for another program."""
    return arguments[:1] != ["chat"] and not (sys.stdout.isatty() and sys.stderr.isatty())


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line; every error ends here as one message on standard error and an exit code."""
    debug = debugging()
    try:
        # Standalone: Typer prints its own usage errors (exit code 2) and ends in SystemExit; the rest comes here.
        with output_as_log(_is_log(arguments)), _usable_width(), _warnings_as_messages():
            app(args=list(arguments), prog_name="rwkvbatch")
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # Typer exits with 1, which means a failed check here
            return ExitCode.UNREAD
        if isinstance(getattr(leaving.__context__, "__cause__", None), KeyboardInterrupt):  # Typer's silent exit
            return report(KeyboardInterrupt(), debug=debug)
        return leaving.code if isinstance(leaving.code, int) else ExitCode.DONE
    except BaseException as error:
        return report(error, debug=debug)
    return ExitCode.DONE
