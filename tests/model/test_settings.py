"""Process-wide settings are set inside a block and restored after it, also after an exception."""

from __future__ import annotations

import contextlib

import pytest
import torch

from rwkvbatch.model.base import fp32_sums, num_threads, tf32


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_as_asked_inside_and_as_before_afterwards(allowed: bool) -> None:
    before = flags()
    with tf32(not allowed), contextlib.suppress(ZeroDivisionError), tf32(allowed):
        assert flags() == (allowed, allowed)
        raise ZeroDivisionError
    assert flags() == before


def test_tf32_is_left_alone_on_the_cpu() -> None:
    with tf32(True), tf32(False, "cpu"):
        assert flags() == (True, True)


def test_thread_count_is_as_asked_inside_and_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    with contextlib.suppress(ZeroDivisionError), num_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
    with num_threads(None):
        assert torch.get_num_threads() == before


def sums_in_half() -> tuple[bool, bool]:
    matmul = torch.backends.cuda.matmul
    return matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction


def test_sums_are_fp32_inside_and_as_before_afterwards() -> None:
    before = sums_in_half()
    assert any(before)
    with contextlib.suppress(ZeroDivisionError), fp32_sums("cuda:1"):
        assert sums_in_half() == (False, False)
        raise ZeroDivisionError
    assert sums_in_half() == before


def test_sums_are_left_alone_on_the_cpu() -> None:
    before = sums_in_half()
    with fp32_sums("cpu"):
        assert sums_in_half() == before
