"""`rwkvbatch chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rwkvbatch.cli import options as shared
from rwkvbatch.cli.exits import ExitCode

CHAT_PANEL = "The session"

EPILOG = """[bold]Examples[/]

  rwkvbatch chat

  rwkvbatch chat --model rwkv7-1.5b --temp 0.7 --think on

  rwkvbatch chat --from runs/first:names-1:0

  printf 'hi\\n' | rwkvbatch chat

  printf 'hi\\n' | rwkvbatch chat --json --quiet"""


def chat_command(
    model: shared.ModelOption = None,
    strategy: shared.StrategyOption = None,
    backend: shared.BackendOption = None,
    state: shared.StateOption = None,
    threads: shared.ThreadsOption = None,
    state_memory: shared.StateMemoryOption = None,
    preset: shared.PresetOption = None,
    temp: shared.TempOption = None,
    top_p: shared.TopPOption = None,
    top_k: shared.TopKOption = None,
    presence: shared.PresenceOption = None,
    frequency: shared.FrequencyOption = None,
    decay: shared.DecayOption = None,
    order: shared.OrderOption = None,
    ban: shared.BanOption = None,
    seed: shared.SeedOption = None,
    max_tokens: shared.MaxTokensOption = None,
    max_seconds: shared.MaxSecondsOption = None,
    stop: shared.StopOption = None,
    think: shared.ThinkOption = None,
    template: shared.TemplateOption = None,
    prelude: Annotated[
        str | None,
        typer.Option(
            "--prelude",
            metavar="NAME|FILE|none",
            rich_help_panel=shared.PROMPT_PANEL,
            help="Initial exchange. [dim]Default: api-demo-chat; none with --state and with the bundled model[/]",
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", rich_help_panel=shared.PROMPT_PANEL, help="System message."),
    ] = None,
    load: Annotated[
        Path | None,
        typer.Option(
            "--load",
            metavar="FILE",
            rich_help_panel=CHAT_PANEL,
            help="Go on with a saved session, or with the transcript of one that broke off.",
        ),
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN:CONVERSATION:TURN",
            rich_help_panel=CHAT_PANEL,
            help="Open a point of a run and go on from there. Turns count from 0.",
        ),
    ] = None,
    cell: Annotated[
        str | None,
        typer.Option(
            "--cell",
            metavar="NAME",
            rich_help_panel=CHAT_PANEL,
            help="With --from: the run's cell, if not its first.",
        ),
    ] = None,
    repeat: Annotated[
        int,
        typer.Option("--repeat", metavar="N", min=0, rich_help_panel=CHAT_PANEL, help="With --from: the repeat."),
    ] = 0,
    transcript: Annotated[
        Path | None,
        typer.Option(
            "--transcript",
            metavar="FILE",
            rich_help_panel=CHAT_PANEL,
            help="Where everything is written as it happens. [dim]Default: in the user's state directory[/]",
        ),
    ] = None,
    no_transcript: Annotated[
        bool, typer.Option("--no-transcript", rich_help_panel=CHAT_PANEL, help="Write nothing.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            rich_help_panel=shared.OUTPUT_PANEL,
            help="Model text as it is, control characters included; not on a terminal.",
        ),
    ] = False,
    json_output: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=shared.OUTPUT_PANEL,
            help="One JSON object a reply on standard output; for messages from a pipe.",
        ),
    ] = False,
    config: shared.ConfigOption = None,
    quiet: shared.QuietOption = False,
) -> None:
    """Talk to a model.

    On a terminal with an input line, colours and slash commands ([bold]/help[/]); from a pipe each line is a message.
    """
    from rwkvbatch.chat.start import ChatArguments, run_chat

    given: dict[str, Any] = {
        "model": model, "strategy": strategy, "backend": backend, "state": state, "threads": threads,
        "state_memory": state_memory, "preset": preset, "temperature": temp, "top_p": top_p, "top_k": top_k,
        "presence_penalty": presence, "frequency_penalty": frequency, "penalty_decay": decay, "order": order,
        "banned_token_ids": shared.split_ids(ban),
        "seed": seed, "max_tokens": max_tokens, "max_seconds": max_seconds, "stop": stop or None,
        "think": think, "template": template,
    }  # fmt: skip
    arguments = ChatArguments(
        values={key: value for key, value in given.items() if value is not None},
        prelude=prelude,
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
