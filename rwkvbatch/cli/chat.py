"""`rwkvbatch chat`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.cli.options import OUTPUT_PANEL, ConfigOption, QuietOption, option, with_settings
from rwkvbatch.config import DialoguePrompt, Sampling, Stopping

PANEL = "The session"

app = command_app()


@app.command(
    "chat",
    cls=Command,
    epilog=examples(
        "rwkvbatch chat",
        "rwkvbatch chat --model rwkv7-g1k-1.5b --temp 0.7 --think on",
        "rwkvbatch chat --from runs/first:names-1:0",
        "rwkvbatch chat --endpoint http://127.0.0.1:8080/v1",
        "printf 'hi\\n' | rwkvbatch chat",
        "printf 'hi\\n' | rwkvbatch chat --json --quiet",
    ),
)
@with_settings(
    *("model", "adapter", "strategy", "backend", "state", "threads", "state_memory", "vocab"),
    *("endpoint", "endpoint_model", "endpoint_api", "endpoint_body", "endpoint_timeout", "endpoint_retries"),
    *("preset", *Sampling.model_fields, "seed", *Stopping.model_fields),
    *(*DialoguePrompt.model_fields, "template", "prelude", "system", "system_file"),
    system="System message.",
    prelude="Initial exchange: a file, api-demo-chat, or none. "
    "[dim]Default: api-demo-chat; none with --state and with the bundled model[/]",
)
def chat_command(
    load: Annotated[
        Path | None,
        option("--load", "Continue a saved session, or the transcript of one that was cut off.", "FILE", PANEL),
    ] = None,
    from_run: Annotated[
        str | None,
        option("--from", "Continue a run's conversation after a turn, counted from 0.", "RUN:CONVERSATION:TURN", PANEL),
    ] = None,
    cell: Annotated[
        str | None, option("--cell", "With --from: the run's cell, if not its first.", "NAME", PANEL)
    ] = None,
    repeat: Annotated[int, option("--repeat", "With --from: the repeat.", "N", PANEL, min=0)] = 0,
    transcript: Annotated[
        Path | None,
        option(
            "--transcript",
            "Record of everything, written as it happens. [dim]Default: in the user's state directory[/]",
            "FILE",
            PANEL,
        ),
    ] = None,
    no_transcript: Annotated[bool, option("--no-transcript", "Write no transcript.", panel=PANEL)] = False,
    raw: Annotated[
        bool, option("--raw", "Model text with its 7-bit control characters; not on a terminal.", panel=OUTPUT_PANEL)
    ] = False,
    json_output: Annotated[
        bool,
        option("--json", "One JSON object a reply on standard output; for messages from a pipe.", panel=OUTPUT_PANEL),
    ] = False,
    config: ConfigOption = None,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Talk to a model.

    On a terminal with an input line, colours and slash commands ([bold]/help[/]); from a pipe each line is a message.
    """
    from rwkvbatch.config.sources import resolve_settings

    resolved = resolve_settings(settings, environment=os.environ, config=config)
    from rwkvbatch.chat.start import ChatArguments, run_chat

    arguments = ChatArguments(
        values=settings,
        transcript=transcript,
        no_transcript=no_transcript,
        load=load,
        from_run=from_run,
        cell=cell,
        repeat=repeat,
        resolved=resolved,
        raw=raw,
        json=json_output,
        quiet=quiet,
    )
    if not run_chat(arguments):
        raise typer.Exit(ExitCode.FAILED)
