"""A step as one native call equals the step computed operation by operation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rwkvbatch.model.base import RaggedBatch, State
from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors
from rwkvbatch.model.network.rwkv7 import Network

pytest.importorskip("rwkvbatch._native")
from rwkvbatch import _native
from rwkvbatch.model.network.traced import TracedProgram
from rwkvbatch.model.ops.cpu import CpuOps, CpuPool

NUM_LAYERS, NUM_HEADS, HEAD_SIZE, VOCAB_SIZE = 3, 2, 32, 50
WIDTH = NUM_HEADS * HEAD_SIZE


@pytest.fixture
def ops() -> CpuOps:
    ops = CpuOps(threads=2)
    ops.native.set_guard(True)
    return ops


@pytest.fixture
def network(ops: CpuOps) -> Network:
    ranks = LowRankWidths(decay=24, rate=40, value=16, gate=56)
    tensors = random_tensors(
        NUM_LAYERS, WIDTH, VOCAB_SIZE, HEAD_SIZE, seed=5, hidden=3 * WIDTH, ranks=ranks, dtype=torch.bfloat16
    )
    return Network.build(tensors, NUM_LAYERS, ops)


def make_pool(ops: CpuOps, capacity: int) -> CpuPool:
    pool = ops.make_pool(capacity, NUM_LAYERS, NUM_HEADS, HEAD_SIZE)
    generator = torch.Generator().manual_seed(capacity)
    shift = torch.randn(2, capacity, NUM_LAYERS, WIDTH, generator=generator)
    wkv = torch.randn(capacity, NUM_LAYERS, NUM_HEADS, HEAD_SIZE, HEAD_SIZE, generator=generator)
    state = State({"att_shift": shift[0], "ffn_shift": shift[1], "wkv": wkv})
    pool.write(range(capacity), state)
    return pool


def bits(pool: CpuPool) -> list[torch.Tensor]:
    return [tensor.view(torch.int32) for tensor in (pool.shifts, pool.wkv)]


BATCHES = {
    "one token": [[7]],
    "one prompt": [[1, 2, 3, 4, 5]],
    "prompts among single tokens": [[1], [2, 3, 4], [5], [6, 7]],
    "many tokens": [[token % VOCAB_SIZE] for token in range(70)],
}


@pytest.mark.parametrize("every_token", [False, True])
@pytest.mark.parametrize("tokens", BATCHES.values(), ids=BATCHES.keys())
def test_logits_and_states_are_those_of_the_network(
    ops: CpuOps, network: Network, tokens: Sequence[Sequence[int]], every_token: bool
) -> None:
    batch = RaggedBatch.of(tokens, range(len(tokens), 0, -1), every_token=every_token)
    pools = [make_pool(ops, len(tokens) + 1) for _ in range(2)]
    expected = network.step(ops, batch, pools[0]).clone()
    actual = TracedProgram(network).step(ops, batch, pools[1])
    assert torch.equal(actual.view(torch.int32), expected.view(torch.int32))
    for mine, theirs in zip(bits(pools[1]), bits(pools[0]), strict=True):
        assert torch.equal(mine, theirs)
    assert ops.native.take_damage() == 0


def test_a_step_after_another_with_more_rows_is_its_own(ops: CpuOps, network: Network) -> None:
    written, pool = TracedProgram(network), make_pool(ops, 4)
    small, large = RaggedBatch.of([[3]], [0]), RaggedBatch.of([[4], [5], [6]], [1, 2, 3])
    expected = network.step(ops, small, make_pool(ops, 4)).clone()
    written.step(ops, large, pool)
    assert torch.equal(written.step(ops, small, pool), expected)


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_a_token_outside_the_vocabulary_changes_no_state(ops: CpuOps, network: Network, token: int) -> None:
    pool = make_pool(ops, 2)
    before = [tensor.clone() for tensor in bits(pool)]
    with pytest.raises(ValueError, match=rf"must be in \[0, {VOCAB_SIZE}\), got {token}"):
        TracedProgram(network).step(ops, RaggedBatch.of([[1, token]], [0]), pool)
    for mine, theirs in zip(bits(pool), before, strict=True):
        assert torch.equal(mine, theirs)


def test_an_operation_cannot_need_what_none_before_it_makes(ops: CpuOps) -> None:
    layer = ops.linear_layer(torch.eye(16))
    with pytest.raises(ValueError, match="no earlier operation sets"):
        _native.Program().linears([(0, layer, None, None, None)])


def test_logits_must_have_room_for_every_output(ops: CpuOps, network: Network) -> None:
    batch, pool = RaggedBatch.of([[1], [2]], [0, 1]), make_pool(ops, 2)
    parts = batch.tokens, batch.starts, batch.slots, batch.outputs, pool.native
    program = TracedProgram(network).native
    with pytest.raises(ValueError, match="the logits must be"):
        ops.native.run(program, *parts, np.empty((1, VOCAB_SIZE), np.float32))
