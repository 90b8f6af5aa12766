"""What a weights file holds, as records for `rwkvbatch model info`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rwkvbatch.model.checkpoint import Checkpoint
from rwkvbatch.model.rwkv7_model import state_bytes
from rwkvbatch.model.strategy import PRECISIONS

_LAYER_NUMBER = re.compile(r"blocks\.\d+\.")


@dataclass(frozen=True)
class TensorGroup:
    """Tensors of one name in several layers, all of one shape and type."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    num_parameters: int


@dataclass(frozen=True)
class Description:
    """See `ModelSpec` for the fields that it has too.

    Attributes:
        num_bytes: size of the file.
        state_bytes: size of one sequence's state, None for generations that only the `rwkv` package runs.
        sha256: hash of the file, None when the values were not read.
    """

    path: str
    kind: str
    generation: str
    num_layers: int
    width: int
    num_heads: int
    head_size: int
    vocab_size: int
    dtype: str
    num_parameters: int
    num_bytes: int
    state_bytes: int | None
    sha256: str | None
    tensors: tuple[TensorGroup, ...]


def describe(checkpoint: Checkpoint, *, read_values: bool = False) -> Description:
    """Describe an open checkpoint.

    Args:
        read_values: read every tensor, checking for NaN and infinity, and hash the file.

    Raises:
        CheckpointError: `read_values` found a damaged tensor.
    """
    file, architecture = checkpoint.file, checkpoint.architecture
    if read_values:
        file.start_hashing()
        for name in checkpoint:
            checkpoint.check(name)
    groups: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    for name, entry in file.entries.items():
        key = (_LAYER_NUMBER.sub("blocks.*.", name), entry.shape, PRECISIONS[entry.dtype])
        groups.setdefault(key, []).append(entry.num_elements)
    own_state = architecture.generation == "7"
    return Description(
        path=str(file.path),
        kind=file.kind,
        generation=architecture.generation,
        num_layers=architecture.num_layers,
        width=architecture.width,
        num_heads=architecture.num_heads,
        head_size=architecture.head_size,
        vocab_size=architecture.vocab_size,
        dtype=architecture.precision,
        num_parameters=architecture.num_parameters,
        num_bytes=file.num_bytes,
        state_bytes=state_bytes(architecture.num_layers, architecture.num_heads, architecture.head_size)
        if own_state
        else None,
        sha256=file.sha256() if read_values else None,
        tensors=tuple(TensorGroup(*key, len(sizes), sum(sizes)) for key, sizes in groups.items()),
    )
