"""`rwkvbatch chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.cli.options import OUTPUT_PANEL, ConfigOption, QuietOption, command_app, with_settings
from rwkvbatch.config import Sampling, Stopping

PANEL = "The session"

EPILOG = """[bold]Examples[/]

  rwkvbatch chat

  rwkvbatch chat --model rwkv7-1.5b --temp 0.7 --think on

  rwkvbatch chat --from runs/first:names-1:0

  printf 'hi\\n' | rwkvbatch chat

  printf 'hi\\n' | rwkvbatch chat --json --quiet"""

app = command_app()


@app.command("chat", epilog=EPILOG)
@with_settings(
    *("model", "strategy", "backend", "state", "threads", "state_memory"),
    *("preset", *Sampling.model_fields, "seed", *Stopping.model_fields, "think", "template", "prelude"),
    prelude="Initial exchange: a file, api-demo-chat, or none. "
    "[dim]Default: api-demo-chat; none with --state and with the bundled model[/]",
)
def chat_command(
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", rich_help_panel="Prompt", help="System message."),
    ] = None,
    load: Annotated[
        Path | None,
        typer.Option(
            "--load",
            metavar="FILE",
            rich_help_panel=PANEL,
            help="Continue a saved session, or the transcript of one that was cut off.",
        ),
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN:CONVERSATION:TURN",
            rich_help_panel=PANEL,
            help="Continue a conversation of a run after this turn. Turns count from 0.",
        ),
    ] = None,
    cell: Annotated[
        str | None,
        typer.Option(
            "--cell", metavar="NAME", rich_help_panel=PANEL, help="With --from: the run's cell, if not its first."
        ),
    ] = None,
    repeat: Annotated[
        int,
        typer.Option("--repeat", metavar="N", min=0, rich_help_panel=PANEL, help="With --from: the repeat."),
    ] = 0,
    transcript: Annotated[
        Path | None,
        typer.Option(
            "--transcript",
            metavar="FILE",
            rich_help_panel=PANEL,
            help="Record of everything, written as it happens. [dim]Default: in the user's state directory[/]",
        ),
    ] = None,
    no_transcript: Annotated[
        bool, typer.Option("--no-transcript", rich_help_panel=PANEL, help="Write no transcript.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            rich_help_panel=OUTPUT_PANEL,
            help="Model text as it is, control characters included; not on a terminal.",
        ),
    ] = False,
    json_output: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=OUTPUT_PANEL,
            help="One JSON object a reply on standard output; for messages from a pipe.",
        ),
    ] = False,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Talk to a model.

    On a terminal with an input line, colours and slash commands ([bold]/help[/]); from a pipe each line is a message.
    """
    from rwkvbatch.chat.start import ChatArguments, run_chat

    arguments = ChatArguments(
        values=settings,
        system=system,
        transcript=transcript,
        no_transcript=no_transcript,
        load=load,
        from_run=from_run,
        cell=cell,
        repeat=repeat,
        config=config,
        raw=raw,
        json=json_output,
        quiet=quiet,
    )
    if not run_chat(arguments):
        raise typer.Exit(ExitCode.FAILED)
