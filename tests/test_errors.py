"""The distinction between kinds of errors."""

from __future__ import annotations

import pytest
import torch

from rwkvbatch.errors import counted, is_out_of_memory, listed


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


@pytest.mark.parametrize(("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1001, "1,001 rows")])
def test_one_of_a_kind_is_in_the_singular(number: int, text: str) -> None:
    assert counted(number, "row") == text


def test_lists_name_the_first_names_and_say_how_many_more_there_are() -> None:
    assert listed(["a", 2], most=2) == "a, 2"
    assert listed(["a", "b", "c"], most=2) == "a, b and 1 more"
    assert listed(range(1_003), most=1) == "0 and 1,002 more"
    assert listed(["x=1,y=2", "x=3,y=4", "base"], most=2, separator="; ") == "x=1,y=2; x=3,y=4 and 1 more"
