"""Telling errors apart."""

from __future__ import annotations

import pytest
import torch

from rwkvbatch.errors import is_out_of_memory


def test_torch_s_failed_allocation_on_the_cpu_is_told_as_such() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("DefaultCPUAllocator"), False),
    ],
)
def test_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
