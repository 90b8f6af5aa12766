"""`rwkvbatch compare`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rwkvbatch.cli.exits import ExitCode, message
from rwkvbatch.cli.options import OUTPUT_PANEL, JsonOption, QuietOption, command_app, option
from rwkvbatch.errors import StorageError, UsageError
from rwkvbatch.files import OS_FILES, replace_file

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

  rwkvbatch compare runs/main runs/branch --fail-if "score < baseline - 0.02"
"""


app = command_app()


@app.command("compare", epilog=EPILOG)
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
    metric: Annotated[
        list[str] | None,
        option(
            "--metric", "Compare only this metric; may be repeated. Fewer tests detect smaller differences.", "NAME"
        ),
    ] = None,
    by: Annotated[str | None, option("--by", "Break the table down by turn or by tag.", "turn|tag")] = None,
    k: Annotated[str | None, option("--k", "The k of pass@k. [dim]Default: the repeats[/]", "N,...")] = None,
    force: Annotated[bool, option("--force", "Compare runs of different scripts.")] = False,
    show: Annotated[str | None, option("--show", "Print one conversation side by side, and no table.", "ID")] = None,
    changes: Annotated[int, option("--changes", "Show the N most changed conversations.", "N", min=0)] = 3,
    fail_if: Annotated[
        list[str] | None,
        option(
            "--fail-if",
            'End with exit code 1 when this holds: "score < baseline - 0.02". May be repeated.',
            "EXPR",
            GATE_PANEL,
        ),
    ] = None,
    gate_significant: Annotated[
        bool, option("--gate-significant", "Gates fail only on differences beyond noise.", panel=GATE_PANEL)
    ] = False,
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
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Report what differs between runs or cells, and whether it is more than noise."""
    chosen = _format(output_format, out, as_json=as_json)
    if by not in (None, "turn", "tag"):
        raise UsageError(f"--by must be turn or tag; got {by!r}")
    from rwkvbatch.comparison import compare

    analysis = compare(
        sources,
        baseline=baseline,
        metrics=metric or None,
        by=by,
        ks=_ks(k),
        fail_if=fail_if or (),
        gate_significant=gate_significant,
        force=force,
    )
    for note in analysis.notes:
        message(f"note: {note}", quiet=quiet)
    if show is not None:
        _show(analysis, show)
    elif out is not None:
        text = _render(analysis, chosen, changes)
        _write(out, text)
        for line in (f"wrote {out}", *(gate.line for gate in analysis.gates)):
            message(line, quiet=quiet)
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
    from rwkvbatch.comparison.report import formats

    match chosen:
        case "md":
            return formats.as_markdown(analysis)
        case "csv":
            return formats.as_csv(analysis)
        case "json":
            return formats.as_json(analysis)
        case "junit":
            return formats.as_junit(analysis)
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
    """Replace the file atomically; devices and pipes are written to instead."""
    data = text.encode("utf-8", "backslashreplace")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            replace_file(OS_FILES, path, [data], durable=False, unique=True)
    except OSError as error:
        raise StorageError(
            f"--out {path}: cannot be written: {error.strerror}", hint="the folder must exist and be writable"
        ) from None


def _append_step_summary(analysis: Analysis) -> None:
    """Add the report to the page of a GitHub Actions run."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    from rwkvbatch.comparison.report.formats import as_markdown

    try:
        with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"## rwkvbatch compare\n\n{as_markdown(analysis)}\n")
    except OSError as error:
        message(f"note: $GITHUB_STEP_SUMMARY could not be written: {error.strerror}")
