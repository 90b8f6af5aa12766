"""The program's commands, put together; and the boundary at which errors end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from rwkvbatch import __version__
from rwkvbatch.cli.bench import BENCH_EPILOG, bench_command
from rwkvbatch.cli.chat import EPILOG as CHAT_EPILOG
from rwkvbatch.cli.chat import chat_command
from rwkvbatch.cli.compare import EPILOG as COMPARE_EPILOG
from rwkvbatch.cli.compare import compare_command
from rwkvbatch.cli.exits import ExitCode, report
from rwkvbatch.cli.merge import EPILOG as MERGE_EPILOG
from rwkvbatch.cli.merge import merge_command
from rwkvbatch.cli.model import model_app
from rwkvbatch.cli.options import Command
from rwkvbatch.cli.run import EPILOG as RUN_EPILOG
from rwkvbatch.cli.run import run_command
from rwkvbatch.cli.show import EPILOG as SHOW_EPILOG
from rwkvbatch.cli.show import show_command

app = typer.Typer(
    name="rwkvbatch",
    help="Replay scripted multi-turn conversations against RWKV models, many at once, and say what changed.",
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
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave."),
    ] = False,
) -> None:
    del version


app.add_typer(model_app)
app.command("run", cls=Command, epilog=RUN_EPILOG)(run_command)
app.command("merge", cls=Command, epilog=MERGE_EPILOG)(merge_command)
app.command("chat", cls=Command, epilog=CHAT_EPILOG)(chat_command)
app.command("compare", cls=Command, epilog=COMPARE_EPILOG)(compare_command)
app.command("show", cls=Command, epilog=SHOW_EPILOG)(show_command)
app.command("bench", cls=Command, epilog=BENCH_EPILOG)(bench_command)


def invoke(arguments: Sequence[str]) -> int:
    """Run one command line; every error ends here as one message on standard error and an exit code."""
    debug = os.environ.get("RWKVBATCH_DEBUG", "") not in ("", "0")
    try:
        # Standalone: Typer prints its own usage errors (exit code 2) and ends in SystemExit; the rest comes here.
        app(args=list(arguments), prog_name="rwkvbatch")
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # Typer ends in 1, which is a failed check here
            return ExitCode.UNREAD
        if _is_interrupt(leaving.__context__):
            return report(KeyboardInterrupt(), debug=debug)
        return leaving.code if isinstance(leaving.code, int) else ExitCode.DONE
    except BaseException as error:
        return report(error, debug=debug)
    return ExitCode.DONE


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it is the exit without a word that Typer makes of Ctrl-C."""
    return error is not None and isinstance(error.__cause__, KeyboardInterrupt)
