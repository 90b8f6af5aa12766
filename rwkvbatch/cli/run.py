"""`rwkvbatch run`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkvbatch.cli import options as shared
from rwkvbatch.cli.exits import ExitCode, report

if TYPE_CHECKING:
    from rwkvbatch.run.execute import RunResult
    from rwkvbatch.run.prepare import Prepared

SCRIPT_PANEL = "What is replayed"
RUN_PANEL = "The run"

EPILOG = """[bold]Examples[/]

  rwkvbatch run datasets/demo.jsonl

  rwkvbatch run chats.jsonl --model rwkv7-1.5b --temp 0.3,0.7,1.0 --repeats 5 --out runs/temps

  rwkvbatch run chats.jsonl --devices cuda:0,cuda:1 --out runs/big

  rwkvbatch run a.jsonl b.jsonl --only memory --dry-run"""


def run_command(
    scripts: Annotated[
        list[str], typer.Argument(metavar="SCRIPT", help="Conversations, JSON lines; - is standard input.")
    ],
    model: shared.ModelOption = None,
    strategy: shared.StrategyOption = None,
    backend: shared.BackendOption = None,
    state: shared.StateOption = None,
    threads: shared.ThreadsOption = None,
    state_memory: shared.StateMemoryOption = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            "-b",
            metavar="N",
            rich_help_panel=shared.MODEL_PANEL,
            help="Replies generated at the same time. Changes no reply. [dim]Default: 32[/]",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            rich_help_panel=shared.MODEL_PANEL,
            help="Worker processes, which share the weights' memory. Changes no reply on CPUs.",
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="LIST",
            rich_help_panel=shared.MODEL_PANEL,
            help="Devices of the workers, such as cuda:0,cuda:1.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            rich_help_panel=shared.MODEL_PANEL,
            help="Workers as actors of a Ray cluster: local, auto, or HOST:PORT.",
        ),
    ] = None,
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
    prelude: shared.PreludeOption = None,
    history: Annotated[
        str | None,
        typer.Option(
            "--history",
            metavar="MODE",
            rich_help_panel=shared.PROMPT_PANEL,
            help="What later turns see: own replies, or the script's (gold).",
        ),
    ] = None,
    max_prompt_tokens: shared.MaxPromptTokensOption = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="ID|TAG", rich_help_panel=SCRIPT_PANEL, help="Only these; may be repeated."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", rich_help_panel=SCRIPT_PANEL, help="At most N conversations."),
    ] = None,
    shuffle_seed: Annotated[
        int | None,
        typer.Option(
            "--shuffle-seed", metavar="N", rich_help_panel=SCRIPT_PANEL, help="Another order, before --limit."
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            rich_help_panel=SCRIPT_PANEL,
            help="Set bad lines aside in a file of the run directory.",
        ),
    ] = False,
    repeats: Annotated[
        str | None,
        typer.Option(
            "--repeats",
            "-r",
            metavar="N|N..M",
            rich_help_panel=RUN_PANEL,
            help="Replay each conversation so often; N..M with --until-ci.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            rich_help_panel=RUN_PANEL,
            help="Run only part I of N, for rwkvbatch merge.",
        ),
    ] = None,
    until_ci: Annotated[
        float | None,
        typer.Option(
            "--until-ci",
            metavar="WIDTH",
            rich_help_panel=RUN_PANEL,
            help="Add repeats while a cell's interval against the first cell is wider.",
        ),
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(
            "--grid", metavar="FILE", rich_help_panel=RUN_PANEL, help="TOML file with a grid of settings."
        ),
    ] = None,
    max_failures: Annotated[
        int | None,
        typer.Option(
            "--max-failures",
            metavar="N",
            rich_help_panel=RUN_PANEL,
            help="Stop when more rows than this failed.",
        ),
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", rich_help_panel=RUN_PANEL, help="Run failed rows again.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", rich_help_panel=RUN_PANEL, help="Set damaged rows aside and run them again."
        ),
    ] = False,
    verify_batch: Annotated[
        int | None,
        typer.Option(
            "--verify-batch",
            metavar="N",
            rich_help_panel=RUN_PANEL,
            help="Afterwards replay N rows alone and shuffled, and record what held.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=RUN_PANEL, help="Show the plan; generate nothing.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            rich_help_panel=shared.OUTPUT_PANEL,
            help="Run directory, new or one to continue. [dim]Default: runs/SCRIPT-TIME[/]",
        ),
    ] = None,
    config: shared.ConfigOption = None,
    json_output: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
    verbose: shared.VerboseOption = False,
    log_file: shared.LogFileOption = None,
    metrics: Annotated[
        int | None,
        typer.Option(
            "--metrics",
            metavar="PORT",
            rich_help_panel=shared.OUTPUT_PANEL,
            help="Serve figures for Prometheus on 127.0.0.1; 0 is any free port.",
        ),
    ] = None,
) -> None:
    """Replay scripted conversations, turn by turn, many at once.

    A comma list makes a grid: [bold]--temp 0.3,0.7 --top-p 0.3,0.8[/] is four cells.

    A run that was interrupted goes on when the same command is given with its [bold]--out[/].
    """
    from rwkvbatch.run.api import LISTED
    from rwkvbatch.run.log import logging_to
    from rwkvbatch.run.prepare import RunArguments, prepare, split_lists

    given: dict[str, Any] = {
        "model": model, "strategy": strategy, "backend": backend, "state": state, "threads": threads,
        "state_memory": state_memory, "batch_size": batch_size, "workers": workers,
        "devices": devices.split(",") if devices else None, "ray": ray, "preset": preset, "temperature": temp,
        "top_p": top_p, "top_k": top_k, "presence": presence, "frequency": frequency, "decay": decay,
        "order": order, "ban": _ids(ban), "seed": seed, "max_tokens": max_tokens, "max_seconds": max_seconds,
        "stop": stop or None, "think": think, "template": template, "prelude": prelude, "history": history,
        "max_prompt_tokens": max_prompt_tokens, "only": only or None, "limit": limit,
        "shuffle_seed": shuffle_seed, "max_failures": max_failures, "until_ci": until_ci, **_repeats(repeats),
    }  # fmt: skip
    values, lists = split_lists({key: value for key, value in given.items() if value is not None}, LISTED)
    arguments = RunArguments(
        scripts=tuple(scripts),
        values=values,
        lists=lists,
        grid=grid,
        config=config,
        environment=os.environ,
        skip_bad=skip_bad,
        shard=shard,
    )
    with logging_to(log_file, verbose=verbose, quiet=quiet):
        prepared = prepare(arguments)
        if dry_run:
            from rwkvbatch.cli.plan_view import show_plan

            show_plan(prepared, as_json=json_output)
            return
        result = _run(
            prepared,
            arguments.scripts,
            out,
            retry_errors=retry_errors,
            repair=repair,
            verify=verify_batch,
            metrics=metrics,
            quiet=quiet,
        )
    _end(result, as_json=json_output, quiet=quiet)


def _ids(ban: Sequence[str] | None) -> list[str] | None:
    return [part.strip() for text in ban for part in text.split(",")] if ban else None


def _repeats(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    low, dots, high = text.partition("..")
    return {"repeats": low, "max_repeats": high} if dots else {"repeats": text}


def _run(
    prepared: Prepared,
    scripts: Sequence[str],
    out: Path | None,
    *,
    retry_errors: bool,
    repair: bool,
    verify: int | None,
    metrics: int | None,
    quiet: bool,
) -> RunResult:
    import warnings
    from contextlib import ExitStack

    from rich.console import Console

    from rwkvbatch.run.command_line import command_line, with_directory
    from rwkvbatch.run.directory import SKIPPED_NAME, default_directory
    from rwkvbatch.run.driver import TooManyFailuresError
    from rwkvbatch.run.execute import RunOptions, execute
    from rwkvbatch.run.metrics import serving_metrics
    from rwkvbatch.run.progress import LineObserver, Observer, Observers
    from rwkvbatch.run.progress_bar import BarObserver
    from rwkvbatch.run.setup import Workshop
    from rwkvbatch.run.stopping import stop_on_signals
    from rwkvbatch.run.workers.hiring import crew_for
    from rwkvbatch.text.safe import printable

    console = Console(stderr=True)

    def say(message: str) -> None:
        if not quiet:
            console.print(printable(message), markup=False, highlight=False, soft_wrap=True)

    def note(message: Warning | str, *_: object, **__: object) -> None:
        say(f"note: {message}")

    directory = out if out is not None else default_directory(scripts, shard=prepared.plan.shard)
    shop = Workshop(prepared.plan.settings, say=say)
    observers: list[Observer] = []
    if not quiet:
        observers.append(BarObserver(console) if console.is_terminal else LineObserver(say))
    with ExitStack() as open_things:
        if metrics is not None:
            served = open_things.enter_context(serving_metrics(metrics))
            say(f"figures for Prometheus are at {served.url}")
            observers.append(served)
        open_things.enter_context(warnings.catch_warnings())
        stop = open_things.enter_context(stop_on_signals(say))
        warnings.simplefilter("always")
        warnings.showwarning = note
        options = RunOptions(
            out=directory,
            scripts=tuple(scripts),
            command=command_line(),
            retry_errors=retry_errors,
            repair=repair,
            verify_rows=verify or 0,
            skipped=prepared.script.skipped,
            observer=Observers(observers),
            should_stop=stop,
            crew=crew_for(prepared.plan.settings),
        )
        try:
            result = execute(prepared.plan, shop, options)
        except TooManyFailuresError as error:
            report(error, debug=False)
            raise typer.Exit(ExitCode.FAILED) from None
    if prepared.script.skipped:
        count = len(prepared.script.skipped)
        say(f"{count} bad line{'s' if count > 1 else ''} set aside in {directory / SKIPPED_NAME}")
    if result.interrupted:
        say(
            f"interrupted; {result.progress.rows_done:,} of {result.progress.rows_total:,} rows are safe. To go on:"
        )
        say(f"  {with_directory(['rwkvbatch', *sys.argv[1:]], directory) if out is None else command_line()}")
        if "-" in scripts:
            say("  with the same standard input")
        raise typer.Exit(128 + stop.signal_number)
    return result


def _end(result: RunResult, *, as_json: bool, quiet: bool) -> None:
    import json

    from rwkvbatch.cli.run_view import show_summary

    if not quiet:
        show_summary(result)
    if as_json:
        content = {**result.summary.as_dict(), "directory": str(result.directory), "verify": result.verified}
        typer.echo(json.dumps(content, indent=2))
    if not result.summary.passed:
        raise typer.Exit(ExitCode.FAILED)
