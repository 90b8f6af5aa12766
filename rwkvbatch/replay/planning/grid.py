"""Makes the cells of a grid from comma lists on the command line and tables of a TOML file.

    [grid]                      # every combination of these
    temperature = [0.3, 0.7]
    frequency = [0.0, 0.5]

    [zip]                       # lists of paired values, which are one more dimension of the product
    top_p = [0.3, 0.8]
    top_k = [0, 50]

    [cells.careful]             # further cells with a name
    preset = "precise"

    [override."temp=0.7,frequency=0.5,top_p=0.3,top_k=0"]   # settings of one cell; its name stays
    max_tokens = 64

Cells keep the order of the lists and tables; the last dimension varies fastest. The first cell is the baseline of
comparisons.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rwkvbatch.config import SYSTEM_FILE, TEXTS, CellSettings, Sampling, Stopping, stands_for
from rwkvbatch.config.names import SHORT_NAMES, full_name, option_name
from rwkvbatch.config.sources import GRID_TABLES, Origin, checked_values
from rwkvbatch.errors import UsageError, listed

BASE_CELL = "base"
MAX_CELLS = 10_000
MAX_TEXT_NAME = 24
"""Largest number of characters of a text in a cell's name."""

PATHS = ("model", "state", "template", "prelude", SYSTEM_FILE)


@dataclass(frozen=True)
class Cell:
    """A named combination of settings, or one value of a dimension; `overrides` has what differs from the run's."""

    name: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class GridFile:
    """The tables of a grid in the file `name`."""

    name: str
    tables: Mapping[str, Any]

    @property
    def keys(self) -> frozenset[str]:
        """Full names of the settings that the tables set in at least one cell."""
        grid, zipped, cells, override = (self.tables.get(name, {}) for name in GRID_TABLES)
        groups = [grid, zipped, *cells.values(), *override.values()]
        return frozenset(full_name(key) for group in groups for key in group)

    def origins(self, cells: Sequence[Cell]) -> Iterator[Origin]:
        """Origins of the settings that these tables set in `cells`."""
        values = {(key, str(cell.overrides[key])) for cell in cells for key in self.keys & cell.overrides.keys()}
        for key, value in sorted(values):
            yield Origin(option_name(key), value, self.name, is_only=False)


def make_cells(lists: Mapping[str, Sequence[Any]], *files: GridFile) -> tuple[Cell, ...]:
    """The cells of a run; a single one called `base` when nothing varies.

    Args:
        lists: by setting, the values of the command line's comma lists.

    Raises:
        UsageError: an unknown table or setting, a value that is not allowed, a cell or setting given twice. The message
            names the file.
    """
    varied: set[str] = set()
    _note_varied(lists, varied)
    dimensions = [_dimension(key, values, option_name(key)) for key, values in lists.items()]
    named: list[Cell] = []
    overrides_of: dict[str, dict[str, Any]] = {}
    file_of_override: dict[str, str] = {}
    for file in files:
        with _naming_file(file.name):
            grid, zipped, cells_by_name, override = _checked_tables(file.tables)
            _note_varied((*grid, *zipped), varied)
            for key, values in grid.items():
                where = f"[grid] {key}"
                dimensions.append(_dimension(key, _sequence(values, where), where))
            if zipped:
                dimensions.append(_zipped_dimension(zipped))
            for name, values in cells_by_name.items():
                if not re.fullmatch(r"[\w.+=,:-]{1,100}", name):
                    allowed = "1 to 100 letters, digits and characters of _ . + = , : -"
                    raise UsageError(f"[cells.{name!r}]: a cell's name has {allowed}")
                named.append(Cell(name, _overrides(values, f"[cells.{name}]")))
            for name, values in override.items():
                overrides_of[name] = _overrides(values, f"[override.{name!r}]")
                file_of_override[name] = file.name
    cells = [*_product(dimensions), *named] or [Cell(BASE_CELL, {})]
    names = [cell.name for cell in cells]
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(f"the grid has two cells called {name!r}", hint="give each its own value or name")
    for name in overrides_of.keys() - set(names):
        hint = f"the cells are: {listed(names, 20, '; ')}"
        raise UsageError(f"{file_of_override[name]}: [override.{name!r}]: no cell has this name", hint=hint)
    return tuple(Cell(cell.name, {**cell.overrides, **overrides_of.get(cell.name, {})}) for cell in cells)


def _note_varied(keys: Iterable[str], varied: set[str]) -> None:
    """Add the settings that `keys` vary to `varied`; raises `UsageError` for one that `varied` already has."""
    for key in keys:
        setting = stands_for(full_name(key))
        if setting in varied:
            both_options = ", by --system and by --system-file" if setting == "system" else ""
            hint = "give it on the command line or in one table of the grid"
            raise UsageError(f"{key} is varied twice{both_options}", hint=hint)
        varied.add(setting)


def _product(dimensions: Sequence[Sequence[Cell]]) -> list[Cell]:
    size = math.prod(map(len, dimensions))
    if size > MAX_CELLS:
        raise UsageError(f"the grid has {size:,} cells; at most {MAX_CELLS:,} are allowed")
    if not dimensions:
        return []
    return [
        Cell(",".join(c.name for c in choices), {key: value for c in choices for key, value in c.overrides.items()})
        for choices in itertools.product(*dimensions)
    ]


def _dimension(key: str, values: Sequence[Any], where: str) -> list[Cell]:
    names = _choice_names(key, values)
    return [Cell(name, _overrides({key: value}, where)) for name, value in zip(names, values, strict=True)]


def _zipped_dimension(lists: Mapping[str, Any]) -> list[Cell]:
    columns = {key: _sequence(values, f"[zip] {key}") for key, values in lists.items()}
    if len(set(map(len, columns.values()))) > 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in columns.items())
        raise UsageError(f"[zip]: all lists must be of one length; {lengths}")
    names = zip(*(_choice_names(key, values) for key, values in columns.items()), strict=True)
    rows = zip(*columns.values(), strict=True)
    return [
        Cell(",".join(parts), _overrides(dict(zip(columns, values, strict=True)), "[zip]"))
        for parts, values in zip(names, rows, strict=True)
    ]


def _overrides(values: Any, where: str) -> dict[str, Any]:
    """The checked settings of a cell; errors name the option or table `where` and the setting."""

    def shown_name(key: str) -> str:
        return where if where.endswith(key) or where.startswith("--") else f"{where} {key}"

    checked = checked_values(_mapping(values, where), shown_name)
    for key in checked:
        if key not in CellSettings.model_fields:
            hint = "settings of a cell: " + ", ".join([*Sampling.model_fields, *Stopping.model_fields, "..."])
            raise UsageError(f"{where}: {key} is a setting of the whole run and cannot differ between cells", hint=hint)
    return checked


def _choice_names(key: str, values: Sequence[Any]) -> list[str]:
    """A name such as `temp=0.7` for each value. Files of the same name also have the folders that tell them apart."""
    setting = full_name(key)
    if setting in TEXTS:
        return [f"{setting}={name}" for name in _text_names(values)]
    names = [_value_name(setting, value) for value in values]
    if setting in PATHS:
        paths = [str(value or "") for value in values]
        paths_of_name = [{path for path, other in zip(paths, names, strict=True) if other == name} for name in names]
        for index, same_name in enumerate(paths_of_name):
            if paths[index] and len(same_name) > 1:
                names[index] = _name_with_folders(paths[index], same_name)
    return [f"{SHORT_NAMES.get(setting, setting)}={name}" for name in names]


def _text_names(texts: Iterable[object]) -> list[str]:
    """The beginning of each text, with a number if an earlier text begins in the same way."""
    names: list[str] = []
    for text in texts:
        name = beginning = _as_name(str(text or "").strip()[:MAX_TEXT_NAME]).strip("_") or "none"
        number = 1
        while name in names:
            number += 1
            name = f"{beginning}-{number}"
        names.append(name)
    return names


def _name_with_folders(path: str, others: Iterable[str]) -> str:
    """The shortest tail of `path`, with at least one folder and without the suffix, that no path of `others` has."""

    def tail(path: str, num_parts: int) -> tuple[str, ...]:
        return (*PurePath(path).parts[-num_parts:-1], PurePath(path).stem)

    num_parts = 2
    while num_parts < len(PurePath(path).parts) and any(
        tail(other, num_parts) == tail(path, num_parts) for other in others if other != path
    ):
        num_parts += 1
    return _as_name("_".join(part for part in tail(path, num_parts) if part != PurePath(path).anchor))


def _value_name(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "+".join(_value_name(key, part) for part in value) or "none"  # pyright: ignore[reportUnknownVariableType]
    text = PurePath(value).stem if key in PATHS and value else str(value)
    if key == "adapter":  # files, followed by options
        text = re.sub(r"[^\s=]*/", "", text)
    try:
        return f"{float(text):g}"
    except ValueError:
        return _as_name(text)


def _as_name(text: str) -> str:
    """`text` with each run of characters that a cell's name must not have replaced by `_`."""
    return re.sub(r"[^\w.+-]+", "_", text) or "none"


@contextmanager
def _naming_file(file: str) -> Generator[None]:
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{file}: {error.message}", hint=error.hint) from None


def _checked_tables(tables: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tables of `GRID_TABLES` in order; missing tables are empty."""
    for key in tables.keys() - set(GRID_TABLES):
        hint = None
        if full_name(key) in CellSettings.model_fields:
            hint = "a list of values goes under [grid]; one value for all cells goes into a --config file"
        raise UsageError(f"unknown table [{key}]; allowed are {', '.join(GRID_TABLES)}", hint=hint)
    return [_mapping(tables.get(name, {}), f"[{name}]") for name in GRID_TABLES]


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where} must be a table of settings, got {value!r}")
    return value  # pyright: ignore[reportUnknownVariableType]


def _sequence(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where} must be a list of values, got {value!r}")
    return value  # pyright: ignore[reportUnknownVariableType]
