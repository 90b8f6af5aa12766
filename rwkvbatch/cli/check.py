"""`rwkvbatch check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkvbatch.cli.exits import ExitCode, message, print_json
from rwkvbatch.cli.options import Command, JsonOption, QuietOption, command_app, examples, option

app = command_app()


@app.command(
    "check",
    cls=Command,
    epilog=examples("rwkvbatch check runs/demo", "rwkvbatch check runs/demo --script datasets/demo.jsonl"),
)
def check_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    script: Annotated[
        list[str] | None, option("--script", "Judge by the checks and tags of this script; may be repeated.", "FILE")
    ] = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Judge the replies of a run again, without a model.

    Without [bold]--script[/] by the checks that the run was made with, such as after an upgrade. The old verdicts are
    kept until all new ones are written. The exit code is 1 when a check fails.
    """
    from rwkvbatch.cli.views import progress_bar
    from rwkvbatch.replay.logs import command_line
    from rwkvbatch.replay.recheck import recheck

    with progress_bar("judging", quiet=quiet) as progress:
        result = recheck(run, script or (), command=command_line(), progress=progress)
    if json_output:
        print_json(result.as_dict())
    for note in result.notes:
        message(f"note: {note}", quiet=quiet)
    summary = result.summary
    if result.left_out:
        message(f"note: the run has no rows of {result.left_out:,} conversations of the script", quiet=quiet)
    if result.unjudged:
        message(f"note: {result.unjudged:,} rows ended in an error; their checks count as failed", quiet=quiet)
    message(
        f"{run}: {result.judged:,} of {result.rows:,} rows judged again, {result.changed:,} changed: "
        f"{result.now_pass:,} pass now and {result.now_fail:,} fail now",
        quiet=quiet,
    )
    if not json_output and not quiet:
        from rwkvbatch.cli.views import console

        console().print(f"checks passed: {summary.checks_passed:,} of {summary.checks:,}", highlight=False)
    if not summary.passed:
        raise typer.Exit(ExitCode.FAILED)
