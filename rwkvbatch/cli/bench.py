"""`rwkvbatch bench`: how fast a model runs here."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rwkvbatch.cli.options import BackendOption, ModelOption, StrategyOption, ThreadsOption
from rwkvbatch.errors import UsageError

if TYPE_CHECKING:
    from rwkvbatch.bench.records import Figure, Limits, Report

BENCH_EPILOG = (
    "The share of the limit is the time that the machine would need at its measured read bandwidth or multiply-add "
    "peak (on a GPU, copy bandwidth or matrix rate), whichever is longer, over the time taken. Medians over the "
    "rounds; a busy machine shows in all of them."
)


def bench_command(
    model: ModelOption = None,
    random: Annotated[
        str | None,
        typer.Option(
            "--random", metavar="LAYERSxWIDTH", help="Measure random weights of this shape, such as 12x768."
        ),
    ] = None,
    strategy: StrategyOption = None,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    against: Annotated[
        Literal["rwkv"] | None,
        typer.Option(
            "--against", help="Time the rwkv package in turn with this program, and give the ratios."
        ),
    ] = None,
    cpu_time: Annotated[
        bool,
        typer.Option(
            "--cpu-time", help="Count the processor time of one thread, not the wall's: for a busy machine."
        ),
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
            from rwkvbatch.bench.random_file import write_random

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
    from rwkvbatch.text.safe import printable

    def say(message: str) -> None:
        if not quiet:
            typer.echo(printable(message), file=sys.stderr)

    return say


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rwkvbatch.text.safe import printable

    console = Console()
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    facts = {
        "model": f"{printable(report.model)}, {report.parameters:,} parameters, {report.dtype}",
        "backend": f"{report.backend}, {threads}, {report.rounds} rounds, {report.clock} time",
        "machine": report.machine,
        "loading": _loading(report),
    }
    if report.limits is not None:
        facts["limits"] = _limits(report.limits)
    summary = Table(show_header=False, box=None)
    summary.add_column()
    summary.add_column(overflow="fold")
    for name, fact in facts.items():
        summary.add_row(Text(name, style="bold"), Text(fact))
    console.print(summary)
    table = Table(box=None, header_style="bold")
    table.add_column("", no_wrap=True)
    for column in ["median", *(["rwkv", "times"] if report.against else ["best"]), "unit", "of the limit"]:
        table.add_column(column, justify="left" if column == "unit" else "right", no_wrap=True)
    for figure in report.figures:
        table.add_row(figure.name, *_cells(figure, with_package=report.against is not None))
    console.print(table)


def _limits(limits: Limits) -> str:
    memory, arithmetic = (
        ("reads", "multiply-adds") if limits.arithmetic == "fma" else ("copies", "matrix products")
    )
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


def _cells(figure: Figure, *, with_package: bool) -> list[str]:
    def number(value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    share = ""
    if figure.share is not None:
        share = f"{figure.share:.0%} of {figure.limit}"
    cells = [number(figure.median)]
    if with_package:
        cells += [number(figure.package), "" if figure.ratio is None else f"{figure.ratio:.1f}"]
    else:
        cells += [number(figure.best)]
    return [*cells, figure.unit, share]
