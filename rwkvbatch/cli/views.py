"""Terminal output: consoles, tables that fit the width, progress bars, and the plan of `--dry-run`."""

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

from rwkvbatch.errors import counted, listed
from rwkvbatch.prompt.escaping import printable

if TYPE_CHECKING:
    from rwkvbatch.replay.prepare import Prepared
    from rwkvbatch.replay.preview import Preview


class TrimmedConsole(Console):
    """A console that strips trailing blanks from lines if it is not a terminal."""

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
def progress_bar(name: str, *, quiet: bool, of_bytes: bool = False) -> Generator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal. Yields a function that takes the amount done and the total."""
    with progress_bars(quiet=quiet, of_bytes=of_bytes) as add_bar:
        yield add_bar(name)


@contextmanager
def progress_bars(*, quiet: bool, of_bytes: bool = False) -> Generator[Callable[[str], Callable[[int, int], None]]]:
    """Several bars, one below the other. Yields a function that adds a bar and returns the function that moves it."""
    out = console(stderr=True)
    numbers = (DownloadColumn(binary_units=True),) if of_bytes else (TaskProgressColumn(),)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *numbers, TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=quiet or not out.is_terminal) as bars:

        def add_bar(name: str) -> Callable[[int, int], None]:
            task = bars.add_task(printable(name, keep_newlines=False), total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield add_bar


def fitted_table(
    names: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    width: int,
    *,
    min_name_width: int,
    header: str = "",
    left: Sequence[str] = (),
    folded: Sequence[str] = (),
    optional_columns: Sequence[str] = (),
    box: Box | None = None,
) -> Table:
    """A table with a column of names and as many of `columns` as fit into `width`.

    Args:
        min_name_width: smallest width to which names are folded.
        header: header of the column of names.
        left: columns that are aligned left.
        folded: columns that are aligned left and may be folded down to their longest word.
        optional_columns: columns that may be omitted, first the first. If the others do not fit either, all are folded.
    """
    kept, optional = list(columns), [name for name in optional_columns if name in columns]
    while True:
        table = Table(box=box, header_style="bold", pad_edge=False)
        table.add_column(header, overflow="fold", min_width=min_name_width)
        for name in kept:
            justify = "left" if name in (*left, *folded) else "right"
            table.add_column(name, justify=justify, no_wrap=name not in folded)
        for cells in zip(names, *(columns[name] for name in kept), strict=True):
            table.add_row(*(Text(printable(cell)) for cell in cells))
        spare = width - _narrowest(table)
        if spare >= 0 or not optional:
            break
        kept.remove(optional.pop(0))
    if spare < 0:
        for column in table.columns:
            column.no_wrap, column.overflow, column.min_width = False, "fold", None
        return table
    # Widths are set here because rich would shrink all columns, even below their least width.
    for column in table.columns:
        column.width = min(_widest(column), _least(column) + spare)
        spare -= column.width - _least(column)
    return table


def facts_table(facts: Mapping[str, str]) -> Table:
    """A table with a column of names and one of facts; long facts are folded."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(Text(name, style="bold"), Text(printable(fact)))
    return table


def _narrowest(table: Table) -> int:
    """The smallest width at which nothing is cut off, and nothing is folded against the settings of its column."""
    widest = Console(width=10_000).measure(table).maximum
    return widest - sum(_widest(column) - _least(column) for column in table.columns)


def _least(column: Column) -> int:
    """The smallest width of a column: that of its widest line, or if it may be folded, that of its longest word."""
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


def _judged_by(counts: Preview) -> str:
    """What a script has that decides a comparison."""
    if not counts.checks and not counts.references:
        return (
            "neither checks nor references, so that nothing decides a comparison: add `expect`, or compare with "
            "--primary tokens or --judge"
        )
    found = [counted(counts.checks, "check"), counted(counts.references, "reference")]
    if choices := counts.turns_with_choices:
        found.append(f"{counted(choices, 'turn')} with choices")
    return ", ".join(found)


def show_plan(prepared: Prepared, *, as_json: bool) -> None:
    """Print the plan of a run, with warnings. Reads the headers of checkpoints, the judge's too; loads no model."""
    from rwkvbatch.cli.exits import print_json
    from rwkvbatch.config.sources import naming_origins
    from rwkvbatch.replay.consistency import check_judge
    from rwkvbatch.replay.judging.rubrics import questions_of
    from rwkvbatch.replay.preview import preview
    from rwkvbatch.replay.worker.models import check_headers
    from rwkvbatch.replay.worker.prompts import PromptEncoder
    from rwkvbatch.script.lint import lint, lint_system

    with naming_origins(prepared.plan.origins):
        tokenizer, model_warnings = check_headers(prepared.plan)
        model_warnings += check_judge(prepared.plan)
    counts = preview(prepared.plan, PromptEncoder(tokenizer))
    cells = prepared.plan.cell_settings
    script_warnings = lint(
        prepared.plan.conversations,
        history="gold" if any(cell.history == "gold" for cell in cells) else "own",
        turn_end="blank-line" if any(cell.turn_end == "blank-line" for cell in cells) else "auto",
        reply_prefix=cells[0].reply_prefix,
    )
    option_warnings = lint_system(cell.system for cell in cells if cell.system is not None)
    warnings = [*model_warnings, *map(str, (*option_warnings, *script_warnings))]
    if as_json:
        print_json({**counts.as_dict(), "judge_questions": questions_of(prepared.plan), "warnings": warnings})
        return
    shared = counts.first_prompt_tokens - counts.first_prompt_distinct
    facts = {
        "rows": f"at most {counts.rows:,} (--race)" if prepared.plan.settings.race else f"{counts.rows:,}",
        "conversations": f"{counts.conversations:,}",
        "cells": f"{len(counts.cells):,}: {listed(counts.cells, separator='; ')}",
        "repeats": f"{counts.repeats:,}",
        "judged by": _judged_by(counts),
        "tokens of first prompts": f"{counts.first_prompt_tokens:,}, of which {shared:,} are shared prefixes",
        "tokens scored in first turns": f"{counts.first_scored_tokens:,}",
        "tokens of later turns": f"{counts.later_turn_tokens:,}, and the replies before them",
        "tokens of replies": f"at most {counts.max_reply_tokens:,}",
    }
    if questions := questions_of(prepared.plan):
        facts["questions to the judge"] = f"at most {questions:,}, and more where it gives no probabilities"
    console().print(facts_table(facts))
    err = console(stderr=True)
    for warning in warnings[:MAX_WARNINGS]:
        err.print(Text(printable(f"warning: {warning}", keep_newlines=False)), soft_wrap=True)
    if len(warnings) > MAX_WARNINGS:
        err.print(f"and {counted(len(warnings) - MAX_WARNINGS, 'more warning')}")


def size_text(num_bytes: int) -> str:
    """A size as text, in the largest unit in which it is at least 1."""
    from rich.filesize import pick_unit_and_suffix

    unit, suffix = pick_unit_and_suffix(num_bytes, ["bytes", "KiB", "MiB", "GiB"], 1024)
    return f"{num_bytes / unit:,.{0 if unit == 1 else 1}f} {suffix}"
