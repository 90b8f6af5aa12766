"""Restriction of a comparison to some conversations (`compare --only`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rwkvbatch.comparison.runs.data import RunData
from rwkvbatch.errors import UsageError, counted, listed
from rwkvbatch.script.records import selected_ids

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


@dataclass(frozen=True)
class Restriction:
    """The conversations that a comparison is about.

    Attributes:
        patterns: ids, tags, or patterns of them, as given.
        num_selected: number of conversations that they select.
        num_conversations: number of conversations that the runs have.
    """

    patterns: tuple[str, ...]
    num_selected: int
    num_conversations: int

    @property
    def name(self) -> str:
        """The restriction in two or more words, after the name of what is restricted."""
        return f"only {listed(self.patterns)}"

    @property
    def sentence(self) -> str:
        """The restriction with the numbers of conversations."""
        return f"{self.name}: {self.num_selected:,} of {counted(self.num_conversations, 'conversation')}"

    def as_dict(self) -> dict[str, Any]:
        """The restriction as JSON values."""
        return {
            "patterns": list(self.patterns),
            "num_selected": self.num_selected,
            "num_conversations": self.num_conversations,
        }


def restricted(runs: Sequence[RunData], patterns: Sequence[str]) -> tuple[list[RunData], Restriction | None]:
    """The runs with only the rows of the conversations that `run --only` would select; all rows without patterns.

    Raises:
        UsageError: no conversation has an id or tag that a pattern matches, or a run has none of the selected ones.
    """
    if not patterns:
        return list(runs), None
    tags_of: dict[str, set[str]] = {}
    for run in runs:
        for name, tags in zip(run.rows["conversation"], run.rows["tags"], strict=True):
            tags_of.setdefault(name, set()).update(tags)
    selected = selected_ids(patterns, tags_of)
    found: list[RunData] = []
    for run in runs:
        rows = run.rows.loc[run.rows["conversation"].isin(list(selected))].reset_index(drop=True)
        if len(run.rows) and not len(rows):
            raise UsageError(f"{run.source} has no conversation of --only {listed(patterns)}")
        found.append(replace(run, rows=rows))
    return found, Restriction(tuple(patterns), len(selected), len(tags_of))
