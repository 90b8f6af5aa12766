"""Host synchronisations per engine step: at most one, for the chosen tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rwkvbatch.config import Sampling
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import NoiseKey, Reply, Request, Score
from rwkvbatch.model.base import Dimensions, ModelSpec
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.network.rwkv7 import Network, state_bytes
from rwkvbatch.model.network.rwkv7_model import Rwkv7Model
from tests.model.ops.device import DEVICE, waits
from tests.model.ops.sample_batches import batch_of, logits_of, select

pytest.importorskip("triton")
from rwkvbatch.model.network.graphs import GraphedNetwork
from rwkvbatch.model.ops.cuda import CudaOps

# exp(-infinity - -infinity) of rows that have no token to choose.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

VOCAB_SIZE = 300


def engine(step_rows: int = 512) -> Engine:
    """Over a tiny network on a GPU's operations."""
    ops = CudaOps(DEVICE, torch.float32)
    network = Network.build(random_tensors(1, 32, VOCAB_SIZE, head_size=16, seed=1), 1, ops)
    memory = state_bytes(Dimensions("7", 1, 32, 2, 16, VOCAB_SIZE, 0))
    spec = ModelSpec("7", 1, 32, 2, 16, VOCAB_SIZE, 0, memory, "", "", "fp32", "cuda", DEVICE, False)
    return Engine(Rwkv7Model(GraphedNetwork(network, None), ops, spec), step_rows=step_rows)


def request(number: int) -> Request:
    return Request(
        tokens=(5 + number, 9, 33),
        sampling=Sampling(presence_penalty=0.5, banned_token_ids=(0,)),
        noise=NoiseKey(seed=1, conversation=str(number)),
        max_tokens=3,
        stop=("e",),
    )


def num_waits(engine: Engine) -> tuple[int, list[Reply | Score]]:
    """Of one step, with what ended in it."""
    with waits() as actual:
        done = engine.step()
    return len(actual), [result for _, result in done]


def test_a_step_waits_once_whatever_it_holds() -> None:
    mixed = engine()
    for number in range(3):
        mixed.submit(request(number))
    for number in range(4):
        mixed.submit_score([11, 12, number], [7, 8, 60 + number])
    count, done = num_waits(mixed)
    assert sum(isinstance(result, Score) for result in done) == 4
    assert count == 1
    mixed.submit_score([3, 4], [5])
    mixed.submit_score([4, 3], [6, 7])
    count, done = num_waits(mixed)
    assert sum(isinstance(result, Score) for result in done) == 2
    assert count == 1
    assert mixed.busy
    while mixed.busy:
        assert num_waits(mixed)[0] == 1


def test_a_step_that_reads_beginnings_of_prompts_only_does_not_wait() -> None:
    reading = engine(step_rows=4)
    reading.submit_score(range(1, 11), [12])
    assert [num_waits(reading)[0] for _ in range(3)] == [0, 0, 1]
    assert not reading.busy


def test_waits_are_noticed() -> None:
    with waits() as actual:
        tensor = torch.arange(3, device=DEVICE)
        _ = tensor.cpu()
        _ = int(tensor[1])
        _ = bool((tensor > 1).any())
    assert len(actual) >= 3


@pytest.mark.parametrize(("num_sampled", "num_given"), [(3, 0), (0, 2), (5, 6)])
def test_the_choice_of_tokens_waits_once(num_sampled: int, num_given: int) -> None:
    ops, batch = CudaOps(DEVICE), batch_of(8, VOCAB_SIZE)
    logits = logits_of(num_sampled + num_given, VOCAB_SIZE, 1.0).to(DEVICE)
    given = np.arange(num_given).tolist()
    with waits() as actual:
        ops.choose(logits, select(batch, range(num_sampled), given))
    assert len(actual) == 1
