"""Groups of rows: by turn, by tag, and of probes by their distance from the message that they ask about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

    from rwkvbatch.comparison.values.columns import JoinedColumns

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

Breakdown = Literal["turn", "tag", "distance"]
Unit = Literal["turns", "tokens"]
UNITS: Final[tuple[Unit, ...]] = ("turns", "tokens")
MAX_SINGLE: Final = 12
"""The most distances in turns that each have their own group; more are grouped by powers of two, like tokens."""


@dataclass(frozen=True)
class DistanceGroup:
    """Probes at a distance from `low` to `high`, both included.

    Attributes:
        middle: the mean distance.
        rows: `[n]` whether each row of the table is in the group.
    """

    unit: Unit
    low: int
    high: int
    middle: float
    rows: NDArray[np.bool_]

    @property
    def label(self) -> str:
        """The group's name in tables."""
        if self.low == self.high:
            return f"{self.low} {self.unit[:-1] if self.low == 1 else self.unit}"
        return f"{self.low}-{self.high} {self.unit}"


def distance_groups(rows: pd.DataFrame, side: str = "") -> list[DistanceGroup]:
    """The groups of the probes among `rows`: by turns, then by tokens, each in ascending order of distance.

    Args:
        side: suffix of the columns; `_a` in matched rows, which takes the baseline's distances.
    """
    groups: list[DistanceGroup] = []
    for unit in UNITS:
        distances = rows[f"probe_{unit}{side}"].to_numpy(dtype=np.float64)
        distinct = np.unique(distances[~np.isnan(distances)])
        if unit == "turns" and distinct.size <= MAX_SINGLE:
            ranges = [(int(value), int(value)) for value in distinct]
        else:
            ranges = list(dict.fromkeys(_power_of_two_range(int(value)) for value in distinct))
        for low, high in ranges:
            in_group = (distances >= low) & (distances <= high)
            groups.append(DistanceGroup(unit, low, high, float(distances[in_group].mean()), in_group))
    return groups


def _power_of_two_range(distance: int) -> tuple[int, int]:
    """The range that contains `distance`: 0, 1, 2-3, 4-7, 8-15 and so on."""
    if distance < 1:
        return 0, 0
    low = 1 << (distance.bit_length() - 1)
    return low, 2 * low - 1


def groups_of(rows: pd.DataFrame, by: Breakdown | None, side: str = "") -> Iterator[tuple[str | None, pd.DataFrame]]:
    """The groups of `rows` by turn, tag or distance of probes, each with its name; all rows for `by=None`.

    Args:
        side: suffix of the columns: `_a` or `_b` in matched rows.
    """
    if by is None:
        yield None, rows
    elif by == "turn":
        dialogue = rows.loc[rows[f"probe_turns{side}"].isna()] if f"probe_turns{side}" in rows else rows
        for turn in sorted(dialogue["turn"].unique()):
            yield f"turn {turn}", dialogue.loc[dialogue["turn"] == turn]
    elif by == "distance":
        for group in distance_groups(rows, side):
            yield group.label, rows.loc[group.rows]
    else:
        for tag in sorted(tags_of(rows, side)):
            yield tag, with_tag(rows, tag, side)


def tags_of(rows: pd.DataFrame | JoinedColumns, side: str = "") -> list[str]:
    """The tags of `rows`, in order of appearance."""
    return list(dict.fromkeys(tag for tags in rows[f"tags{side}"] for tag in tags))


def with_tag(rows: pd.DataFrame, tag: str, side: str = "") -> pd.DataFrame:
    """The rows with a tag. In matched rows, `side` is the suffix of the side whose tags count."""
    return rows.loc[[tag in tags for tags in rows[f"tags{side}"]]]
