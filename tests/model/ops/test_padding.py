"""Padding of batches: the permitted row counts, and the content of padding rows."""

from __future__ import annotations

import numpy as np
import pytest

from rwkvbatch.model.base import RaggedBatch
from rwkvbatch.model.ops.cuda import BUCKETS, NO_SLOT, decode_rows, is_decode, pad_outputs, pad_rows, round_up


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (9, 16), (33, 48), (200, 256), (256, 256)])
def test_a_decode_step_is_filled_up_to_the_next_bucket(rows: int, bucket: int) -> None:
    assert decode_rows(rows, None) == bucket


def test_more_rows_than_the_largest_bucket_are_left_as_they_are() -> None:
    assert decode_rows(BUCKETS[-1] + 1, None) is None
    assert decode_rows(BUCKETS[-1] + 1, 64) is None


@pytest.mark.parametrize(("rows", "filled"), [(1, 64), (64, 64), (65, 128), (256, 256)])
def test_with_fixed_rows_a_decode_step_is_filled_up_to_whole_products(rows: int, filled: int) -> None:
    assert decode_rows(rows, 64) == filled


def test_fixed_rows_may_be_more_than_the_largest_bucket() -> None:
    assert decode_rows(300, 512) == 512


@pytest.mark.parametrize(("rows", "block", "whole"), [(0, 8, 0), (1, 8, 8), (8, 8, 8), (9, 8, 16)])
def test_whole_blocks(rows: int, block: int, whole: int) -> None:
    assert round_up(rows, block) == whole


def test_rows_are_filled_in_as_sequences_of_one_row_without_a_state() -> None:
    batch = pad_rows(RaggedBatch.of([[5, 6], [7]], [3, 1]), 5)
    assert batch.tokens.tolist() == [5, 6, 7, 0, 0]
    assert batch.starts.tolist() == [0, 2, 3, 4, 5]
    assert batch.slots.tolist() == [3, 1, NO_SLOT, NO_SLOT]
    assert batch.outputs.tolist() == [1, 2]


def test_a_full_batch_is_left_as_it_is() -> None:
    batch = RaggedBatch.of([[5, 6]], [0])
    assert pad_rows(batch, 2) is batch


def test_output_rows_are_filled_up_with_the_first_row() -> None:
    assert pad_outputs(np.array([2, 5]), 4).tolist() == [2, 5, 0, 0]


def test_a_step_of_single_tokens_that_all_need_logits_is_a_decode() -> None:
    decode = RaggedBatch.of([[1], [2]], [0, 1])
    assert is_decode(decode)
    assert not is_decode(RaggedBatch.of([[1], [2, 3]], [0, 1]))
    assert not is_decode(RaggedBatch(decode.tokens, decode.starts, decode.slots, decode.outputs[:1]))
