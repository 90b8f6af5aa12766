"""Tables that fit the terminal: columns are left out and cells folded, and nothing is cut off."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text


class TrimmedConsole(Console):
    """Leaves out the blanks that fill lines up, which only a terminal has a use for."""

    def print(self, *objects: Any, **options: Any) -> None:
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write(re.sub(r"[ \t]+$", "", captured.get(), flags=re.MULTILINE))
        self.file.flush()


def console(*, stderr: bool = False, file: IO[str] | None = None, width: int | None = None) -> Console:
    """A console for tables and text, on standard output unless another stream is given."""
    return TrimmedConsole(stderr=stderr, file=file, width=width, highlight=False)


def fitted(
    table_of: Callable[[Sequence[str]], Table], columns: Sequence[str], less_wanted: Sequence[str], width: int
) -> Table:
    """The table with as many of `columns` as have room.

    Args:
        table_of: makes the table with some of the columns. Of its own columns, those that are not `no_wrap` may be
            folded, down to their `min_width` or their longest word.
        less_wanted: what a narrow terminal does without, the first one first. Where even the others have no room,
            all of them are folded.
    """
    kept = list(columns)
    table = table_of(kept)
    for name in less_wanted:
        if _narrowest(table) <= width:
            break
        if name in kept:
            kept.remove(name)
            table = table_of(kept)
    spare = width - _narrowest(table)
    if spare < 0:
        for column in table.columns:
            column.no_wrap, column.overflow, column.min_width = False, "fold", None
        return table
    # Rich would take the room that lacks from all columns, whatever their least width.
    for column in table.columns:
        column.width = min(_widest(column), _least(column) + spare)
        spare -= column.width - _least(column)
    return table


def facts_table(facts: Mapping[str, str]) -> Table:
    """Names and what is to be said of them, folded where it is long."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(Text(name, style="bold"), Text(fact))
    return table


def _narrowest(table: Table) -> int:
    """The width below which something would be cut off, or folded that should not be."""
    widest = Console(width=10_000).measure(table).maximum
    return widest - sum(_widest(column) - _least(column) for column in table.columns)


def _least(column: Column) -> int:
    widest = _widest(column)
    if column.no_wrap:
        return widest
    words = (cell_len(word) for line in _lines(column) for word in line.split())
    return min(widest, column.min_width or max(words, default=0))


def _widest(column: Column) -> int:
    return max(map(cell_len, _lines(column)), default=0)


def _lines(column: Column) -> list[str]:
    return [line for cell in (column.header, *column.cells) for line in str(cell).split("\n")]
