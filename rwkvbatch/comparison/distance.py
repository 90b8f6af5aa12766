"""Probes by distance: how long ago, in turns and in tokens, the fact that they ask about was said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

Unit = Literal["turns", "tokens"]
UNITS: Final[tuple[Unit, ...]] = ("turns", "tokens")
MAX_SINGLE: Final = 12
"""The most different distances in turns that have a group each; more are grouped by powers of two, as tokens are."""


@dataclass(frozen=True)
class DistanceGroup:
    """Probes whose distance is from `low` to `high` of a unit; `rows` `[n]` marks them, `middle` is their mean."""

    unit: Unit
    low: int
    high: int
    middle: float
    rows: NDArray[np.bool_]

    @property
    def label(self) -> str:
        """Its name in tables."""
        if self.low == self.high:
            return f"{self.low} {self.unit[:-1] if self.low == 1 else self.unit}"
        return f"{self.low}-{self.high} {self.unit}"


def distance_groups(rows: pd.DataFrame, side: str = "") -> list[DistanceGroup]:
    """The groups of the probes among `rows`: by turns, then by tokens, each from near to far.

    Args:
        side: the suffix of the columns; of matched rows the baseline's distances count.
    """
    found: list[DistanceGroup] = []
    for unit in UNITS:
        distances = rows[f"probe_{unit}{side}"].to_numpy(dtype=np.float64)
        known = np.unique(distances[~np.isnan(distances)])
        if unit == "turns" and known.size <= MAX_SINGLE:
            ends = [(int(value), int(value)) for value in known]
        else:
            ends = list(dict.fromkeys(_power(int(value)) for value in known))
        for low, high in ends:
            within = (distances >= low) & (distances <= high)
            found.append(DistanceGroup(unit, low, high, float(distances[within].mean()), within))
    return found


def _power(distance: int) -> tuple[int, int]:
    """The group of a distance: 0, 1, 2-3, 4-7, 8-15 and so on."""
    if distance < 1:
        return 0, 0
    low = 1 << (distance.bit_length() - 1)
    return low, 2 * low - 1
