"""`rwkvbatch model verify`: does a backend compute the right network here?"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.cli.options import BackendOption, StrategyOption
from rwkvbatch.errors import UsageError

if TYPE_CHECKING:
    from rwkvbatch.bench.verify import Verification

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
        typer.Option(
            "--random", metavar="LAYERSxWIDTH", help="Take random weights of this shape, such as 4x1024."
        ),
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
            from rwkvbatch.bench.random_file import write_random

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rwkvbatch-verify-"))
            say(f"making a random checkpoint, {random}")
            path = str(write_random(random, Path(folder)))
        found = verify_model(path, strategy=strategy or "auto", backend=backend or "auto", say=say)
    if json:
        from dataclasses import asdict
        from json import dumps

        typer.echo(dumps(asdict(found)))
    else:
        _show(found)
    if not found.same:
        raise typer.Exit(ExitCode.FAILED)


def _progress(quiet: bool) -> Callable[[str], None]:
    from rwkvbatch.text.safe import printable

    def say(message: str) -> None:
        if not quiet:
            typer.echo(printable(message), file=sys.stderr)

    return say


def _show(found: Verification) -> None:
    from rich.table import Table
    from rich.text import Text

    from rwkvbatch.cli.tables import console
    from rwkvbatch.text.safe import printable

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
