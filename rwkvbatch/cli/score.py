"""`rwkvbatch score`."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.options import (
    ConfigOption,
    JsonOption,
    QuietOption,
    RunOutOption,
    VerboseOption,
    option,
    with_settings,
)
from rwkvbatch.cli.run import RUN_PANEL, SCRIPT_PANEL, RepairOption, run_with_progress, show_result
from rwkvbatch.signals import leaving_at_once

app = command_app()


@app.command(
    "score",
    cls=Command,
    epilog=examples(
        "rwkvbatch score README.md",
        "rwkvbatch score books/ wiki.jsonl --model rwkv7-g1k-1.5b --out runs/texts",
        "rwkvbatch score wiki.jsonl --model step-1000.pth,step-2000.pth --out runs/steps",
    ),
)
@with_settings(
    *("model", "adapter", "strategy", "backend", "state", "batch_size", "threads", "vocab", "state_memory"),
    *("workers", "devices", "ray", "bos", "limit", "shuffle_seed", "max_failures"),
    batch_size="Texts that a worker reads at once. Does not change results. [dim]Default: 32[/]",
    limit="At most N texts.",
    shuffle_seed="Shuffle the texts with this seed, before --limit.",
)
def score_command(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Text files, JSON lines with text, folders; - is JSON lines.")
    ],
    skip_bad: Annotated[
        bool, option("--skip-bad", "Set aside files and lines that cannot be used.", panel=SCRIPT_PANEL)
    ] = False,
    retry_errors: Annotated[bool, option("--retry-errors", "Score failed texts again.", panel=RUN_PANEL)] = False,
    repair: RepairOption = False,
    out: RunOutOption = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    **settings: Any,
) -> None:
    """Measure perplexity, bits per byte and accuracy on texts.

    Texts need no script. A text file is one document. So is each line of a [bold].jsonl[/] file: a line with
    [bold]text[/] is scored whole; with [bold]prompt[/] and [bold]continuation[/] the continuation is scored.

    The result is a run directory with a row for each document. [bold]rwkvbatch compare[/] reads it; the same command
    with its [bold]--out[/] continues it.
    """
    from rwkvbatch.replay.logs import logging_to

    settings |= {"config": config, "environment": os.environ, "skip_bad": skip_bad, "shard": None, "documents": True}
    settings |= {"retry_errors": retry_errors, "repair": repair}
    with leaving_at_once(), logging_to(None, verbose=verbose, quiet=quiet):
        result = run_with_progress(files, settings, out, quiet=quiet)
    show_result(result, json_output=json_output, quiet=quiet)
