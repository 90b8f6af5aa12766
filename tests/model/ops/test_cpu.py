"""Each native operation against its reference implementation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.base import RaggedBatch, State
from rwkvbatch.model.ops import Activation, HeadRows, HeadWeights, Product
from rwkvbatch.model.ops.reference import ReferenceOps

pytest.importorskip("rwkvbatch._native")
from rwkvbatch.model.ops.cpu import CpuOps

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
ISAS = ["portable", "auto"]
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


@dataclass
class Twins:
    """The same weights, activations and steps for both implementations."""

    cpu: CpuOps
    reference: ReferenceOps

    def vectors(self, *shape: int, seed: int = 0, mean: float = 0.0):
        weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + mean
        return self.cpu.vector(weight), self.reference.vector(weight)

    def layers(
        self,
        out: int,
        width: int,
        dtype: torch.dtype = torch.bfloat16,
        *,
        biased: bool = False,
        activation: Activation = "none",
        seed: int = 0,
        transposed: bool = False,
    ):
        generator = torch.Generator().manual_seed(seed)
        shape = (width, out) if transposed else (out, width)
        weight = (torch.randn(*shape, generator=generator) / width**0.5).to(dtype)
        weight = weight.t() if transposed else weight
        bias = torch.randn(out, generator=generator) if biased else None
        return tuple(ops.linear_layer(weight, bias, activation) for ops in (self.cpu, self.reference))

    def arrays(self, rows: int, width: int, seed: int = 0):
        values = torch.randn(rows, width, generator=torch.Generator().manual_seed(1000 + seed))
        return self.cpu.array(values), values

    def same(self, *products: tuple) -> None:
        """Compare groups of products, each given as pairs (x, layer, add, blend's start and target)."""
        sides = ([_side(product, side) for product in products] for side in (0, 1))
        actual, expected = (ops.linears(side) for ops, side in zip((self.cpu, self.reference), sides, strict=True))
        assert len(actual) == len(expected) == len(products)
        for mine, theirs in zip(actual, expected, strict=True):
            self.close(mine, theirs)

    def close(self, actual, expected: torch.Tensor) -> None:
        torch.testing.assert_close(self.cpu.values(actual), expected, **TOLERANCE)
        del actual
        assert self.cpu.native.take_damage() == 0


def _side(product: tuple, side: int) -> Product:
    x, layer, add, blend = (*product, None, None)[:4]
    return Product(
        x[side],
        layer[side],
        None if add is None else add[side],
        None if blend is None else (blend[0][side], blend[1][side]),
    )


@pytest.fixture(params=ISAS)
def twins(request: pytest.FixtureRequest) -> Twins:
    cpu = CpuOps(threads=2, isa=request.param)
    cpu.native.set_guard(True)
    return Twins(cpu, ReferenceOps())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "width"), [(64, 64), (97, 40), (24, 96), (1, 16), (203, 24), (513, 770)])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 8, 13])
def test_a_linear_layer(twins: Twins, rows: int, out: int, width: int, dtype: torch.dtype) -> None:
    twins.same((twins.arrays(rows, width), twins.layers(out, width, dtype)))


@pytest.mark.parametrize("rows", [239, 240, 241, 500])
def test_a_linear_layer_of_more_rows_than_a_block(twins: Twins, rows: int) -> None:
    twins.same((twins.arrays(rows, 50), twins.layers(33, 50)))


def test_a_transposed_weight_is_packed_as_it_stands(twins: Twins) -> None:
    twins.same((twins.arrays(3, 72), twins.layers(40, 72, transposed=True)))


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("activation", ["none", "tanh", "sigmoid", "decay", "relu_squared"])
def test_a_linear_layers_end(twins: Twins, activation: Activation, biased: bool, rows: int) -> None:
    layer = twins.layers(72, 40, biased=biased, activation=activation)
    x, add, start, target = (twins.arrays(rows, width, seed=seed) for seed, width in enumerate([40, 72, 72, 72]))
    twins.same((x, layer))
    twins.same((x, layer, add))
    twins.same((x, layer, None, (start, target)))


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_a_group_of_linear_layers_is_each_of_them(twins: Twins, rows: int) -> None:
    x, y = twins.arrays(rows, 64), twins.arrays(rows, 40, seed=1)
    start, target = twins.arrays(rows, 72, seed=2), twins.arrays(rows, 72, seed=3)
    twins.same(
        (x, twins.layers(256, 64)),
        (y, twins.layers(24, 40, activation="tanh", seed=1)),
        (x, twins.layers(72, 64, biased=True, activation="sigmoid", seed=2), None, (start, target)),
        (y, twins.layers(1, 40, torch.float32, biased=True, seed=3)),
    )


LISTS = [[1, 2, 3], [4], [5, 0, 7, 8, 9, 10, 11, 12], [13, 13]]
SLOTS = [3, 0, 4, 1]


def begin(twins: Twins, layers: int, heads: int, size: int, state: State | None = None):
    """Pools of five slots with random states, and the step of LISTS on both."""
    if state is None:
        generator = torch.Generator().manual_seed(5)
        width = heads * size
        state = State(
            {
                "att_shift": torch.randn(4, layers, width, generator=generator),
                "ffn_shift": torch.randn(4, layers, width, generator=generator),
                "wkv": torch.randn(4, layers, heads, size, size, generator=generator),
            }
        )
    pools = [ops.make_pool(5, layers, heads, size) for ops in (twins.cpu, twins.reference)]
    for pool in pools:
        pool.write(SLOTS, state)
    batch = RaggedBatch.of(LISTS, SLOTS, every_token=True)
    return pools, twins.cpu.begin(batch, pools[0]), twins.reference.begin(batch, pools[1])


def same_states(pools: list) -> None:
    actual, expected = (pool.read(SLOTS).tensors for pool in pools)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, **TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 40])
def test_embed(twins: Twins, width: int, dtype: torch.dtype) -> None:
    _, step, expected_step = begin(twins, 1, 1, width)
    weight = torch.randn(14, width, generator=torch.Generator().manual_seed(3)).to(dtype)
    norm = [twins.vectors(width, seed=seed) for seed in (1, 2)]
    actual = twins.cpu.embed(step, twins.cpu.table(weight), (norm[0][0], norm[1][0]))
    expected = twins.reference.embed(expected_step, twins.reference.table(weight), (norm[0][1], norm[1][1]))
    twins.close(actual, expected)


@pytest.mark.parametrize(("kind", "mixes"), [("att", 6), ("ffn", 1)])
def test_shift_mix_takes_the_row_before_from_the_state_and_leaves_the_last_one_there(
    twins: Twins, kind: str, mixes: int
) -> None:
    pools, step, expected_step = begin(twins, 2, 3, 24)
    x, expected_x = twins.arrays(14, 72)
    norm = [twins.vectors(72, seed=seed) for seed in (1, 2)]
    mix = twins.vectors(mixes, 72, seed=3)
    actual = twins.cpu.shift_mix(step, kind, 1, x, (norm[0][0], norm[1][0]), mix[0])  # pyright: ignore[reportArgumentType]
    expected = twins.reference.shift_mix(
        expected_step,
        kind,
        1,
        expected_x,
        (norm[0][1], norm[1][1]),
        mix[1],  # pyright: ignore[reportArgumentType]
    )
    assert len(actual) == mixes
    for mine, theirs in zip(actual, expected, strict=True):
        twins.close(mine, theirs)
    same_states(pools)


@pytest.mark.parametrize(("heads", "size"), [(2, 64), (3, 32), (2, 16), (2, 48), (1, 40), (1, 128)])
def test_wkv7_from_a_state(twins: Twins, heads: int, size: int) -> None:
    pools, step, expected_step = begin(twins, 2, heads, size)
    width = heads * size
    arrays = [twins.arrays(14, width, seed=seed) for seed in range(6)]
    for index in (1, 4):  # decays and rates lie between 0 and 1
        values = torch.sigmoid(arrays[index][1])
        arrays[index] = (twins.cpu.array(values), values)
    small = [twins.vectors(width, seed=seed, mean=1.0) for seed in range(5)]
    mine, theirs = [pair[0] for pair in small], [pair[1] for pair in small]
    actual = twins.cpu.wkv7(step, 1, HeadRows(*[pair[0] for pair in arrays]), HeadWeights(*mine))
    expected = twins.reference.wkv7(expected_step, 1, HeadRows(*[pair[1] for pair in arrays]), HeadWeights(*theirs))
    torch.testing.assert_close(twins.cpu.values(actual), expected, rtol=1e-4, atol=1e-4)
    same_states(pools)


def test_head_gives_logits_of_the_output_rows_only(twins: Twins) -> None:
    pools, *_ = begin(twins, 1, 1, 64)
    batch = RaggedBatch.of(LISTS, SLOTS)
    x, expected_x = twins.arrays(14, 64)
    norm = [twins.vectors(64, seed=seed) for seed in (1, 2)]
    layer, expected_layer = twins.layers(203, 64)
    actual = twins.cpu.head(twins.cpu.begin(batch, pools[0]), x, (norm[0][0], norm[1][0]), layer)
    expected = twins.reference.head(
        twins.reference.begin(batch, pools[1]), expected_x, (norm[0][1], norm[1][1]), expected_layer
    )
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("tanh", np.tanh),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("decay", lambda x: np.exp(-np.exp(-0.5) / (1 + np.exp(-x)))),
    ],
)
def test_activations_are_right_to_a_few_units_in_the_last_place(twins: Twins, activation: str, function) -> None:
    dense = np.linspace(-20, 20, 40_001)
    edges = np.array([0.0, -0.0, 1e-30, -1e-30, 0.625, -0.625, 80, -80, 1e4, -1e4, np.inf, -np.inf])
    x = np.concatenate([dense, edges]).astype(np.float32)
    actual, nan = x.copy(), np.array([np.nan], np.float32)
    twins.cpu.native.activate(actual, activation)
    twins.cpu.native.activate(nan, activation)
    with np.errstate(over="ignore"):
        expected = function(x.astype(np.float64))
    np.testing.assert_allclose(actual, expected, rtol=6e-7, atol=1e-37)
    assert np.isnan(nan).all()


def test_a_pool_gives_back_what_was_written_and_copies_and_clears(twins: Twins) -> None:
    pools, *_ = begin(twins, 2, 2, 16)
    pool = pools[0]
    before = pool.read(SLOTS)
    assert all(torch.equal(tensor, pools[1].read(SLOTS).tensors[name]) for name, tensor in before.tensors.items())
    pool.copy(3, 2)
    pool.clear(3)
    assert all(torch.equal(tensor, before.select([0]).tensors[name]) for name, tensor in pool.read([2]).tensors.items())
    assert all(not tensor.any() for tensor in pool.read([3]).tensors.values())
    with pytest.raises(CheckpointError, match="the state must have tensors"):
        pool.write([0, 1], before)


@pytest.mark.parametrize(
    ("tokens", "starts", "slots", "outputs", "message"),
    [
        ([1, 2], [0, 2], [9], [1], "not in the pool"),
        ([1, 2], [0, 1, 2], [1, 1], [1], "same slot twice"),
        ([1, 2], [0, 2, 2], [0, 1], [1], "no empty sequence"),
        ([1, 2], [0, 1], [0], [0], "must run from 0"),
        ([1, 2], [0, 2], [0], [2], "output row"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(twins: Twins, tokens, starts, slots, outputs, message: str) -> None:
    pool = twins.cpu.make_pool(2, 1, 1, 16)
    batch = RaggedBatch(*[np.array(part, dtype=np.int64) for part in (tokens, starts, slots, outputs)])
    with pytest.raises(ValueError, match=message):
        twins.cpu.begin(batch, pool)


def test_a_token_outside_the_vocabulary_is_refused(twins: Twins) -> None:
    _, step, _ = begin(twins, 1, 1, 16)
    norm = (twins.vectors(16)[0], twins.vectors(16)[0])
    with pytest.raises(ValueError, match=r"must be in \[0, 13\), got"):
        twins.cpu.embed(step, twins.cpu.table(torch.zeros(13, 16)), norm)


def test_wrong_shapes_are_refused(twins: Twins) -> None:
    x, _ = twins.arrays(2, 32)
    layer, _ = twins.layers(16, 48)
    with pytest.raises(ValueError, match="number of inputs is not the width"):
        twins.cpu.linears([Product(x, layer)])
    y, _ = twins.arrays(2, 48)
    with pytest.raises(ValueError, match="does not have the shape of the result"):
        twins.cpu.linears([Product(y, layer, add=x)])


def test_an_unknown_instruction_set_or_no_threads_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="instruction set"):
        CpuOps(isa="mmx")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="at least 1"):
        CpuOps(threads=0)


def test_weights_are_kept_in_the_precision_of_the_checkpoint() -> None:
    ops = CpuOps(threads=1)
    ops.linear_layer(torch.randn(512, 512).bfloat16())
    ops.table(torch.randn(100, 512).half())
    assert ops.native.weight_bytes == 512 * 512 * 2 + 100 * 512 * 2
