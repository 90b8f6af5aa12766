"""`rwkvbatch script`: scripts from the files of published benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.exits import message, print_json
from rwkvbatch.cli.options import JsonOption, QuietOption, option
from rwkvbatch.errors import counted
from rwkvbatch.script.benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from rwkvbatch.script.choices import Normalize

MAX_SHOWN = 5

_NAMES = list(BENCHMARKS)

app = command_app(help="Make scripts from the files of published benchmarks.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `import` a separate command."""


@app.command(
    "import",
    cls=Command,
    epilog=examples(
        "rwkvbatch script import lambada lambada_test_en.jsonl --out lambada.jsonl",
        "rwkvbatch script import mmlu data/test/*.csv --out mmlu.jsonl",
        "rwkvbatch script import mmlu data/test/*.csv --style plain --shots 5 --dev data/dev --out mmlu-5.jsonl",
        "rwkvbatch script import gsm8k test.jsonl --out gsm8k.jsonl",
        "rwkvbatch script import arc ARC-Challenge-Test.jsonl --style chat --out arc.jsonl",
        "rwkvbatch script import hellaswag hellaswag_val.jsonl --normalize byte --out hellaswag.jsonl",
        "rwkvbatch script import winogrande dev.jsonl --out winogrande.jsonl",
        "rwkvbatch run mmlu.jsonl --out runs/mmlu; rwkvbatch compare runs/mmlu",
    ),
)
def import_command(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help=f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}.", show_default=False)
    ],
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Its files: .jsonl, .json, .csv, .parquet or .arrow; or folders.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, option("--out", "Script to write.", "FILE", flag="-o", show_default=False)],
    style: Annotated[
        str | None,
        option("--style", "Prompt style: rwkv, plain, chat. [dim]Default: rwkv or plain, else chat[/]", "NAME"),
    ] = None,
    shots: Annotated[int, option("--shots", "Examples before each question.", "N")] = 0,
    dev: Annotated[
        list[str] | None, option("--dev", "File or folder that the examples come from; may be repeated.", "FILE")
    ] = None,
    normalize: Annotated[
        str,
        option(
            "--normalize",
            "Compare likelihoods of choices as sums (none), per token, per byte or per character.",
            "none|token|byte|character",
        ),
    ] = "none",
    skip_bad: Annotated[bool, option("--skip-bad", "Leave out records that cannot be used.")] = False,
    force: Annotated[bool, option("--force", "Replace the script if it exists.")] = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a script from a benchmark's own files, with the prompts of its source and the checks that it needs.

    Nothing is downloaded. [bold]docs/scripts.md[/] says what the files are and where the prompts come from. Examples
    are the first ones of the dev files, for mmlu and mmlu-pro those of the same subject.
    """
    from rwkvbatch.script.benchmark_import import import_benchmark

    result = import_benchmark(
        benchmark, files, out, style=style, shots=shots, dev=dev or (), normalize=cast("Normalize", normalize),
        skip_bad=skip_bad, replace=force,
    )  # fmt: skip
    for problem in result.left_out[:MAX_SHOWN]:
        message(f"left out: {problem}", quiet=quiet)
    if len(result.left_out) > MAX_SHOWN:
        message(f"left out: {len(result.left_out) - MAX_SHOWN:,} more", quiet=quiet)
    message(
        f"wrote {out}: {counted(result.conversations, 'conversation')} of {benchmark} ({result.style})", quiet=quiet
    )
    if json_output:
        print_json(vars(result) | {"out": str(out)})
