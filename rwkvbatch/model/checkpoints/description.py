"""`describe`: the description of a checkpoint, for `rwkvbatch model info`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from rwkvbatch.model.base import Dimensions, dimensions_of, is_rwkv7
from rwkvbatch.model.checkpoints.checkpoint import Checkpoint
from rwkvbatch.model.network.rwkv7 import state_bytes
from rwkvbatch.model.strategy import PRECISIONS
from rwkvbatch.model.weights.containers import chat_template_file
from rwkvbatch.model.weights.quantised import fit_of, rounded_names, rounding_of

_LAYER_NUMBER = re.compile(r"blocks\.\d+\.")


@dataclass(frozen=True)
class TensorGroup:
    """Tensors with the same name, shape and type in all or some layers."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    num_parameters: int


@dataclass(frozen=True)
class Description(Dimensions):
    """Description of a checkpoint, for `rwkvbatch model info`.

    Attributes:
        kind: the kind of file.
        num_files: number of files.
        form: the naming of the tensors in the file, see `forms`.
        undone: the conversions to the official names and shapes, a phrase each.
        dtype: the most common precision of the weights; the rounding of quantised matrices counts as one.
        num_bytes: size of all files.
        state_bytes: size of one sequence's state; None for generations that only the `rwkv` package runs.
        sha256: hash of the file, or of the hashes of the files; None if the values were not read.
        vocabulary, vocabulary_file: as in `ModelSpec`.
        quantised: the rounding of the large matrices (`quantised.FileRounding`); None if they are not quantised.
        fitted_tokens: number of tokens that this rounding was fitted to; None if it was not fitted.
    """

    path: str
    kind: str
    num_files: int
    form: str
    undone: tuple[str, ...]
    dtype: str
    num_bytes: int
    state_bytes: int | None
    sha256: str | None
    tensors: tuple[TensorGroup, ...]
    vocabulary: str | None = None
    vocabulary_file: str | None = None
    quantised: str | None = None
    fitted_tokens: int | None = None


def describe(checkpoint: Checkpoint, *, read_values: bool = False) -> Description:
    """Describe an open checkpoint.

    Args:
        read_values: read every tensor, checking for NaN and infinity, compare the file with its checksums, if it has
            any, and hash it.

    Raises:
        CheckpointError: `read_values` found a damaged tensor.
    """
    file, architecture = checkpoint.file, checkpoint.architecture
    if read_values:
        file.check_checksums()
        file.start_hashing()
        for name in checkpoint:
            checkpoint.check(name)
    rounding, rounded = rounding_of(file.metadata), rounded_names(file.metadata)
    groups: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    sizes: Counter[str] = Counter()
    for name, entry in file.entries.items():
        dtype = rounding if rounding is not None and name in rounded else PRECISIONS[entry.dtype]
        groups.setdefault((_LAYER_NUMBER.sub("blocks.*.", name), entry.shape, dtype), []).append(entry.num_elements)
        sizes[dtype] += entry.num_elements
    return Description(
        **dimensions_of(architecture),
        path=str(file.path),
        kind=file.kind,
        num_files=len(file.files),
        form=file.form,
        undone=file.undone,
        dtype=sizes.most_common(1)[0][0],
        num_bytes=file.num_bytes,
        state_bytes=state_bytes(architecture) if is_rwkv7(architecture) else None,
        sha256=file.sha256() if read_values else None,
        tensors=tuple(TensorGroup(*key, len(sizes), sum(sizes)) for key, sizes in groups.items()),
        vocabulary=checkpoint.vocabulary,
        quantised=rounding,
        fitted_tokens=None if (fit := fit_of(file.metadata)) is None else fit.tokens,
        vocabulary_file=None if file.vocabulary_file is None else str(file.vocabulary_file),
    )


def chat_template_of(checkpoint: Checkpoint) -> str | None:
    """The file of a checkpoint's Hugging Face directory with a chat template, which is not used; None without one.

    Raises:
        CheckpointError: `tokenizer_config.json`, which may have one, cannot be read.
    """
    file = checkpoint.file
    folder = file.path if file.path.is_dir() else file.path.parent if file.config else None
    template = None if folder is None else chat_template_file(folder)
    return None if template is None else str(template)
