"""Options of `rwkvbatch run` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rwkvbatch.cli import options as shared

SCRIPT_PANEL = "What is replayed"
RUN_PANEL = "The run"

ScriptsArgument = Annotated[
    list[str], typer.Argument(metavar="SCRIPT", help="Conversations, JSON lines; - is standard input.")
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        "-b",
        metavar="N",
        rich_help_panel=shared.MODEL_PANEL,
        help="Replies generated at the same time. Changes no reply. [dim]Default: 32[/]",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        rich_help_panel=shared.MODEL_PANEL,
        help="Worker processes, which share the weights' memory. Changes no reply on CPUs.",
    ),
]
DevicesOption = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="LIST",
        rich_help_panel=shared.MODEL_PANEL,
        help="Devices of the workers, such as cuda:0,cuda:1.",
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        rich_help_panel=shared.MODEL_PANEL,
        help="Workers as actors of a Ray cluster: local, auto, or HOST:PORT.",
    ),
]
HistoryOption = Annotated[
    str | None,
    typer.Option(
        "--history",
        metavar="MODE",
        rich_help_panel=shared.PROMPT_PANEL,
        help="What later turns see: own replies, or the script's (gold).",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="ID|TAG", rich_help_panel=SCRIPT_PANEL, help="Only these; may be repeated."
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", rich_help_panel=SCRIPT_PANEL, help="At most N conversations."),
]
ShuffleSeedOption = Annotated[
    int | None,
    typer.Option(
        "--shuffle-seed", metavar="N", rich_help_panel=SCRIPT_PANEL, help="Another order, before --limit."
    ),
]
SkipBadOption = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        rich_help_panel=SCRIPT_PANEL,
        help="Set bad lines aside in a file of the run directory.",
    ),
]
RepeatsOption = Annotated[
    str | None,
    typer.Option(
        "--repeats",
        "-r",
        metavar="N|N..M",
        rich_help_panel=RUN_PANEL,
        help="Replay each conversation so often; N..M with --until-ci.",
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        rich_help_panel=RUN_PANEL,
        help="Run only part I of N, for rwkvbatch merge.",
    ),
]
UntilCiOption = Annotated[
    float | None,
    typer.Option(
        "--until-ci",
        metavar="WIDTH",
        rich_help_panel=RUN_PANEL,
        help="Add repeats while a cell's interval against the first cell is wider.",
    ),
]
GridOption = Annotated[
    Path | None,
    typer.Option(
        "--grid", metavar="FILE", rich_help_panel=RUN_PANEL, help="TOML file with a grid of settings."
    ),
]
MaxFailuresOption = Annotated[
    int | None,
    typer.Option(
        "--max-failures",
        metavar="N",
        rich_help_panel=RUN_PANEL,
        help="Stop when more rows than this failed.",
    ),
]
RetryErrorsOption = Annotated[
    bool, typer.Option("--retry-errors", rich_help_panel=RUN_PANEL, help="Run failed rows again.")
]
RepairOption = Annotated[
    bool,
    typer.Option("--repair", rich_help_panel=RUN_PANEL, help="Set damaged rows aside and run them again."),
]
VerifyBatchOption = Annotated[
    int | None,
    typer.Option(
        "--verify-batch",
        min=1,
        metavar="N",
        rich_help_panel=RUN_PANEL,
        help="Afterwards replay N rows alone and shuffled, and record what held.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", rich_help_panel=RUN_PANEL, help="Show the plan; generate nothing.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        rich_help_panel=shared.OUTPUT_PANEL,
        help="Run directory, new or one to continue. [dim]Default: runs/SCRIPT-TIME[/]",
    ),
]
MetricsOption = Annotated[
    int | None,
    typer.Option(
        "--metrics",
        metavar="PORT",
        rich_help_panel=shared.OUTPUT_PANEL,
        help="Serve figures for Prometheus on 127.0.0.1; 0 is any free port.",
    ),
]
