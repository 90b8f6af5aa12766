"""`rwkvbatch show`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.exits import message
from rwkvbatch.cli.options import JsonOption, QuietOption, option
from rwkvbatch.errors import UsageError, counted
from rwkvbatch.prompt.escaping import printable_json

app = command_app()


@app.command(
    "show",
    cls=Command,
    epilog=examples(
        "rwkvbatch show runs/demo",
        'rwkvbatch show runs/sweep names-1 --cell "temp=1.0*" --repeat 0',
        "rwkvbatch show runs/demo --failed | less -R",
    ),
)
def show_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory or results file.", show_default=False)],
    conversations: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Conversations, by id, tag or pattern (names-*).", show_default=False),
    ] = None,
    cell: Annotated[list[str] | None, option("--cell", "Only this cell, or pattern; may be repeated.", "NAME")] = None,
    repeat: Annotated[int | None, option("--repeat", "Only this repeat, from 0.", "N", min=0)] = None,
    turn: Annotated[int | None, option("--turn", "Only this turn, from 0.", "N", min=0)] = None,
    failed: Annotated[bool, option("--failed", "Only conversations with an error or a failed check.")] = False,
    limit: Annotated[int | None, option("--limit", "At most N conversations.", "N", min=1)] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print the conversations of a run."""
    from rwkvbatch.comparison.dialogues.selection import dialogues
    from rwkvbatch.comparison.report.terminal import print_dialogues
    from rwkvbatch.comparison.runs.loading import load_runs
    from rwkvbatch.results.summary import read_part

    data = load_runs([run], choices=True)[0]
    selected = dialogues(
        data, conversations=conversations or (), cells=cell or (), repeat=repeat, turn=turn, failed_only=failed
    )
    if not selected and not failed:
        raise UsageError("the run has no rows of that yet")
    shown = selected if limit is None else selected[:limit]
    if as_json:
        import jsonlines

        def dumps(record: Any) -> str:
            return printable_json(json.dumps(record, ensure_ascii=False))

        # attrs takes `dumps` for the field `_dumps`, which pyright does not know.
        with jsonlines.Writer(sys.stdout.buffer, dumps=dumps) as writer:  # pyright: ignore[reportCallIssue]
            writer.write_all(dialogue.as_record() for dialogue in shown)
        return
    from rwkvbatch.cli.summaries import race_lines
    from rwkvbatch.cli.views import console

    print_dialogues(
        shown,
        console(),
        many_cells=len(data.cells) > 1,
        many_repeats=len({dialogue.repeat for dialogue in selected}) > 1,
    )
    race = read_part(Path(run) if Path(run).is_dir() else Path(run).parent, "race")
    notes = race_lines(race) if race else []
    notes += [f"note: {note}" for note in data.notes]
    if more := len(selected) - len(shown):
        notes.append(f"{counted(more, 'more dialogue')}")
    if not selected:
        notes.append("no dialogue has an error or a failed check")
    for note in notes:
        message(note, quiet=quiet)
