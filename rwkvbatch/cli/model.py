"""`rwkvbatch model`: make, describe, convert and verify checkpoints."""

from __future__ import annotations

import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rwkvbatch.cli.checkpoints import model_path
from rwkvbatch.cli.command import Command, command_app, examples
from rwkvbatch.cli.damage import DAMAGE_EPILOG, damage_command
from rwkvbatch.cli.exits import ExitCode, message, print_json
from rwkvbatch.cli.options import (
    AdapterOption,
    Force,
    JsonOption,
    ModelArgument,
    QuietOption,
    RandomOption,
    option,
    with_settings,
)
from rwkvbatch.cli.quantize import QUANTIZE_EPILOG, quantize_command, written_bar
from rwkvbatch.errors import UsageError, counted

if TYPE_CHECKING:
    from rwkvbatch.bench.verify import Verification
    from rwkvbatch.model.checkpoints.checkpoint import Checkpoint
    from rwkvbatch.model.checkpoints.description import Description

VERIFY_EPILOG = examples(
    "rwkvbatch model verify",
    'rwkvbatch model verify NAME --strategy "cuda fp16"',
    'rwkvbatch model verify --random 4x1024 --strategy "cuda fp32"',
    note="On a GPU, try fp32 too: the same kernels with the tightest limit. The exit code is 1 when the logits "
    "differ by more.",
)

app = command_app(
    help="Make, describe and convert checkpoints, and verify that they run right on this machine.", no_args_is_help=True
)

Precision = Literal["bf16", "fp16", "fp32"]
Output = Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .pth or .safetensors.")]

_SIZE = re.compile(r"(0*[1-9]\d{0,3})x(0*[1-9]\d{0,5})")


@app.command("random", cls=Command)
def random_command(
    size: Annotated[str, typer.Argument(metavar="LAYERSxWIDTH", help="Such as 12x768.")],
    output: Output,
    vocab: Annotated[int, typer.Option(min=1, max=1 << 20, help="Vocabulary size.")] = 65536,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the weights.")] = 0,
    dtype: Annotated[Precision, typer.Option(help="How numbers are stored.")] = "bf16",
    head_size: Annotated[int, typer.Option(min=1, max=1024, help="Width of a head.")] = 64,
    force: Force = False,
    quiet: QuietOption = False,
) -> None:
    """Write an RWKV-7 checkpoint of random weights, for measurements.

    A .safetensors file declares the World vocabulary, cut to its size; with a .pth of another size give --vocab world.
    """
    if (match := _SIZE.fullmatch(size)) is None:
        raise UsageError(f"the size must be LAYERSxWIDTH, such as 12x768; got {size!r}")
    layers, width = map(int, match.groups())
    if width % head_size:
        raise UsageError(f"the width must be a multiple of --head-size {head_size}, got {width}")

    from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
    from rwkvbatch.model.strategy import DTYPES
    from rwkvbatch.model.weights.safetensors import check_tensor_target, save_tensors
    from rwkvbatch.prompt.vocabulary import METADATA_KEY, WORLD

    check_tensor_target(output, replace=force)
    tensors = random_tensors(layers, width, vocab, head_size, seed, dtype=DTYPES[dtype])
    save_tensors(output, tensors, metadata={METADATA_KEY: WORLD}, replace=force)
    message(f"wrote {output}, {sum(tensor.numel() for tensor in tensors.values()):,} parameters", quiet=quiet)


@app.command("info", cls=Command)
@with_settings("vocab", vocab="Describe it with this vocabulary: a file, or world.")
def info_command(
    model: ModelArgument = None,
    adapter: AdapterOption = "none",
    json_output: JsonOption = False,
    verify: Annotated[
        bool, option("--verify", "Also read all values, look for NaN, infinity and damage, and hash the file.")
    ] = False,
    **settings: Any,
) -> None:
    """Describe a checkpoint: its architecture, vocabulary, tensors and sizes."""
    from rwkvbatch.model.checkpoints.adapters import parse_adapter
    from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
    from rwkvbatch.model.checkpoints.description import describe
    from rwkvbatch.model.model_files import model_file

    with open_checkpoint(model_file(model), parse_adapter(adapter)) as checkpoint:
        description = describe(checkpoint, read_values=verify)
        chat_template = _chat_template(checkpoint)
    tokenizer = _tokenizer(description, settings.get("vocab"))
    if json_output:
        print_json({**asdict(description), **chat_template, "tokenizer": tokenizer}, indent=None)
    else:
        _show(description, tokenizer, chat_template)


def _chat_template(checkpoint: Checkpoint) -> dict[str, str | None]:
    """The file of a chat template that is not used, or the reason why it cannot be read, as JSON values."""
    from rwkvbatch.errors import CheckpointError
    from rwkvbatch.model.checkpoints.description import chat_template_of

    try:
        return {"chat_template": chat_template_of(checkpoint)}
    except CheckpointError as error:  # nothing else needs the file
        return {"chat_template": None, "chat_template_unknown": str(error)}


def _tokenizer(description: Description, vocab: str | None) -> dict[str, Any]:
    """The tokenizer for the checkpoint, or the reason why there is none, as JSON values."""
    from rwkvbatch.errors import InputError
    from rwkvbatch.prompt.vocabulary import shown_ids, textless_ids, tokenizer_of

    try:
        tokenizer = tokenizer_of(description, vocab)
    except (InputError, UsageError) as error:
        if vocab is not None:
            raise
        return {"unknown": error.message, "hint": error.hint}
    textless = textless_ids(tokenizer)
    return {
        "name": tokenizer.name,
        "sha256": tokenizer.sha256,
        "num_textless": len(textless),
        "textless": shown_ids(textless),
    }


@app.command("convert", cls=Command)
def convert_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Checkpoint of any form.")],
    output: Output,
    adapter: AdapterOption = "none",
    dtype: Annotated[Precision | None, typer.Option(help="How numbers are stored; as they are unless given.")] = None,
    vocab: Annotated[
        Literal["world"] | None, option("--vocab", "Declare the World vocabulary, cut to the checkpoint's size.")
    ] = None,
    force: Force = False,
    quiet: QuietOption = False,
) -> None:
    """Convert a checkpoint of any form to .pth or .safetensors with the official names, and merge an adapter.

    A .safetensors file keeps what the checkpoint declares about its vocabulary; --vocab world declares World ids.
    """
    from rwkvbatch.model.checkpoints.adapters import parse_adapter
    from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
    from rwkvbatch.model.model_files import model_file
    from rwkvbatch.model.strategy import DTYPES
    from rwkvbatch.model.weights.quantised import rounding_of
    from rwkvbatch.model.weights.safetensors import check_tensor_target, save_entries
    from rwkvbatch.prompt.vocabulary import METADATA_KEY

    check_tensor_target(output, replace=force)
    if vocab is not None and output.suffix != ".safetensors":
        raise UsageError("--vocab is written into a .safetensors file; a .pth has no place for it")
    with open_checkpoint(model_file(source), parse_adapter(adapter)) as checkpoint:
        checkpoint.file.check_checksums()
        tensors = checkpoint.rounded(None if dtype is None else DTYPES[dtype])
        declared = vocab or checkpoint.vocabulary
        metadata = None if declared is None else {METADATA_KEY: declared}
        with written_bar(output, tensors, quiet=quiet) as on_written:
            save_entries(output, tensors, metadata=metadata, replace=force, on_written=on_written)
        undone = "".join(f"; undone: {phrase}" for phrase in checkpoint.file.undone)
        rounding = rounding_of(checkpoint.file.metadata)
    dequantised = "" if rounding is None else f"; dequantised from {rounding}"
    message(f"wrote {output}, {counted(len(tensors), 'tensor')}{undone}{dequantised}", quiet=quiet)
    if declared is not None and output.suffix != ".safetensors":
        message(f"a .pth cannot declare its vocabulary: give --vocab {declared} with it", quiet=quiet)


app.command("quantize", cls=Command, epilog=QUANTIZE_EPILOG)(quantize_command)


@app.command("verify", cls=Command, epilog=VERIFY_EPILOG)
@with_settings("strategy", "backend", "threads")
def verify_command(
    model: ModelArgument = None,
    random: RandomOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Compare a backend's logits with those of the reference operations (fp32 on the CPU), on this machine."""
    from rwkvbatch.config import RunSettings
    from rwkvbatch.config.sources import checked_values

    checked = RunSettings(**checked_values(settings))
    from rwkvbatch.bench.verify import verify_model

    with model_path(model, random, named="MODEL", quiet=quiet) as path:
        notify = partial(message, quiet=quiet)
        verification = verify_model(
            path, strategy=checked.strategy, backend=checked.backend, threads=checked.threads, notify=notify
        )
    if json_output:
        print_json(asdict(verification), indent=None)
    else:
        _show_verdict(verification)
    if not verification.same:
        raise typer.Exit(ExitCode.FAILED)


app.command("damage", cls=Command, epilog=DAMAGE_EPILOG)(damage_command)


def _show_verdict(verification: Verification) -> None:
    from rich.table import Table
    from rich.text import Text

    from rwkvbatch.cli.views import console
    from rwkvbatch.prompt.escaping import printable

    typer.echo(f"{printable(verification.model)}, {verification.parameters:,} parameters")
    typer.echo(
        f"{verification.backend} on {verification.device}, {verification.dtype}, against reference on cpu, fp32\n"
    )
    table = Table(box=None, header_style="bold")
    table.add_column("", no_wrap=True)
    for column in ("rows", "RMS", "largest", "same token", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for part in verification.parts:
        shares = ("not finite" if share is None else f"{share:.2g}" for share in (part.rms, part.largest))
        excess = Text("" if part.within else "too much", style="bold red")
        table.add_row(part.name, f"{part.rows}", *shares, f"{part.same_token:.1%}", excess)
    console().print(table)
    limit = verification.limit
    typer.echo(
        "\nDifferences of the logits, as shares of the reference's standard deviation.\n"
        f"Limits for {verification.precision}: RMS {limit.rms:g}, largest {limit.largest:g}."
    )
    if verification.same:
        typer.echo(
            f"The same network: the differences are of the size that rounding in {verification.precision} makes."
        )
    else:
        outside = ", ".join(part.name for part in verification.parts if not part.within)
        typer.echo(
            f"NOT the same network, or not with these weights: {outside}. Do not trust this backend here; "
            "--backend reference is slower and right."
        )


def _tokenizer_text(tokenizer: dict[str, Any]) -> str:
    if "unknown" in tokenizer:
        hint = f"; {tokenizer['hint']}" if tokenizer["hint"] else ""
        return f"unknown: {tokenizer['unknown']}{hint}"
    if not tokenizer["num_textless"]:
        return f"{tokenizer['name']}; every id has a text"
    return f"{tokenizer['name']}; {tokenizer['num_textless']:,} ids decode to nothing: {tokenizer['textless']}"


def _quantised_text(description: Description) -> str:
    tokens = description.fitted_tokens
    return f"{description.quantised}, the large matrices" + (f", fitted to {tokens:,} tokens" if tokens else "")


def _chat_template_text(path: str | None, problem: str | None = None) -> str:
    if path is None:
        return f"unknown, and not used: {problem}"
    return f"not used: {Path(path).name}; prompts have RWKV's own form, or that of --template"


def _show(description: Description, tokenizer: dict[str, Any], chat_template: dict[str, str | None]) -> None:
    from rwkvbatch.cli.views import console, facts_table, fitted_table, size_text

    files = "" if description.num_files == 1 else f", {description.num_files} files"
    facts = {
        "file": f"{description.path} ({description.kind}{files})",
        "form": description.form,
        **({"undone": "; ".join(description.undone)} if description.undone else {}),
        "RWKV": description.generation,
        "layers": f"{description.num_layers:,}",
        "width": f"{description.width:,}",
        "heads": f"{description.num_heads} x {description.head_size}" if description.num_heads else "none",
        "vocabulary": f"{description.vocab_size:,}",
        "tokenizer": _tokenizer_text(tokenizer),
        **({"chat template": _chat_template_text(*chat_template.values())} if any(chat_template.values()) else {}),
        "parameters": f"{description.num_parameters:,}",
        "precision": description.dtype,
        **({"quantised": _quantised_text(description)} if description.quantised else {}),
        "file size": size_text(description.num_bytes),
    }
    if description.state_bytes is not None:
        facts["state of one sequence"] = size_text(description.state_bytes)
    if description.sha256 is not None:
        facts["sha256"] = f"{description.sha256} (all values are finite)"
    groups = description.tensors
    columns = {
        "shape": [" x ".join(map(str, group.shape)) for group in groups],
        "type": [group.dtype for group in groups],
        "layers": [str(group.count) for group in groups],
        "parameters": [f"{group.num_parameters:,}" for group in groups],
    }
    out = console()
    out.print(facts_table(facts))
    out.print()
    names = [group.name for group in groups]
    left, optional_columns = ["shape", "type"], ["parameters", "type"]
    out.print(
        fitted_table(
            names, columns, out.width, min_name_width=17, header="tensor", left=left, optional_columns=optional_columns
        )
    )
