"""A sequence's logits and states depend, bit for bit, on that sequence only.

Every check also runs on operations with an injected fault, and must then fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch

from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import RaggedBatch, State
from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors
from rwkvbatch.model.network.rwkv7 import Network
from rwkvbatch.model.ops import Product, Rounding

pytest.importorskip("rwkvbatch._native")
from rwkvbatch.model.network.traced import TracedProgram
from rwkvbatch.model.ops.cpu import CpuOps, Isa
from tests.native import disturbed
from tests.native.disturbed import DisturbedOps, Fault

NUM_LAYERS = 2
ISAS: tuple[Isa, ...] = tuple(isa for isa in get_args(Isa) if isa not in ("auto", "portable"))


@dataclass(frozen=True)
class Shape:
    width: int
    head_size: int
    vocab_size: int
    dtype: torch.dtype
    rounding: Rounding | None = None
    deep_embed: int | None = None
    sparsity: float | None = None


SHAPES = {
    "heads of 64, bf16": Shape(128, 64, 203, torch.bfloat16),
    "heads of 32, fp16": Shape(96, 32, 131, torch.float16),
    "heads of 16, fp32": Shape(80, 16, 77, torch.float32),
    # More inputs than share a scale, and in the channel mix more than a block of tiles.
    "heads of 64, int8": Shape(192, 64, 203, torch.bfloat16, rounding="int8"),
    "heads of 64, w8a8": Shape(192, 64, 203, torch.bfloat16, rounding="w8a8"),
    "heads of 16, int4": Shape(80, 16, 203, torch.bfloat16, rounding="int4"),
    "DeepEmbed, bf16": Shape(96, 32, 67, torch.bfloat16, deep_embed=20),
    # With few rows, only the weights of nonzero inputs are read.
    "mostly zeros, bf16": Shape(128, 64, 67, torch.bfloat16, sparsity=0.85),
    # The channel mix's last matrix is stored by input.
    "mostly zeros, w8a8": Shape(64, 32, 67, torch.bfloat16, rounding="w8a8", sparsity=0.85),
}
MAX_BATCH = 130
SIZES = (*range(1, 42), 63, 64, 65, *range(118, 123), *range(126, 131))
"""Batch sizes: up to 7 tiles of rows, and near full blocks of 240 or 256 rows (on average two tokens per prompt)."""


@cache
def tensors_of(shape: Shape) -> dict[str, torch.Tensor]:
    return random_tensors(
        NUM_LAYERS,
        shape.width,
        shape.vocab_size,
        shape.head_size,
        seed=7,
        hidden=3 * shape.width + 8,
        ranks=LowRankWidths(decay=24, rate=40, value=16, gate=56),
        deep_embed=shape.deep_embed,
        sparsity=shape.sparsity,
        dtype=shape.dtype,
    )


class Runner:
    """A network on native operations. `DisturbedOps` run one by one from Python, others as a traced program."""

    def __init__(self, shape: Shape, ops: CpuOps) -> None:
        ops.native.set_guard(True)
        self.ops = ops
        network = Network.build(tensors_of(shape), NUM_LAYERS, ops)
        self._network = network if isinstance(ops, DisturbedOps) else TracedProgram(network)
        self._heads = shape.width // shape.head_size, shape.head_size

    def run(self, lists: Sequence[Sequence[int]], state: State) -> tuple[torch.Tensor, State]:
        """Logits after every token of all lists, and the states after them."""
        pool = self.ops.make_pool(len(lists) + 1, NUM_LAYERS, *self._heads)
        slots = list(range(len(lists), 0, -1))  # reversed, unlike the order of the batch
        pool.write(slots, state)
        logits = self._network.step(self.ops, RaggedBatch.of(lists, slots, every_token=True), pool).clone()
        assert self.ops.native.take_damage() == 0
        return logits, pool.read(slots)


@cache
def prompts(shape: Shape) -> list[list[int]]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, shape.vocab_size, 1 + index % 3).tolist() for index in range(MAX_BATCH)]


@cache
def states(shape: Shape, count: int) -> State:
    generator = torch.Generator().manual_seed(9)
    heads = shape.width // shape.head_size
    return State(
        {
            "att_shift": torch.randn(count, NUM_LAYERS, shape.width, generator=generator),
            "ffn_shift": torch.randn(count, NUM_LAYERS, shape.width, generator=generator),
            "wkv": torch.randn(count, NUM_LAYERS, heads, shape.head_size, shape.head_size, generator=generator),
        }
    )


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(actual.view(torch.int32), expected.view(torch.int32))


def assert_same_states(actual: State, expected: State) -> None:
    for name, tensor in expected.tensors.items():
        assert_same_bits(actual.tensors[name], tensor)


def alone(runner: Runner, shape: Shape, count: int) -> list[tuple[torch.Tensor, State]]:
    return [
        runner.run([prompt], states(shape, MAX_BATCH).select([index]))
        for index, prompt in enumerate(prompts(shape)[:count])
    ]


def check_batch(runner: Runner, shape: Shape, members: Sequence[int], expected: list) -> None:
    lists = [prompts(shape)[index] for index in members]
    logits, after = runner.run(lists, states(shape, MAX_BATCH).select(members))
    assert_same_bits(logits, torch.cat([expected[index][0] for index in members]))
    assert_same_states(after, State.cat([expected[index][1] for index in members]))


Make = Callable[[int, Isa], CpuOps]
Check = Callable[[Shape, Make], None]


def batch_sizes(shape: Shape, make: Make) -> None:
    runner = Runner(shape, make(1, "auto"))
    expected = alone(runner, shape, MAX_BATCH)
    for size in SIZES:
        check_batch(runner, shape, range(size), expected)


def shuffled_rows(shape: Shape, make: Make) -> None:
    runner = Runner(shape, make(1, "auto"))
    logits, after = runner.run(prompts(shape)[:20], states(shape, MAX_BATCH).select(range(20)))
    starts = np.concatenate([[0], np.cumsum([len(prompt) for prompt in prompts(shape)[:20]])])
    expected = [(logits[starts[i] : starts[i + 1]], after.select([i])) for i in range(20)]
    generator = np.random.default_rng(1)
    for _ in range(10):
        check_batch(runner, shape, generator.permutation(20).tolist(), expected)


def neighbours_of_nan(shape: Shape, make: Make) -> None:
    runner = Runner(shape, make(1, "auto"))
    lists = prompts(shape)[:9]
    clean = states(shape, MAX_BATCH).select(range(9))
    damaged = clean.select(range(9))
    for tensor in damaged.tensors.values():
        tensor[1::2] = float("nan")
    starts = np.concatenate([[0], np.cumsum([len(prompt) for prompt in lists])])
    expected, expected_after = runner.run(lists, clean)
    logits, after = runner.run(lists, damaged)
    for index in range(9):
        rows = slice(starts[index], starts[index + 1])
        if index % 2:
            assert torch.isnan(logits[rows]).all()
        else:
            assert_same_bits(logits[rows], expected[rows])
            assert_same_states(after.select([index]), expected_after.select([index]))


def splits(shape: Shape, make: Make) -> None:
    runner = Runner(shape, make(1, "auto"))
    tokens = np.random.default_rng(4).integers(0, shape.vocab_size, 40).tolist()
    start = states(shape, 1)
    expected, expected_after = runner.run([tokens], start)
    for position in range(1, len(tokens)):
        first, between = runner.run([tokens[:position]], start)
        second, after = runner.run([tokens[position:]], between)
        assert_same_bits(torch.cat([first, second]), expected)
        assert_same_states(after, expected_after)


def steps(shape: Shape, make: Make) -> None:
    runner = Runner(shape, make(1, "auto"))
    tokens = np.random.default_rng(5).integers(0, shape.vocab_size, 260).tolist()
    expected, expected_after = runner.run([tokens], states(shape, 1))
    step_logits, state = [], states(shape, 1)
    for token in tokens:
        logits, state = runner.run([[token]], state)
        step_logits.append(logits)
    assert_same_bits(torch.cat(step_logits), expected)
    assert_same_states(state, expected_after)


def threads(shape: Shape, make: Make) -> None:
    check_same_results(shape, make(1, "auto"), make(2, "auto"))


def groups(shape: Shape, make: Make) -> None:
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(out, shape.width, generator=generator).to(shape.dtype) for out in (256, 16, 203, 1024)]
    for num_threads in (1, 2, 5):
        ops = make(num_threads, "auto")
        ops.native.set_guard(True)
        layers = [
            ops.linear_layer(weight, weight[:, 0].float(), "tanh", kind="large" if index % 2 == 0 else "other")
            for index, weight in enumerate(weights)
        ]
        for rows in (1, 5, 40):
            x = ops.array(torch.randn(rows, shape.width, generator=generator))
            alone = [ops.linears([Product(x, layer)])[0] for layer in layers]
            together = ops.linears([Product(x, layer) for layer in layers])
            for grouped, expected in zip(together, alone, strict=True):
                assert_same_bits(ops.values(grouped), ops.values(expected))


def instruction_sets(shape: Shape, make: Make) -> None:
    portable = make(1, "portable")
    for isa in vector_sets():
        check_same_results(shape, portable, make(1, isa))


def vector_sets() -> list[Isa]:
    """The instruction sets of this machine, without the portable one."""
    available: list[Isa] = []
    for isa in ISAS:
        with suppress(UsageError):
            available.append(CpuOps(1, isa).isa)
    return available


def check_same_results(shape: Shape, first: CpuOps, second: CpuOps) -> None:
    for count in (1, 2, 9, 40):
        state = states(shape, MAX_BATCH).select(range(count))
        expected, expected_after = Runner(shape, first).run(prompts(shape)[:count], state)
        actual, after = Runner(shape, second).run(prompts(shape)[:count], state)
        assert_same_bits(actual, expected)
        assert_same_states(after, expected_after)


CHECKS: list[tuple[Check, Fault]] = [
    (batch_sizes, disturbed.more_rows_take_another_path),
    (shuffled_rows, disturbed.later_rows_take_another_path),
    (neighbours_of_nan, disturbed.rows_leak_into_each_other),
    (splits, disturbed.later_rows_take_another_path),
    (steps, disturbed.more_rows_take_another_path),
    (threads, disturbed.more_threads_take_another_path),
    (groups, disturbed.groups_take_another_path),
    (instruction_sets, disturbed.the_portable_path_rounds_differently),
]
NAMES = [check.__name__ for check, _ in CHECKS]


@pytest.mark.parametrize("check", [check for check, _ in CHECKS], ids=NAMES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_bits_do_not_depend_on(check: Check, shape: Shape) -> None:
    check(shape, lambda count, isa: CpuOps(count, isa, rounding=shape.rounding))


@pytest.mark.parametrize(("check", "fault"), CHECKS, ids=NAMES)
@pytest.mark.parametrize(
    "name", ["heads of 64, bf16", "heads of 64, int8", "heads of 64, w8a8", "heads of 16, int4", "DeepEmbed, bf16"]
)
def test_a_fault_is_detected_by(check: Check, fault: Fault, name: str) -> None:
    if check is instruction_sets and not vector_sets():
        pytest.skip("this machine has only the portable path")
    shape = SHAPES[name]
    with pytest.raises(AssertionError):
        check(shape, lambda count, isa: DisturbedOps(fault, count, isa, rounding=shape.rounding))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_bits_do_not_depend_on_prefetching(shape: Shape) -> None:
    for isa in ("portable", *vector_sets()):
        without, with_prefetching = (CpuOps(1, isa, rounding=shape.rounding) for _ in range(2))
        without.native.set_prefetch(False)
        with_prefetching.native.set_prefetch(True)
        check_same_results(shape, without, with_prefetching)


@pytest.mark.parametrize("rows", [1, 400])
def test_denormals_are_kept_although_torch_flushes_them(rows: int) -> None:
    ops = CpuOps(2)
    values = torch.full((rows, 64), 3e-39)
    x, zeros, layer = ops.array(values), ops.array(0 * values), ops.linear_layer(torch.eye(64))
    products = [Product(x, layer), Product(zeros, layer, add=x), Product(zeros, layer, blend=(x, zeros))]
    assert torch.set_flush_denormal(True)
    try:
        results = ops.linears(products)
    finally:
        torch.set_flush_denormal(False)
    for array in results:
        assert_same_bits(ops.values(array), values)
