"""Models loaded with the strategy `cpu int8`: rounded tensors, refusals, memory."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.network.rwkv7 import Network
from rwkvbatch.model.ops import Activation, MatrixKind, Product, Rounding
from rwkvbatch.model.ops.reference import ReferenceOps, TorchLinear, rounded_to_int8
from rwkvbatch.model.weights.quantised import matrix_kind
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


def test_int8_rounds_large_and_low_rank_matrices_and_nothing_else(tmp_path: Path) -> None:
    tensors = random_tensors(2, 64, 65, dtype=torch.float32)
    torch.save(tensors, tmp_path / "a.pth")
    for name, weight in tensors.items():
        if re.fullmatch(r"head\.weight|.*\.(receptance|key|value|output)\.weight", name):
            tensors[name] = rounded_to_int8(weight)
        elif re.fullmatch(r".*\.att\.[wavg][12]", name):  # stored as [in, out]
            tensors[name] = rounded_to_int8(weight.t()).t().contiguous()
    torch.save(tensors, tmp_path / "rounded.pth")
    actual, _ = load_model(tmp_path / "a", "cpu int8", "reference").forward([[1, 2, 3]])
    expected, _ = load_model(tmp_path / "rounded", "cpu", "reference").forward([[1, 2, 3]])
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["blocks.0.ffn.key.weight", "blocks.0.att.g2"])
def test_int8_does_not_hide_weights_that_are_no_numbers(backend: str, name: str, tmp_path: Path) -> None:
    tensors = random_tensors(1, 64, 65)
    tensors[name][3, 5] = float("nan")
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"'{name}' contains NaN or infinity \(1 of"):
        load_model(tmp_path / "a", "cpu int8", backend)


class KindOps(ReferenceOps):
    """Reference operations that note the kind of each matrix, by the address of its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[int, MatrixKind] = {}

    def linear_layer(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: Activation = "none",
        *,
        kind: MatrixKind = "other",
        sparse_inputs: bool = False,
    ) -> TorchLinear:
        self.kinds[weight.data_ptr()] = kind
        return super().linear_layer(weight, bias, activation, kind=kind, sparse_inputs=sparse_inputs)


def test_the_kind_of_a_tensor_by_its_name_is_the_one_with_which_the_network_packs_it() -> None:
    tensors, ops = random_tensors(2, 64, 65, deep_embed=32), KindOps()
    Network.build(tensors, 2, ops)
    packed = {name: ops.kinds[tensor.data_ptr()] for name, tensor in tensors.items() if tensor.data_ptr() in ops.kinds}
    assert packed == {name: matrix_kind(name) for name in packed}
    assert Counter(packed.values()) == {"large": 13, "low_rank": 14, "other": 6}
    unused = {"blocks.0.att.v1", "blocks.0.att.v2"}
    assert {matrix_kind(name) for name in tensors.keys() - packed.keys() - unused} == {"other"}


def test_low_rank_matrices_have_8_bits_where_large_ones_have_4() -> None:
    weight, x = torch.randn(96, 64), torch.randn(3, 64)

    def product(rounding: Rounding | None, kind: MatrixKind) -> torch.Tensor:
        ops = ReferenceOps(rounding=rounding)
        return ops.linears([Product(x, ops.linear_layer(weight, kind=kind))])[0]

    assert torch.equal(product("int4", "low_rank"), product("w8a8", "large"))
    assert not torch.equal(product("int4", "low_rank"), product("int4", "large"))
    assert torch.equal(product("int8", "low_rank"), product("int8", "large"))
    assert torch.equal(product("int4", "other"), product(None, "large"))


def test_loading_to_int8_takes_no_more_than_the_packed_weights_and_one_tensor(tiny_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("rwkvbatch._native", reason="installed without the native kernels", exc_type=ImportError)
    path = tmp_path / "a.pth"
    torch.save(random_tensors(2, 512, 24_000, dtype=torch.float32), path)
    memory = memory_of_loading(path, "cpu int8", tiny_file)
    slack, largest = 16e6, 24_000 * 512 * 4  # loading in bf16 leaves 12 MB besides the weights too
    assert memory["after"] < memory["packed"] + slack
    assert memory["peak"] < memory["packed"] + largest + slack
