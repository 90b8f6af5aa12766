"""`rwkvbatch run`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.exits import ExitCode, debugging, message, print_json, report
from rwkvbatch.cli.options import (
    CHECK_MODULE_HELP,
    OUTPUT_PANEL,
    ConfigOption,
    JsonOption,
    QuietOption,
    RunOutOption,
    VerboseOption,
    option,
    with_settings,
)
from rwkvbatch.errors import RunLockedError, RunMismatchError, RunReplacedError, UsageError
from rwkvbatch.signals import leaving_at_once

if TYPE_CHECKING:
    from rwkvbatch.replay.progress import Observer, Progress
    from rwkvbatch.replay.runner import RunResult

SCRIPT_PANEL, RUN_PANEL = "What is replayed", "The run"

RepairOption = Annotated[bool, option("--repair", "Set damaged rows aside and run them again.", panel=RUN_PANEL)]

app = command_app()


@app.command(
    "run",
    cls=Command,
    epilog=examples(
        "rwkvbatch run datasets/demo.jsonl",
        "rwkvbatch run chats.jsonl --model rwkv7-g1k-1.5b --temp 0.3,0.7,1.0 --repeats 5 --out runs/temps",
        "rwkvbatch run chats.jsonl --devices cuda:0,cuda:1 --out runs/big",
        "rwkvbatch run a.jsonl b.jsonl --only memory --dry-run",
    ),
)
@with_settings()
def run_command(
    scripts: Annotated[
        list[str], typer.Argument(metavar="SCRIPT", help="Conversations, JSON lines; - is standard input.")
    ],
    skip_bad: Annotated[
        bool,
        option("--skip-bad", "Skip invalid lines, and copy them to a file of the run directory.", panel=SCRIPT_PANEL),
    ] = False,
    shard: Annotated[
        str | None, option("--shard", "Run only part I of N, for rwkvbatch merge.", "I/N", RUN_PANEL)
    ] = None,
    check_module: Annotated[Path | None, option("--check-module", CHECK_MODULE_HELP, "FILE", SCRIPT_PANEL)] = None,
    grid: Annotated[Path | None, option("--grid", "TOML file with a grid of settings.", "FILE", RUN_PANEL)] = None,
    retry_errors: Annotated[bool, option("--retry-errors", "Run failed rows again.", panel=RUN_PANEL)] = False,
    repair: RepairOption = False,
    verify_batch: Annotated[
        int | None,
        option(
            "--verify-batch",
            "Afterwards replay N rows alone and shuffled, and record whether they are the same.",
            "N",
            RUN_PANEL,
            min=1,
        ),
    ] = None,
    dry_run: Annotated[bool, option("--dry-run", "Print the plan; generate nothing.", panel=RUN_PANEL)] = False,
    out: RunOutOption = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    log_file: Annotated[Path | None, option("--log-file", "Write a log of JSON lines.", "FILE", OUTPUT_PANEL)] = None,
    metrics: Annotated[
        int | None,
        option("--metrics", "Serve metrics for Prometheus on 127.0.0.1; 0 is any free port.", "PORT", OUTPUT_PANEL),
    ] = None,
    **settings: Any,
) -> None:
    """Replay scripted conversations, turn by turn, many at once.

    A comma list makes a grid: [bold]--temp 0.3,0.7 --top-p 0.3,0.8[/] is four cells.

    The same command with its [bold]--out[/] continues a run that was interrupted. The exit code is 1 when a check or a
    row failed.
    """
    from rwkvbatch.replay.logs import logging_to

    settings |= {"grid": grid, "config": config, "environment": os.environ, "skip_bad": skip_bad, "shard": shard}
    settings |= {"checks": check_module}
    with leaving_at_once(), logging_to(log_file, verbose=verbose, quiet=quiet):
        if dry_run:
            from rwkvbatch.cli.views import show_plan
            from rwkvbatch.replay.prepare import prepare

            show_plan(prepare(scripts, **settings), as_json=json_output)
            return
        settings |= {"retry_errors": retry_errors, "repair": repair}
        settings |= {"verify_rows": verify_batch or 0, "metrics_port": metrics}
        result = run_with_progress(scripts, settings, out, quiet=quiet)
    show_result(result, json_output=json_output, quiet=quiet)


def show_result(result: RunResult, *, json_output: bool, quiet: bool) -> None:
    """Print the summary; raise `typer.Exit` with code 1 if a row failed or a check did not pass."""
    from rwkvbatch.cli.summaries import show_summary, until_ci_record

    if not quiet:
        show_summary(result)
    if json_output:
        about = {"directory": str(result.directory), "verify": result.verified, "until_ci": until_ci_record(result)}
        reuse = None if result.reuse is None else vars(result.reuse)
        race = None if result.race is None else result.race.as_dict()
        print_json({**result.summary.as_dict(), **about, "race": race, "reuse": reuse})
    if not result.summary.passed:
        raise typer.Exit(ExitCode.FAILED)


def _report_unfinished(error: BaseException, progress: Progress, command: str) -> int:
    """Report the error that ended a run, and how `command` continues it if it can. Returns the exit code."""
    code = report(error, debug=debugging())
    done, total = progress.rows_done, progress.rows_total
    if done < total:
        to_continue = "" if isinstance(error, (RunReplacedError, UsageError)) else f". To continue: {command}"
        message(f"unfinished: {done:,} of {total:,} rows are safe{to_continue}")
    else:
        message("no row is missing")
    # A usage error (such as too little memory for states) would end every run of the same command.
    return code if isinstance(error, UsageError) else ExitCode.UNFINISHED


def run_with_progress(scripts: list[str], options: dict[str, Any], out: Path | None, *, quiet: bool) -> RunResult:
    """Call `rwkvbatch.run` with progress on standard error, until it ends or a signal stops it.

    Raises:
        typer.Exit: a signal stopped the run, or an error ended it after it had started; the user was told.
    """
    import warnings

    from rich.console import Console

    from rwkvbatch.prompt.escaping import printable
    from rwkvbatch.replay.api import run
    from rwkvbatch.replay.logs import command_line, with_directory
    from rwkvbatch.replay.planning.row_index import Shard
    from rwkvbatch.replay.progress import BarObserver, LatestProgress, LineObserver
    from rwkvbatch.results.directory import default_directory
    from rwkvbatch.signals import StoppedEarly, Terminated, stop_on_signals

    console = Console(stderr=True)

    def notify(text: str) -> None:
        if not quiet:
            console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def notify_warning(text: Warning | str, *_: object, **__: object) -> None:
        notify(f"note: {text}")

    part = "" if options["shard"] is None else str(Shard.parse(options["shard"]))
    directory = default_directory(scripts, part=part) if out is None else out
    display: Observer | None = None
    if not quiet:
        display = BarObserver(console) if console.is_terminal else LineObserver(notify)
    latest = LatestProgress(display)
    same_command = with_directory(["rwkvbatch", *sys.argv[1:]], directory) if out is None else command_line()
    result: RunResult | None = None
    with warnings.catch_warnings(), stop_on_signals(notify) as stop:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # about files that a signal left open
        warnings.showwarning = notify_warning
        try:
            result = run(
                scripts,
                **options,
                out=directory,
                command=command_line(),
                observer=latest,
                notify=notify,
                should_stop=stop,
                loading=stop.interruptible,
            )
        except StoppedEarly:
            notify("interrupted while loading: nothing was written; run the same command again")
            raise typer.Exit(128 + stop.signal_number) from None
        except (KeyboardInterrupt, Terminated):
            raise
        except (RunLockedError, RunMismatchError):
            if out is not None or "-" in scripts:  # standard input can be read only once
                raise
        except BaseException as error:
            if latest.progress is None:  # nothing was written
                raise
            raise typer.Exit(_report_unfinished(error, latest.progress, same_command)) from None
    if result is None:  # another process made a run of the default name in the same second
        return run_with_progress(scripts, options, out, quiet=quiet)
    if result.interrupted:
        done, total = result.progress.rows_done, result.progress.rows_total
        notify(f"interrupted; {done:,} of {total:,} rows are safe. To continue:")
        notify(f"  {same_command}")
        if "-" in scripts:
            notify("  with the same standard input")
        raise typer.Exit(128 + stop.signal_number)
    return result
