"""How many rows a step has on a GPU: batches filled up with rows that belong to nobody. Numpy alone."""

from __future__ import annotations

import numpy as np

from rwkvbatch.model.base import IntArray, RaggedBatch

BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
"""Row counts of decode steps: for each of them there is one graph."""

NO_SLOT = -1
"""The slot of a row that was filled in: it starts from the zero state and leaves none."""


def decode_rows(num_rows: int, fixed_rows: int | None) -> int | None:
    """How many rows a decode step of `num_rows` is filled up to; None where it is too large for a graph.

    Args:
        fixed_rows: matrix products have exactly so many rows each.
    """
    if fixed_rows is not None:
        return whole_blocks(num_rows, fixed_rows) if num_rows <= max(BUCKETS[-1], fixed_rows) else None
    return next((size for size in BUCKETS if size >= num_rows), None)


def whole_blocks(num_rows: int, block: int) -> int:
    """The smallest multiple of `block` from `num_rows` on."""
    return -(-num_rows // block) * block


def is_decode(batch: RaggedBatch) -> bool:
    """Whether every sequence has one row, and the logits of all of them are wanted."""
    return len(batch.tokens) == len(batch.slots) == len(batch.outputs)


def pad_rows(batch: RaggedBatch, num_rows: int) -> RaggedBatch:
    """`batch` with token 0 for sequences of one row each, until it has `num_rows`. No logits of these are wanted."""
    count = num_rows - len(batch.tokens)
    if count == 0:
        return batch
    return RaggedBatch(
        tokens=np.concatenate([batch.tokens, np.zeros(count, np.int64)]),
        starts=np.concatenate([batch.starts, batch.starts[-1] + np.arange(1, count + 1)]),
        slots=np.concatenate([batch.slots, np.full(count, NO_SLOT, np.int64)]),
        outputs=batch.outputs,
    )


def pad_outputs(outputs: IntArray, count: int) -> IntArray:
    """`outputs` with row 0 again and again, until there are `count`."""
    return np.concatenate([outputs, np.zeros(count - len(outputs), np.int64)])
