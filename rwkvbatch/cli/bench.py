"""`rwkvbatch bench`: how fast a model runs here."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rwkvbatch.cli.checkpoints import model_path
from rwkvbatch.cli.command import Command, command_app
from rwkvbatch.cli.exits import message, print_json
from rwkvbatch.cli.options import JsonOption, QuietOption, RandomOption, SparsityOption, option, with_settings
from rwkvbatch.errors import UsageError, counted

if TYPE_CHECKING:
    from rich.table import Table

    from rwkvbatch.bench.limits import Limits
    from rwkvbatch.bench.measure import Report

EPILOG = (
    "The share of the limit is the time that the machine would need at its measured read bandwidth or multiply-add "
    "peak (on a GPU, copy bandwidth or matrix rate), whichever is longer, over the time taken. Memory traffic is "
    "weights read, and states read and written. Medians over the rounds; a busy machine shows in all of them."
)

app = command_app()


@app.command("bench", cls=Command, epilog=EPILOG)
@with_settings("model", "strategy", "backend", "threads")
def bench_command(
    random: RandomOption = None,
    sparsity: SparsityOption = None,
    against: Annotated[
        Literal["rwkv"] | None,
        option("--against", "Time the rwkv package in turns with this program, and print the ratios."),
    ] = None,
    cpu_time: Annotated[
        bool, option("--cpu-time", "Processor time of one thread, not wall time: for a busy machine.")
    ] = False,
    quick: Annotated[bool, option("--quick", "Three rounds, at 1, 8 and 64 rows.")] = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Measure decoding, prefill, sampling, tokenizing, loading, and the machine's own limits."""
    from rwkvbatch.config import RunSettings
    from rwkvbatch.config.sources import checked_values

    checked = RunSettings(**checked_values(settings))
    if cpu_time and checked.threads not in (None, 1):
        raise UsageError(f"--cpu-time is the time of one thread, got --threads {checked.threads}")
    from rwkvbatch.bench.measure import Plan, run_benchmark

    plan = Plan(against_package=against is not None, processor_time=cpu_time)
    if quick:
        plan = replace(plan, rows=(1, 8, 64), rounds=3)
    with model_path(checked.model, random, named="--model", quiet=quiet, sparsity=sparsity) as path:
        report = run_benchmark(
            path,
            plan,
            strategy=checked.strategy,
            backend=checked.backend,
            threads=checked.threads,
            notify=partial(message, quiet=quiet),
        )
    if json_output:
        print_json(asdict(report), indent=None)
    else:
        _show(report)


def _show(report: Report) -> None:
    from rwkvbatch.cli.views import console, facts_table

    out = console()
    threads = counted(report.threads, "thread")
    facts = {
        "model": f"{report.model}, {report.parameters:,} parameters, {report.dtype}",
        "backend": f"{report.backend}, {threads}, {report.rounds} rounds, {report.clock} time",
        "machine": report.machine,
        "loading": _loading(report),
    }
    if report.limits is not None:
        facts["limits"] = _limits(report.limits)
    out.print(facts_table(facts))
    out.print()
    out.print(figures_table(report, out.width))
    if any(round(figure.share or 0, 2) > 1 for figure in report.figures if figure.limit == "memory"):
        out.print("More than 100%: the weights stay in the processor's cache, which is faster than memory.")


def figures_table(report: Report, width: int = 80) -> Table:
    """A table with one line for each figure and as many columns as fit into `width`."""
    from rwkvbatch.cli.views import fitted_table

    figures = report.figures
    columns = {
        "median": [_number(figure.median) for figure in figures],
        "best": [_number(figure.best) for figure in figures],
        "rwkv": [_number(figure.package) for figure in figures],
        "times": ["" if figure.ratio is None else f"{figure.ratio:.1f}" for figure in figures],
        "unit": [figure.unit for figure in figures],
        "of the limit": ["" if figure.share is None else f"{figure.share:.0%} of {figure.limit}" for figure in figures],
    }
    for name in ["best"] if report.against else ["rwkv", "times"]:
        del columns[name]
    return fitted_table(
        [figure.name for figure in figures],
        columns,
        width,
        min_name_width=12 if report.against else 18,
        left=["unit"],
        optional_columns=["best", "of the limit", "rwkv"],
    )


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
