"""`rwkvbatch compare`."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rwkvbatch.cli import options as shared
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.errors import StorageError, UsageError
from rwkvbatch.files import FILE_MODE

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

EPILOG = """[bold]Examples[/]

  rwkvbatch compare runs/before runs/after

  rwkvbatch compare runs/sweep --baseline temp=0.7 --format html --out report.html

  rwkvbatch compare runs/before runs/after --primary nll --margin 0.02

  rwkvbatch compare runs/main runs/branch --fail-if "score < baseline - 0.02"
"""


def compare_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run directories, results files, or single cells as RUN::CELL.",
            show_default=False,
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            "-b",
            metavar="NAME",
            help="A run or a cell. [dim]Default: the first run, or first cell[/]",
        ),
    ] = None,
    primary: Annotated[
        str | None,
        typer.Option(
            "--primary",
            metavar="NAME",
            help="The metric that decides. [dim]Default: score where the script has checks, else nll[/]",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Show this metric instead of the primary one (exploratory); may be repeated.",
        ),
    ] = None,
    all_metrics: Annotated[
        bool, typer.Option("--all", help="Show all metrics; all but the primary one are exploratory.")
    ] = False,
    margin: Annotated[
        float | None,
        typer.Option("--margin", metavar="X", help="Differences of the primary metric up to X are equivalent."),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="turn|tag", help="Show each turn or tag as well (exploratory).")
    ] = None,
    k: Annotated[
        str | None, typer.Option("--k", metavar="N,...", help="The k of pass@k. [dim]Default: the repeats[/]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare runs of different scripts: the turns that ask the same.")
    ] = False,
    show: Annotated[
        str | None,
        typer.Option("--show", metavar="ID", help="Print one conversation side by side, and no table."),
    ] = None,
    changes: Annotated[
        int, typer.Option("--changes", min=0, metavar="N", help="Show the N most changed conversations.")
    ] = 0,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            metavar="EXPR",
            rich_help_panel=GATE_PANEL,
            help='End with exit code 1 when this holds: "score < baseline - 0.02". May be repeated.',
        ),
    ] = None,
    gate_significant: Annotated[
        bool,
        typer.Option(
            "--gate-significant",
            rich_help_panel=GATE_PANEL,
            help="Gates fail only on significant differences.",
        ),
    ] = False,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            metavar="NAME",
            rich_help_panel=shared.OUTPUT_PANEL,
            help="table, md, csv, json, html, junit. [dim]Default: table, or by the ending of --out[/]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            rich_help_panel=shared.OUTPUT_PANEL,
            help="Write there, not to the terminal.",
        ),
    ] = None,
    as_json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Compare runs or cells: one verdict per variant, with the uncertainty of its difference."""
    chosen = _format(output_format, out, as_json=as_json)
    if by not in (None, "turn", "tag"):
        raise UsageError(f"--by must be turn or tag; got {by!r}")
    from rwkvbatch.comparison import compare

    analysis = compare(
        sources,
        baseline=baseline,
        primary=primary,
        metrics=metric or None,
        all_metrics=all_metrics,
        margin=margin,
        by=by,
        ks=_ks(k),
        fail_if=fail_if or (),
        gate_significant=gate_significant,
        force=force,
    )
    if not quiet:
        _say_notes(analysis)
    if show is not None:
        _show(analysis, show)
    elif out is not None:
        text = _render(analysis, chosen, changes)
        _write(out, text)
        if not quiet:
            _talk(f"wrote {out}")
            _say_gates(analysis)
    elif chosen == "table":
        from rwkvbatch.cli.views import console
        from rwkvbatch.comparison.report.terminal import print_analysis

        print_analysis(analysis, console(), num_changes=changes)
    else:
        # Lone surrogates, which JSON rows can hold, become escapes.
        sys.stdout.buffer.write(_render(analysis, chosen, changes).encode("utf-8", "backslashreplace"))
    _append_step_summary(analysis)
    if analysis.failed:
        raise typer.Exit(ExitCode.FAILED)


def _format(asked: str | None, out: Path | None, *, as_json: bool) -> str:
    if as_json:
        return "json"
    if asked is None:
        if out is None or not out.suffix:
            return "table"
        if out.suffix.lower() not in _FORMAT_OF_SUFFIX:
            known = ", ".join(_FORMAT_OF_SUFFIX)
            raise UsageError(
                f"--out {out}: the ending must say the format, one of {known}; got {out.suffix!r}",
                hint="or give --format",
            )
        return _FORMAT_OF_SUFFIX[out.suffix.lower()]
    if asked not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}; got {asked!r}")
    return asked


def _ks(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 0 < int(part) < 10**6 for part in parts):
        raise UsageError(f"--k must be whole numbers from 1 up, such as 1,5; got {text!r}")
    return [int(part) for part in parts]


def _render(analysis: Analysis, chosen: str, changes: int) -> str:
    match chosen:
        case "md":
            from rwkvbatch.comparison.report.formats import as_markdown

            return as_markdown(analysis)
        case "csv":
            from rwkvbatch.comparison.report.formats import as_csv

            return as_csv(analysis)
        case "json":
            from rwkvbatch.comparison.report.formats import as_json

            return as_json(analysis)
        case "junit":
            from rwkvbatch.comparison.report.formats import as_junit

            return as_junit(analysis)
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


def _write(path: Path, text: str) -> None:
    """Whole or not at all; devices and pipes are written to, not replaced."""
    data = text.encode("utf-8", "backslashreplace")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    in_place = path.exists() and not path.is_file()
    try:
        if in_place:
            path.write_bytes(data)
        else:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            partial.replace(path)
    except OSError as error:
        if not in_place:
            with contextlib.suppress(OSError):
                partial.unlink()
        raise StorageError(
            f"--out {path}: cannot be written: {error.strerror}", hint="the folder must exist and be writable"
        ) from None


def _say_notes(analysis: Analysis) -> None:
    for note in analysis.notes:
        _talk(f"note: {note}")


def _say_gates(analysis: Analysis) -> None:
    for gate in analysis.gates:
        _talk(gate.line)


def _talk(text: str) -> None:
    from rwkvbatch.prompt.escaping import printable

    typer.echo(printable(text, keep_newlines=False), err=True)


def _append_step_summary(analysis: Analysis) -> None:
    """Continuous integration shows this file on the run's page."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    from rwkvbatch.comparison.report.formats import as_markdown

    try:
        with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"## rwkvbatch compare\n\n{as_markdown(analysis)}\n")
    except OSError as error:
        _talk(f"note: $GITHUB_STEP_SUMMARY could not be written: {error.strerror}")
