"""A run's summary as a table on standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rwkvbatch.run.directory.summary import CellSummary, Summary

if TYPE_CHECKING:
    from rich.table import Table

    from rwkvbatch.run.execute import RunResult


FIXED_COLUMNS = 66
"""What a terminal needs besides the names of the cells."""

MAX_NAME_WIDTH = 24
"""Longer names are folded where there is no room for them."""

LESS_WANTED = ("first token\np50 / p95", "reply\ntokens", "ended by")
"""Columns that a narrow terminal does without, the first one first."""


def show_summary(result: RunResult) -> None:
    """Print the table by cell, the totals, and what to do next."""
    from rich.text import Text

    from rwkvbatch.cli.tables import console
    from rwkvbatch.text.safe import printable

    err = console(stderr=True)
    err.print(summary_table(result.summary, err.width))
    for line in _lines(result):
        err.print(Text(printable(line)), soft_wrap=True)


def summary_table(summary: Summary, width: int = 100) -> Table:
    """One line a cell.

    Where `width` is too small for a cell's name, it gets a line for each of its settings; where it is too small even
    then, columns are left out.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from rwkvbatch.cli.tables import fitted
    from rwkvbatch.text.safe import printable

    names = [printable(cell.name) for cell in summary.cells]
    if max((len(name) for name in names), default=0) > width - FIXED_COLUMNS:
        names = [name.replace(",", ",\n") for name in names]
    columns = _columns(summary)
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)

    def table_of(headers: Sequence[str]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("cell", overflow="fold", min_width=min(MAX_NAME_WIDTH, longest))
        for header in headers:
            is_text = header == "ended by"
            table.add_column(header, justify="left" if is_text else "right", no_wrap=not is_text)
        for name, *values in zip(names, *(columns[header] for header in headers), strict=True):
            table.add_row(Text(name), *values)
        return table

    return fitted(table_of, list(columns), LESS_WANTED, width)


def _columns(summary: Summary) -> dict[str, list[str]]:
    """What stands in each column besides the cells' names, by its header."""
    cells = summary.cells
    columns = {
        "rows": [f"{cell.rows:,}" for cell in cells],
        "checks\npassed": [_share_passed(cell) for cell in cells],
        "reply\ntokens": [f"{cell.reply_tokens:,}" for cell in cells],
        "ended by": [_ends(cell) for cell in cells],
        "first token\np50 / p95": [
            _seconds_pair(cell.first_token_p50_s, cell.first_token_p95_s) for cell in cells
        ],
    }
    if any(cell.reference_nll is not None for cell in cells):
        columns["ref.\nnll"] = [
            "-" if cell.reference_nll is None else f"{cell.reference_nll:.3f}" for cell in cells
        ]
    return columns


def _share_passed(cell: CellSummary) -> str:
    if not cell.checks:
        return "-"
    return f"{cell.checks_passed}/{cell.checks} {cell.checks_passed / cell.checks:.0%}"


def _ends(cell: CellSummary) -> str:
    ends = sorted(cell.finish.items(), key=lambda item: -item[1])
    return ends[0][0] if len(ends) == 1 else "\n".join(f"{name} {count:,}" for name, count in ends)


def _lines(result: RunResult) -> list[str]:
    import shlex

    from rwkvbatch.run.progress.figures import duration

    summary, progress = result.summary, result.progress
    read = summary.prompt_tokens - summary.cached_tokens
    if progress.reply_tokens:
        done = (
            f"{progress.reply_tokens:,} reply tokens in {duration(progress.elapsed_s)}, "
            f"{progress.tokens_per_s:,.0f} tokens/s"
        )
    else:
        done = "no reply came about" if progress.failures else "nothing was left to do"
    lines = [
        done,
        f"{summary.prompt_tokens:,} prompt tokens: {read:,} read, {summary.cached_tokens:,} reused",
    ]
    if summary.errors:
        some = f"{summary.errors:,} rows" if summary.errors > 1 else "1 row"
        lines.append(f"{some} failed; --retry-errors runs {'them' if summary.errors > 1 else 'it'} again")
    lines += _precision_lines(result)
    if result.verified is not None:
        lines.append(f"verified: {result.verified['held']}")
    directory = shlex.quote(str(result.directory))
    lines.append(f"rows are in {directory}")
    shard = result.plan.shard
    if shard is not None:
        lines.append(f"next, when all {shard.parts} parts are done: rwkvbatch merge PART... --out DIR")
    elif len(summary.cells) > 1:
        lines.append(f"next: rwkvbatch compare {directory}")
    elif summary.errors or any(cell.checks_passed < cell.checks for cell in summary.cells):
        lines.append(f"next: rwkvbatch show {directory} --failed")
    else:
        lines.append(f"next: rwkvbatch show {directory}, or run again with --temp 0.3,1.0 and compare")
    return lines


def until_ci_record(result: RunResult) -> dict[str, Any] | None:
    """What `--until-ci` came to, for `--json`: a width that cannot be known, or has nothing to be of, is null."""
    if not result.reached:
        return None
    cells = [
        {
            "cell": cell.cell,
            "repeats": cell.repeats,
            "width": cell.width if cell.width is not None and math.isfinite(cell.width) else None,
        }
        for cell in result.reached
    ]
    return {"asked": result.plan.settings.until_ci, "cells": cells}


def _precision_lines(result: RunResult) -> list[str]:
    """How many repeats each cell got, and how wide its interval against the first cell is."""
    if not result.reached:
        return []
    asked = result.plan.settings.until_ci
    assert asked is not None
    lines = [f"--until-ci {asked:g}: width of the score's interval against {result.reached[0].cell}"]
    for cell in result.reached:
        if cell is result.reached[0]:
            found = "the first cell"
        elif cell.width is None:
            found = "nothing to compare"
        elif math.isinf(cell.width):
            found = "width not known: one conversation only, or the same difference in all"
        else:
            found = f"width {cell.width:.3g}" + ("" if cell.width <= asked else ", wider than asked")
        lines.append(f"  {cell.cell}: {cell.repeats:,} repeats, {found}")
    return lines


def _seconds_pair(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    if high < 1:
        return f"{low * 1000:.0f} / {high * 1000:.0f} ms"
    return f"{low:.2f} / {high:.2f} s"
