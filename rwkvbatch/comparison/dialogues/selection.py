"""Selection of a run's dialogues, with their turns as records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from rwkvbatch.comparison.metrics.declarations import TURN_METRICS
from rwkvbatch.comparison.runs.data import Opening, RunData
from rwkvbatch.comparison.runs.loading import openings
from rwkvbatch.errors import UsageError, listed
from rwkvbatch.results.manifest import system_of

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

SHOWN_METRICS = ("score", "nll", "tokens", "logprob", "loop", "first_token_s")
"""The metrics that are printed under each reply of a dialogue."""

_TURN_CONTENT = ("prompt", "reply", "finish_reason", "error", "reference", "choices", "checks")


@dataclass(frozen=True)
class Dialogue:
    """One conversation in one cell and repeat, with its turns as records (see `turn_record`).

    `system` is None if there is no system message, or if the run does not contain it; `greeting` likewise: the
    assistant message with which the conversation begins. `is_plain` says whether its turns are plain prompts.
    """

    conversation: str
    cell: str
    repeat: int
    tags: tuple[str, ...]
    turns: tuple[dict[str, Any], ...]
    system: str | None = None
    greeting: str | None = None
    is_plain: bool = False

    @property
    def failed(self) -> bool:
        """Whether a turn has an error or a failed check."""
        return any(map(has_failed, self.turns))

    def as_record(self) -> dict[str, Any]:
        return {**vars(self), "tags": list(self.tags), "turns": list(self.turns)}


def dialogues(
    run: RunData,
    *,
    conversations: Sequence[str] = (),
    cells: Sequence[str] = (),
    repeat: int | None = None,
    turn: int | None = None,
) -> list[Dialogue]:
    """The selected dialogues of `run`, in the order of the cells, then of the rows.

    Args:
        conversations: ids or tags, or patterns of them with `*` and `?`; empty for all.
        cells: the same for cells.

    Raises:
        UsageError: the run has no such conversation, tag, cell, repeat or turn.
    """
    names_by_tag: dict[str, list[str]] = {}
    for name, tags in zip(run.rows["conversation"], run.rows["tags"], strict=True) if conversations else ():
        for tag in tags:
            names_by_tag.setdefault(tag, []).append(name)
    selected_names = names_matching("conversation", conversations, run.conversations, names_by_tag)
    selected_cells = names_matching("--cell", cells, [*run.facts.cells, *run.cells])
    rows = run.rows.loc[run.rows["conversation"].isin(selected_names) & run.rows["cell"].isin(selected_cells)]
    for column, place in (("repeat", repeat), ("turn", turn)):
        if place is not None:
            rows = _rows_with(rows, column, place)
    groups: dict[tuple[str, str, int], list[dict[Any, Any]]] = {}
    for row in rows.sort_values("turn", kind="stable").to_dict("records"):
        groups.setdefault((row["conversation"], row["cell"], row["repeat"]), []).append(row)
    before, settings = openings(run) or {}, run.facts.cells
    selected = [
        Dialogue(
            name,
            cell,
            number,
            tags=tuple(turns[0]["tags"]),
            turns=tuple(map(turn_record, turns)),
            system=system_of(settings.get(cell, {}), before.get(name, Opening()).system),
            greeting=before.get(name, Opening()).greeting,
            is_plain=before.get(name, Opening()).is_plain,
        )
        for (name, cell, number), turns in groups.items()
    ]
    order = {name: position for position, name in enumerate(selected_names)}
    return sorted(
        selected,
        key=lambda dialogue: (selected_cells.index(dialogue.cell), order[dialogue.conversation], dialogue.repeat),
    )


def _rows_with(rows: pd.DataFrame, column: str, number: int) -> pd.DataFrame:
    """The rows with `number` in `column`; raises `UsageError` if there is none."""
    selected = rows.loc[rows[column] == number]
    if len(rows) and not len(selected):
        last = max(rows[column].tolist())
        allowed = f"in 0 to {last}" if last else "0"
        raise UsageError(f"--{column} must be {allowed} for this selection, got {number}")
    return selected


def turn_record(row: Mapping[Any, Any], side: str = "") -> dict[str, Any]:
    """One turn as JSON values; `metrics` has only those with a value.

    `probe_after` is the turn of the dialogue after which a probe was asked; None for turns of the dialogue.

    Args:
        side: suffix of the columns of one side of matched rows.
    """
    values = {metric.name: row[f"{metric.name}{side}"] for metric in TURN_METRICS}
    probe_after = row.get(f"probe_after{side}", math.nan)
    return {
        "turn": row["turn"],
        "probe_after": None if math.isnan(probe_after) else int(probe_after),
        **{name: row[f"{name}{side}"] for name in _TURN_CONTENT},
        "metrics": {name: value for name, value in values.items() if not math.isnan(value)},
    }


def has_failed(row: Mapping[Any, Any]) -> bool:
    """Whether a turn, a row or a record of one, has an error or a failed check."""
    return row["finish_reason"] == "error" or any(check["passed"] is False for check in row["checks"])


def names_matching(
    option: str, patterns: Sequence[str], known: Sequence[str], names_by_tag: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """The known names that match a pattern, all of them without patterns.

    A pattern that matches no name selects the names with a tag that matches it.

    Raises:
        UsageError: a pattern matches neither a name nor a tag.
    """
    names = list(dict.fromkeys(known))
    if not patterns:
        return names
    selected: list[str] = []
    for pattern in patterns:
        matches = [name for name in names if _matches(name, pattern)] or [
            name for tag, tagged in (names_by_tag or {}).items() if _matches(tag, pattern) for name in tagged
        ]
        if not matches:
            raise UsageError(f"{option}: the run has none called {pattern!r}", hint=f"known: {listed(names)}")
        selected.extend(matches)
    return list(dict.fromkeys(selected))


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
