"""A run's summary as a table on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkvbatch.run.summary import CellSummary, Summary

if TYPE_CHECKING:
    from rich.table import Table

    from rwkvbatch.run.execute import RunResult


def show_summary(result: RunResult) -> None:
    """Print the table by cell, the totals, and what to do next."""
    from rich.console import Console
    from rich.text import Text

    from rwkvbatch.text.safe import printable

    console = Console(stderr=True)
    console.print(summary_table(result.summary))
    for line in _lines(result):
        console.print(Text(printable(line)), soft_wrap=True)


def summary_table(summary: Summary) -> Table:
    """One line a cell."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from rwkvbatch.text.safe import printable

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("cell", overflow="fold")
    for name in ("rows", "checks\npassed", "reply\ntokens"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ended by")
    table.add_column("first token\np50 / p95", justify="right", no_wrap=True)
    has_references = any(cell.reference_nll is not None for cell in summary.cells)
    if has_references:
        table.add_column("reference\nnll", justify="right", no_wrap=True)
    for cell in summary.cells:
        values = _values(cell)
        table.add_row(Text(printable(cell.name)), *(values if has_references else values[:-1]))
    return table


def _values(cell: CellSummary) -> list[str]:
    share = (
        f"{cell.checks_passed}/{cell.checks} {cell.checks_passed / cell.checks:.0%}" if cell.checks else "-"
    )
    ends = sorted(cell.finish.items(), key=lambda item: -item[1])
    return [
        f"{cell.rows:,}",
        share,
        f"{cell.reply_tokens:,}",
        ", ".join(f"{name} {count:,}" for name, count in ends),
        _seconds_pair(cell.first_token_p50_s, cell.first_token_p95_s),
        "-" if cell.reference_nll is None else f"{cell.reference_nll:.3f}",
    ]


def _lines(result: RunResult) -> list[str]:
    import shlex

    from rwkvbatch.run.progress import duration

    summary, progress = result.summary, result.progress
    read = summary.prompt_tokens - summary.cached_tokens
    lines = [
        f"{progress.reply_tokens:,} reply tokens in {duration(progress.elapsed_s)}, "
        f"{progress.tokens_per_s:,.0f} tokens/s"
        if progress.reply_tokens
        else "nothing was left to do",
        f"{summary.prompt_tokens:,} prompt tokens: {read:,} read, {summary.cached_tokens:,} reused",
    ]
    if summary.errors:
        lines.append(f"{summary.errors} rows failed; --retry-errors runs them again")
    if result.verified is not None:
        lines.append(f"verified: {result.verified['held']}")
    directory = shlex.quote(str(result.directory))
    lines.append(f"rows are in {directory}")
    shard = result.plan.shard
    if shard is not None:
        lines.append(f"next, when all {shard.parts} parts are done: rwkvbatch merge PART... --out DIR")
    elif len(summary.cells) > 1:
        lines.append(f"next: rwkvbatch compare {directory}")
    else:
        lines.append(f"next: rwkvbatch show {directory}, or run again with --temp 0.3,1.0 and compare")
    return lines


def _seconds_pair(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    if high < 1:
        return f"{low * 1000:.0f} / {high * 1000:.0f} ms"
    return f"{low:.2f} / {high:.2f} s"
