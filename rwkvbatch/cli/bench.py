"""`rwkvbatch bench`: how fast a model runs here."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rwkvbatch.cli.options import BackendOption, ModelOption, StrategyOption, ThreadsOption
from rwkvbatch.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from rwkvbatch.bench.limits import Limits
    from rwkvbatch.bench.measure import Report

BENCH_EPILOG = (
    "The share of the limit is the time that the machine would need at its measured read bandwidth or multiply-add "
    "peak (on a GPU, copy bandwidth or matrix rate), whichever is longer, over the time taken. Medians over the "
    "rounds; a busy machine shows in all of them."
)

NARROWEST_NAME = 18
NARROWEST_NAME_WITH_PACKAGE = 12
"""Longer names of figures are folded where there is no room for them."""

LESS_WANTED = ("best", "of the limit", "rwkv")
"""Columns that a narrow terminal does without, the first one first."""


def bench_command(
    model: ModelOption = None,
    random: Annotated[
        str | None,
        typer.Option("--random", metavar="LAYERSxWIDTH", help="Measure random weights of this shape, such as 12x768."),
    ] = None,
    strategy: StrategyOption = None,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    against: Annotated[
        Literal["rwkv"] | None,
        typer.Option("--against", help="Time the rwkv package in turn with this program, and give the ratios."),
    ] = None,
    cpu_time: Annotated[
        bool,
        typer.Option("--cpu-time", help="Count the processor time of one thread, not the wall's: for a busy machine."),
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Three rounds, at 1, 8 and 64 rows.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on standard error.")] = False,
) -> None:
    """Measure decoding, prompt reading, sampling, tokenizing, loading, and the machine's own limits."""
    if random is not None and model is not None:
        raise UsageError("--random makes its own checkpoint: it cannot be given together with --model")

    from rwkvbatch.bench.measure import Plan, run_benchmark

    if cpu_time and threads not in (None, 1):
        raise UsageError(f"--cpu-time is the time of one thread, got --threads {threads}")
    plan = Plan(against_package=against is not None, processor_time=cpu_time)
    if quick:
        plan = replace(plan, rows=(1, 8, 64), rounds=3)
    say = _progress(quiet)
    with ExitStack() as stack:
        path: Path | str | None = model
        if random is not None:
            from rwkvbatch.bench.measure import write_random

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rwkvbatch-bench-"))
            say(f"making a random checkpoint, {random}")
            path = write_random(random, Path(folder))
        report = run_benchmark(
            path, plan, strategy=strategy or "auto", backend=backend or "auto", threads=threads, say=say
        )
    if json:
        from dataclasses import asdict
        from json import dumps

        typer.echo(dumps(asdict(report)))
    else:
        _show(report)


def _progress(quiet: bool) -> Callable[[str], None]:
    from rwkvbatch.prompt.escaping import printable

    def say(message: str) -> None:
        if not quiet:
            typer.echo(printable(message), file=sys.stderr)

    return say


def _show(report: Report) -> None:
    from rwkvbatch.cli.views import console, facts_table
    from rwkvbatch.prompt.escaping import printable

    out = console()
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    facts = {
        "model": f"{printable(report.model)}, {report.parameters:,} parameters, {report.dtype}",
        "backend": f"{report.backend}, {threads}, {report.rounds} rounds, {report.clock} time",
        "machine": report.machine,
        "loading": _loading(report),
    }
    if report.limits is not None:
        facts["limits"] = _limits(report.limits)
    out.print(facts_table(facts))
    out.print()
    out.print(figures_table(report, out.width))


def figures_table(report: Report, width: int = 80) -> Table:
    """A line a figure; of a narrow terminal, the columns that it has room for."""
    from rich.table import Table

    from rwkvbatch.cli.views import fitted

    columns = {
        "median": [_number(figure.median) for figure in report.figures],
        "best": [_number(figure.best) for figure in report.figures],
        "rwkv": [_number(figure.package) for figure in report.figures],
        "times": ["" if figure.ratio is None else f"{figure.ratio:.1f}" for figure in report.figures],
        "unit": [figure.unit for figure in report.figures],
        "of the limit": [
            "" if figure.share is None else f"{figure.share:.0%} of {figure.limit}" for figure in report.figures
        ],
    }
    for name in ["best"] if report.against else ["rwkv", "times"]:
        del columns[name]
    narrowest = NARROWEST_NAME_WITH_PACKAGE if report.against else NARROWEST_NAME

    def table_of(names: Sequence[str]) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("", overflow="fold", min_width=narrowest)
        for name in names:
            table.add_column(name, justify="left" if name == "unit" else "right", no_wrap=True)
        for figure, *cells in zip(report.figures, *(columns[name] for name in names), strict=True):
            table.add_row(figure.name, *cells)
        return table

    return fitted(table_of, list(columns), LESS_WANTED, width)


def _limits(limits: Limits) -> str:
    memory, arithmetic = ("reads", "multiply-adds") if limits.arithmetic == "fma" else ("copies", "matrix products")
    return (
        f"{memory} {limits.read_gb_s:.1f} GB/s (best {limits.best_read_gb_s:.1f}), {arithmetic} "
        f"{limits.fma_gflop_s:.0f} GFLOP/s (best {limits.best_fma_gflop_s:.0f}), {limits.isa}"
    )


def _loading(report: Report) -> str:
    loading = report.loading
    text = f"{loading.seconds:.2f} s, file {loading.checkpoint_mb:.0f} MB"
    if loading.resident_mb is not None and loading.resident_share is not None:
        text += f", resident {loading.resident_mb:.0f} MB ({loading.resident_share:.2f} x)"
    return text


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
