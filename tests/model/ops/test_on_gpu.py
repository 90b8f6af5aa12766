"""Tests that need a GPU: real graphs, no synchronisation within a step, rows independent of their neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch

from rwkvbatch.model.base import RaggedBatch, fp32_sums
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.network.rwkv7 import Network
from tests.model.ops.device import needs_gpu

pytest.importorskip("triton")
from rwkvbatch.model.network.graphs import WARM_UPS, GraphedNetwork, cuda_capture
from rwkvbatch.model.ops.cuda import CudaOps
from rwkvbatch.model.ops.triton import few

pytestmark = needs_gpu

LAYERS, WIDTH, VOCAB_SIZE, HEAD_SIZE = 3, 512, 5000, 64
HEADS = WIDTH // HEAD_SIZE
NUM_SLOTS = 100


@pytest.fixture(scope="module", autouse=True)
def _as_a_model_runs() -> Iterator[None]:
    with torch.no_grad(), fp32_sums("cuda"):
        yield


def stepper(
    dtype: torch.dtype, fixed_rows: int | None = None, *, graphs: bool = True, few_rows: int = few.MAX_ROWS
) -> tuple[CudaOps, GraphedNetwork]:
    ops = CudaOps("cuda", dtype, fixed_rows, few_rows)
    network = Network.build(random_tensors(LAYERS, WIDTH, VOCAB_SIZE, HEAD_SIZE, seed=1), LAYERS, ops)
    return ops, GraphedNetwork(network, cuda_capture() if graphs else None)


def token_lists(lengths: list[int], seed: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCAB_SIZE, length).tolist() for length in lengths]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_graphs_give_the_bits_of_the_same_steps_without_them(dtype: torch.dtype, rows: int) -> None:
    actual: list[list[torch.Tensor]] = []
    for graphs in (True, False):
        ops, graphed = stepper(dtype, graphs=graphs)
        pool = ops.make_pool(rows, LAYERS, HEADS, HEAD_SIZE)
        actual.append(
            [
                graphed.step(ops, RaggedBatch.of(token_lists([1] * rows, step), range(rows)), pool).clone()
                for step in range(WARM_UPS + 3)
            ]
        )
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*actual, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("rows", [1, 5, few.MAX_ROWS])
def test_steps_of_a_few_rows_are_the_same_as_by_the_librarys_products(
    rows: int, dtype: torch.dtype, tolerance: float
) -> None:
    actual: list[list[torch.Tensor]] = []
    for few_rows in (few.MAX_ROWS, 0):
        ops, graphed = stepper(dtype, few_rows=few_rows)
        pool = ops.make_pool(rows, LAYERS, HEADS, HEAD_SIZE)
        actual.append(
            [
                graphed.step(ops, RaggedBatch.of(token_lists([1] * rows, step), range(rows)), pool).clone()
                for step in range(WARM_UPS + 2)
            ]
        )
    for mine, theirs in zip(*actual, strict=True):
        # Relative to how far logits lie apart: rounding in between is not told by a single one's size.
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance * float(theirs.std()))


def test_a_step_never_waits_for_the_device() -> None:
    ops, graphed = stepper(torch.float16)
    pool = ops.make_pool(4, LAYERS, HEADS, HEAD_SIZE)
    batches = [RaggedBatch.of(token_lists(lengths, 0), range(len(lengths))) for lengths in ([40, 1], [1, 1, 1])]
    for batch in batches * (WARM_UPS + 1):
        graphed.step(ops, batch, pool)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            graphed.step(ops, batch, pool)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def replies(lengths: list[int], num_steps: int, rows: int | None, dtype: torch.dtype) -> list[torch.Tensor]:
    """Logits of the first sequence: after its prompt, then after tokens of its own, in a batch with others."""
    ops, graphed = stepper(dtype, rows)
    pool = ops.make_pool(NUM_SLOTS, LAYERS, HEADS, HEAD_SIZE)
    own = token_lists([lengths[0], *[1] * num_steps], seed=5)
    actual: list[torch.Tensor] = []
    for step in range(num_steps + 1):
        others = token_lists(lengths[1:] if step == 0 else [1] * (len(lengths) - 1), seed=100 + step)
        # Among the others, not before them: the place in the batch must not matter either.
        lists = [*others[::2], own[step], *others[1::2]]
        slots = [*range(1, len(others[::2]) + 1), 0, *range(len(others[::2]) + 1, len(lengths))]
        logits = graphed.step(ops, RaggedBatch.of(lists, slots), pool)
        actual.append(logits[slots.index(0)].clone())
    return actual


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_with_fixed_rows_the_bits_of_a_row_do_not_depend_on_how_many_neighbours_it_has(dtype: torch.dtype) -> None:
    alone = replies([50], 6, 64, dtype)
    for others in ([1], [3, 70, 1, 9], [1] * 90):
        together = replies([50, *others], 6, 64, dtype)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(together, alone, strict=True))


def test_with_fixed_rows_the_bits_do_not_depend_on_how_a_prompt_is_cut() -> None:
    ops, graphed = stepper(torch.bfloat16, 64)
    (tokens,) = token_lists([150], seed=3)
    actual: list[torch.Tensor] = []
    for cuts in ([0, 150], [0, 1, 100, 150], [0, 64, 128, 150]):
        pool = ops.make_pool(1, LAYERS, HEADS, HEAD_SIZE)
        for start, stop in pairwise(cuts):
            logits = graphed.step(ops, RaggedBatch.of([tokens[start:stop]], [0]), pool)
        actual.append(logits[-1].clone())
    assert all(torch.equal(logits, actual[0]) for logits in actual)


def test_within_a_bucket_the_bits_of_a_decoded_row_do_not_depend_on_what_the_others_are() -> None:
    ops, graphed = stepper(torch.float16)
    actual: list[torch.Tensor] = []
    for seed in (1, 2):
        pool = ops.make_pool(30, LAYERS, HEADS, HEAD_SIZE)
        others = token_lists([1] * 25, seed)
        for _ in range(WARM_UPS + 2):
            logits = graphed.step(ops, RaggedBatch.of([[7], *others], range(26)), pool)
        actual.append(logits[0].clone())
    assert torch.equal(actual[0], actual[1])


def test_up_to_sixteen_rows_the_bits_of_a_decoded_row_do_not_depend_on_how_many_there_are() -> None:
    ops, graphed = stepper(torch.bfloat16)
    actual: list[torch.Tensor] = []
    for num_others in (0, 2, 15):
        pool = ops.make_pool(16, LAYERS, HEADS, HEAD_SIZE)
        others = token_lists([1] * num_others, 1)
        for _ in range(WARM_UPS + 2):
            logits = graphed.step(ops, RaggedBatch.of([*others, [7]], range(num_others + 1)), pool)
        actual.append(logits[-1].clone())
    assert torch.equal(actual[0], actual[1])
    assert torch.equal(actual[0], actual[2])
