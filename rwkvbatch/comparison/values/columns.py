"""The rows of single cells in the table of all runs, and the columns of two cells side by side."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.runs.data import Variant

if TYPE_CHECKING:
    import pandas as pd

    Columns: TypeAlias = "pd.DataFrame | CellColumns | JoinedColumns"
    """The columns of rows of one cell, or of matched rows of two."""

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

KEYS: Final = ("conversation", "conversation_code", "turn", "repeat")
"""The columns on which rows of two variants are matched."""


class Cells:
    """The columns of a table as arrays, and the positions of the rows of each cell of each run.

    Searching the table for each cell would take a time proportional to the square of the number of cells.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = weakref.ref(table, _forget)
        self.names = [str(name) for name in table.columns]
        self.types = {name: table[name].dtype for name in self.names}
        self._columns = {name: table[name].to_numpy() for name in self.names}
        self._positions = table.groupby(["run", "cell"], sort=False).indices

    def is_of(self, table: pd.DataFrame) -> bool:
        """Whether these are the columns of `table`."""
        return self.table() is table and len(table) == len(self._columns["run"])

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def column(self, name: str) -> NDArray[Any]:
        """`[rows]` the values of a column."""
        return self._columns[name]

    def positions(self, variant: Variant) -> NDArray[np.int64]:
        """`[rows]` the positions of the rows of one cell of one run, in order."""
        return self._positions.get((variant.run, variant.cell), np.empty(0, dtype=np.int64))


_last_cells: list[Cells] = []
"""The cells of the table that was used last, if any."""


def _forget(table: weakref.ref[pd.DataFrame]) -> None:
    """Free the columns of a table that is no longer in use."""
    if any(cells.table is table for cells in tuple(_last_cells)):
        _last_cells.clear()


def cells_of(table: pd.DataFrame) -> Cells:
    """The cells of `table`, which must not change from the first call on."""
    # Another thread may replace the cells between any two statements.
    cells = next((cells for cells in tuple(_last_cells) if cells.is_of(table)), None)
    if cells is None:
        cells = Cells(table)
        _last_cells[:] = [cells]
    return cells


def rows_of(table: pd.DataFrame, variant: Variant, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """The rows of one cell of one run, with the given `columns` or (slower) with all.

    Args:
        table: see `matching.comparable_rows`. It must not change between calls.
    """
    import pandas as pd

    cells = cells_of(table)
    positions = cells.positions(variant)
    if columns is None:
        return table.take(positions)
    index = table.index.take(positions)
    chosen = {name: pd.Series(cells.column(name)[positions], index, cells.types[name]) for name in columns}
    return pd.DataFrame(chosen, index=index)


def same_keys(table: pd.DataFrame, variants: Sequence[Variant], names: Sequence[str]) -> NDArray[np.int64] | None:
    """`[variants, rows]` the positions of the rows of each variant, or None if their keys or the keys' order differ.

    Args:
        names: integer columns that are the key.
    """
    cells = cells_of(table)
    positions = [cells.positions(variant) for variant in variants]
    if not positions or len({len(each) for each in positions}) > 1:
        return None
    stacked = np.stack(positions)
    for name in names:
        values = cells.column(name)[stacked]
        if not (values == values[0]).all():
            return None
    return stacked


class CellColumns:
    """The columns of the rows of one cell, each made when it is asked for."""

    def __init__(self, cells: Cells, positions: NDArray[np.int64]) -> None:
        self._cells = cells
        self._positions = positions

    @classmethod
    def of(cls, table: pd.DataFrame, variant: Variant) -> CellColumns:
        """The columns of `rows_of`."""
        cells = cells_of(table)
        return cls(cells, cells.positions(variant))

    def __len__(self) -> int:
        return len(self._positions)

    def __contains__(self, name: str) -> bool:
        return name in self._cells

    def array(self, name: str) -> NDArray[Any]:
        """`[rows]` the values of a column."""
        return self._cells.column(name)[self._positions]

    def __getitem__(self, name: str) -> pd.Series:
        import pandas as pd

        return pd.Series(self.array(name), dtype=self._cells.types[name])


class JoinedColumns:
    """The columns of two cells side by side, each made when it is asked for: most comparisons need a few of them.

    Args:
        cells: the table of both cells.
        baseline, variant: `[rows]` positions in the table of the rows of both sides, which have equal `KEYS`.
    """

    def __init__(self, cells: Cells, baseline: NDArray[np.int64], variant: NDArray[np.int64]) -> None:
        self._cells = cells
        self._sides = {"_a": CellColumns(cells, baseline), "_b": CellColumns(cells, variant)}

    def __len__(self) -> int:
        return len(self._sides["_a"])

    def __contains__(self, name: str) -> bool:
        return name in KEYS or (name[-2:] in self._sides and name[:-2] in self._cells)

    def array(self, name: str) -> NDArray[Any]:
        """`[rows]` the values of a column."""
        return self._sides["_a"].array(name) if name in KEYS else self._sides[name[-2:]].array(name[:-2])

    def __getitem__(self, name: str) -> pd.Series:
        return self._sides["_a"][name] if name in KEYS else self._sides[name[-2:]][name[:-2]]

    def table(self) -> pd.DataFrame:
        """All columns, in the order of `pandas.merge`."""
        import pandas as pd

        others = [name for name in self._cells.names if name not in KEYS]
        left = [name if name in KEYS else f"{name}_a" for name in self._cells.names]
        return pd.DataFrame({name: self[name] for name in (*left, *(f"{name}_b" for name in others))})


def array_of(rows: Columns, name: str, dtype: Any = None) -> NDArray[Any]:
    """`[rows]` the values of a column, converted to `dtype` if it is given."""
    values = rows.array(name) if isinstance(rows, CellColumns | JoinedColumns) else rows[name].to_numpy()
    return values if dtype is None else values.astype(dtype, copy=False)
