"""llama.cpp's files of a random checkpoint, and the check that it computes the same network from them as we do.

The check uses a GGUF file with all tensors in fp32, for which llama.cpp rounds nothing that we do not round. The logits
then differ only by the order of sums: by 0.001 % of their standard deviation at 12 x 768, and by 0.008 % at 24 x 2048.
Other kinds cannot be checked in this way. Even with F16, for which llama.cpp rounds the activations, the logits differ
by 0.24 % at 12 x 768 and by 6.5 % at 24 x 2048, because random networks amplify rounding from layer to layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.gguf_file import write_gguf
from benchmarks.llama_cpp_figures import Agreement
from benchmarks.llama_cpp_programs import LlamaCpp, Logits
from rwkvbatch.bench.measure import write_random
from rwkvbatch.bench.workloads import TEXT
from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.files import replacing
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.load import load_model
from rwkvbatch.prompt.tokenizer import world_tokenizer

BASE_KIND = "F16"
"""The kind that is written from the checkpoint; `llama-quantize` makes the other kinds from it."""
EXACT_KIND = "F32"
"""The kind that is checked; its file is removed afterwards."""
TOLERANCE = 0.001
"""The largest difference for `EXACT_KIND`, as a share of the logits' standard deviation."""
CHECKED_TEXT = TEXT[:200]


@dataclass(frozen=True)
class Files:
    """The checkpoint, and its GGUF files by kind."""

    checkpoint: Path
    gguf: Mapping[str, Path]


def make_files(
    folder: Path, shape: str, kinds: Sequence[str], llama_cpp: LlamaCpp, notify: Callable[[str], None]
) -> Files:
    """The files of a shape in `folder`; missing files are written."""
    checkpoint = folder / f"random-{shape}.safetensors"
    if not checkpoint.is_file():
        notify("writing random weights")
        checkpoint = write_random(shape, folder)
    paths = {kind: folder / f"random-{shape}-{kind}.gguf" for kind in dict.fromkeys([BASE_KIND, *kinds])}
    for kind, path in paths.items():
        if not path.is_file():
            notify(f"writing {kind}")
            with replacing(path, durable=False) as unfinished:
                if kind == BASE_KIND:
                    with open_checkpoint(checkpoint) as opened:
                        write_gguf(unfinished, opened)
                else:
                    llama_cpp.write_quantized(paths[BASE_KIND], unfinished, kind)
    return Files(checkpoint, paths)


def our_logits(checkpoint: Path, threads: int | None) -> Logits:
    """Our logits after each token of `CHECKED_TEXT`, with unrounded weights and all arithmetic in fp32."""
    tokens = world_tokenizer().encode(CHECKED_TEXT)
    model = load_model(checkpoint, "cpu", "cpu", threads=threads)
    return Logits(tokens, model.forward([tokens], every_token=True)[0].numpy().copy())


def agreement_of(kind: str, ours: Logits, theirs: Logits) -> Agreement:
    """The agreement of llama.cpp's logits with ours.

    Raises:
        RwkvBatchError: the tokens differ, or the logits differ by more than `TOLERANCE` for `EXACT_KIND`.
    """
    if theirs.tokens != ours.tokens:
        raise RwkvBatchError(f"llama.cpp reads other tokens than we do: {theirs.tokens[:8]}, {ours.tokens[:8]}")
    error = relative_error(ours.values, theirs.values)
    same_choice = float(np.mean(ours.values.argmax(1) == theirs.values.argmax(1)))
    if kind == EXACT_KIND and not error <= TOLERANCE:
        raise RwkvBatchError(
            f"llama.cpp's logits, with all weights in fp32, differ from ours by {error:.2%} of their standard "
            f"deviation, of which {TOLERANCE:.1%} are allowed: it computes something else"
        )
    return Agreement(kind, error, same_choice)


def relative_error(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """The root mean square difference divided by the standard deviation of `ours`; NaN if one of `theirs` is NaN."""
    return float(np.sqrt(np.mean((ours - theirs) ** 2)) / ours.std())


def check(
    files: Files, llama_cpp: LlamaCpp, threads: int, folder: Path, notify: Callable[[str], None]
) -> list[Agreement]:
    """The agreement of `EXACT_KIND`, for which a temporary file is written to `folder`, and of every other kind.

    Raises:
        RwkvBatchError: see `agreement_of`.
    """
    notify("our logits")
    ours = our_logits(files.checkpoint, threads)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        exact = Path(temporary) / f"{EXACT_KIND}.gguf"
        notify(f"writing {EXACT_KIND}")
        with open_checkpoint(files.checkpoint) as opened:
            write_gguf(exact, opened, torch.float32)
        agreements: list[Agreement] = []
        for kind, path in {EXACT_KIND: exact, **files.gguf}.items():
            notify(f"llama.cpp's logits, {kind}")
            theirs = llama_cpp.logits(path, threads, CHECKED_TEXT, Path(temporary) / "logits.gguf")
            agreements.append(agreement_of(kind, ours, theirs))
            if kind == EXACT_KIND:
                exact.unlink()
    return agreements
