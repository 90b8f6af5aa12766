"""Writes the report of `rwkvbatch compare`: to the terminal, to standard output or a file, to a GitHub job summary."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rwkvbatch.cli.exits import message
from rwkvbatch.errors import StorageError, UsageError
from rwkvbatch.files import OS_FILES, replace_file, writing_hint
from rwkvbatch.targets import FileKind, check_target, file_head

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
_WITHOUT_CHANGES = {
    "csv": "it has a line for each metric; --format md has changed conversations",
    "html": "it has all conversations, the most changed ones first",
}
"""By format that has no place for `--changes`, what has it."""
SUMMARY_BYTES = 2**20 - 1
"""Size limit of `$GITHUB_STEP_SUMMARY`, including what other commands of the step wrote; a larger file is not shown."""
_SUMMARY_CUT = b"\n**The report is cut here:** summaries must be below 1 MiB. `--out report.md` writes it whole.\n"


@dataclass(frozen=True)
class ReportOutput:
    """The format of a report, and where it is written.

    Attributes:
        format: one of `FORMATS`.
        out: the file; None for standard output.
        replace: whether an earlier report in the same format may be replaced.
        junit_cases: whether JUnit gets a test case for every conversation.
        num_changes: number of the most changed conversations that the report shows.
    """

    format: str
    out: Path | None
    replace: bool
    junit_cases: bool
    num_changes: int

    @classmethod
    def of_options(
        cls, name: str | None, out: Path | None, *, as_json: bool, replace: bool, junit_cases: bool, num_changes: int
    ) -> Self:
        """The output that the options of `compare` ask for; `name` is that of `--format`.

        Raises:
            UsageError: the options contradict each other, or the file must not be replaced.
            StorageError: the file's folder is missing.
        """
        output = cls(_format_of(name, out, as_json=as_json), out, replace, junit_cases, num_changes)
        if output.format == "html" and out is None and sys.stdout.isatty():
            raise UsageError(
                "the format html is for a file or a pipe, and standard output is a terminal",
                hint="add --out report.html",
            )
        output.check_file()
        if junit_cases and output.format != "junit":
            problem = f"--junit-cases needs the format junit; this command writes {output.format}"
            raise UsageError(problem, hint="--format junit")
        if num_changes and output.format in _WITHOUT_CHANGES:
            raise UsageError(f"--changes is not for the format {output.format}", hint=_WITHOUT_CHANGES[output.format])
        return output

    def check_file(self) -> None:
        """Check that the file may be written, if there is one; devices and pipes may. Raises as `of_options`."""
        path = self.out
        if path is None:
            return
        try:
            if path.exists() and not path.is_file() and not path.is_dir():
                return
            next(path.parent.iterdir(), None)
        except PermissionError:
            pass  # a folder that cannot be listed may still be writable
        except OSError as error:
            raise _not_written(path, error) from None
        kind = FileKind(
            f"a report in the format {self.format}",
            lambda existing: re.match(_REPORT_HEADS[self.format], file_head(existing)) is not None,
        )
        check_target(path, kind, option="--out", replace=self.replace, how="--replace replaces it")

    def write(self, analysis: Analysis, *, quiet: bool) -> None:
        """Write the report. Raises as `of_options`, and `StorageError` if the file cannot be written."""
        if self.out is not None:
            text = self._text(analysis)
            self.check_file()
            _write(self.out, text)
            for line in (f"wrote {self.out}", *analysis.gate_lines()):
                message(line, quiet=quiet)
        elif self.format == "table":
            from rwkvbatch.cli.views import console
            from rwkvbatch.comparison.report.terminal import print_analysis

            print_analysis(analysis, console(), num_changes=self.num_changes)
        else:
            # Lone surrogates, which JSON rows can have, become escapes.
            sys.stdout.buffer.write(self._text(analysis).encode("utf-8", "backslashreplace"))
            for line in analysis.gate_lines(only_failed=True):
                message(line, quiet=quiet)

    def _text(self, analysis: Analysis) -> str:
        from rwkvbatch.comparison.report import formats

        match self.format:
            case "md":
                return formats.as_markdown(analysis, num_changes=self.num_changes)
            case "csv":
                return formats.as_csv(analysis)
            case "json":
                return formats.as_json(analysis, num_changes=self.num_changes)
            case "junit":
                from rwkvbatch.comparison.report.junit import as_junit

                return as_junit(analysis, conversations=self.junit_cases, num_changes=self.num_changes)
            case "html":
                from rwkvbatch.comparison.report.html import as_html

                return as_html(analysis)
            case _:
                import io

                from rwkvbatch.cli.views import console
                from rwkvbatch.comparison.report.terminal import print_analysis

                text = io.StringIO()
                print_analysis(analysis, console(file=text, width=120), num_changes=self.num_changes)
                return text.getvalue()


def _format_of(name: str | None, out: Path | None, *, as_json: bool) -> str:
    """The format of the report: that of `--json` or `--format`, or else by the suffix of `--out`."""
    if as_json:
        of_suffix = None if out is None else _FORMAT_OF_SUFFIX.get(out.suffix.lower())
        for other, asks in ((name, f"--format {name}"), (of_suffix, f"--out {out}")):
            if other not in (None, "json"):
                raise UsageError(f"--json and {asks} ask for different formats", hint="leave --json out")
        return "json"
    if name is None:
        if out is None or not out.suffix:
            return "table"
        if out.suffix.lower() not in _FORMAT_OF_SUFFIX:
            known = ", ".join(_FORMAT_OF_SUFFIX)
            raise UsageError(
                f"--out {out}: the ending must say the format, one of {known}; got {out.suffix!r}",
                hint="or give --format",
            )
        return _FORMAT_OF_SUFFIX[out.suffix.lower()]
    if name not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}; got {name!r}")
    return name


_REPORT_HEADS = {
    "html": r"<!doctype html>",
    "json": r"\{\s*\"runs\":",
    "csv": r"baseline,variant,",
    "junit": r"<\?xml[^>]*>\s*<testsuites name=\"rwkvbatch",
    "md": r"\*\*",
    "table": r"(?![{<*])(?s:.*)(against |over |conversation|mean)",
}
"""By format, a pattern that matches the beginning of a report."""


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


def append_step_summary(analysis: Analysis, *, num_changes: int = 0) -> None:
    """Add the report to the summary page of a GitHub Actions run, if there is one.

    GitHub shows nothing of a summary file of 1 MiB or more, so the report is cut if necessary.
    """
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return
    from rwkvbatch.comparison.report.formats import as_markdown

    path = Path(name)
    data = f"## rwkvbatch compare\n\n{as_markdown(analysis, num_changes=num_changes)}\n".encode(
        "utf-8", "backslashreplace"
    )
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
