"""Dialogues of one run, in a terminal or as plain records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rwkvbatch.comparison.loading import RunData
from rwkvbatch.comparison.metrics import TURN_METRICS
from rwkvbatch.comparison.report.wording import number
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.escaping import printable

if TYPE_CHECKING:
    import pandas as pd

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


RULE_ENDS = 4
"""A rule has a line and a blank on both sides of its title."""

_SHOWN_METRICS = ("score", "nll", "logprob", "loop", "first_token_s")


@dataclass(frozen=True)
class Dialogue:
    """One conversation in one cell and repeat: its turns as records (see `turn_record`)."""

    conversation: str
    cell: str
    repeat: int
    tags: tuple[str, ...]
    turns: tuple[dict[str, Any], ...]

    def as_record(self) -> dict[str, Any]:
        return {**vars(self), "tags": list(self.tags), "turns": list(self.turns)}


def dialogues(
    run: RunData,
    *,
    conversations: Sequence[str] = (),
    cells: Sequence[str] = (),
    repeat: int | None = None,
    turn: int | None = None,
    failed_only: bool = False,
) -> list[Dialogue]:
    """The dialogues of `run` that were asked for, in the order of the cells, then of the rows.

    Args:
        conversations: ids, or patterns with `*` and `?`; none for all. cells: the same for cells.
        failed_only: only dialogues with an error or a failed check.

    Raises:
        UsageError: a name, repeat or turn is none of the run's.
    """
    names = _chosen("conversation", conversations, run.conversations)
    wanted_cells = _chosen("--cell", cells, [*run.facts.cells, *run.cells])
    rows = run.rows.loc[run.rows["conversation"].isin(names) & run.rows["cell"].isin(wanted_cells)]
    for name, wanted in (("repeat", repeat), ("turn", turn)):
        if wanted is not None:
            rows = _only(rows, name, wanted)
    groups: dict[tuple[str, str, int], list[dict[Any, Any]]] = {}
    for row in rows.sort_values("turn", kind="stable").to_dict("records"):
        groups.setdefault((row["conversation"], row["cell"], row["repeat"]), []).append(row)
    order = {name: place for place, name in enumerate(names)}
    cell_order = {name: place for place, name in enumerate(dict.fromkeys(wanted_cells))}
    found = [
        Dialogue(name, cell, place, tuple(own[0]["tags"]), tuple(map(turn_record, own)))
        for (name, cell, place), own in groups.items()
        if not failed_only or any(_failed(row) for row in own)
    ]
    return sorted(found, key=lambda d: (cell_order[d.cell], order[d.conversation], d.repeat))


def _only(rows: pd.DataFrame, column: str, wanted: int) -> pd.DataFrame:
    found = rows.loc[rows[column] == wanted]
    if len(rows) and not len(found):
        last = max(rows[column].tolist())
        raise UsageError(f"--{column} must be in 0 to {last} for what is asked for, got {wanted}")
    return found


def turn_record(row: dict[Any, Any]) -> dict[str, Any]:
    """One turn as JSON values: `turn, prompt, reply, finish_reason, error, reference, checks, metrics`."""
    numbers = {metric.name: row[metric.name] for metric in TURN_METRICS}
    return {
        "turn": row["turn"],
        "prompt": row["prompt"],
        "reply": row["reply"],
        "finish_reason": row["finish_reason"],
        "error": row["error"],
        "reference": row["reference"],
        "checks": row["checks"],
        "metrics": {name: value for name, value in numbers.items() if not math.isnan(value)},
    }


def print_dialogues(shown: Sequence[Dialogue], console: Console, *, many_cells: bool, many_repeats: bool) -> None:
    """Each dialogue under a rule with its name; what the user said, what the model said, and the numbers."""
    for dialogue in shown:
        title = dialogue.conversation
        if many_cells:
            title += f"  {dialogue.cell}"
        if many_repeats:
            title += f"  repeat {dialogue.repeat}"
        console.print(headline(title, console.width, align="left"))
        for record in dialogue.turns:
            console.print(_turn(record))
            console.print()


def headline(title: str, width: int, align: Literal["left", "center"] = "center") -> Rule | Text:
    """A rule with a title; without the rule where the title alone needs more room than there is."""
    shown = Text(printable(title, keep_newlines=False), style="bold", overflow="fold")
    return Rule(shown, align=align, style="dim") if shown.cell_len + RULE_ENDS <= width else shown


def _turn(record: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text("User", "cyan"), Text(printable(record["prompt"])))
    if record["error"]:
        table.add_row(Text("Error", "bold red"), Text(printable(record["error"]), "red"))
    else:
        table.add_row(Text("Assistant", "green"), Text(printable(record["reply"])))
    if record["reference"]:
        table.add_row(Text("Reference", "dim"), Text(printable(record["reference"]), "dim"))
    for check in record["checks"]:
        mark, style = ("✓", "green") if check["passed"] else ("✗", "bold red")
        text = f"{mark} {check['kind']} {check['expected']!r}"
        if not check["passed"] and check.get("detail"):
            text += f": {check['detail']}"
        table.add_row("", _safe(text, style))
    table.add_row("", _safe(_numbers(record), "dim"))
    return table


def _numbers(record: dict[str, Any]) -> str:
    digits = {metric.name: min(metric.digits, 2) for metric in TURN_METRICS}
    parts = [
        f"{name} {number(record['metrics'][name], digits[name])}"
        for name in _SHOWN_METRICS
        if name in record["metrics"]
    ]
    return ", ".join([f"turn {record['turn']}", f"ended by {record['finish_reason']}", *parts])


def _failed(row: dict[Any, Any]) -> bool:
    return row["finish_reason"] == "error" or any(not check["passed"] for check in row["checks"])


def _chosen(what: str, patterns: Sequence[str], known: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(known))
    if not patterns:
        return names
    chosen: list[str] = []
    for pattern in patterns:
        found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
        if not found:
            some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise UsageError(f"{what}: the run has none called {pattern!r}", hint=f"it has {some}")
        chosen.extend(found)
    return list(dict.fromkeys(chosen))


def _safe(text: str, style: str) -> Text:
    return Text(printable(text, keep_newlines=False), style=style)
