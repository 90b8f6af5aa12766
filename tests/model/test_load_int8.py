"""Models loaded with the strategy `cpu int8`: rounded tensors, refusals, memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.load import load_model
from rwkvbatch.model.ops.reference import rounded_to_int8
from rwkvbatch.model.random_checkpoint import random_tensors
from tests.model.loading_memory import memory_of_loading


@pytest.mark.parametrize("precision", ["int8", "w8a8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_rounding_means_the_same_to_the_kernels_and_to_the_reference(
    dtype: torch.dtype, precision: str, tmp_path: Path
) -> None:
    pytest.importorskip("rwkvbatch._native", reason="installed without the native kernels", exc_type=ImportError)
    torch.save(random_tensors(2, 192, 97, dtype=dtype), tmp_path / "a.pth")
    tokens = [[1, 2, 3, 4], *([token] for token in range(5, 20))]
    model = load_model(tmp_path / "a", f"cpu {precision}")
    assert (model.spec.backend, model.spec.bitwise, model.spec.dtype) == ("cpu", True, precision)
    actual, _ = model.forward(tokens)
    expected, _ = load_model(tmp_path / "a", f"cpu {precision}", "reference").forward(tokens)
    unrounded, _ = load_model(tmp_path / "a", "cpu", "reference").forward(tokens)
    # An input at the border of two integers may be rounded to the other one: which, depends on the order in which the
    # reference adds, so on the machine. It changes all logits of its sequence.
    errors = (actual - expected).abs().amax(1)
    num_moved = int((errors > 2e-4).sum())
    assert num_moved == 0 if precision == "int8" else num_moved <= len(tokens) // 4
    rounding = float((unrounded - expected).abs().mean())
    assert float(errors.max()) < rounding * (0.1 if precision == "int8" else 3)
    assert 2e-3 < rounding < (0.6 if precision == "int4" else 0.2)


def test_int8_rounds_the_large_matrices_and_nothing_else(tmp_path: Path) -> None:
    tensors = random_tensors(2, 64, 65, dtype=torch.float32)
    torch.save(tensors, tmp_path / "a.pth")
    for name, weight in tensors.items():
        if re.fullmatch(r"head\.weight|.*\.(receptance|key|value|output)\.weight", name):
            tensors[name] = rounded_to_int8(weight)
    torch.save(tensors, tmp_path / "rounded.pth")
    actual, _ = load_model(tmp_path / "a", "cpu int8", "reference").forward([[1, 2, 3]])
    expected, _ = load_model(tmp_path / "rounded", "cpu", "reference").forward([[1, 2, 3]])
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_int8_does_not_hide_weights_that_are_no_numbers(backend: str, tmp_path: Path) -> None:
    tensors = random_tensors(1, 64, 65)
    tensors["blocks.0.ffn.key.weight"][3, 5] = float("nan")
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"'blocks.0.ffn.key.weight' holds NaN or infinity \(1 of"):
        load_model(tmp_path / "a", "cpu int8", backend)


def test_loading_to_int8_takes_no_more_than_the_packed_weights_and_one_tensor(tiny_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("rwkvbatch._native", reason="installed without the native kernels", exc_type=ImportError)
    path = tmp_path / "a.pth"
    torch.save(random_tensors(2, 512, 24_000, dtype=torch.float32), path)
    memory = memory_of_loading(path, "cpu int8", tiny_file)
    slack, largest = 16e6, 24_000 * 512 * 4  # loading in bf16 leaves 12 MB besides the weights too
    assert memory["after"] < memory["packed"] + slack
    assert memory["peak"] < memory["packed"] + largest + slack
