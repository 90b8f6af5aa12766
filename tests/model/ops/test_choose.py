"""Choosing tokens and looking up given tokens in one call: each row's result is independent of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from rwkvbatch.model.base import Choices
from rwkvbatch.model.ops import Operations
from rwkvbatch.model.ops.reference import ReferenceOps
from tests.model.ops.device import DEVICE
from tests.model.ops.sample_batches import batch_of, logits_of, select

# exp(-infinity - -infinity) of rows that have no token to choose.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

VOCAB_SIZE, ROWS = 67, 24


def native(threads: int) -> Operations:
    pytest.importorskip("rwkvbatch._native")
    from rwkvbatch.model.ops.cpu import CpuOps

    return CpuOps(threads)


def cuda() -> Operations:
    pytest.importorskip("triton")
    from rwkvbatch.model.ops.cuda import CudaOps

    return CudaOps(DEVICE)


MAKE: dict[str, Callable[[], Operations]] = {
    "reference": ReferenceOps,
    "cpu, one thread": lambda: native(1),
    "cpu, three threads": lambda: native(3),
    "cuda": cuda,
}


@pytest.fixture(params=MAKE.values(), ids=MAKE.keys())
def ops(request: pytest.FixtureRequest) -> Operations:
    return request.param()


LOGITS = logits_of(ROWS, VOCAB_SIZE, 2.0, ties=True)
BATCH = batch_of(ROWS, VOCAB_SIZE)
GIVEN = np.random.default_rng(1).integers(0, VOCAB_SIZE, ROWS).tolist()


def choose(ops: Operations, sampled: Sequence[int], looked_up: Sequence[int], logits: torch.Tensor = LOGITS) -> Choices:
    """Some rows of `logits` sampled from, and in some the given tokens looked up."""
    rows = logits[[*sampled, *looked_up]].to(ops.device)
    return ops.choose(rows, select(BATCH, sampled, [GIVEN[row] for row in looked_up]))


def bits(choices: Choices) -> list[tuple[int, int]]:
    return list(zip(choices.tokens.tolist(), choices.logprobs.view(np.uint32).tolist(), strict=True))


@pytest.mark.parametrize("num_sampled", [0, 1, 7, ROWS])
def test_together_rows_get_the_bits_that_they_get_alone(ops: Operations, num_sampled: int) -> None:
    order = np.random.default_rng(num_sampled).permutation(ROWS).tolist()
    sampled, looked_up = order[:num_sampled], order[num_sampled:]
    alone = [choose(ops, [row], []) for row in sampled] + [choose(ops, [], [row]) for row in looked_up]
    assert bits(choose(ops, sampled, looked_up)) == [pair for choices in alone for pair in bits(choices)]


def test_a_row_with_a_given_token_gets_its_log_probability_and_the_likeliest_token(ops: Operations) -> None:
    actual = choose(ops, [0, 1], range(2, ROWS))
    expected = torch.log_softmax(LOGITS.double(), 1)[range(2, ROWS), GIVEN[2:]]
    np.testing.assert_allclose(actual.logprobs[2:], expected.numpy(), rtol=1e-5, atol=5e-6)
    assert actual.tokens[2:].tolist() == LOGITS.argmax(1)[2:].tolist()


def test_rows_that_hold_nan_get_no_token_or_no_probability_and_change_no_other(ops: Operations) -> None:
    spoilt = LOGITS.clone()
    spoilt[[2, 12], 5] = float("nan")
    sampled, looked_up = range(10), range(10, ROWS)
    clean, actual = choose(ops, sampled, looked_up), choose(ops, sampled, looked_up, spoilt)
    assert actual.tokens[2] == -1
    assert np.isnan(actual.logprobs[[2, 12]]).all()
    others = [row for row in range(ROWS) if row not in (2, 12)]
    assert [bits(actual)[row] for row in others] == [bits(clean)[row] for row in others]


def test_of_no_rows_there_are_no_tokens(ops: Operations) -> None:
    assert bits(choose(ops, [], [])) == []


def test_logits_are_left_as_they_are(ops: Operations) -> None:
    logits = LOGITS.clone().to(ops.device)
    ops.choose(logits, select(BATCH, range(9), GIVEN[9:]))
    assert torch.equal(logits.cpu(), LOGITS)


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE])
def test_a_given_token_outside_the_vocabulary_is_refused(ops: Operations, token: int) -> None:
    with pytest.raises(ValueError, match="not in the vocabulary"):
        ops.choose(LOGITS[:2].to(ops.device), select(BATCH, [0], [token]))


def test_logits_of_more_or_fewer_rows_than_there_are_tokens_are_refused(ops: Operations) -> None:
    for num_rows in (1, 3):
        with pytest.raises(ValueError, match="of logits"):
            ops.choose(LOGITS[:num_rows].to(ops.device), select(BATCH, [0], [1]))
