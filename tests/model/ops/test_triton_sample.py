"""The Triton kernel that chooses tokens, against the definition in `choosing.choose`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rwkvbatch.model.base import SampleBatch
from rwkvbatch.model.ops import choosing
from rwkvbatch.model.ops.batch import upload
from tests.model.ops.device import DEVICE, guarded, untouched
from tests.model.ops.sample_batches import batch_of, logits_of, select, without_penalties

pytest.importorskip("triton")
import triton
import triton.language as tl

from rwkvbatch.model.ops.choosing import philox_4x32
from rwkvbatch.model.ops.cuda import CudaOps
from rwkvbatch.model.ops.triton import sample

# exp(-infinity - -infinity) of rows that have no token to choose.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def compare(logits: torch.Tensor, batch: SampleBatch) -> np.ndarray:
    """The device's tokens, which have to be the definition's, with their log-probabilities."""
    on_device = logits.to(DEVICE)
    actual, expected = CudaOps(DEVICE).choose(on_device, batch), choosing.choose(logits, batch)
    assert actual.tokens.tolist() == expected.tokens.tolist()
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, rtol=1e-5, atol=2e-5)
    assert torch.equal(on_device.cpu(), logits)
    return actual.tokens


@pytest.mark.parametrize(
    ("vocab_size", "spread", "ties"), [(1, 1.0, False), (17, 1.0, True), (1030, 0.3, False), (2500, 3.0, True)]
)
def test_the_same_tokens_as_the_definition_with_all_kinds_of_settings(
    vocab_size: int, spread: float, ties: bool
) -> None:
    compare(logits_of(12, vocab_size, spread, ties=ties), batch_of(12, vocab_size, seed=vocab_size))


@pytest.mark.parametrize(("vocab_size", "top_p"), [(8192, 0.3), (65536, 1.0)])
def test_large_vocabularies(vocab_size: int, top_p: float) -> None:
    compare(logits_of(1, vocab_size, 2.0), batch_of(1, vocab_size, temperature=1.0, top_p=top_p, top_k=0))


def test_of_equal_logits_at_the_cut_the_first_are_kept() -> None:
    # Nine logits of 1 and the rest 0, of which top_k 5 keeps the first five: whatever the noise, one of them is chosen.
    logits = torch.zeros(8, 40)
    logits[:, [3, 5, 8, 13, 21, 22, 30, 31, 39]] = 1.0
    batch = without_penalties(batch_of(8, 40, temperature=5.0, top_p=1.0, top_k=5))
    assert set(compare(logits, batch)) <= {3, 5, 8, 13, 21}


def test_tokens_at_the_top_p_cut_are_kept_with_those_equal_to_them() -> None:
    logits = torch.full((8, 24), -9.0)
    logits[:, 4:12] = 2.0
    tokens = compare(logits, without_penalties(batch_of(8, 24, temperature=3.0, top_p=0.2, top_k=0)))
    assert len(set(tokens)) > 2


def test_unusable_rows_get_minus_one_and_their_neighbours_a_token() -> None:
    logits = logits_of(5, 50, 1.0)
    logits[1, 7] = float("nan")
    logits[2, 49] = float("inf")
    logits[3] = -float("inf")
    logits[4, :25] = -float("inf")
    batch = without_penalties(batch_of(5, 50, temperature=1.0, top_p=0.9, top_k=0))
    tokens = CudaOps(DEVICE).choose(logits.to(DEVICE), batch).tokens
    assert (tokens == -1).tolist() == [False, True, True, True, False]
    assert tokens.tolist() == choosing.choose(logits, batch).tokens.tolist()


def test_a_row_of_which_every_token_is_banned_gets_minus_one() -> None:
    batch = replace(
        without_penalties(batch_of(1, 4, temperature=1.0)),
        penalty_ids=np.arange(4),
        penalty_values=np.full(4, np.inf, np.float32),
        penalty_starts=np.array([0, 4]),
    )
    assert compare(logits_of(1, 4, 1.0), batch).tolist() == [-1]


def test_a_penalty_outside_the_vocabulary_is_refused() -> None:
    batch = replace(
        without_penalties(batch_of(1, 4)),
        penalty_ids=np.array([4]),
        penalty_values=np.ones(1, np.float32),
        penalty_starts=np.array([0, 1]),
    )
    with pytest.raises(ValueError, match="not in the vocabulary of 4"):
        CudaOps(DEVICE).choose(logits_of(1, 4, 1.0).to(DEVICE), batch)


@pytest.mark.parametrize("vocab_size", [5, 1500])
def test_log_probabilities_and_the_first_of_equal_maxima(vocab_size: int) -> None:
    logits = logits_of(6, vocab_size, 3.0, ties=True)
    tokens = np.random.default_rng(1).integers(0, vocab_size, 6)
    batch = select(batch_of(1, vocab_size), [], tokens)
    actual, expected = CudaOps(DEVICE).choose(logits.to(DEVICE), batch), choosing.choose(logits, batch)
    assert actual.tokens.tolist() == expected.tokens.tolist()
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, rtol=1e-6, atol=5e-6)


def test_nothing_is_written_but_one_token_and_one_log_probability_a_row() -> None:
    logits, batch = logits_of(3, 100, 2.0), without_penalties(batch_of(3, 100, top_p=0.5, temperature=1.0))
    settings = upload(batch.arrays, DEVICE)[:-1]
    work, work_memory = guarded(3, 100)
    tokens, token_memory = guarded(3, dtype=torch.int32)
    logprobs, logprob_memory = guarded(3)
    sample.sample(logits.to(DEVICE), settings, work, tokens, logprobs)
    assert tokens.tolist() == choosing.choose(logits, batch).tokens.tolist()
    assert untouched(work_memory)
    assert untouched(token_memory)
    assert untouched(logprob_memory)


@triton.jit
def _words(out_ptr, key, turn, step):
    lanes = tl.arange(0, 64)
    tl.store(out_ptr + lanes, sample._noise_words(64, key, turn, step, 64))  # pyright: ignore[reportPrivateUsage]


def test_noise_words_are_those_of_the_definition() -> None:
    out = torch.zeros(64, dtype=torch.uint32, device=DEVICE)
    key, turn, step = 0x9234_5678_9ABC_DEF1, 3, 70_000
    _words[(1,)](out, key - 2**64, turn, step)
    counter = np.array([[block, step, turn, 0] for block in range(16, 32)], np.uint32)
    assert out.tolist() == philox_4x32(counter, key).reshape(-1).tolist()
