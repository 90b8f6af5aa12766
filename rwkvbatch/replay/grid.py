"""The cells of a grid: from comma lists on the command line, and from tables of a TOML file.

    [grid]                      # every combination of these
    temperature = [0.3, 0.7]
    frequency = [0.0, 0.5]

    [zip]                       # these go in step; together they are one more dimension of the product
    top_p = [0.3, 0.8]
    top_k = [0, 50]

    [cells.careful]             # cells of their own, by name
    preset = "precise"

    [override."temp=0.7,frequency=0.5,top_p=0.3,top_k=0"]   # settings for one cell; its name stays
    max_tokens = 64

Cells come in the order in which they are written, the last dimension varying fastest. The first one is the
baseline of comparisons.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rwkvbatch.config import SHORT_NAMES, Sampling, Stopping, full_name
from rwkvbatch.errors import UsageError
from rwkvbatch.replay.settings import (
    GRID_TABLES,
    CellSettings,
    Origin,
    checked_values,
    option_name,
)

BASE_CELL = "base"
MAX_CELLS = 10_000

_PATHS = ("model", "state", "template", "prelude")


@dataclass(frozen=True)
class Cell:
    """One combination of settings: its name, and the settings that differ from the run's."""

    name: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class GridFile:
    """The tables of a grid, see above, and the name of the file that they stood in."""

    name: str
    tables: Mapping[str, Any]

    @property
    def keys(self) -> frozenset[str]:
        """Full names of the settings that the tables give, whichever cell has them."""
        groups = [self.tables.get("grid", {}), self.tables.get("zip", {})]
        groups += [*self.tables.get("cells", {}).values(), *self.tables.get("override", {}).values()]
        return frozenset(full_name(key) for group in groups for key in group)

    def origins(self, cells: Sequence[Cell]) -> Iterator[Origin]:
        """Where the settings of `cells` came from that these tables gave."""
        given = {(key, str(cell.overrides[key])) for cell in cells for key in self.keys & cell.overrides.keys()}
        for key, value in sorted(given):
            yield Origin(option_name(key), value, self.name, is_only=False)


@dataclass(frozen=True)
class _Choice:
    """One value of a dimension: its part of the cell's name, and what it sets."""

    name: str
    values: Mapping[str, Any]


def make_cells(lists: Mapping[str, Sequence[Any]], *files: GridFile) -> tuple[Cell, ...]:
    """The cells of a run; a single one called `base` when nothing varies.

    Args:
        lists: the command line's comma lists, by setting.
        files: what grid files hold.

    Raises:
        UsageError: an unknown table or setting, a value that is not allowed, a cell or setting given twice; names
            the file.
    """
    dimensions = [_dimension(key, values, option_name(key)) for key, values in lists.items()]
    varied = {full_name(key) for key in lists}
    named: list[Cell] = []
    changes: dict[str, dict[str, Any]] = {}
    where_changed: dict[str, str] = {}
    for file in files:
        with _told_of(file.name):
            _refuse_unknown(file.tables)
            for key, values in _table(file, "grid").items():
                _refuse_twice(key, varied)
                dimensions.append(_dimension(key, _sequence(values, f"[grid] {key}"), f"[grid] {key}"))
            if together := _table(file, "zip"):
                for key in together:
                    _refuse_twice(key, varied)
                dimensions.append(_zipped(together))
            for name, values in _table(file, "cells").items():
                named.append(Cell(_checked_name(name), _settings(values, f"[cells.{name}]")))
            for name, values in _table(file, "override").items():
                changes[name] = _settings(values, f"[override.{name!r}]")
                where_changed[name] = file.name
    cells = [*_product(dimensions), *named] or [Cell(BASE_CELL, {})]
    names = [cell.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the grid has two cells called {name!r}", hint="give each a value or name of its own")
    for name in changes.keys() - set(names):
        raise UsageError(
            f"{where_changed[name]}: [override.{name!r}]: there is no such cell",
            hint=f"the cells are: {'; '.join(names[:20])}",
        )
    return tuple(Cell(cell.name, {**cell.overrides, **changes.get(cell.name, {})}) for cell in cells)


def _product(dimensions: Sequence[Sequence[_Choice]]) -> list[Cell]:
    size = 1
    for dimension in dimensions:
        size *= len(dimension)
    if size > MAX_CELLS:
        raise UsageError(f"the grid has {size:,} cells; at most {MAX_CELLS:,} are allowed")
    if not dimensions:
        return []
    return [
        Cell(
            ",".join(c.name for c in choices),
            {key: value for c in choices for key, value in c.values.items()},
        )
        for choices in itertools.product(*dimensions)
    ]


def _dimension(key: str, values: Sequence[Any], where: str) -> list[_Choice]:
    names = _choice_names(key, values)
    return [_Choice(name, _overrides({key: value}, where)) for name, value in zip(names, values, strict=True)]


def _zipped(lists: Mapping[str, Any]) -> list[_Choice]:
    columns = {key: _sequence(values, f"[zip] {key}") for key, values in lists.items()}
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise UsageError(f"[zip]: all lists must be of one length; {shown}")
    names = zip(*(_choice_names(key, values) for key, values in columns.items()), strict=True)
    return [
        _Choice(",".join(parts), _overrides(dict(zip(columns, values, strict=True)), "[zip]"))
        for parts, values in zip(names, zip(*columns.values(), strict=True), strict=True)
    ]


def _overrides(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    def name(key: str) -> str:
        return where if where.endswith(key) or where.startswith("--") else f"{where} {key}"

    checked = checked_values(values, name)
    for key in checked:
        if key not in CellSettings.model_fields:
            raise UsageError(
                f"{where}: {key} is a setting of the whole run and cannot differ between cells",
                hint="settings of a cell: " + ", ".join([*Sampling.model_fields, *Stopping.model_fields, "..."]),
            )
    return checked


def _choice_names(key: str, values: Sequence[Any]) -> list[str]:
    """Such as `temp=0.7` for each value. Files of one name get as many of their folders as tell them apart."""
    full = full_name(key)
    names = [_value_name(full, value) for value in values]
    if full in _PATHS:
        paths = [str(value or "") for value in values]
        same_name = [{path for path, other in zip(paths, names, strict=True) if other == name} for name in names]
        for place, alike in enumerate(same_name):
            if paths[place] and len(alike) > 1:
                names[place] = _name_with_folders(paths[place], alike)
    return [f"{SHORT_NAMES.get(full, full)}={name}" for name in names]


def _name_with_folders(path: str, others: Iterable[str]) -> str:
    """The last parts of `path` that no other one ends with, without the ending of the file."""

    def end(of: str, length: int) -> tuple[str, ...]:
        return (*PurePath(of).parts[-length:-1], PurePath(of).stem)

    length = 2
    while length < len(PurePath(path).parts) and any(
        end(other, length) == end(path, length) for other in others if other != path
    ):
        length += 1
    return _as_name("_".join(part for part in end(path, length) if part != PurePath(path).anchor))


def _value_name(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "+".join(_value_name(key, part) for part in value) or "none"  # pyright: ignore[reportUnknownVariableType]
    text = PurePath(value).stem if key in _PATHS and value else str(value)
    try:
        return f"{float(text):g}"
    except ValueError:
        return _as_name(text)


def _as_name(text: str) -> str:
    """`text` with only those characters that a cell's name may have in file names, tables and gates."""
    return re.sub(r"[^\w.+-]+", "_", text) or "none"


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[\w.+=,:-]{1,100}", name):
        raise UsageError(
            f"[cells.{name!r}]: a cell's name has 1 to 100 letters, digits and characters of _ . + = , : -"
        )
    return name


def _refuse_twice(key: str, varied: set[str]) -> None:
    if full_name(key) in varied:
        raise UsageError(f"{key} is varied twice", hint="give it on the command line or in one table of the grid")
    varied.add(full_name(key))


@contextmanager
def _told_of(file: str) -> Generator[None]:
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{file}: {error.message}", hint=error.hint) from None


def _refuse_unknown(tables: Mapping[str, Any]) -> None:
    for key in tables:
        if key not in GRID_TABLES:
            hint = None
            if full_name(key) in CellSettings.model_fields:
                hint = "a list of values goes under [grid]; one value for all cells goes into a --config file"
            raise UsageError(f"unknown table [{key}]; allowed are {', '.join(GRID_TABLES)}", hint=hint)


def _table(file: GridFile, name: str) -> Mapping[str, Any]:
    return _mapping(file.tables.get(name, {}), f"[{name}]")


def _settings(values: Any, where: str) -> dict[str, Any]:
    return _overrides(_mapping(values, where), where)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where} must be a table of settings, got {value!r}")
    return value  # pyright: ignore[reportUnknownVariableType]


def _sequence(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where} must be a list of values, got {value!r}")
    return value  # pyright: ignore[reportUnknownVariableType]
