"""Consoles, tables whose columns fit, progress bars, and the plan of `--dry-run` on the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from rwkvbatch.prompt.escaping import printable

if TYPE_CHECKING:
    from rwkvbatch.replay.api import Prepared


class TrimmedConsole(Console):
    """Strips trailing blanks of lines, except on a terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write(re.sub(r"[ \t]+$", "", captured.get(), flags=re.MULTILINE))
        self.file.flush()


def console(*, stderr: bool = False, file: IO[str] | None = None, width: int | None = None) -> Console:
    """A console for tables and text, on standard output by default."""
    return TrimmedConsole(stderr=stderr, file=file, width=width, highlight=False)


@contextmanager
def progress_bar(what: str, *, quiet: bool, of_bytes: bool = False) -> Generator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal, named `what`; the function takes what is done, and the whole."""
    with progress_bars(quiet=quiet, of_bytes=of_bytes) as shown:
        yield shown(what)


@contextmanager
def progress_bars(*, quiet: bool, of_bytes: bool = False) -> Generator[Callable[[str], Callable[[int, int], None]]]:
    """Several bars, one under the other: the function takes a bar's name, and gives that of `progress_bar`."""
    out = console(stderr=True)
    numbers = (DownloadColumn(binary_units=True),) if of_bytes else (TaskProgressColumn(),)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *numbers, TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=quiet or not out.is_terminal) as bars:

        def shown(what: str) -> Callable[[int, int], None]:
            task = bars.add_task(printable(what, keep_newlines=False), total=None)
            return lambda done, whole: bars.update(task, completed=done, total=whole)

        yield shown


def fitted_table(
    names: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    width: int,
    *,
    least_name: int,
    header: str = "",
    left: Sequence[str] = (),
    folded: Sequence[str] = (),
    less_wanted: Sequence[str] = (),
    box: Box | None = None,
) -> Table:
    """A table with a column of names and as many of `columns` as fit into `width`.

    Args:
        least_name: names are folded down to this width. header: of their column.
        left, folded: columns that are aligned left; those in `folded` may be folded down to their longest word.
        less_wanted: left out of a narrow table, the first one first. If the others do not fit either, all are folded.
    """
    kept, leaving = list(columns), [name for name in less_wanted if name in columns]
    while True:
        table = Table(box=box, header_style="bold", pad_edge=False)
        table.add_column(header, overflow="fold", min_width=least_name)
        for name in kept:
            justify = "left" if name in (*left, *folded) else "right"
            table.add_column(name, justify=justify, no_wrap=name not in folded)
        for cells in zip(names, *(columns[name] for name in kept), strict=True):
            table.add_row(*(Text(printable(cell)) for cell in cells))
        spare = width - _narrowest(table)
        if spare >= 0 or not leaving:
            break
        kept.remove(leaving.pop(0))
    if spare < 0:
        for column in table.columns:
            column.no_wrap, column.overflow, column.min_width = False, "fold", None
        return table
    # Rich would shrink all columns, whatever their least width.
    for column in table.columns:
        column.width = min(_widest(column), _least(column) + spare)
        spare -= column.width - _least(column)
    return table


def facts_table(facts: Mapping[str, str]) -> Table:
    """Two columns, names and facts; long facts are folded."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(Text(name, style="bold"), Text(printable(fact)))
    return table


def _narrowest(table: Table) -> int:
    """The width below which something would be cut off, or folded against its column's settings."""
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


MAX_WARNINGS = 50


def show_plan(prepared: Prepared, *, as_json: bool) -> None:
    """Print what would be run; opens the checkpoints' headers for their vocabularies, but loads no model."""
    from rwkvbatch.cli.exits import print_json
    from rwkvbatch.replay.jury import questions_of
    from rwkvbatch.replay.models import vocabularies
    from rwkvbatch.replay.preview import preview
    from rwkvbatch.replay.prompts import PromptEncoder
    from rwkvbatch.script.lint import lint, lint_system

    tokenizer, about_vocabularies = vocabularies(prepared.plan)
    found = preview(prepared.plan, PromptEncoder(tokenizer))
    cells = prepared.plan.cell_settings
    found_in_script = lint(
        prepared.plan.conversations,
        history="gold" if any(cell.history == "gold" for cell in cells) else "own",
        turn_end="blank-line" if any(cell.turn_end == "blank-line" for cell in cells) else "auto",
        reply_prefix=cells[0].reply_prefix,
    )
    found_in_options = lint_system(cell.system for cell in cells if cell.system is not None)
    warnings = [*about_vocabularies, *map(str, (*found_in_options, *found_in_script))]
    if as_json:
        print_json({**found.as_dict(), "judge_questions": questions_of(prepared.plan), "warnings": warnings})
        return
    shared = found.first_prompt_tokens - found.first_prompt_distinct
    facts = {
        "rows": f"at most {found.rows:,} (--race)" if prepared.plan.settings.race else f"{found.rows:,}",
        "conversations": f"{found.conversations:,}",
        "cells": f"{len(found.cells):,}: {'; '.join(found.cells[:8])}{' ...' if len(found.cells) > 8 else ''}",
        "repeats": f"{found.repeats:,}",
        "tokens of first prompts": f"{found.first_prompt_tokens:,}, of which {shared:,} are shared prefixes",
        "tokens of later turns": f"{found.later_turn_tokens:,}, and the replies before them",
        "tokens of replies": f"at most {found.max_reply_tokens:,}",
    }
    if questions := questions_of(prepared.plan):
        facts["questions to the judge"] = f"at most {questions:,}, and more where it gives no probabilities"
    console().print(facts_table(facts))
    err = console(stderr=True)
    for warning in warnings[:MAX_WARNINGS]:
        err.print(Text(printable(f"warning: {warning}", keep_newlines=False)), soft_wrap=True)
    if len(warnings) > MAX_WARNINGS:
        err.print(f"and {len(warnings) - MAX_WARNINGS} more warnings")


def size_text(num_bytes: int) -> str:
    """A size in the largest unit that leaves a number of at least 1."""
    from rich.filesize import pick_unit_and_suffix

    unit, suffix = pick_unit_and_suffix(num_bytes, ["bytes", "KiB", "MiB", "GiB"], 1024)
    return f"{num_bytes / unit:,.{0 if unit == 1 else 1}f} {suffix}"
