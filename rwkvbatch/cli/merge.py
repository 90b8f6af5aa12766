"""`rwkvbatch merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.exits import ExitCode, message, print_json
from rwkvbatch.cli.options import JsonOption, QuietOption, option
from rwkvbatch.errors import counted

if TYPE_CHECKING:
    from rwkvbatch.replay.merge import Merged, Missing

MAX_SHOWN = 20

app = command_app()


@app.command(
    "merge",
    cls=Command,
    epilog=examples(
        "rwkvbatch merge runs/part-* --out runs/whole",
        "rwkvbatch merge runs/part-1 runs/part-3 --out runs/whole --allow-missing",
    ),
)
def merge_command(
    parts: Annotated[
        list[Path], typer.Argument(metavar="PART...", help="Run directories made with --shard.", show_default=False)
    ],
    out: Annotated[
        Path, option("--out", "Run directory to write: new, or an earlier merge.", "DIR", flag="-o", show_default=False)
    ],
    allow_missing: Annotated[
        bool, option("--allow-missing", "Write the rows that exist; rwkvbatch run can generate the rest.")
    ] = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Merge the parts of a run.

    The result equals what [bold]rwkvbatch run[/] writes without [bold]--shard[/], timings aside.

    When rows are missing, nothing is written and the exit code is 1. Failed checks do not change the exit code.
    """
    from rwkvbatch.replay.logs import command_line
    from rwkvbatch.replay.merge import merge

    merged = merge(parts, out, allow_missing=allow_missing, command=command_line())
    if json_output:
        print_json(
            {
                "directory": str(merged.directory),
                "written": merged.summary is not None,
                "parts": merged.parts,
                "rows": merged.rows,
                "planned": merged.planned,
                "missing": [part.as_dict() for part in merged.missing],
                "summary": None if merged.summary is None else merged.summary.as_dict(),
            }
        )
    if not quiet or merged.summary is None:
        for line in _lines(merged, with_notes=not quiet):
            message(line)
    if merged.summary is None:
        raise typer.Exit(ExitCode.FAILED)


def _lines(merged: Merged, *, with_notes: bool) -> list[str]:
    import shlex

    lines = [f"note: {note}" for note in merged.notes] if with_notes else []
    lines += [_missing_line(part) for part in merged.missing[:MAX_SHOWN]]
    if len(merged.missing) > MAX_SHOWN:
        lines.append(f"and {counted(len(merged.missing) - MAX_SHOWN, 'more part')}")
    if merged.summary is None:
        lines.append(f"nothing was written: {merged.planned - merged.rows:,} of {merged.planned:,} rows are missing")
        lines.append("merge again when all parts are complete, or give --allow-missing to write the rows that exist")
        return lines
    directory = shlex.quote(str(merged.directory))
    lines.append(f"{merged.rows:,} of {merged.planned:,} rows are in {directory}")
    if merged.missing:
        lines.append(f"to run the rest: {merged.rest_command}")
    elif len(merged.summary.cells) > 1:
        lines.append(f"next: rwkvbatch compare {directory}")
    else:
        lines.append(f"next: rwkvbatch show {directory}")
    return lines


def _missing_line(part: Missing) -> str:
    if part.first is None or part.rows is None:
        return f"part {part.shard} was not given; run it with --shard {part.shard}"
    rest = "" if part.command is None else f"; to continue: {part.command}"
    first = part.first.in_words()
    return f"part {part.shard} ({part.path}): {counted(part.rows, 'row')} missing, the first of them {first}{rest}"
