"""`rwkvbatch model quantize`."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rwkvbatch.cli.command import examples
from rwkvbatch.cli.exits import message
from rwkvbatch.cli.options import AdapterOption, Force, QuietOption, option, script_limits
from rwkvbatch.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from rwkvbatch.model.checkpoints.checkpoint import Checkpoint
    from rwkvbatch.model.weights.named_tensors import Entry, OnWritten
    from rwkvbatch.model.weights.quantised import Fit

QUANTIZE_EPILOG = examples(
    "rwkvbatch model quantize NAME name-int4.safetensors",
    "rwkvbatch model quantize NAME name-int4.safetensors --calibrate texts/",
    "rwkvbatch model quantize NAME name-w8a8.safetensors --to w8a8",
    "rwkvbatch model damage name-int4 --against NAME --texts other-texts/",
)

FEWEST_TOKENS, MOST_TOKENS = 256, 4_194_304


def quantize_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Checkpoint of RWKV-7, of any form.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .safetensors.")],
    to: Annotated[Literal["w8a8", "int4"], option("--to", "8 bits a weight, or 4.")] = "int4",
    calibrate: Annotated[
        list[str] | None,
        option("--calibrate", "Fit int4 to texts: text files, JSON lines, folders; may be repeated.", "FILE"),
    ] = None,
    calibrate_tokens: Annotated[
        int, option("--calibrate-tokens", "Maximum number of tokens to read.", "N", min=FEWEST_TOKENS, max=MOST_TOKENS)
    ] = 32768,
    vocab: Annotated[str | None, option("--vocab", "Vocabulary of --calibrate: a file, or world.", "FILE")] = None,
    adapter: AdapterOption = "none",
    force: Force = False,
    quiet: QuietOption = False,
) -> None:
    """Write a checkpoint whose large matrices are rounded to 8 or 4 bits; it loads without the original.

    Without --strategy the CPU uses the precision of the file. With --calibrate the errors of rounding are fed back to
    weights that are not rounded yet, by the second moments of the inputs that texts give (GPTQ). Calibrate with texts
    of the kind that the model is for, and measure with others (model damage).
    """
    from rwkvbatch.model.base import is_rwkv7
    from rwkvbatch.model.checkpoints.adapters import parse_adapter
    from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
    from rwkvbatch.model.model_files import model_file
    from rwkvbatch.model.weights.quantised import fit_of, quantised, rounding_of
    from rwkvbatch.model.weights.safetensors import check_tensor_target, save_entries
    from rwkvbatch.prompt.vocabulary import METADATA_KEY

    if output.suffix != ".safetensors":
        raise UsageError(f"the name of a quantised file must end in .safetensors, got {str(output)!r}")
    if calibrate and to != "int4":
        raise UsageError(
            f"--calibrate is for --to int4; got --to {to}", hint="in 8 bits there is next to nothing to gain"
        )
    if vocab is not None and not calibrate:
        raise UsageError("--vocab belongs to --calibrate, which is not given")
    check_tensor_target(output, replace=force)
    with open_checkpoint(model_file(source), parse_adapter(adapter)) as checkpoint:
        if not is_rwkv7(checkpoint.architecture):
            raise UsageError(f"{source} is RWKV-{checkpoint.architecture.generation}; only RWKV-7 is quantised")
        checkpoint.file.check_checksums()
        old_rounding = rounding_of(checkpoint.file.metadata)
        if old_rounding is not None and (old_rounding != to or calibrate or checkpoint.adapter is not None):
            if old_rounding != to:
                second_step = f"rounding it again to {to}"
            elif checkpoint.adapter is not None:
                second_step = "rounding it again with an adapter"
            else:
                second_step = "fitting it"
            raise UsageError(
                f"{source} is quantised already, to {old_rounding}; {second_step} would add to the loss",
                hint="give the unquantised checkpoint",
            )
        fitted, fit = None, fit_of(checkpoint.file.metadata)
        if calibrate:
            fitted, fit = _fitted(checkpoint, calibrate, calibrate_tokens, vocab, quiet=quiet)
        entries, metadata = quantised(checkpoint.rounded(None), to, fitted, fit)
        declared = {} if checkpoint.vocabulary is None else {METADATA_KEY: checkpoint.vocabulary}
        with written_bar(output, entries, quiet=quiet) as on_written:
            save_entries(output, entries, metadata={**declared, **metadata}, replace=force, on_written=on_written)
        size = checkpoint.file.num_bytes
    from rwkvbatch.cli.views import size_text

    new_size = output.stat().st_size
    rounding = f"{to}, fitted to {fit.tokens:,} tokens" if fit is not None else to
    message(f"wrote {output}, {rounding}, {size_text(new_size)}, {new_size / size:.0%} of the original", quiet=quiet)


def _fitted(
    checkpoint: Checkpoint, paths: list[str], limit: int, vocab: str | None, *, quiet: bool
) -> tuple[dict[str, Tensor], Fit]:
    """By name, the large matrices in int4 as they are stored, fitted to texts; and a description of the fit."""
    from rwkvbatch.cli.views import progress_bar
    from rwkvbatch.model.checkpoints.calibration import fitted, pieces
    from rwkvbatch.model.checkpoints.description import describe
    from rwkvbatch.model.weights.quantised import Fit, packed
    from rwkvbatch.prompt.vocabulary import tokenizer_of
    from rwkvbatch.script.documents import read_documents

    tokenizer = tokenizer_of(describe(checkpoint), vocab)
    turns = (document.turns[0] for document in read_documents(paths, limits=script_limits()).conversations)
    texts = pieces((tokenizer.encode(turn.user + (turn.reference or "")) for turn in turns), limit)
    num_tokens = sum(map(len, texts))
    if num_tokens < FEWEST_TOKENS:
        problem = f"--calibrate needs at least {FEWEST_TOKENS:,} tokens, the texts have {num_tokens:,}"
        raise UsageError(problem, hint="give more texts")
    digest = hashlib.sha256(" ".join(str(token) for text in texts for token in text).encode()).hexdigest()
    with progress_bar(f"fitting to {num_tokens:,} tokens", quiet=quiet) as show_progress:
        matrices = {name: packed(*rounded, "int4") for name, rounded in fitted(checkpoint, texts, show_progress)}
    return matrices, Fit(num_tokens, digest)


@contextmanager
def written_bar(output: Path, entries: Mapping[str, Entry], *, quiet: bool) -> Generator[OnWritten]:
    """A progress bar of writing `entries`. Yields a function that takes the number of bytes written."""
    from rwkvbatch.cli.views import progress_bar

    total = sum(entry.num_bytes for entry in entries.values())
    with progress_bar(f"writing {output.name}", quiet=quiet, of_bytes=True) as show_progress:
        yield lambda done: show_progress(done, total)
