"""Transfers of many small arrays to a device in one asynchronous copy, and of results back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rwkvbatch.model.base import IntArray, RaggedBatch

IndexArray = npt.NDArray[np.int32]


class Indices(NamedTuple):
    """The indices of a ragged batch for the kernels, on the host.

    Attributes:
        tokens: [R].
        outputs: the rows that need logits, [P].
        first_slots: for the first row of a sequence with a state, its slot; -1 for other rows; [R].
        last_rows: for the first row of a sequence, its last row; 0 for other rows; [R].
        short_starts, short_stops, short_slots: sequences that are read row by row.
        long_starts, long_stops, long_slots: sequences that are read in chunks.
        chunk_starts, chunk_stops: chunk c is rows chunk_starts[c] to chunk_stops[c] - 1, sequence by sequence.
        first_chunks: the number of each long sequence's first chunk.
    """

    tokens: IndexArray
    outputs: IndexArray
    first_slots: IndexArray
    last_rows: IndexArray
    short_starts: IndexArray
    short_stops: IndexArray
    short_slots: IndexArray
    long_starts: IndexArray
    long_stops: IndexArray
    long_slots: IndexArray
    chunk_starts: IndexArray
    chunk_stops: IndexArray
    first_chunks: IndexArray


def indices_of(batch: RaggedBatch, outputs: IntArray, chunk: int | None) -> Indices:
    """`Indices` of `batch`, with `outputs` as the rows of logits.

    Args:
        chunk: sequences of at least this many rows are read in chunks of this size; None for no chunks.
    """
    starts, stops = batch.starts[:-1], batch.starts[1:]
    first_slots = np.full(len(batch.tokens), -1, np.int32)
    last_rows = np.zeros(len(batch.tokens), np.int32)
    first_slots[starts] = batch.slots
    last_rows[starts] = stops - 1
    # The choice depends on the sequence's own length only, so that no other sequence changes its result.
    is_long = np.zeros(len(starts), np.bool_) if chunk is None else stops - starts >= chunk
    sequences = (starts, stops, batch.slots)
    return Indices(
        batch.tokens.astype(np.int32),
        outputs.astype(np.int32),
        first_slots,
        last_rows,
        *(values[~is_long].astype(np.int32) for values in sequences),
        *(values[is_long].astype(np.int32) for values in sequences),
        *(values.astype(np.int32) for values in chunk_rows(starts[is_long], stops[is_long], chunk or 1)),
    )


def chunk_rows(starts: IntArray, stops: IntArray, chunk: int) -> tuple[IntArray, IntArray, IntArray]:
    """Divide sequences, which are rows starts[b] to stops[b] - 1, into chunks of `chunk` rows.

    Returns:
        The first row and the end of each chunk, and the number of each sequence's first chunk.
    """
    counts = -(-(stops - starts) // chunk)
    firsts = np.cumsum(counts) - counts
    numbers = np.arange(counts.sum()) - np.repeat(firsts, counts)
    chunk_starts = np.repeat(starts, counts) + chunk * numbers
    return chunk_starts, np.minimum(chunk_starts + chunk, np.repeat(stops, counts)), firsts


_ALIGNMENT = 16
"""Bytes. For pointers with less alignment Triton compiles another kernel."""

_DTYPES = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.uint64): torch.int64,  # the bits, reinterpreted
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}

AnyArray = npt.NDArray[np.generic]


def pack(arrays: Sequence[AnyArray]) -> Tensor:
    """The bytes of `arrays` one after the other, each aligned; uint8, on the host."""
    offsets = _offsets(arrays)
    packed = torch.zeros(offsets[-1], dtype=torch.uint8)
    content = packed.numpy()
    for array, offset in zip(arrays, offsets, strict=False):
        content[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return packed


def send(packed: Tensor, target: Tensor) -> None:
    """Copy `packed` into `target` on a device, from pinned memory, without waiting."""
    source = packed.pin_memory() if target.device.type == "cuda" else packed
    target.copy_(source, non_blocking=True)


def unpack(target: Tensor, arrays: Sequence[AnyArray]) -> list[Tensor]:
    """Views of the sent bytes with the dtypes and lengths of `arrays`, all one-dimensional."""
    return [
        target[offset : offset + array.nbytes].view(_DTYPES[array.dtype])
        for array, offset in zip(arrays, _offsets(arrays), strict=False)
    ]


def upload(arrays: Sequence[AnyArray], device: str) -> list[Tensor]:
    """`arrays`, one-dimensional, as tensors on `device`."""
    packed = pack(arrays)
    target = torch.empty_like(packed, device=device)
    send(packed, target)
    return unpack(target, arrays)


def _offsets(arrays: Sequence[AnyArray]) -> list[int]:
    """The start of each array, and the end of the last one."""
    sizes = [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]
    return [0, *np.cumsum(sizes).tolist()]
