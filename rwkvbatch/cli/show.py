"""`rwkvbatch show`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.exits import message
from rwkvbatch.cli.options import JsonOption, QuietOption, option
from rwkvbatch.errors import UsageError, counted, listed
from rwkvbatch.prompt.escaping import printable, printable_json

if TYPE_CHECKING:
    from rwkvbatch.comparison.runs.data import RunData

DEFAULT_LIMIT = 10
"""The most dialogues on a terminal if no limit is given."""
MAX_CELLS_NAMED = 4
"""The most cells on a terminal that are named for each group of equal dialogues."""

_NAMED_FILES = ("template", "state", "prelude")
"""Settings that are files. A manifest has their hashes, and their names beside the identity."""

app = command_app()


@app.command(
    "show",
    cls=Command,
    epilog=examples(
        "rwkvbatch show runs/demo",
        'rwkvbatch show runs/sweep names-1 --cell "temp=1.0*" --repeat 0',
        "rwkvbatch show runs/demo --failed",
        "rwkvbatch show runs/demo --full | less -R",
        'rwkvbatch show runs/sweep --cell "temp=0.7*" --settings > chosen.toml',
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
    failed: Annotated[
        bool, option("--failed", "Only dialogues with an error or a failed check, and of these the failing turns.")
    ] = False,
    full: Annotated[
        bool,
        option(
            "--full",
            "Every dialogue separately and with all turns, also equal ones and passing turns; long messages whole.",
        ),
    ] = False,
    settings: Annotated[
        bool,
        option(
            "--settings",
            "Instead of conversations, the cell's settings of replies, as a file for --config of run, chat and serve.",
        ),
    ] = False,
    limit: Annotated[
        int | None,
        option(
            "--limit",
            "At most N dialogues; equal ones count once (with --json each counts). "
            f"[dim]Default: {DEFAULT_LIMIT} on a terminal, else all[/]",
            "N",
            min=1,
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print the conversations of a run, or the settings of one of its cells."""
    from rwkvbatch.comparison.dialogues.grouping import grouped
    from rwkvbatch.comparison.dialogues.selection import dialogues, has_failed
    from rwkvbatch.comparison.report.terminal_dialogues import print_dialogues
    from rwkvbatch.comparison.runs.loading import load_runs
    from rwkvbatch.results.summary import read_part

    if settings:
        only = (conversations, repeat, turn, failed or None, full or None, limit, as_json or None)
        if any(value is not None for value in only):
            raise UsageError("--settings prints the settings of a cell; leave out what selects conversations")
        sys.stdout.write(_settings_of(load_runs([run])[0], cell or ()))
        return
    data = load_runs([run], choices=True)[0]
    found = dialogues(data, conversations=conversations or (), cells=cell or (), repeat=repeat, turn=turn)
    if not found:
        raise UsageError("the run has no such rows yet")
    selected = [dialogue for dialogue in found if dialogue.failed] if failed else found
    if as_json:
        import jsonlines

        def dumps(record: Any) -> str:
            return printable_json(json.dumps(record, ensure_ascii=False))

        # attrs takes `dumps` for the field `_dumps`, which pyright does not know.
        with jsonlines.Writer(sys.stdout.buffer, dumps=dumps) as writer:  # pyright: ignore[reportCallIssue]
            writer.write_all(dialogue.as_record() for dialogue in selected[:limit])
        return
    from rwkvbatch.cli.summaries import race_lines
    from rwkvbatch.cli.views import console

    groups = grouped(selected, Counter(dialogue.conversation for dialogue in found), separately=full)
    is_terminal = sys.stdout.isatty()
    is_default = limit is None and not full and is_terminal
    shown = groups[: DEFAULT_LIMIT if is_default else limit]
    print_dialogues(
        shown,
        console(),
        many_cells=len(data.cells) > 1,
        many_repeats=len({dialogue.repeat for dialogue in selected}) > 1,
        only_failures=failed and not full,
        full=full,
        max_cells=MAX_CELLS_NAMED if is_terminal else None,
    )
    race = read_part(Path(run) if Path(run).is_dir() else Path(run).parent, "race")
    notes = race_lines(race) if race else []
    notes += [f"note: {note}" for note in data.notes]
    if more := len(selected) - sum(len(group.members) for group in shown):
        others = f" ({len(groups) - len(shown):,} different)" if more > len(groups) - len(shown) else ""
        ways = f"; all: --limit {len(groups)}, or | less" if is_default else ""
        notes.append(f"{counted(more, 'more dialogue')}{others}{ways}")
    if failed and not full and not all(has_failed(turn) for group in shown for turn in group.first.turns):
        notes.append("--full shows all turns in full")
    if not selected:
        notes.append("no dialogue has an error or a failed check")
    for note in notes:
        message(note, quiet=quiet)


def _settings_of(data: RunData, cells: Sequence[str]) -> str:
    """The settings of replies of the only cell of `data` that matches `cells`, as TOML."""
    from rwkvbatch.comparison.dialogues.selection import names_matching
    from rwkvbatch.comparison.runs.data import as_record
    from rwkvbatch.config import DialoguePrompt, ReplySettings
    from rwkvbatch.config.sources import as_toml
    from rwkvbatch.prompt.templates import NO_PRELUDE

    if not data.facts.cells:
        raise UsageError(f"{data.source} has no settings", hint="name a run directory")
    names = names_matching("--cell", cells, list(data.facts.cells))
    if len(names) > 1:
        raise UsageError(f"--settings needs one cell, got {listed(names, 4)}", hint="name one with --cell")
    cell = data.facts.cells[names[0]]
    files = as_record(as_record(as_record(data.manifest.get("about")).get("files")).get(names[0]))
    names_of_reply = (*DialoguePrompt.model_fields, *ReplySettings.model_fields, "history", "system")
    values = {name: cell[name] for name in names_of_reply if name in cell}
    values["prelude"] = NO_PRELUDE
    values |= {name: files[name] for name in _NAMED_FILES if files.get(name) is not None}
    comment = printable(f"{names[0]} of {data.name}", keep_newlines=False)
    return f"# {comment}\n{as_toml(values)}"
