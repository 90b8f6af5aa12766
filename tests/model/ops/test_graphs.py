"""Decode steps as CUDA graphs.

The capture is a stand-in: like a real graph it launches the same things on the same memory, but it holds the function
and runs it again.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rwkvbatch.model.base import RaggedBatch
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.network.rwkv7 import Network
from tests.model.ops.device import DEVICE

pytest.importorskip("triton")
from rwkvbatch.model.network.graphs import WARM_UPS, Capture, GraphedNetwork, GraphWarning, Replay
from rwkvbatch.model.ops.cuda import CudaOps

VOCAB_SIZE = 24


class NoReplay:
    """Holds nothing, as a real graph holds no Python objects."""

    num_alive = 0

    @classmethod
    def capture(cls, run: Callable[[], torch.Tensor]) -> Replay:
        cls.num_alive += 1
        replay = cls()
        weakref.finalize(replay, cls.gone)
        return replay

    @classmethod
    def gone(cls) -> None:
        cls.num_alive -= 1

    def __call__(self) -> torch.Tensor:
        return torch.zeros(1, VOCAB_SIZE)


class Recorder:
    """A capture that counts."""

    def __init__(self) -> None:
        self.num_captured = 0
        self.num_replayed = 0

    def __call__(self, run: Callable[[], torch.Tensor]) -> Replay:
        self.num_captured += 1

        def replay() -> torch.Tensor:
            self.num_replayed += 1
            return run()

        return replay


@pytest.fixture(scope="module")
def ops() -> CudaOps:
    return CudaOps(DEVICE, torch.float32)


@pytest.fixture(scope="module")
def network(ops: CudaOps) -> Network:
    return Network.build(random_tensors(1, 16, VOCAB_SIZE, head_size=16, seed=1), 1, ops)


def decode(num_rows: int, step: int) -> RaggedBatch:
    tokens = np.random.default_rng(step).integers(0, VOCAB_SIZE, num_rows)
    return RaggedBatch.of([[int(token)] for token in tokens], list(range(num_rows)))


def test_replayed_steps_read_the_new_tokens_and_advance_the_states(ops: CudaOps, network: Network) -> None:
    capture = Recorder()
    graphed = GraphedNetwork(network, capture)
    pools = [ops.make_pool(4, 1, 1, 16) for _ in range(2)]
    num_steps = WARM_UPS + 2
    for step in range(num_steps):
        batch = decode(3, step)
        actual, expected = graphed.step(ops, batch, pools[0]), network.step(ops, batch, pools[1])
        assert actual.shape == (3, VOCAB_SIZE)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pools[0].wkv, pools[1].wkv, rtol=1e-5, atol=1e-5)
    assert not pools[0].wkv[:, 3].any()
    assert (capture.num_captured, capture.num_replayed) == (1, num_steps - WARM_UPS)


def test_row_counts_of_one_bucket_share_a_graph_and_other_slots_may_be_used(ops: CudaOps, network: Network) -> None:
    capture = Recorder()
    graphed = GraphedNetwork(network, capture)
    pools = [ops.make_pool(4, 1, 1, 16) for _ in range(2)]
    for rows in [4] * WARM_UPS:
        graphed.step(ops, decode(rows, 0), pools[0])
        network.step(ops, decode(rows, 0), pools[1])
    for slots in ([2, 0, 3], [1, 3, 0, 2]):
        batch = RaggedBatch.of([[5 + slot] for slot in slots], slots)
        actual, expected = graphed.step(ops, batch, pools[0]), network.step(ops, batch, pools[1])
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert capture.num_captured == 1


def test_each_pool_and_bucket_has_a_graph(ops: CudaOps, network: Network) -> None:
    capture = Recorder()
    graphed = GraphedNetwork(network, capture)
    for pool in [ops.make_pool(2, 1, 1, 16) for _ in range(2)]:
        for rows in (1, 2):
            for step in range(WARM_UPS + 2):
                graphed.step(ops, decode(rows, step), pool)
    assert capture.num_captured == 4


def test_a_pools_graphs_go_with_it(ops: CudaOps, network: Network) -> None:
    graphed = GraphedNetwork(network, NoReplay.capture)
    pool = ops.make_pool(1, 1, 1, 16)
    for step in range(WARM_UPS + 1):
        graphed.step(ops, decode(1, step), pool)
    assert NoReplay.num_alive == 1
    del pool
    gc.collect()
    assert NoReplay.num_alive == 0


@pytest.mark.parametrize("lists", [[[1, 2]], [[1], [2, 3]]])
def test_steps_with_prompts_are_never_captured(ops: CudaOps, network: Network, lists: list[list[int]]) -> None:
    capture = Recorder()
    graphed = GraphedNetwork(network, capture)
    pool = ops.make_pool(2, 1, 1, 16)
    for _ in range(WARM_UPS + 1):
        graphed.step(ops, RaggedBatch.of(lists, list(range(len(lists)))), pool)
    assert capture.num_captured == 0


def failing(error: Exception) -> Capture:
    def capture(run: Callable[[], torch.Tensor]) -> Replay:
        raise error

    return capture


def test_where_capture_fails_decoding_goes_on_without_and_says_so_once(ops: CudaOps, network: Network) -> None:
    graphed = GraphedNetwork(network, failing(RuntimeError("operation not permitted")))
    pools = [ops.make_pool(1, 1, 1, 16) for _ in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # of older interpreters of Triton, by numpy
        for step in range(WARM_UPS + 2):
            actual = graphed.step(ops, decode(1, step), pools[0])
            torch.testing.assert_close(actual, network.step(ops, decode(1, step), pools[1]))
    assert [warning.category for warning in caught] == [GraphWarning]
    assert "operation not permitted" in str(caught[0].message)


def test_running_out_of_memory_while_capturing_is_for_the_engine_to_handle(ops: CudaOps, network: Network) -> None:
    graphed = GraphedNetwork(network, failing(torch.OutOfMemoryError("full")))
    pool = ops.make_pool(1, 1, 1, 16)
    for step in range(WARM_UPS):
        graphed.step(ops, decode(1, step), pool)
    with pytest.raises(torch.OutOfMemoryError):
        graphed.step(ops, decode(1, 9), pool)
