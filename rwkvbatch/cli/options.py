"""Options that commands share, those of `rwkvbatch run`, and the refusal of an option given twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand, TyperOption

from rwkvbatch.errors import UsageError

if TYPE_CHECKING:
    from typer._click import Context

from rwkvbatch.cli import options as shared


class Command(TyperCommand):
    """A command that refuses an option of one value that is given twice, instead of taking the last value."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """As Typer's.

        Raises:
            UsageError: an option that takes one value is there twice; the message shows its comma form if it has one.
        """
        *_, order = self.make_parser(ctx).parse_args(args=list(args))
        times = Counter(param for param in order if isinstance(param, TyperOption) and _takes_one_value(param))
        for option, count in times.items():
            if count > 1:
                raise _given_twice(option, args, grid=self.name == "run")
        return super().parse_args(ctx, args)


def _takes_one_value(option: TyperOption) -> bool:
    return not (option.multiple or option.is_flag or option.count)


def _given_twice(option: TyperOption, args: Sequence[str], *, grid: bool) -> UsageError:
    from rwkvbatch.config import full_name
    from rwkvbatch.replay.settings import CellSettings

    name = max(option.opts, key=len)
    values: list[str] = []
    for arg, value in pairwise((*args, "")):
        if arg in option.opts:
            values.append(value)
        elif arg.startswith(f"{name}="):
            values.append(arg.partition("=")[2])
    lists = "," in (option.metavar or "") or option.metavar == "LIST"
    if lists or (grid and full_name(option.name or "") in CellSettings.model_fields):
        return UsageError(f"{name} is given twice", hint=f"several values go into a list: {name} {','.join(values)}")
    return UsageError(f"{name} is given twice", hint="it takes one value: give it once")


MODEL_PANEL = "Model"
SAMPLING_PANEL = "Sampling"
ENDING_PANEL = "End of a reply"
PROMPT_PANEL = "Prompt"
OUTPUT_PANEL = "Output"

# The model.
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="FILE",
        rich_help_panel=MODEL_PANEL,
        help="Checkpoint, .pth or .safetensors; the ending may be left out. "
        "[dim]Default: $RWKVBATCH_MODEL, else the bundled one.[/]",
    ),
]
StrategyOption = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        metavar="TEXT",
        rich_help_panel=MODEL_PANEL,
        help='Device and precision: "cpu fp32", "cpu bf16", "cpu int8", "cuda fp16", "cuda:1 bf16", auto.',
    ),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend", metavar="NAME", rich_help_panel=MODEL_PANEL, help="cpu, reference, cuda, upstream, auto."
    ),
]
StateOption = Annotated[
    str | None,
    typer.Option("--state", metavar="FILE", rich_help_panel=MODEL_PANEL, help="Initial state (a state-tuned file)."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", rich_help_panel=MODEL_PANEL, help="CPU threads. Changes no reply."),
]
StateMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--state-memory",
        metavar="SIZE",
        rich_help_panel=MODEL_PANEL,
        help="Memory for recurrent states, such as 512M or 2G.",
    ),
]

# Sampling. Text, because a comma list makes a grid in `run`.
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        rich_help_panel=SAMPLING_PANEL,
        help="A known-good combination: default, greedy, api-demo-chat, creative, precise, ... "
        "Other options change it.",
    ),
]
TempOption = Annotated[
    str | None,
    typer.Option("--temp", metavar="X", rich_help_panel=SAMPLING_PANEL, help="Temperature; 0 is greedy."),
]
TopPOption = Annotated[
    str | None,
    typer.Option(
        "--top-p",
        metavar="X",
        rich_help_panel=SAMPLING_PANEL,
        help="Keep the likeliest tokens up to this probability; 0 is greedy.",
    ),
]
TopKOption = Annotated[
    str | None,
    typer.Option("--top-k", metavar="N", rich_help_panel=SAMPLING_PANEL, help="Keep at most N tokens; 0 keeps all."),
]
PresenceOption = Annotated[
    str | None,
    typer.Option(
        "--presence",
        metavar="X",
        rich_help_panel=SAMPLING_PANEL,
        help="Penalty on tokens that are in the reply.",
    ),
]
FrequencyOption = Annotated[
    str | None,
    typer.Option(
        "--frequency",
        metavar="X",
        rich_help_panel=SAMPLING_PANEL,
        help="Penalty for each time they are in it.",
    ),
]
DecayOption = Annotated[
    str | None,
    typer.Option(
        "--decay",
        metavar="X",
        rich_help_panel=SAMPLING_PANEL,
        help="Counts are multiplied by this at each step.",
    ),
]
OrderOption = Annotated[
    str | None,
    typer.Option(
        "--order",
        metavar="NAME",
        rich_help_panel=SAMPLING_PANEL,
        help="top-p-first (the rwkv package) or temperature-first.",
    ),
]
BanOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ban",
        metavar="ID",
        rich_help_panel=SAMPLING_PANEL,
        help="Token ids never to choose; may be repeated.",
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", rich_help_panel=SAMPLING_PANEL, help="Of all randomness. [dim]Default: 0[/]"),
]


def split_ids(ban: Sequence[str] | None) -> list[str] | None:
    """The ids that `--ban` was given, each time one or a comma list; None where it was not."""
    return [part.strip() for text in ban for part in text.split(",")] if ban else None


# The end of a reply.
MaxTokensOption = Annotated[
    str | None,
    typer.Option("--max-tokens", metavar="N", rich_help_panel=ENDING_PANEL, help="Tokens in a reply, at most."),
]
MaxSecondsOption = Annotated[
    str | None,
    typer.Option(
        "--max-seconds",
        metavar="X",
        rich_help_panel=ENDING_PANEL,
        help="Seconds for a reply, at most. Such an end is not reproducible.",
    ),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        rich_help_panel=ENDING_PANEL,
        help="Text that ends a reply; may be repeated.",
    ),
]

# The prompt.
ThinkOption = Annotated[
    str | None,
    typer.Option("--think", metavar="MODE", rich_help_panel=PROMPT_PANEL, help="Thinking: off, on, fake, short, long."),
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="FILE",
        rich_help_panel=PROMPT_PANEL,
        help="Jinja2 template in place of RWKV's official one.",
    ),
]
PreludeOption = Annotated[
    str | None,
    typer.Option(
        "--prelude",
        metavar="FILE",
        rich_help_panel=PROMPT_PANEL,
        help="Text read before the first turn (an initial exchange), or the name api-demo-chat.",
    ),
]
MaxPromptTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-prompt-tokens",
        metavar="N",
        rich_help_panel=PROMPT_PANEL,
        help="A turn with a longer history fails, and the run goes on.",
    ),
]

# Output and settings.
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        rich_help_panel=OUTPUT_PANEL,
        help="TOML file with settings. The command line and $RWKVBATCH_* win over it.",
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", rich_help_panel=OUTPUT_PANEL, help="Print the result as JSON on standard output."),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel=OUTPUT_PANEL, help="Say nothing but errors.")
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", rich_help_panel=OUTPUT_PANEL, help="Say more on standard error.")
]
LogFileOption = Annotated[
    Path | None,
    typer.Option("--log-file", metavar="FILE", rich_help_panel=OUTPUT_PANEL, help="Write a log of JSON lines."),
]


SCRIPT_PANEL = "What is replayed"
RUN_PANEL = "The run"

ScriptsArgument = Annotated[
    list[str], typer.Argument(metavar="SCRIPT", help="Conversations, JSON lines; - is standard input.")
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        "-b",
        metavar="N",
        rich_help_panel=shared.MODEL_PANEL,
        help="Replies generated at the same time. Changes no reply. [dim]Default: 32[/]",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        rich_help_panel=shared.MODEL_PANEL,
        help="Worker processes, which share the weights' memory. Changes no reply on CPUs.",
    ),
]
DevicesOption = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="LIST",
        rich_help_panel=shared.MODEL_PANEL,
        help="Devices of the workers, such as cuda:0,cuda:1.",
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        rich_help_panel=shared.MODEL_PANEL,
        help="Workers as actors of a Ray cluster: local, auto, or HOST:PORT.",
    ),
]
HistoryOption = Annotated[
    str | None,
    typer.Option(
        "--history",
        metavar="MODE",
        rich_help_panel=shared.PROMPT_PANEL,
        help="What later turns see: own replies, or the script's (gold).",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="ID|TAG", rich_help_panel=SCRIPT_PANEL, help="Only these; may be repeated."),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", rich_help_panel=SCRIPT_PANEL, help="At most N conversations."),
]
ShuffleSeedOption = Annotated[
    int | None,
    typer.Option("--shuffle-seed", metavar="N", rich_help_panel=SCRIPT_PANEL, help="Another order, before --limit."),
]
SkipBadOption = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        rich_help_panel=SCRIPT_PANEL,
        help="Set bad lines aside in a file of the run directory.",
    ),
]
RepeatsOption = Annotated[
    str | None,
    typer.Option(
        "--repeats",
        "-r",
        metavar="N|N..M",
        rich_help_panel=RUN_PANEL,
        help="Replay each conversation so often; N..M with --until-ci.",
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        rich_help_panel=RUN_PANEL,
        help="Run only part I of N, for rwkvbatch merge.",
    ),
]
UntilCiOption = Annotated[
    float | None,
    typer.Option(
        "--until-ci",
        metavar="WIDTH",
        rich_help_panel=RUN_PANEL,
        help="Add repeats while a cell's interval against the first cell is wider.",
    ),
]
GridOption = Annotated[
    Path | None,
    typer.Option("--grid", metavar="FILE", rich_help_panel=RUN_PANEL, help="TOML file with a grid of settings."),
]
MaxFailuresOption = Annotated[
    int | None,
    typer.Option(
        "--max-failures",
        metavar="N",
        rich_help_panel=RUN_PANEL,
        help="Stop when more rows than this failed.",
    ),
]
RetryErrorsOption = Annotated[
    bool, typer.Option("--retry-errors", rich_help_panel=RUN_PANEL, help="Run failed rows again.")
]
RepairOption = Annotated[
    bool,
    typer.Option("--repair", rich_help_panel=RUN_PANEL, help="Set damaged rows aside and run them again."),
]
VerifyBatchOption = Annotated[
    int | None,
    typer.Option(
        "--verify-batch",
        min=1,
        metavar="N",
        rich_help_panel=RUN_PANEL,
        help="Afterwards replay N rows alone and shuffled, and record what held.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", rich_help_panel=RUN_PANEL, help="Show the plan; generate nothing.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        rich_help_panel=shared.OUTPUT_PANEL,
        help="Run directory, new or one to continue. [dim]Default: runs/SCRIPT-TIME[/]",
    ),
]
MetricsOption = Annotated[
    int | None,
    typer.Option(
        "--metrics",
        metavar="PORT",
        rich_help_panel=shared.OUTPUT_PANEL,
        help="Serve figures for Prometheus on 127.0.0.1; 0 is any free port.",
    ),
]
