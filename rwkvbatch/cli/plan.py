"""`rwkvbatch plan`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.exits import message, print_json
from rwkvbatch.cli.options import CheckModuleOption, JsonOption, QuietOption, option, script_limits
from rwkvbatch.errors import UsageError, counted
from rwkvbatch.targets import RESULTS_NAME

if TYPE_CHECKING:
    from rwkvbatch.comparison.metrics.declarations import Metric
    from rwkvbatch.comparison.statistics.power import Design, Spread

MAX_VARIANTS = 10_000
SMALLEST_DIFFERENCE = 1e-6

EPILOG = examples(
    "rwkvbatch plan datasets/demo.jsonl --detect 0.05",
    """rwkvbatch run datasets/demo.jsonl --temp 0.7,1.0 --limit 40 --shuffle-seed 1 --out runs/pilot
  rwkvbatch plan datasets/demo.jsonl --detect 0.02 --power 0.9 --pilot runs/pilot""",
    "rwkvbatch plan questions.jsonl --metric nll --detect 0.01 --pilot runs/before --pilot runs/after",
)


app = command_app()


@app.command("plan", cls=Command, epilog=EPILOG)
def plan_command(
    scripts: Annotated[
        list[str], typer.Argument(metavar="SCRIPT...", help="The scripts to be replayed.", show_default=False)
    ],
    detect: Annotated[
        float, option("--detect", "The difference of means to find, in the metric's unit.", "X", show_default=False)
    ],
    power: Annotated[float, option("--power", "The probability of finding it.", "P")] = 0.8,
    pilot: Annotated[
        list[str] | None,
        option("--pilot", "A run with two cells, or one of two runs, to take variances from; may be repeated.", "RUN"),
    ] = None,
    baseline: Annotated[
        str | None,
        option("--baseline", "The pilot's baseline. [dim]Default: its first cell or run[/]", "NAME", flag="-b"),
    ] = None,
    metric: Annotated[
        str | None, option("--metric", "[dim]Default: score where the script has checks, else nll[/]", "NAME")
    ] = None,
    variants: Annotated[
        int, option("--variants", "How many variants are compared with the baseline.", "N", min=1, max=MAX_VARIANTS)
    ] = 1,
    check_module: CheckModuleOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say how many conversations and repetitions it takes to find a difference."""
    if not 0 < power < 1:
        raise UsageError(f"--power must be between 0 and 1; got {power:g}")
    if not (math.isfinite(detect) and detect >= SMALLEST_DIFFERENCE):
        raise UsageError(f"--detect must be at least {SMALLEST_DIFFERENCE:g}; got {detect:g}")
    if baseline is not None and not pilot:
        raise UsageError("--baseline names a cell of the pilot: it needs --pilot RUN")
    for script in scripts:
        if (Path(script) / RESULTS_NAME).is_file():
            raise UsageError(
                f"{script} is a run and no script", hint=f"each run of the pilot has --pilot: --pilot {script}"
            )
    from rwkvbatch.comparison.statistics.power import (
        ONE_CELL_WARNING,
        designs,
        judged,
        metric_of,
        of_pilot,
        repetitions_of,
        without_pilot,
    )
    from rwkvbatch.script.checks import kinds_of_functions
    from rwkvbatch.script.checks.functions import using_functions
    from rwkvbatch.script.reader import read_scripts

    with using_functions(kinds_of_functions(check_module)):
        conversations = read_scripts(scripts, limits=script_limits()).conversations
    planned_metric = metric_of(conversations, metric)
    if detect > planned_metric.widest:
        limit = f"{planned_metric.widest:g}, the range of {planned_metric.name}"
        raise UsageError(f"--detect must be at most {limit}; got {detect:g}")
    used = judged(conversations, planned_metric)
    spread = of_pilot(pilot, planned_metric, baseline, conversations) if pilot else without_pilot(planned_metric)
    repetitions = repetitions_of(planned_metric, spread)
    suggested = designs(used, spread, detect, power=power, num_variants=variants, repetitions=repetitions)
    if json_output:
        print_json(
            {
                "conversations": len(conversations),
                "judged_conversations": len(used),
                "metric": planned_metric.name,
                "detect": detect,
                "power": power,
                "variants": variants,
                "variances": asdict(spread),
                "designs": [
                    asdict(design) | {"detectable": None if math.isnan(design.detectable) else design.detectable}
                    for design in suggested
                ],
            }
        )
        return
    against = counted(variants, "variant")
    name = planned_metric.name
    unit = f" {planned_metric.unit}" if planned_metric.unit not in ("", name) else ""
    _print(
        f"To find a difference of {detect:g}{unit} in {name} with a probability of {power * 100:.6g} % "
        f"(level 5 %, {against} against a baseline):",
        _with_fewer_conversations(suggested),
        num_conversations=len(used),
    )
    if not quiet:
        if len(used) < len(conversations):
            message(f"{len(used):,} of {len(conversations):,} conversations of the script have {name}")
        if spread.of_one_cell:
            message(f"warning: {ONE_CELL_WARNING}")
        for line in _remarks(spread, suggested, planned_metric):
            message(line)


def _with_fewer_conversations(suggested: list[Design]) -> list[Design]:
    """The designs whose repetitions save conversations, compared with the designs of fewer repetitions."""
    least = [min(design.conversations for design in suggested[: number + 1]) for number in range(len(suggested))]
    return [d for number, d in enumerate(suggested) if number == 0 or d.conversations < least[number - 1]]


def _print(title: str, suggested: list[Design], *, num_conversations: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from rwkvbatch.cli.views import console

    count = counted(num_conversations, "conversation")
    table = Table(box=None, pad_edge=False)
    for name in (
        "repetitions",
        "conversations",
        "turns per cell",
        f"the script's {count} {'finds' if num_conversations == 1 else 'find'}",
    ):
        table.add_column(name, justify="right")
    for design in suggested:
        detectable = "nothing" if math.isnan(design.detectable) else f"{design.detectable:.3g}"
        row = (f"{design.repetitions}", f"{design.conversations:,}", f"{design.turns:,}", detectable)
        table.add_row(*row, style="bold green" if design.enough else "")
    output = console()
    output.print(Text(title))
    output.print(table)


def _remarks(spread: Spread, suggested: list[Design], metric: Metric) -> list[str]:
    lines = [spread.source]
    if spread.num_conversations:
        within = "" if metric.level == "conversation" else f", of one repetition {spread.within:.3g}"
        lines.append(
            f"variance between conversations {spread.between:.3g}{within}, from "
            f"{counted(spread.num_conversations, 'conversation')} of {counted(spread.repetitions, 'repetition')}"
        )
    if others := spread.replayed - spread.in_script:
        lines.append(
            f"note: the script lacks {others:,} of the pilot's {counted(spread.replayed, 'conversation')}, or has them "
            "with other messages; it is assumed to vary as much as the pilot"
        )
    if len(suggested) > 1 and len(_with_fewer_conversations(suggested)) == 1:
        lines.append(
            "more repetitions save no conversation"
            + (": in the pilot they hardly differ" if spread.num_conversations and spread.repetitions > 1 else "")
        )
    enough = next((design for design in suggested if design.enough), None)
    if enough is None:
        lines.append("the script is too small for each of these: add conversations, or look for a larger difference")
    else:
        lines.append(f"the script is large enough with --repeats {enough.repetitions}")
    return lines
