"""Tables on the terminal: the summary of a run, the plan of `--dry-run`, and columns that fit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD, Box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from rwkvbatch.errors import counted
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.results.row import SCORED
from rwkvbatch.results.summary import CellSummary, Summary, worst

if TYPE_CHECKING:
    from rwkvbatch.replay.api import Prepared
    from rwkvbatch.replay.runner import RunResult


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


FIXED_COLUMNS = 66
"""Width of the table without the names of the cells."""


def show_summary(result: RunResult) -> None:
    """Print the table by cell, the totals, and the next command."""
    err = console(stderr=True)
    err.print(summary_table(result.summary, err.width))
    for line in _summary_lines(result):
        err.print(Text(printable(line)), soft_wrap=True)


def summary_table(summary: Summary, width: int = 100) -> Table:
    """One row for each cell.

    If `width` is too small for the names of cells, each of their settings gets a line of its own; if that does not fit
    either, columns are left out.
    """
    names = [printable(cell.name) for cell in summary.cells]
    if max(map(len, names), default=0) > width - FIXED_COLUMNS:
        names = [name.replace(",", ",\n") for name in names]
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    return fitted_table(
        names,
        _columns(summary),
        width,
        header="cell",
        least_name=min(24, longest),
        folded=["ended by"],
        less_wanted=["first token\np50 / p95", "reply\ntokens", "ended by", "tokens\nscored", "perplexity\nof texts"],
        box=SIMPLE_HEAD,
    )


def _columns(summary: Summary) -> dict[str, list[str]]:
    """The columns besides the cells' names, by header."""
    cells = summary.cells
    columns = {
        "rows": [f"{cell.rows:,}" for cell in cells],
        "checks\npassed": [
            f"{cell.checks_passed}/{judged} {cell.checks_passed / judged:.0%}"
            if (judged := cell.checks - cell.unjudged)
            else "-"
            for cell in cells
        ],
        "reply\ntokens": [f"{cell.reply_tokens:,}" for cell in cells],
        "ended by": [_ends(cell) for cell in cells],
        "first token\np50 / p95": [_waits(cell.first_token_p50_s, cell.first_token_p95_s) for cell in cells],
    }
    if all(set(cell.finish_reasons) <= {SCORED, "error"} and cell.rows for cell in cells):
        for name in ("reply\ntokens", "first token\np50 / p95"):
            del columns[name]
        if not any(cell.checks for cell in cells):
            del columns["checks\npassed"]
    if any(cell.plain_text is not None for cell in cells):
        texts = [cell.plain_text for cell in cells]
        columns |= {
            "tokens\nscored": ["-" if text is None else f"{text.tokens:,}" for text in texts],
            "nll": ["-" if text is None else f"{text.nll:.4f}" for text in texts],
            "perplexity": [_number(text and text.perplexity) for text in texts],
            "bits per\nbyte": ["-" if text is None else f"{text.bits_per_byte:.4f}" for text in texts],
        }
        if any(text is not None and text.accuracy is not None for text in texts):
            columns["perplexity\nof texts"] = [_number(text and text.text_perplexity) for text in texts]
            columns["accuracy"] = [
                "-" if text is None or text.accuracy is None else f"{text.accuracy:.2%}" for text in texts
            ]
    if any(cell.reference_nll is not None for cell in cells):
        columns["ref.\nnll"] = ["-" if cell.reference_nll is None else f"{cell.reference_nll:.3f}" for cell in cells]
    return columns


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}" if value < 1e6 else f"{value:.4g}"


def _ends(cell: CellSummary) -> str:
    ends = sorted(cell.finish_reasons.items(), key=lambda item: -item[1])
    return ends[0][0] if len(ends) == 1 else "\n".join(f"{name} {count:,}" for name, count in ends)


def _waits(median: float | None, high: float | None) -> str:
    if median is None or high is None:
        return "-"
    return f"{median * 1000:.0f} / {high * 1000:.0f} ms" if high < 1 else f"{median:.2f} / {high:.2f} s"


def _summary_lines(result: RunResult) -> list[str]:
    import shlex

    from rwkvbatch.replay.progress import duration

    summary, progress = result.summary, result.progress
    read = summary.prompt_tokens - summary.cached_tokens
    only_scored = all(set(cell.finish_reasons) <= {SCORED, "error"} and cell.rows for cell in summary.cells)
    done = "no reply was generated" if progress.failures else "all rows were there already"
    if progress.reply_tokens:
        tokens, elapsed = progress.reply_tokens, duration(progress.elapsed_s)
        kind = "scored" if only_scored else "reply"
        done = f"{tokens:,} {kind} tokens in {elapsed}, {progress.tokens_per_s:,.0f} tokens/s"
    lines = [done]
    if not only_scored:
        lines.append(f"{summary.prompt_tokens:,} prompt tokens: {read:,} read, {summary.cached_tokens:,} reused")
    if summary.errors:
        some, them = ("1 row", "it") if summary.errors == 1 else (f"{summary.errors:,} rows", "them")
        lines.append(f"{some} failed; --retry-errors runs {them} again")
    if summary.unjudged:
        lines.append(f"no verdict of {counted(summary.unjudged, 'check')}: the scores are missing")
    for what, shares in (("tags", summary.failed_tags), ("checks", summary.failed_checks)):
        if some := worst(shares):
            named = ", ".join(f"{name} {share.failed:,} of {share.of:,}" for name, share in some)
            lines.append(f"{what} that failed most: {named}")
    lines += _precision_lines(result)
    if result.race is not None:
        lines += race_lines(result.race.as_dict())
    if result.verified is not None:
        lines.append(f"verified: {result.verified['held']}")
    directory = shlex.quote(str(result.directory))
    lines.append(f"rows are in {directory}")
    if (shard := result.plan.shard) is not None:
        lines.append(f"next, when all {shard.parts} parts are done: rwkvbatch merge PART... --out DIR")
    elif len(summary.cells) > 1:
        lines.append(f"next: rwkvbatch compare {directory}")
    elif summary.errors or any(cell.checks_passed < cell.checks for cell in summary.cells):
        lines.append(f"next: rwkvbatch show {directory} --failed")
    elif only_scored:
        lines.append(f"next: rwkvbatch show {directory}, or score with another --model and compare")
    else:
        lines.append(f"next: rwkvbatch show {directory}, or run again with --temp 0.3,1.0 and compare")
    return lines


def until_ci_record(result: RunResult) -> dict[str, Any] | None:
    """Result of `--until-ci` for `--json`; the width is null where it is unknown or there is nothing to compare."""
    if not result.reached:
        return None
    cells = [
        {**vars(cell), "width": None if cell.width is None or math.isinf(cell.width) else cell.width}
        for cell in result.reached
    ]
    return {"asked": result.plan.settings.until_ci, "cells": cells}


def _precision_lines(result: RunResult) -> list[str]:
    """Repeats of each cell, and the width of its interval against the first cell."""
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
            found = "width unknown: one conversation only, or the same difference in all"
        else:
            found = f"width {cell.width:.3g}" + ("" if cell.width <= asked else ", wider than asked")
        lines.append(f"  {cell.cell}: {counted(cell.repeats, 'repeat')}, {found}")
    return lines


def race_lines(record: Mapping[str, Any]) -> list[str]:
    """A race's result, as `summary.json` has it, in a few lines, however many cells there are."""
    from rwkvbatch.replay.race import can_drop

    left, cells = record["left"], {cell["cell"]: cell for cell in record["cells"]}
    scored = [name for name in left if cells[name]["score"] is not None]
    if not scored:
        return ["race: no look yet"]
    ranked = sorted(scored, key=lambda name: -cells[name]["score"])
    endings = {
        "one cell left": "one cell is left",
        "within the margin": f"the leader is less than {record['margin'] or 0:g} worse than any cell left",
        "budget": "the budget is used up",
        "interrupted": "interrupted",
    }
    looks = f"{record['looks']:,} look{'' if record['looks'] == 1 else 's'}"
    share = f"{record['rows'] / record['rows_of_grid']:.0%}" if record["rows_of_grid"] else "-"
    lines = [
        f"race: {endings[record['ending']]}, after {record['draws']:,} of {record['draws_planned']:,} draws, "
        f"{looks} and {record['rows']:,} rows, {share} of the full grid's {record['rows_of_grid']:,}",
        f"  leader: {record['leader']}, score {cells[record['leader']]['score']:.3f}",
    ]
    others = [name for name in ranked if name != record["leader"]]
    if others:
        shown = "; ".join(f"{name} {cells[name]['score']:.3f}" for name in others[:RACE_CELLS_SHOWN])
        more = f"; and {len(others) - RACE_CELLS_SHOWN} more" if len(others) > RACE_CELLS_SHOWN else ""
        lines.append(f"  not shown to be worse: {shown}{more}")
    dropped = sorted(
        (cell for cell in record["cells"] if cell["dropped_after"] is not None), key=lambda cell: -cell["dropped_after"]
    )
    if dropped:
        lines.append(
            f"  dropped: {len(dropped)} of {len(cells)} cells, after {dropped[-1]['dropped_after']:,} to "
            f"{dropped[0]['dropped_after']:,} draws; the last one: {dropped[0]['cell']}"
        )
    elif len(cells) > 1 and not can_drop(len(cells), record["draws_planned"], record["level"]):
        lines.append("  so few draws cannot show that a cell is worse: --repeats gives more of them")
    lines.append(f"  a truly best cell is dropped with a probability of at most {record['level']:g}")
    return lines


MAX_WARNINGS = 50

RACE_CELLS_SHOWN = 4
"""Cells in the race that are named beside the leader."""


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
