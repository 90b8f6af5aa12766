"""`rwkvbatch run`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rwkvbatch.cli import options as own
from rwkvbatch.cli import options as shared
from rwkvbatch.cli.exits import ExitCode, report
from rwkvbatch.signals import leaving_at_once

if TYPE_CHECKING:
    from rwkvbatch.replay.prepare import Prepared
    from rwkvbatch.replay.runner import RunResult

EPILOG = """[bold]Examples[/]

  rwkvbatch run datasets/demo.jsonl

  rwkvbatch run chats.jsonl --model rwkv7-1.5b --temp 0.3,0.7,1.0 --repeats 5 --out runs/temps

  rwkvbatch run chats.jsonl --devices cuda:0,cuda:1 --out runs/big

  rwkvbatch run a.jsonl b.jsonl --only memory --dry-run"""


def run_command(
    scripts: own.ScriptsArgument,
    model: shared.ModelOption = None,
    strategy: shared.StrategyOption = None,
    backend: shared.BackendOption = None,
    state: shared.StateOption = None,
    threads: shared.ThreadsOption = None,
    state_memory: shared.StateMemoryOption = None,
    batch_size: own.BatchSizeOption = None,
    workers: own.WorkersOption = None,
    devices: own.DevicesOption = None,
    ray: own.RayOption = None,
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
    history: own.HistoryOption = None,
    max_prompt_tokens: shared.MaxPromptTokensOption = None,
    only: own.OnlyOption = None,
    limit: own.LimitOption = None,
    shuffle_seed: own.ShuffleSeedOption = None,
    skip_bad: own.SkipBadOption = False,
    repeats: own.RepeatsOption = None,
    shard: own.ShardOption = None,
    until_ci: own.UntilCiOption = None,
    grid: own.GridOption = None,
    max_failures: own.MaxFailuresOption = None,
    retry_errors: own.RetryErrorsOption = False,
    repair: own.RepairOption = False,
    verify_batch: own.VerifyBatchOption = None,
    dry_run: own.DryRunOption = False,
    out: own.OutOption = None,
    config: shared.ConfigOption = None,
    json_output: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
    verbose: shared.VerboseOption = False,
    log_file: shared.LogFileOption = None,
    metrics: own.MetricsOption = None,
) -> None:
    """Replay scripted conversations, turn by turn, many at once.

    A comma list makes a grid: [bold]--temp 0.3,0.7 --top-p 0.3,0.8[/] is four cells.

    A run that was interrupted goes on when the same command is given with its [bold]--out[/].
    """
    from rwkvbatch.replay.api import LISTED
    from rwkvbatch.replay.logs import logging_to
    from rwkvbatch.replay.prepare import RunArguments, prepare, split_lists

    given: dict[str, Any] = {
        "model": model, "strategy": strategy, "backend": backend, "state": state, "threads": threads,
        "state_memory": state_memory, "batch_size": batch_size, "workers": workers,
        "devices": None if devices is None else devices.split(","), "ray": ray, "preset": preset, "temperature": temp,
        "top_p": top_p, "top_k": top_k, "presence_penalty": presence, "frequency_penalty": frequency,
        "penalty_decay": decay,
        "order": order, "banned_token_ids": shared.split_ids(ban), "seed": seed, "max_tokens": max_tokens,
        "max_seconds": max_seconds,
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
    with leaving_at_once(), logging_to(log_file, verbose=verbose, quiet=quiet):
        prepared = prepare(arguments)
        if dry_run:
            from rwkvbatch.cli.views import show_plan

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

    from rwkvbatch.prompt.escaping import printable
    from rwkvbatch.replay.driver import TooManyFailuresError
    from rwkvbatch.replay.logs import command_line, with_directory
    from rwkvbatch.replay.metrics_server import serving_metrics
    from rwkvbatch.replay.models import ModelLoader
    from rwkvbatch.replay.pool import pool_for
    from rwkvbatch.replay.progress import BarObserver, LineObserver, Observer, Observers
    from rwkvbatch.replay.runner import RunOptions, execute
    from rwkvbatch.replay.settings import told_with_errors
    from rwkvbatch.results.directory import SKIPPED_NAME, default_directory
    from rwkvbatch.signals import StoppedEarly, stop_on_signals

    console = Console(stderr=True)

    def say(message: str) -> None:
        if not quiet:
            console.print(printable(message), markup=False, highlight=False, soft_wrap=True)

    def note(message: Warning | str, *_: object, **__: object) -> None:
        say(f"note: {message}")

    shard = prepared.plan.shard
    directory = out if out is not None else default_directory(scripts, part="" if shard is None else str(shard))
    shop = ModelLoader(prepared.plan.settings, say=say)
    observers: list[Observer] = []
    if not quiet:
        observers.append(BarObserver(console) if console.is_terminal else LineObserver(say))
    with ExitStack() as open_things:
        if metrics is not None:
            served = open_things.enter_context(serving_metrics(metrics))
            say(f"figures for Prometheus are at {served.url}")
            observers.append(served)
        open_things.enter_context(told_with_errors(prepared.plan.origins))
        open_things.enter_context(warnings.catch_warnings())
        stop = open_things.enter_context(stop_on_signals(say))
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # of files that a signal left open
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
            loading=stop.interruptible,
            crew=pool_for(prepared.plan.settings),
        )
        try:
            result = execute(prepared.plan, shop, options)
        except TooManyFailuresError as error:
            report(error, debug=False)
            raise typer.Exit(ExitCode.FAILED) from None
        except StoppedEarly:
            say("interrupted while loading: nothing was begun. The same command begins")
            raise typer.Exit(128 + stop.signal_number) from None
    if prepared.script.skipped:
        count = len(prepared.script.skipped)
        say(f"{count} bad line{'s' if count > 1 else ''} set aside in {directory / SKIPPED_NAME}")
    if result.interrupted:
        say(f"interrupted; {result.progress.rows_done:,} of {result.progress.rows_total:,} rows are safe. To go on:")
        say(f"  {with_directory(['rwkvbatch', *sys.argv[1:]], directory) if out is None else command_line()}")
        if "-" in scripts:
            say("  with the same standard input")
        raise typer.Exit(128 + stop.signal_number)
    return result


def _end(result: RunResult, *, as_json: bool, quiet: bool) -> None:
    import json

    from rwkvbatch.cli.views import show_summary, until_ci_record

    if not quiet:
        show_summary(result)
    if as_json:
        content = {
            **result.summary.as_dict(),
            "directory": str(result.directory),
            "verify": result.verified,
            "until_ci": until_ci_record(result),
        }
        typer.echo(json.dumps(content, indent=2))
    if not result.summary.passed:
        raise typer.Exit(ExitCode.FAILED)
