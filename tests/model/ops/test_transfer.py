"""Small arrays are copied to the device in one transfer and arrive unchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rwkvbatch.model.ops.batch import pack, send, unpack, upload

ARRAYS = [
    np.array([1, -2, 3], np.int32),
    np.array([], np.float32),
    np.array([2**62, -1], np.int64),
    np.array([255], np.uint8),
    np.array([0.5, np.inf, -1.25, 1e-30, 7], np.float32),
    np.array([-np.inf, 0.1, 1e-300]),
]


def test_arrays_of_all_kinds_and_lengths_come_out_as_they_were() -> None:
    actual = upload(ARRAYS, "cpu")
    assert [tensor.numpy().tolist() for tensor in actual] == [array.tolist() for array in ARRAYS]
    assert [tensor.numpy().dtype for tensor in actual] == [array.dtype for array in ARRAYS]


def test_every_array_is_aligned() -> None:
    target = torch.empty_like(pack(ARRAYS))
    assert all((view.data_ptr() - target.data_ptr()) % 16 == 0 for view in unpack(target, ARRAYS) if len(view))


def test_sending_again_changes_what_the_views_show() -> None:
    target = torch.empty_like(pack(ARRAYS[:1]))
    (view,) = unpack(target, ARRAYS[:1])
    for values in ([1, 2, 3], [4, 5, 6]):
        send(pack([np.array(values, np.int32)]), target)
        assert view.tolist() == values


def test_arrays_that_are_not_contiguous_are_sent_in_their_order() -> None:
    assert upload([np.arange(10, dtype=np.int64)[::3]], "cpu")[0].tolist() == [0, 3, 6, 9]


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(KeyError):
        upload([np.zeros(1, np.complex64)], "cpu")
