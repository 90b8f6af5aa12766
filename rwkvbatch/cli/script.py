"""`rwkvbatch script`: scripts from published benchmarks and other programs, and scripts that test recall."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.exits import message, print_json
from rwkvbatch.cli.options import JsonOption, QuietOption, option
from rwkvbatch.errors import UsageError, counted, shown_value
from rwkvbatch.script.benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from rwkvbatch.script.choices import Normalize

MAX_SHOWN = 5

_NAMES = list(BENCHMARKS)

app = command_app(
    help="Make scripts from benchmarks and other programs, and scripts that test recall in long contexts.",
    no_args_is_help=True,
)


@app.command(
    "import",
    cls=Command,
    epilog=examples(
        "rwkvbatch script import lambada lambada_test_en.jsonl --out lambada.jsonl",
        "rwkvbatch script import mmlu data/test/*.csv --out mmlu.jsonl",
        "rwkvbatch script import mmlu data/test/*.csv --style plain --shots 5 --dev data/dev --out mmlu-5.jsonl",
        "rwkvbatch script import gsm8k test.jsonl --out gsm8k.jsonl",
        "rwkvbatch script import gsm8k test.jsonl --style plain --shots 5 --dev train.jsonl --out gsm8k-5.jsonl",
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
    out: Annotated[
        Path | None, option("--out", "Script to write. [bold]Required[/]", "FILE", flag="-o", show_default=False)
    ] = None,
    style: Annotated[
        str | None, option("--style", "Prompt style: rwkv, plain, chat. [dim]Default: see docs/scripts.md[/]", "NAME")
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
    are the first ones of the dev files, for mmlu, mmlu-pro, ceval and cmmlu those of the same
    subject.
    """
    from rwkvbatch.script.benchmark_import import benchmark_named, import_benchmark

    benchmark_named(benchmark)
    if out is None:
        raise UsageError("Missing option '--out'", hint=f"give the script to write: --out {benchmark}.jsonl")
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


@app.command(
    "convert",
    cls=Command,
    epilog=examples(
        "rwkvbatch script convert transcripts.jsonl --out script.jsonl",
        "rwkvbatch script convert sharegpt.jsonl.gz --skip-bad --out script.jsonl; rwkvbatch run script.jsonl",
    ),
)
def convert_command(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Files that `run` reads: messages and batch requests of OpenAI, ShareGPT, MT-Bench, scripts.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, option("--out", "Script to write.", "FILE", flag="-o", show_default=False)],
    skip_bad: Annotated[bool, option("--skip-bad", "Leave out lines that cannot be replayed.")] = False,
    force: Annotated[bool, option("--force", "Replace the script if it exists.")] = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write conversations of other programs in this program's own form, to which checks can be added.

    [bold]run[/] reads the files as they are. A line of the script has only what a run uses: the messages, with the
    replies as references, tools, settings of replies and tags.
    """
    from rwkvbatch.files import save_file
    from rwkvbatch.script.benchmark_import import SCRIPT
    from rwkvbatch.script.native import native_line
    from rwkvbatch.script.reader import read_scripts
    from rwkvbatch.targets import check_target

    check_target(out, SCRIPT, option="--out", replace=force, how="--force replaces it")
    if any(Path(file).resolve() == out.resolve() for file in files):
        raise UsageError(f"--out {out}: is one of the files to convert", hint="choose another name")
    script = read_scripts(files, skip_bad=skip_bad)
    for problem in script.skipped[:MAX_SHOWN]:
        message(f"left out: {problem.error}", quiet=quiet)
    if len(script.skipped) > MAX_SHOWN:
        message(f"left out: {len(script.skipped) - MAX_SHOWN:,} more", quiet=quiet)
    save_file(out, map(native_line, script.conversations))
    num_conversations = len(script.conversations)
    turns = [turn for conversation in script.conversations for turn in conversation.turns]
    message(f"wrote {out}: {counted(num_conversations, 'conversation')}", quiet=quiet)
    if any(not turn.plain for turn in turns) and not any(turn.checks for turn in turns):
        message('no reply is checked yet: add "expect" to user messages, such as {"contains": "Ada"}', quiet=quiet)
    if json_output:
        print_json({"conversations": num_conversations, "left_out": len(script.skipped), "out": str(out)})


@app.command(
    "recall",
    cls=Command,
    epilog=examples(
        "rwkvbatch script recall --out recall.jsonl",
        "rwkvbatch script recall essays/ --lengths 4000,16000,64000 --facts 4 --out recall.jsonl",
        "rwkvbatch run recall.jsonl --out runs/recall; rwkvbatch compare runs/recall --by tag",
    ),
)
def recall_command(
    out: Annotated[Path, option("--out", "Script to write.", "FILE", flag="-o", show_default=False)],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE...",
            help="Texts, JSON lines with `text`, or folders of them, in which the facts are hidden. "
            "[dim]Default: plain sentences in random order[/]",
            show_default=False,
        ),
    ] = None,
    lengths: Annotated[str, option("--lengths", "Tokens of a message.", "N,N,...")] = "1000,2000,4000,8000",
    depths: Annotated[
        str, option("--depths", "Places of the fact that is asked, in per cent of the text before it.", "N,N,...")
    ] = "0,25,50,75,100",
    count: Annotated[int, option("--count", "Conversations for each length and depth.", "N")] = 5,
    facts: Annotated[int, option("--facts", "Facts in a text, of which one is asked.", "N")] = 1,
    seed: Annotated[int, option("--seed", "Seed of the facts, places and texts.", "N")] = 0,
    force: Annotated[bool, option("--force", "Replace the script if it exists.")] = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a script that asks for a fact hidden in a long text, at several lengths and depths.

    A reply must contain the code that the text gives, and the sentence with it is a reference, whose likelihood is
    scored. Tags are length-N and depth-N. Tokens are those of the World vocabulary.
    """
    from rwkvbatch.prompt.tokenizer import world_tokenizer
    from rwkvbatch.script.recall import RecallPlan, write_recall

    plan = RecallPlan(_numbers("--lengths", lengths), _numbers("--depths", depths), count, facts, seed)
    tokenizer = world_tokenizer()
    written = write_recall(plan, files or (), out, lambda text: len(tokenizer.encode(text)), replace=force)
    message(f"wrote {out}: {counted(written, 'conversation')}", quiet=quiet)
    if json_output:
        print_json({"conversations": written, "out": str(out)})


def _numbers(name: str, text: str) -> list[int]:
    """The numbers of a comma list."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{name} must be whole numbers, such as 1000,4000; got {shown_value(text)}") from None
