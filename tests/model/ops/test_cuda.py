"""GPU linear layers, and the whole network on GPU operations, against the reference operations."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from rwkvbatch.model.base import RaggedBatch
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.network.rwkv7 import Network
from rwkvbatch.model.ops import Activation, Product
from rwkvbatch.model.ops.reference import ReferenceOps, TorchLinear
from tests.model.ops.device import DEVICE, guarded, normal, untouched

pytest.importorskip("triton")
from rwkvbatch.model.ops.cuda import CudaOps
from rwkvbatch.model.ops.triton import few

TOLERANCE = {torch.float32: 2e-5, torch.float16: 0.02, torch.bfloat16: 0.15}


def test_importing_the_package_does_not_import_triton() -> None:
    code = "import sys, rwkvbatch.cli.app, rwkvbatch.model.load; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def compare_linears(rows: int, dtype: torch.dtype, activation: Activation, bias: torch.Tensor | None) -> None:
    """A group of a layer alone, into an addition and into a blend, against the reference operations."""
    ops, reference = CudaOps(DEVICE, dtype), ReferenceOps()
    weight = (normal(72, 40) / 40**0.5).to(dtype)
    layer, expected_layer = (side.linear_layer(weight, bias, activation) for side in (ops, reference))
    x, add, start, target = (normal(rows, width, seed=seed) for seed, width in enumerate([40, 72, 72, 72], start=2))
    x = x.to(dtype)

    def products(layer, device: str, x: torch.Tensor) -> list[Product]:
        return [
            Product(x.to(device), layer),
            Product(x.to(device), layer, add=add.clone().to(device)),
            Product(x.to(device), layer, blend=(start.to(device), target.to(device))),
        ]

    actual = ops.linears(products(layer, DEVICE, x))
    expected = reference.linears(products(expected_layer, "cpu", x.float()))
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine.float().cpu(), theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 3)


@pytest.mark.parametrize("rows", [3, few.MAX_ROWS + 1])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("activation", ["none", "tanh", "sigmoid", "decay", "relu_squared"])
def test_linear_layers_and_what_their_results_go_into(activation: Activation, biased: bool, rows: int) -> None:
    compare_linears(rows, torch.float32, activation, normal(72, seed=1) if biased else None)


@pytest.mark.parametrize("rows", [1, few.MAX_ROWS + 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_linear_layers_in_half_precision(dtype: torch.dtype, rows: int) -> None:
    compare_linears(rows, dtype, "sigmoid", normal(72, seed=1))
    compare_linears(rows, dtype, "tanh", None)


def few_rows(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One layer of a few rows, between guard bands."""
    out, memory = guarded(len(x), len(weight))
    # NaN around what is read: nothing of it may be read and multiplied by zero.
    x, weight = (guarded(*side.shape, values=side, band=float("nan"))[0] for side in (x, weight))
    few.linears([Product(x, TorchLinear(weight, None, "none"))], [out])
    assert untouched(memory)
    return out


@pytest.mark.parametrize(("width", "outs"), [(8, 1), (40, 17), (300, 33)])
def test_layers_of_a_few_rows_of_any_width_write_their_outputs_and_nothing_else(width: int, outs: int) -> None:
    x, weight = normal(3, width), normal(outs, width, seed=1)
    torch.testing.assert_close(few_rows(x, weight).cpu(), x @ weight.t(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("whole_numbers", [True, False])
def test_the_bits_of_a_few_rows_do_not_depend_on_how_many_they_are(whole_numbers: bool) -> None:
    """Sums of whole numbers are exact in any order; others are a matter of the device."""
    if not whole_numbers and DEVICE == "cpu":
        pytest.skip("the interpreter adds in the order of numpy's library, which may depend on a row's place")
    x, weight = normal(few.MAX_ROWS, 40), normal(20, 40, seed=1)
    if whole_numbers:
        x, weight = (8 * x).round(), (8 * weight).round()
    whole = few_rows(x, weight)
    for rows in (1, 5):
        assert torch.equal(few_rows(x[-rows:].contiguous(), weight), whole[-rows:])


def test_a_blend_leaves_its_start_and_target_as_they_are() -> None:
    ops = CudaOps(DEVICE, torch.float32)
    start, target = normal(2, 8).to(DEVICE), normal(2, 8, seed=1).to(DEVICE)
    before = start.clone(), target.clone()
    layer = ops.linear_layer(normal(8, 8), None, "sigmoid")
    ops.linears([Product(normal(2, 8).to(DEVICE), layer, blend=(start, target))])
    assert torch.equal(start, before[0])
    assert torch.equal(target, before[1])


@dataclass
class Sides:
    """One network on both kinds of operations."""

    ops: CudaOps
    network: Network
    reference: ReferenceOps
    reference_network: Network

    @classmethod
    def of(cls, dtype: torch.dtype, fixed_rows: int | None = None) -> Sides:
        tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(2, 32, 40, head_size=16, seed=1).items()}
        ops, reference = CudaOps(DEVICE, dtype, fixed_rows), ReferenceOps()
        return cls(ops, Network.build(tensors, 2, ops), reference, Network.build(tensors, 2, reference))

    def compare(self, steps: list[list[int]], tolerance: float) -> None:
        """Logits and states of steps with so many tokens for each sequence, one step after the other."""
        generator = np.random.default_rng(0)
        pools = [ops.make_pool(5, 2, 2, 16) for ops in (self.ops, self.reference)]
        for lengths in steps:
            lists = [generator.integers(0, 40, length).tolist() for length in lengths]
            batch = RaggedBatch.of(lists, list(range(len(lists), 0, -1)))
            actual = self.network.step(self.ops, batch, pools[0])
            expected = self.reference_network.step(self.reference, batch, pools[1])
            assert actual.dtype == torch.float32
            torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=tolerance)
        states = [pool.read(range(1, 5)).tensors for pool in pools]
        for name, theirs in states[1].items():
            torch.testing.assert_close(states[0][name].cpu(), theirs, rtol=0, atol=tolerance)


def test_the_whole_network_on_ragged_steps_from_prompts_to_single_rows() -> None:
    Sides.of(torch.float32).compare([[17, 1, 3], [1, 1, 1], [2]], 5e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.2)])
def test_the_whole_network_in_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    Sides.of(dtype).compare([[3, 1]], tolerance)


@pytest.mark.parametrize("rows", [1, few.MAX_ROWS])
def test_a_step_of_a_few_rows_is_the_same_as_by_the_librarys_products(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = random_tensors(2, 32, 40, head_size=16, seed=1)
    launches: list[int] = []
    linears = few.linears
    monkeypatch.setattr(few, "linears", lambda group, outs: (launches.append(len(group)), linears(group, outs))[1])
    actual: list[tuple[torch.Tensor, torch.Tensor]] = []
    for few_rows, num_launches in ((few.MAX_ROWS, 2 * 5 + 1), (0, 0)):
        ops = CudaOps(DEVICE, torch.float32, few_rows=few_rows)
        network, pool = Network.build(tensors, 2, ops), ops.make_pool(rows, 2, 2, 16)
        launches.clear()
        logits = network.step(ops, RaggedBatch.of([[1 + row] for row in range(rows)], range(rows)), pool)
        assert len(launches) == num_launches
        actual.append((logits, pool.read(range(rows)).tensors["wkv"]))
    for mine, theirs in zip(*actual, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_more_few_rows_than_a_tile_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"few_rows must be in \[0, 16\], got 17"):
        CudaOps(DEVICE, torch.float32, few_rows=17)


def test_with_fixed_rows_the_results_are_the_same() -> None:
    Sides.of(torch.float32, fixed_rows=4).compare([[5, 1], [1, 1, 1]], 5e-5)


def test_with_fixed_rows_every_product_has_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = Sides.of(torch.float32, fixed_rows=4)
    rows: list[int] = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, weight: (rows.append(len(x)), linear(x, weight))[1])
    pool = sides.ops.make_pool(2, 2, 2, 16)
    logits = sides.network.step(sides.ops, RaggedBatch.of([[1] * 5, [2]], [0, 1]), pool)
    assert set(rows) == {4}
    assert logits.shape == (2, 40)


def test_with_fixed_rows_prompts_are_read_row_by_row_however_long() -> None:
    batch = RaggedBatch.of([[1] * 40, [2]], [0, 1])
    for fixed_rows, num_long in ((None, 1), (4, 0)):
        ops = CudaOps(DEVICE, torch.float32, fixed_rows)
        assert len(ops.indices(batch, ops.make_pool(2, 1, 1, 16)).long_starts) == num_long


def test_with_fixed_rows_the_bits_of_a_sequence_do_not_depend_on_the_others_or_on_how_it_is_cut() -> None:
    sides = Sides.of(torch.float32, fixed_rows=4)
    tokens = [5, 7, 1, 9, 2]

    def run(*steps: tuple[list[list[int]], list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits after the last of `tokens`, which are in slot 1, and the state there."""
        pool = sides.ops.make_pool(4, 2, 2, 16)
        for lists, slots in steps:
            logits = sides.network.step(sides.ops, RaggedBatch.of(lists, slots), pool)
        return logits[slots.index(1)], pool.read([1]).tensors["wkv"]

    logits, state = run(([tokens], [1]))
    for others in (
        run(([[3, 3], tokens, [8]], [0, 1, 3])),
        run(([tokens[:2], [4]], [1, 2]), ([[6], tokens[2:]], [2, 1])),
    ):
        assert torch.equal(others[0], logits)
        assert torch.equal(others[1], state)


def test_a_step_without_outputs_has_no_logits() -> None:
    sides = Sides.of(torch.float32)
    batch = RaggedBatch(np.array([1]), np.array([0, 1]), np.array([0]), np.array([], np.int64))
    assert sides.network.step(sides.ops, batch, sides.ops.make_pool(1, 2, 2, 16)).shape == (0, 40)


def test_a_slot_that_is_not_in_the_pool_is_refused() -> None:
    ops = CudaOps(DEVICE, torch.float32)
    with pytest.raises(ValueError, match="slot 2 is not in the pool of 2"):
        ops.begin(RaggedBatch.of([[1]], [2]), ops.make_pool(2, 1, 1, 16))
