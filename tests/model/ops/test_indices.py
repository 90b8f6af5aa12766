"""Index arrays of a ragged batch: the rows of each sequence, and how they are processed."""

from __future__ import annotations

import numpy as np

from rwkvbatch.model.base import RaggedBatch
from rwkvbatch.model.ops.batch import chunk_rows, indices_of


def test_chunks_restart_with_each_sequence() -> None:
    starts, stops, firsts = chunk_rows(np.array([3, 20, 36]), np.array([20, 36, 69]), 16)
    assert starts.tolist() == [3, 19, 20, 36, 52, 68]
    assert stops.tolist() == [19, 20, 36, 52, 68, 69]
    assert firsts.tolist() == [0, 2, 3]


def test_without_sequences_there_are_no_chunks() -> None:
    nothing = np.empty(0, np.int64)
    assert [len(part) for part in chunk_rows(nothing, nothing, 16)] == [0, 0, 0]


def test_the_way_a_sequence_is_read_depends_on_its_own_length_alone() -> None:
    batch = RaggedBatch.of([[1] * 3, [2] * 4, [3], [4] * 9], [5, 1, 0, 2])
    indices = indices_of(batch, batch.outputs, 4)
    assert indices.short_starts.tolist() == [0, 7]
    assert indices.short_stops.tolist() == [3, 8]
    assert indices.short_slots.tolist() == [5, 0]
    assert indices.long_slots.tolist() == [1, 2]
    assert indices.chunk_starts.tolist() == [3, 8, 12, 16]
    assert indices.chunk_stops.tolist() == [7, 12, 16, 17]
    assert indices.first_chunks.tolist() == [0, 1]


def test_without_chunks_every_sequence_is_read_row_by_row() -> None:
    batch = RaggedBatch.of([[1] * 40, [2]], [0, 1])
    indices = indices_of(batch, batch.outputs, None)
    assert indices.short_slots.tolist() == [0, 1]
    assert len(indices.long_starts) == len(indices.chunk_starts) == 0


def test_only_a_sequences_first_row_knows_its_slot_and_its_last_row() -> None:
    batch = RaggedBatch.of([[1] * 3, [2]], [5, -1])
    indices = indices_of(batch, batch.outputs, 16)
    assert indices.first_slots.tolist() == [5, -1, -1, -1]
    assert indices.last_rows.tolist() == [2, 0, 0, 3]
