"""`rwkvbatch show`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from rwkvbatch.cli import options as shared
from rwkvbatch.errors import UsageError

EPILOG = """[bold]Examples[/]

  rwkvbatch show runs/demo

  rwkvbatch show runs/sweep names-1 --cell "temp=1.0*" --repeat 0

  rwkvbatch show runs/demo --failed | less -R
"""


def show_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory or results file.", show_default=False)],
    conversations: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Conversations, by id or pattern (names-*).", show_default=False),
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option("--cell", metavar="NAME", help="Only this cell, or pattern; may be repeated."),
    ] = None,
    repeat: Annotated[int | None, typer.Option("--repeat", metavar="N", help="Only this repeat, from 0.")] = None,
    turn: Annotated[int | None, typer.Option("--turn", metavar="N", help="Only this turn, from 0.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only dialogues with an error or a failed check.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="At most so many dialogues.")] = None,
    as_json: shared.JsonOption = False,
    quiet: shared.QuietOption = False,
) -> None:
    """Print the dialogues of a run."""
    from rwkvbatch.comparison.dialogues import dialogues
    from rwkvbatch.comparison.loading import load_runs
    from rwkvbatch.comparison.report.terminal import print_dialogues

    data = load_runs([run])[0]
    found = dialogues(
        data,
        conversations=conversations or (),
        cells=cell or (),
        repeat=repeat,
        turn=turn,
        failed_only=failed,
    )
    if not found and not failed:
        raise UsageError("the run has no rows of that yet")
    shown = found if limit is None else found[:limit]
    if as_json:
        import jsonlines

        from rwkvbatch.prompt.escaping import printable_json

        def dumps(record: Any) -> str:
            return printable_json(json.dumps(record, ensure_ascii=False))

        # attrs takes `dumps` for the field `_dumps`, which pyright does not know.
        with jsonlines.Writer(sys.stdout.buffer, dumps=dumps) as writer:  # pyright: ignore[reportCallIssue]
            writer.write_all(dialogue.as_record() for dialogue in shown)
        return
    from rwkvbatch.cli.views import console

    print_dialogues(
        shown,
        console(),
        many_cells=len(data.cells) > 1,
        many_repeats=len({dialogue.repeat for dialogue in found}) > 1,
    )
    if not quiet:
        for note in data.notes:
            _talk(f"note: {note}")
        if len(shown) < len(found):
            more = len(found) - len(shown)
            _talk(f"{more} more dialogue{'s' if more > 1 else ''}")
        if not found:
            _talk("no dialogue has an error or a failed check")


def _talk(text: str) -> None:
    from rwkvbatch.prompt.escaping import printable

    typer.echo(printable(text, keep_newlines=False), err=True)
