"""`rwkvbatch model`: make, describe and convert checkpoints; `verify` is in a module of its own."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.cli.options import BackendOption, Command, StrategyOption
from rwkvbatch.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from rwkvbatch.bench.verify import Verification
    from rwkvbatch.model.checkpoint import Description

VERIFY_EPILOG = """[bold]Examples[/]

  rwkvbatch model verify

  rwkvbatch model verify NAME --strategy "cuda fp16"

  rwkvbatch model verify --random 4x1024 --strategy "cuda fp32"

On a GPU, try fp32 too: the same kernels, held to the tightest limit. Exit code 1 when it is not the same network.
"""


def verify_command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Checkpoint; the ending may be left out. [dim]Default: $RWKVBATCH_MODEL, else the bundled one.[/]",
        ),
    ] = None,
    random: Annotated[
        str | None,
        typer.Option("--random", metavar="LAYERSxWIDTH", help="Take random weights of this shape, such as 4x1024."),
    ] = None,
    strategy: StrategyOption = None,
    backend: BackendOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on standard error.")] = False,
) -> None:
    """Compare a backend's logits with those of the reference operations (fp32 on the CPU), on this machine."""
    if random is not None and model is not None:
        raise UsageError("--random makes its own checkpoint: it cannot be given together with MODEL")

    from rwkvbatch.bench.verify import verify_model

    say = _progress(quiet)
    with ExitStack() as stack:
        path: str | None = model
        if random is not None:
            from rwkvbatch.bench.measure import write_random

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rwkvbatch-verify-"))
            say(f"making a random checkpoint, {random}")
            path = str(write_random(random, Path(folder)))
        found = verify_model(path, strategy=strategy or "auto", backend=backend or "auto", say=say)
    if json:
        from dataclasses import asdict
        from json import dumps

        typer.echo(dumps(asdict(found)))
    else:
        _show_verdict(found)
    if not found.same:
        raise typer.Exit(ExitCode.FAILED)


def _progress(quiet: bool) -> Callable[[str], None]:
    from rwkvbatch.prompt.escaping import printable

    def say(message: str) -> None:
        if not quiet:
            typer.echo(printable(message), file=sys.stderr)

    return say


def _show_verdict(found: Verification) -> None:
    from rich.table import Table
    from rich.text import Text

    from rwkvbatch.cli.views import console
    from rwkvbatch.prompt.escaping import printable

    typer.echo(f"{printable(found.model)}, {found.parameters:,} parameters")
    typer.echo(f"{found.backend} on {found.device}, {found.dtype}, against reference on cpu, fp32\n")
    table = Table(box=None, header_style="bold")
    table.add_column("", no_wrap=True)
    for column in ("rows", "RMS", "largest", "same token", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for part in found.parts:
        shares = ("not finite" if share is None else f"{share:.2g}" for share in (part.rms, part.largest))
        table.add_row(
            part.name,
            f"{part.rows}",
            *shares,
            f"{part.same_token:.1%}",
            Text("" if part.within else "too much", style="bold red"),
        )
    console().print(table)
    limit = found.limit
    typer.echo(
        "\nDifferences of the logits, as shares of the reference's standard deviation.\n"
        f"Limits for {found.precision}: RMS {limit.rms:g}, largest {limit.largest:g}."
    )
    typer.echo(verdict(found))


def verdict(found: Verification) -> str:
    """What it comes to, in words."""
    if found.same:
        return f"The same network: the differences are of the size that rounding in {found.precision} makes."
    bad = ", ".join(part.name for part in found.parts if not part.within)
    return (
        f"NOT the same network, or not with these weights: {bad}. Do not trust this backend here; "
        "--backend reference is slower and right."
    )


model_app = typer.Typer(
    name="model",
    help="Make, describe and convert checkpoints, and verify that they run right here.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Precision = Literal["bf16", "fp16", "fp32"]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")]
Output = Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .pth or .safetensors.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on standard error.")]

NARROWEST_TENSOR = 17
"""Longer names of tensors are folded where there is no room for them."""

_SIZE = re.compile(r"(\d{1,4})x(\d{1,6})")


@model_app.command("random", cls=Command)
def random_command(
    size: Annotated[str, typer.Argument(metavar="LAYERSxWIDTH", help="Such as 12x768.")],
    output: Output,
    vocab: Annotated[int, typer.Option(min=1, max=1 << 20, help="Vocabulary size.")] = 65536,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
    dtype: Annotated[Precision, typer.Option(help="How numbers are stored.")] = "bf16",
    head_size: Annotated[int, typer.Option(min=1, max=1024, help="Width of a head.")] = 64,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write an RWKV-7 checkpoint of random weights, for measurements."""
    match = _SIZE.fullmatch(size)
    if match is None or not int(match[1]) or not int(match[2]):
        raise UsageError(f"the size must be LAYERSxWIDTH, such as 12x768; got {size!r}")
    layers, width = int(match[1]), int(match[2])
    if width % head_size:
        raise UsageError(f"the width must be a multiple of --head-size {head_size}, got {width}")

    from rwkvbatch.model.random_checkpoint import random_tensors
    from rwkvbatch.model.safetensors import check_target, save_tensors
    from rwkvbatch.model.strategy import DTYPES

    check_target(output, replace=force)
    tensors = random_tensors(layers, width, vocab, head_size, seed, dtype=DTYPES[dtype])
    save_tensors(output, tensors, replace=force)
    _say(f"wrote {output}, {sum(tensor.numel() for tensor in tensors.values()):,} parameters", quiet)


@model_app.command("info", cls=Command)
def info_command(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="Checkpoint; .pth may be left off. "
            "[dim]Default: $RWKVBATCH_MODEL, else the bundled demonstration model[/]",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Also read all values, look for NaN and infinity, and hash the file."),
    ] = False,
) -> None:
    """Describe a checkpoint: its architecture, tensors and sizes."""
    from rwkvbatch.model.checkpoint import describe, open_checkpoint
    from rwkvbatch.model.load import resolve_model_path

    with open_checkpoint(resolve_model_path(file).path) as checkpoint:
        description = describe(checkpoint, read_values=verify)
    if json:
        from dataclasses import asdict
        from json import dumps

        typer.echo(dumps(asdict(description)))
    else:
        _show(description)


@model_app.command("convert", cls=Command)
def convert_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Checkpoint; .pth may be left off.")],
    output: Output,
    dtype: Annotated[Precision | None, typer.Option(help="How numbers are stored; as they are unless given.")] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Convert a checkpoint between .pth and .safetensors, or to another precision."""
    from rwkvbatch.model.checkpoint import Checkpoint, open_checkpoint
    from rwkvbatch.model.load import resolve_model_path
    from rwkvbatch.model.safetensors import check_target, save_tensors
    from rwkvbatch.model.strategy import DTYPES

    check_target(output, replace=force)
    wanted = None if dtype is None else DTYPES[dtype]
    with open_checkpoint(resolve_model_path(source).path) as opened:
        checkpoint = Checkpoint(opened.file, opened.architecture, wanted)
        tensors = {name: checkpoint[name] if wanted is None else checkpoint[name].to(wanted) for name in checkpoint}
    save_tensors(output, tensors, replace=force)
    _say(f"wrote {output}, {len(tensors)} tensors", quiet)


model_app.command("verify", cls=Command, epilog=VERIFY_EPILOG)(verify_command)


def _say(message: str, quiet: bool) -> None:
    if not quiet:
        from rwkvbatch.prompt.escaping import printable

        typer.echo(printable(message), file=sys.stderr)


def _show(description: Description) -> None:
    from rwkvbatch.cli.views import console, facts_table
    from rwkvbatch.prompt.escaping import printable

    heads = f"{description.num_heads} x {description.head_size}" if description.num_heads else "none"
    facts = {
        "file": f"{printable(description.path)} ({description.kind})",
        "RWKV": description.generation,
        "layers": f"{description.num_layers:,}",
        "width": f"{description.width:,}",
        "heads": heads,
        "vocabulary": f"{description.vocab_size:,}",
        "parameters": f"{description.num_parameters:,}",
        "precision": description.dtype,
        "file size": _size(description.num_bytes),
    }
    if description.state_bytes is not None:
        facts["state of one sequence"] = _size(description.state_bytes)
    if description.sha256 is not None:
        facts["sha256"] = f"{description.sha256} (all values are finite)"
    out = console()
    out.print(facts_table(facts))
    out.print()
    out.print(tensors_table(description, out.width))


def tensors_table(description: Description, width: int = 80) -> Table:
    """A line for each kind of tensor; of a narrow terminal, the columns that it has room for."""
    from rich.table import Table
    from rich.text import Text

    from rwkvbatch.cli.views import fitted
    from rwkvbatch.prompt.escaping import printable

    groups = description.tensors
    columns = {
        "shape": [" x ".join(map(str, group.shape)) for group in groups],
        "type": [printable(group.dtype) for group in groups],
        "layers": [str(group.count) for group in groups],
        "parameters": [f"{group.num_parameters:,}" for group in groups],
    }

    def table_of(names: Sequence[str]) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("tensor", overflow="fold", min_width=NARROWEST_TENSOR)
        for name in names:
            table.add_column(name, justify="right" if name in ("layers", "parameters") else "left", no_wrap=True)
        for group, *cells in zip(groups, *(columns[name] for name in names), strict=True):
            table.add_row(Text(printable(group.name)), *map(Text, cells))
        return table

    return fitted(table_of, list(columns), ("parameters", "type"), width)


def _size(num_bytes: int) -> str:
    """A size in the largest unit that leaves a number of at least 1."""
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
