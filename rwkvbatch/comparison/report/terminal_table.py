"""The table of comparisons in a terminal, fitted to its width by shorter labels and fewer columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from rwkvbatch.comparison.numbers import MISSING
from rwkvbatch.comparison.statistics.differences import Comparison
from rwkvbatch.comparison.wording import COLUMNS, TableColumn
from rwkvbatch.config.names import short_names
from rwkvbatch.prompt.escaping import printable

_VERDICT_STYLES: Final = {"better": "bold green", "worse": "bold red", "differs": "bold yellow"}
_OPTIONAL_COLUMNS: Final = ("detectable", "p", "W/T/L", "baseline", "mean", "95 % interval")
"""The columns that are left out until the table fits, in this order."""
_SHORT_LABELS_AFTER: Final = ("p", "baseline", "mean", "95 % interval")
"""Columns that are removed before labels are shortened; more columns are removed after that."""
_MIN_LABEL = 12
"""The fewest characters of the column of labels."""


@dataclass(frozen=True)
class _Labels:
    """The labels of a table's lines, and the heading of their column."""

    heading: str
    labels: tuple[str, ...]

    @property
    def width(self) -> int:
        return max(cell_len(label) for label in self.labels)


def comparison_table(lines: Sequence[Comparison], width: int) -> Table:
    """One line per comparison, fitted to `width`: by short labels, then fewer columns, then labels on several lines."""
    texts = {column.name: [column.text(line) for line in lines] for column in COLUMNS}
    headings = {column.name: _heading(column) for column in COLUMNS}
    widths = {name: 1 + max(map(cell_len, (headings[name], *texts[name]))) for name in texts}
    skipped = {name for name, column_texts in texts.items() if not any(text.strip(MISSING) for text in column_texts)}
    if len({line.pair.baseline for line in lines}) == 1:
        skipped.add("baseline")
    columns = [column for column in COLUMNS if column.name not in skipped]
    full, short = _full_labels(lines), _short_labels(lines)

    def label_room(shown: Sequence[TableColumn]) -> int:
        return width - sum(widths[column.name] for column in shown)

    for left_out in ("", *_OPTIONAL_COLUMNS):
        columns = [column for column in columns if column.name != left_out]
        if full.width <= label_room(columns):
            labels = full
            break
        if left_out in _SHORT_LABELS_AFTER and short.width <= label_room(columns):
            labels = short
            break
    else:
        labels = short if short.width <= max(_MIN_LABEL, label_room(columns)) else full
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(labels.heading, overflow="fold")
    for column in columns:
        table.add_column(headings[column.name], justify="left" if column.left else "right", no_wrap=True)
    for index, (label, line) in enumerate(zip(labels.labels, lines, strict=True)):
        is_too_wide = cell_len(label) > max(_MIN_LABEL, label_room(columns))
        verdict_style = "" if line.exploratory else _VERDICT_STYLES.get(line.verdict, "")
        styles = {"difference": verdict_style, "verdict": verdict_style or "dim"}
        cells = (Text(texts[column.name][index], styles.get(column.name, "")) for column in columns)
        table.add_row(Text(label.replace(",", ",\n") if is_too_wide else label), *cells)
    return table


def _heading(column: TableColumn) -> str:
    return "" if column.name == "verdict" else column.short or column.name


def _full_labels(lines: Sequence[Comparison]) -> _Labels:
    return _with_groups("", [line.pair.variant.label for line in lines], lines)


def _short_labels(lines: Sequence[Comparison]) -> _Labels:
    """Labels without their common part, which the heading names."""
    heading, names = short_names([line.pair.variant.label for line in lines])
    return _with_groups(heading, names, lines)


def _with_groups(heading: str, names: Sequence[str], lines: Sequence[Comparison]) -> _Labels:
    """The names, each followed by its line's group."""
    labels = (name + (f", {line.group}" if line.group else "") for name, line in zip(names, lines, strict=True))
    printable_labels = tuple(printable(label, keep_newlines=False) for label in labels)
    return _Labels(printable(heading, keep_newlines=False), printable_labels)
