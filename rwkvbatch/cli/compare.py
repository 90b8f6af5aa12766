"""`rwkvbatch compare`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkvbatch.cli.exits import ExitCode, message
from rwkvbatch.cli.options import (
    JUDGE_HELP,
    JUDGE_PANEL,
    JUDGE_SETTINGS,
    OUTPUT_PANEL,
    Command,
    JsonOption,
    QuietOption,
    command_app,
    option,
    with_settings,
)
from rwkvbatch.errors import StorageError, UsageError
from rwkvbatch.files import OS_FILES, FileKind, check_target, file_head, replace_file, writing_hint

if TYPE_CHECKING:
    from rwkvbatch.comparison.analysis import Analysis

FORMATS = ("table", "md", "csv", "json", "html", "junit")
_FORMAT_OF_SUFFIX = {
    ".md": "md",
    ".csv": "csv",
    ".json": "json",
    ".html": "html",
    ".htm": "html",
    ".xml": "junit",
    ".txt": "table",
}
GATE_PANEL = "Gates"
SUMMARY_BYTES = 2**20 - 1
"""Size limit of `$GITHUB_STEP_SUMMARY`, including what other commands of the step wrote; a larger file is not shown."""
_SUMMARY_CUT = b"\n**The report is cut here:** summaries must be below 1 MiB. `--out report.md` writes it whole.\n"

EPILOG = """[bold]Examples[/]

  rwkvbatch compare runs/before runs/after

  rwkvbatch compare runs/sweep --baseline temp=0.7 --format html --out report.html

  rwkvbatch compare runs/before runs/after --primary nll --margin 0.02

  rwkvbatch compare runs/step-* --over step --out trend.html

  rwkvbatch compare runs/probes --by distance

  rwkvbatch compare runs/main runs/branch --fail-if "score < baseline - 0.02"

  rwkvbatch compare runs/main runs/branch --fail-unless "score >= baseline - 0.02 significantly"

  rwkvbatch compare runs/before runs/after --judge rwkv7-g1i-2.9b
"""


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
        given = {"--out": out, "--format": output_format, "--json": as_json or None}
        for name in (name for name, value in given.items() if value is not None):
            raise UsageError(
                f"--show prints one conversation in place of the report that {name} is for",
                hint="leave one of the two out; HTML reports have all conversations, and so has rwkvbatch show --json",
            )
    report_format = _report_format(output_format, out, as_json=as_json)
    if report_format == "html" and out is None and sys.stdout.isatty():
        raise UsageError(
            "the format html is for a file or a pipe, and standard output is a terminal", hint="add --out report.html"
        )
    if out is not None:
        _check_out(out, report_format, replace=replace)
    if junit_cases and report_format != "junit":
        problem = f"--junit-cases needs the format junit; this command writes {report_format}"
        raise UsageError(problem, hint="--format junit")
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
        _show(analysis, show)
        for gate in analysis.gates:
            message(gate.line, quiet=quiet)
    elif out is not None:
        text = _render(analysis, report_format, changes, junit_cases=junit_cases)
        _check_out(out, report_format, replace=replace)
        _write(out, text)
        for line in (f"wrote {out}", *(gate.line for gate in analysis.gates)):
            message(line, quiet=quiet)
    elif report_format == "table":
        from rwkvbatch.cli.views import console
        from rwkvbatch.comparison.report.terminal import print_analysis

        print_analysis(analysis, console(), num_changes=changes)
    else:
        # Lone surrogates, which JSON rows can have, become escapes.
        text = _render(analysis, report_format, changes, junit_cases=junit_cases)
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
    _append_step_summary(analysis)
    if analysis.failed:
        raise typer.Exit(ExitCode.FAILED)


def _report_format(option_value: str | None, out: Path | None, *, as_json: bool) -> str:
    """The format of the report: that of `--json` or `--format`, or else by the suffix of `--out`."""
    if as_json:
        of_suffix = None if out is None else _FORMAT_OF_SUFFIX.get(out.suffix.lower())
        for other, asks in ((option_value, f"--format {option_value}"), (of_suffix, f"--out {out}")):
            if other not in (None, "json"):
                raise UsageError(f"--json and {asks} ask for different formats", hint="leave --json out")
        return "json"
    if option_value is None:
        if out is None or not out.suffix:
            return "table"
        if out.suffix.lower() not in _FORMAT_OF_SUFFIX:
            known = ", ".join(_FORMAT_OF_SUFFIX)
            raise UsageError(
                f"--out {out}: the ending must say the format, one of {known}; got {out.suffix!r}",
                hint="or give --format",
            )
        return _FORMAT_OF_SUFFIX[out.suffix.lower()]
    if option_value not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}; got {option_value!r}")
    return option_value


MAX_K = 999_999
"""The largest value of `--k`."""


def _ks(text: str | None) -> list[int] | None:
    """The values of `--k`."""
    if text is None:
        return None
    from rwkvbatch.errors import shown_value

    parts = text.split(",")
    if not all(re.fullmatch(r"\s*0*[1-9]\d{0,5}\s*", part) for part in parts):
        raise UsageError(f"--k must be whole numbers in [1, {MAX_K}], such as 1,5; got {shown_value(text)}")
    return [int(part) for part in parts]


def _render(analysis: Analysis, report_format: str, changes: int, *, junit_cases: bool) -> str:
    from rwkvbatch.comparison.report import formats

    match report_format:
        case "md":
            return formats.as_markdown(analysis)
        case "csv":
            return formats.as_csv(analysis)
        case "json":
            return formats.as_json(analysis)
        case "junit":
            from rwkvbatch.comparison.report.junit import as_junit

            return as_junit(analysis, conversations=junit_cases)
        case "html":
            from rwkvbatch.comparison.report.html import as_html

            return as_html(analysis)
        case _:
            import io

            from rwkvbatch.cli.views import console
            from rwkvbatch.comparison.report.terminal import print_analysis

            text = io.StringIO()
            print_analysis(analysis, console(file=text, width=120), num_changes=changes)
            return text.getvalue()


def _show(analysis: Analysis, conversation: str) -> None:
    from rwkvbatch.cli.views import console
    from rwkvbatch.comparison.report.terminal import print_conversation

    print_conversation(analysis, conversation, console())


_REPORT_HEADS = {
    "html": r"<!doctype html>",
    "json": r"\{\s*\"runs\":",
    "csv": r"baseline,variant,",
    "junit": r"<\?xml[^>]*>\s*<testsuites name=\"rwkvbatch",
    "md": r"\*\*",
    "table": r"(?![{<*])(?s:.*)(against |over |conversation|mean)",
}
"""By format, a pattern that matches the beginning of a report."""


def _check_out(path: Path, report_format: str, *, replace: bool) -> None:
    """Raise `UsageError` if `--out` names a file that must not be replaced, `StorageError` if its folder is missing.

    Devices and pipes are allowed.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            return
        next(path.parent.iterdir(), None)
    except PermissionError:
        pass  # a folder that cannot be listed may still be writable
    except OSError as error:
        raise _not_written(path, error) from None
    kind = FileKind(
        f"a report in the format {report_format}",
        lambda existing: re.match(_REPORT_HEADS[report_format], file_head(existing)) is not None,
    )
    check_target(path, kind, option="--out", replace=replace, how="--replace replaces it")


def _write(path: Path, text: str) -> None:
    """Replace a file atomically; write to a device or a pipe."""
    data = text.encode("utf-8", "backslashreplace")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            replace_file(OS_FILES, path, [data], durable=False, unique=True)
    except OSError as error:
        raise _not_written(path, error) from None


def _not_written(path: Path, error: OSError) -> StorageError:
    return StorageError(f"--out {path}: cannot be written: {error.strerror}", hint=writing_hint(error))


def _append_step_summary(analysis: Analysis) -> None:
    """Add the report to the summary page of a GitHub Actions run, if there is one.

    GitHub shows nothing of a summary file of 1 MiB or more, so the report is cut if necessary.
    """
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return
    from rwkvbatch.comparison.report.formats import as_markdown

    path = Path(name)
    data = f"## rwkvbatch compare\n\n{as_markdown(analysis)}\n".encode("utf-8", "backslashreplace")
    try:
        if path.exists() and not path.is_file():
            message(f"note: $GITHUB_STEP_SUMMARY was not written: {name} is not a regular file")
            return
        room = SUMMARY_BYTES - (path.stat().st_size if path.exists() else 0)
        if len(data) > room:
            kept = data[: max(0, room - len(_SUMMARY_CUT))]
            data = kept[: kept.rfind(b"\n") + 1] + _SUMMARY_CUT
        if len(data) > room:
            message(f"note: $GITHUB_STEP_SUMMARY was not written: {name} has reached the limit of 1 MiB")
            return
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        message(f"note: $GITHUB_STEP_SUMMARY could not be written: {error.strerror}")
