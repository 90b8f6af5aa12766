"""`rwkvbatch compare`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.exits import ExitCode, message
from rwkvbatch.cli.options import (
    JUDGE_HELP,
    JUDGE_PANEL,
    JUDGE_SETTINGS,
    OUTPUT_PANEL,
    JsonOption,
    QuietOption,
    option,
    with_settings,
)
from rwkvbatch.cli.report_output import ReportOutput, append_step_summary
from rwkvbatch.errors import UsageError, shown_value

if TYPE_CHECKING:
    from rwkvbatch.comparison.analysis import Analysis

GATE_PANEL = "Gates"
EPILOG = examples(
    "rwkvbatch compare runs/before runs/after",
    "rwkvbatch compare runs/sweep --baseline temp=0.7 --format html --out report.html",
    "rwkvbatch compare runs/before runs/after --primary nll --margin 0.02",
    "rwkvbatch compare runs/step-* --over step --out trend.html",
    "rwkvbatch compare runs/probes --by distance",
    'rwkvbatch compare runs/main runs/branch --fail-if "score < baseline - 0.02"',
    'rwkvbatch compare runs/main runs/branch --fail-if "score[memory] < baseline - 0.02"',
    'rwkvbatch compare runs/main runs/branch --fail-unless "score >= baseline - 0.02 significantly"',
    "rwkvbatch compare runs/before runs/after --judge rwkv7-g1i-2.9b",
)


app = command_app()


@app.command("compare", cls=Command, epilog=EPILOG)
@with_settings(
    *JUDGE_SETTINGS,
    panel=JUDGE_PANEL,
    **{**JUDGE_HELP, "judge": "Checkpoint that says which of each two replies is better: a file, or bundled."},
)
def compare_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Run directories, results files, or single cells as RUN::CELL.", show_default=False
        ),
    ],
    baseline: Annotated[
        str | None,
        option("--baseline", "A run or a cell. [dim]Default: the first run, or first cell[/]", "NAME", flag="-b"),
    ] = None,
    primary: Annotated[
        str | None,
        option(
            "--primary", "The metric that decides. [dim]Default: score where the script has checks, else nll[/]", "NAME"
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        option("--metric", "Show this metric instead of the primary one (exploratory); may be repeated.", "NAME"),
    ] = None,
    all_metrics: Annotated[bool, option("--all", "Show all metrics; all but the primary one are exploratory.")] = False,
    margin: Annotated[
        float | None, option("--margin", "Differences of the primary metric up to X are equivalent.", "X")
    ] = None,
    over: Annotated[
        str | None,
        option(
            "--over",
            "Test the trend over checkpoints of the primary metric and of each --metric: the word before the number in "
            "their names (step), or a list of numbers.",
            "NAME|N,...",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        option(
            "--only",
            "Compare only conversations with this id or tag, or a pattern of them (memory-*); may be repeated.",
            "ID|TAG",
        ),
    ] = None,
    by: Annotated[
        str | None, option("--by", "Show each turn, tag or distance of probes (exploratory).", "turn|tag|distance")
    ] = None,
    k: Annotated[str | None, option("--k", "The k of pass@k. [dim]Default: the repeats[/]", "N,...")] = None,
    blame: Annotated[
        bool,
        option("--blame", "Show the turns at which dialogues went wrong; needs cells with --history own and gold."),
    ] = False,
    force: Annotated[bool, option("--force", "Compare the turns that different scripts share.")] = False,
    show: Annotated[str | None, option("--show", "Print one conversation side by side, and no table.", "ID")] = None,
    changes: Annotated[int, option("--changes", "Show the N most changed conversations.", "N", min=0)] = 0,
    fail_if: Annotated[
        list[str] | None,
        option(
            "--fail-if",
            'End with exit code 1 when this holds: "score < baseline - 0.02". May be repeated.',
            "EXPR",
            GATE_PANEL,
        ),
    ] = None,
    fail_unless: Annotated[
        list[str] | None,
        option(
            "--fail-unless",
            'End with exit code 1 unless this holds: "score >= baseline - 0.02 significantly". May be repeated.',
            "EXPR",
            GATE_PANEL,
        ),
    ] = None,
    gate_significant: Annotated[
        bool, option("--gate-significant", "Add `significantly` to every gate.", panel=GATE_PANEL)
    ] = False,
    allow_missing: Annotated[
        bool, option("--allow-missing", "Gates accept turns that are missing or ended in an error.", panel=GATE_PANEL)
    ] = False,
    partial: Annotated[bool, option("--partial", "Gates accept unfinished runs.", panel=GATE_PANEL)] = False,
    output_format: Annotated[
        str | None,
        option(
            "--format",
            "table, md, csv, json, html, junit. [dim]Default: table, or by the ending of --out[/]",
            "NAME",
            OUTPUT_PANEL,
            flag="-f",
        ),
    ] = None,
    out: Annotated[
        Path | None, option("--out", "Write to this file instead of the terminal.", "FILE", OUTPUT_PANEL, flag="-o")
    ] = None,
    replace: Annotated[
        bool, option("--replace", "Let --out replace an earlier report of the same format.", panel=OUTPUT_PANEL)
    ] = False,
    junit_cases: Annotated[
        bool, option("--junit-cases", "Add a test case for every conversation to JUnit.", panel=OUTPUT_PANEL)
    ] = False,
    judge_criterion: Annotated[
        str | None, option("--judge-criterion", "What makes a reply the better one, in words.", "TEXT", JUDGE_PANEL)
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Compare runs or cells: one verdict per variant, with the uncertainty of its difference."""
    if show is not None:
        given: dict[str, Any] = {"--out": out, "--format": output_format, "--json": as_json or None}
        given["--changes"] = changes or None
        for name in (name for name, value in given.items() if value is not None):
            raise UsageError(
                f"--show prints one conversation in place of the report that {name} is for",
                hint="leave one of the two out; HTML reports have all conversations, and so has rwkvbatch show --json",
            )
    output = ReportOutput.of_options(
        output_format, out, as_json=as_json, replace=replace, junit_cases=junit_cases, num_changes=changes
    )
    if by not in (None, "turn", "tag", "distance"):
        raise UsageError(f"--by must be turn, tag or distance; got {by!r}")
    from rwkvbatch.cli.judge import pair_judge
    from rwkvbatch.comparison import compare

    with pair_judge(sources, settings, judge_criterion, quiet=quiet) as judge:
        analysis = compare(
            sources,
            baseline=baseline,
            primary=primary,
            metrics=metric or None,
            all_metrics=all_metrics,
            margin=margin,
            over=over,
            only=only or (),
            by=by,
            ks=_ks(k),
            fail_if=fail_if or (),
            fail_unless=fail_unless or (),
            gate_significant=gate_significant,
            allow_missing=allow_missing,
            partial=partial,
            force=force,
            blame=blame,
            judge=judge,
        )
    for note in analysis.notes:
        message(f"note: {note}", quiet=quiet)
    if show is not None:
        if analysis.restriction is not None:
            message(analysis.restriction.sentence, quiet=quiet)
        _show(analysis, show)
        for line in analysis.gate_lines():
            message(line, quiet=quiet)
    else:
        output.write(analysis, quiet=quiet)
    append_step_summary(analysis, num_changes=changes)
    if analysis.failed:
        raise typer.Exit(ExitCode.FAILED)


MAX_K = 999_999
"""The largest value of `--k`."""


def _ks(text: str | None) -> list[int] | None:
    """The values of `--k`."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*0*[1-9]\d{0,5}\s*", part) for part in parts):
        raise UsageError(f"--k must be whole numbers in [1, {MAX_K}], such as 1,5; got {shown_value(text)}")
    return [int(part) for part in parts]


def _show(analysis: Analysis, conversation: str) -> None:
    from rwkvbatch.cli.views import console
    from rwkvbatch.comparison.report.terminal import print_conversation

    print_conversation(analysis, conversation, console())
