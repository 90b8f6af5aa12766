"""`rwkvbatch check`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.exits import ExitCode, message, print_json
from rwkvbatch.cli.options import (
    JUDGE_HELP,
    JUDGE_PANEL,
    JUDGE_SETTINGS,
    CheckModuleOption,
    JsonOption,
    QuietOption,
    option,
    with_settings,
)
from rwkvbatch.errors import counted

app = command_app()


@app.command(
    "check",
    cls=Command,
    epilog=examples(
        "rwkvbatch check runs/demo",
        "rwkvbatch check runs/demo --script datasets/demo.jsonl",
        "rwkvbatch check runs/chats --judge rwkv7-g1i-2.9b",
        "RWKVBATCH_JUDGE_KEY=... rwkvbatch check runs/chats --judge-url https://HOST/v1 --judge-model NAME",
    ),
)
@with_settings(*JUDGE_SETTINGS, panel=JUDGE_PANEL, **JUDGE_HELP)
def check_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    script: Annotated[
        list[str] | None, option("--script", "Judge by the checks and tags of this script; may be repeated.", "FILE")
    ] = None,
    check_module: CheckModuleOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Judge the replies of a run again, without generating any.

    Without [bold]--script[/] the checks are those of the run, which is useful after an upgrade. Checks [bold]judge[/]
    keep their verdicts. With [bold]--judge[/] or [bold]--judge-url[/] a model gives verdicts that are missing, of
    changed checks, or of another judge. The old verdicts are kept until all new ones are written. The exit code is 1
    when a check fails.
    """
    from rwkvbatch.cli.views import progress_bars
    from rwkvbatch.config.sources import resolve_settings
    from rwkvbatch.judges.source import judge_source
    from rwkvbatch.replay.judging.recheck import recheck
    from rwkvbatch.replay.logs import command_line

    resolved = resolve_settings(settings, environment=os.environ)
    judge = judge_source(resolved.settings, given=resolved.named)
    with progress_bars(quiet=quiet) as bars:
        result = recheck(
            run,
            script or (),
            judge=judge,
            command=command_line(),
            asking=bars("asking the judge") if judge is not None else lambda done, total: None,
            progress=bars("judging"),
            limits=resolved.settings.script_limits,
            checks=check_module,
        )
    if json_output:
        print_json(result.as_dict())
    for note in result.notes:
        message(f"note: {note}", quiet=quiet)
    summary = result.summary
    if result.left_out:
        message(f"note: the run has no rows of {counted(result.left_out, 'conversation')} of the script", quiet=quiet)
    if result.unjudged:
        message(f"note: {counted(result.unjudged, 'row')} ended in an error; their checks count as failed", quiet=quiet)
    changes = [f"{result.now_pass:,} pass now and {result.now_fail:,} fail now"]
    if result.now_judged:
        changes.append(f"{result.now_judged:,} lacked a verdict and have it now")
    message(
        f"{run}: {result.judged:,} of {result.rows:,} rows judged again: {', '.join(changes)}; "
        f"{counted(result.changed, 'row')} with another verdict, check or tag",
        quiet=quiet,
    )
    if not json_output and not quiet:
        from rwkvbatch.cli.views import console

        missing = f"; no verdict: {summary.unjudged:,}" if summary.unjudged else ""
        console().print(f"checks passed: {summary.checks_passed:,} of {summary.checks:,}{missing}", highlight=False)
    if not summary.passed:
        raise typer.Exit(ExitCode.FAILED)
