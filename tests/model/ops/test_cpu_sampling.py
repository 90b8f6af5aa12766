"""The native choice of tokens against the definition in `choosing.choose`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from rwkvbatch.model.ops import choosing
from tests.model.ops.sample_batches import batch_of, logits_of, select, without_penalties

pytest.importorskip("rwkvbatch._native")
from rwkvbatch.model.ops.cpu import CpuOps

VOCAB_SIZES = [1, 5, 16, 17, 64, 1000, 5003]


@pytest.mark.parametrize("isa", ["portable", "auto"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("spread", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_the_same_tokens_and_probabilities_as_the_definition(
    vocab_size: int, spread: float, ties: bool, isa: str
) -> None:
    rows = 60
    logits = logits_of(rows, vocab_size, spread, ties=ties)
    batch = batch_of(rows, vocab_size)
    before = logits.clone()
    actual = CpuOps(threads=2, isa=isa).choose(logits, batch)  # pyright: ignore[reportArgumentType]
    expected = choosing.choose(logits, batch)
    assert torch.equal(logits, before)
    assert actual.tokens.tolist() == expected.tokens.tolist()
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("fixed", [{"top_p": 0.3, "top_k": 0}, {"top_p": 1.0, "top_k": 0}, {"top_p": 1.0, "top_k": 50}])
def test_a_whole_vocabulary(fixed: dict[str, float]) -> None:
    logits = logits_of(12, 65536, 2.0)
    batch = batch_of(12, 65536, temperature=1.0, **fixed)
    actual, expected = CpuOps().choose(logits, batch), choosing.choose(logits, batch)
    assert actual.tokens.tolist() == expected.tokens.tolist()


def test_unusable_rows_get_minus_one_and_their_neighbours_a_token() -> None:
    logits = logits_of(6, 100, 1.0)
    logits[1, 7] = float("nan")
    logits[2, 99] = float("inf")
    logits[3] = -float("inf")
    logits[4, :50] = -float("inf")
    batch = without_penalties(batch_of(6, 100, temperature=1.0, top_p=0.9, top_k=0))
    ops = CpuOps()
    actual = ops.choose(logits, batch)
    assert (actual.tokens == -1).tolist() == [False, True, True, True, False, False]
    assert actual.tokens[4] >= 50
    clean = ops.choose(logits[[0, 4, 5]], select(batch, [0, 4, 5]))
    assert actual.tokens[[0, 4, 5]].tolist() == clean.tokens.tolist()


def test_a_row_of_which_every_token_is_banned_gets_minus_one() -> None:
    batch = replace(
        without_penalties(batch_of(1, 4, temperature=1.0)),
        penalty_ids=np.arange(4),
        penalty_values=np.full(4, np.inf, np.float32),
        penalty_starts=np.array([0, 4]),
    )
    assert CpuOps().choose(logits_of(1, 4, 1.0), batch).tokens.tolist() == [-1]


def test_tokens_are_drawn_from_the_softmax() -> None:
    rows, probabilities = 4000, np.array([0.5, 0.25, 0.15, 0.1])
    logits = torch.from_numpy(np.tile(np.log(probabilities), (rows, 1)).astype(np.float32))
    batch = without_penalties(batch_of(rows, 4, temperature=1.0, top_p=1.0, top_k=0))
    counts = np.bincount(CpuOps().choose(logits, batch).tokens, minlength=4)
    assert stats.chisquare(counts, probabilities * rows).pvalue > 1e-3


@pytest.mark.parametrize("isa", ["portable", "auto"])
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_log_probabilities_and_the_first_of_equal_maxima(vocab_size: int, isa: str) -> None:
    logits = logits_of(30, vocab_size, 3.0, ties=True)
    tokens = np.random.default_rng(1).integers(0, vocab_size, 30)
    batch = select(batch_of(1, vocab_size), [], tokens)
    actual = CpuOps(threads=2, isa=isa).choose(logits, batch)  # pyright: ignore[reportArgumentType]
    expected = choosing.choose(logits, batch)
    assert actual.tokens.tolist() == expected.tokens.tolist()
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, rtol=1e-6, atol=5e-6)


def test_a_penalty_outside_the_vocabulary_is_refused() -> None:
    batch = replace(
        without_penalties(batch_of(1, 4)),
        penalty_ids=np.array([4]),
        penalty_values=np.ones(1, np.float32),
        penalty_starts=np.array([0, 1]),
    )
    with pytest.raises(ValueError, match="not in the vocabulary"):
        CpuOps().choose(logits_of(1, 4, 1.0), batch)
