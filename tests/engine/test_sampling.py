"""Sampling against that of the `rwkv` package, and penalties against a plain API_DEMO_CHAT loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rwkv.utils import PIPELINE
from scipy import stats

from rwkvbatch.config import Sampling, preset
from rwkvbatch.engine.request import NoiseKey
from rwkvbatch.engine.sampling import Penalties, SampleRow, exempt_tokens, gather
from rwkvbatch.model.ops import choosing
from rwkvbatch.prompt.tokenizer import world_tokenizer

VOCAB = 40
NUM_DRAWS = 4000


def draws(logits: torch.Tensor, sampling: Sampling, count: int = NUM_DRAWS) -> np.ndarray:
    """How often each token is chosen from the same logits, in `count` draws with different noise keys."""
    chosen: list[int] = []
    for first in range(0, count, 500):
        rows = [
            SampleRow(sampling, Penalties(sampling), NoiseKey(7, f"c{draw}").philox_key, draw % 5)
            for draw in range(first, first + 500)
        ]
        steps = [draw % 11 for draw in range(first, first + 500)]
        chosen += choosing.choose(logits.expand(500, -1), gather(rows, steps, (), VOCAB)).tokens.tolist()
    return np.bincount(chosen, minlength=VOCAB)


def package_distribution(logits: torch.Tensor, sampling: Sampling) -> np.ndarray:
    """The probabilities from which the package's `sample_logits` draws, recorded by a replacement of the draw."""
    recorded: list[np.ndarray] = []

    def choice(a: int, p: np.ndarray) -> int:
        recorded.append(p.copy())
        return int(p.argmax())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "choice", choice)
        PIPELINE.sample_logits(
            None,  # type: ignore[arg-type]
            logits.clone(),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
    return recorded[0].astype(np.float64)


CASES = {
    "plain": Sampling(temperature=1.0, top_p=0.999999),
    "top-p": Sampling(temperature=1.0, top_p=0.6),
    "top-p then temperature": Sampling(temperature=2.0, top_p=0.7),
    "cold": Sampling(temperature=0.4, top_p=0.9),
    "top-k": Sampling(temperature=1.3, top_p=0.999999, top_k=5),
    "top-k and top-p": Sampling(temperature=0.8, top_p=0.5, top_k=3),
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_distributed_as_the_rwkv_packages(name: str) -> None:
    sampling = CASES[name]
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(len(name))) * 2
    expected = package_distribution(logits, sampling)
    counts = draws(logits, sampling)
    assert counts[expected == 0].sum() == 0
    likely = expected * NUM_DRAWS >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    expected_counts = np.append(expected[likely], expected[~likely].sum()) * NUM_DRAWS
    observed, expected_counts = observed[expected_counts > 0], expected_counts[expected_counts > 0]
    assert stats.chisquare(observed, expected_counts / expected_counts.sum() * observed.sum()).pvalue > 1e-4


def test_another_order_of_temperature_is_another_distribution() -> None:
    """The negative control of the test above."""
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 2
    expected = package_distribution(logits, Sampling(temperature=2.0, top_p=0.7))
    counts = draws(logits, Sampling(temperature=2.0, top_p=0.7, order="temperature-first"))
    assert counts[expected == 0].sum() > 0


def test_ties_with_the_last_kept_token_are_kept() -> None:
    logits = torch.full((VOCAB,), -20.0)
    logits[[3, 8, 20]] = 5.0
    counts = draws(logits, Sampling(temperature=1.0, top_p=0.3), 1000)
    assert set(np.flatnonzero(counts)) == {3, 8, 20}


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=VOCAB, max_size=VOCAB),
    st.sampled_from([{"temperature": 0}, {"top_p": 0}, {"top_k": 1}]),
)
def test_greedy_is_the_largest_logit_with_the_smallest_id(values: list[float], greedy: dict[str, float]) -> None:
    sampling = Sampling(**greedy)  # type: ignore[arg-type]
    assert sampling.greedy
    row = SampleRow(sampling, Penalties(sampling), 1, 0)
    chosen = choosing.choose(torch.tensor([values]), gather([row], [0], (), VOCAB)).tokens[0]
    assert chosen == int(np.argmax(np.array(values, dtype=np.float32)))


@given(st.lists(st.floats(-5, 5, width=32), min_size=VOCAB, max_size=VOCAB), st.integers(0, 2**32))
def test_a_banned_token_is_never_chosen(values: list[float], seed: int) -> None:
    banned = tuple(range(0, VOCAB, 2))
    sampling = Sampling(temperature=1.0, top_p=1.0, banned_token_ids=banned)
    row = SampleRow(sampling, Penalties(sampling), seed, 0)
    assert choosing.choose(torch.tensor([values]), gather([row], [0], (), VOCAB)).tokens[0] % 2 == 1


def test_when_all_tokens_are_banned_none_is_chosen() -> None:
    sampling = Sampling(banned_token_ids=tuple(range(VOCAB)))
    row = SampleRow(sampling, Penalties(sampling), 1, 0)
    assert choosing.choose(torch.zeros(1, VOCAB), gather([row], [0], (), VOCAB)).tokens[0] == -1


@given(st.lists(st.integers(0, 30), max_size=60))
def test_penalties_are_those_of_a_plain_chat_loop(tokens: list[int]) -> None:
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.4, penalty_decay=0.9)
    penalties = Penalties(sampling)
    occurrence: dict[int, float] = {}
    for token in tokens:
        for seen in occurrence:
            occurrence[seen] *= 0.9
        occurrence[token] = 1 + occurrence.get(token, 0)
        penalties.count(token)
    ids, values = penalties.subtracted(VOCAB)
    expected = {token: 0.5 + count * 0.4 for token, count in occurrence.items()}
    assert dict(zip(ids.tolist(), values.tolist(), strict=True)) == pytest.approx(expected)


def test_a_reply_may_have_any_number_of_different_tokens() -> None:
    penalties = Penalties(Sampling(presence_penalty=0.5, frequency_penalty=0.25, penalty_decay=1.0))
    tokens = [7 * index % 101 for index in range(101)]
    for token in [*tokens, *tokens[:50]]:
        penalties.count(token)
    ids, values = penalties.subtracted(101)
    penalty_of = dict(zip(ids.tolist(), values.tolist(), strict=True))
    assert penalty_of == {token: 1.0 if index < 50 else 0.75 for index, token in enumerate(tokens)}


@given(
    st.lists(st.integers(0, 9), max_size=12),
    st.dictionaries(st.integers(0, 30), st.floats(-100, 100), max_size=8),
    st.sets(st.integers(0, 30), max_size=3),
    st.booleans(),
)
def test_a_bias_is_added_once_whether_its_token_is_in_the_reply_or_not(
    tokens: list[int], bias: dict[int, float], banned: set[int], has_penalties: bool
) -> None:
    presence, frequency = (0.5, 0.25) if has_penalties else (0.0, 0.0)
    sampling = Sampling(
        presence_penalty=presence, frequency_penalty=frequency, penalty_decay=1.0, banned_token_ids=tuple(banned)
    )
    tokens = [token for token in tokens if token not in banned]
    penalties = Penalties(sampling, bias=bias)
    for token in tokens:
        penalties.count(token)
    expected = {token: -value for token, value in bias.items() if token < 20}
    for token in set(tokens) if has_penalties else ():
        expected[token] = expected.get(token, 0.0) + presence + tokens.count(token) * frequency
    expected |= {token: np.inf for token in banned if token < 20}
    ids, values = penalties.subtracted(20)
    assert len(set(ids.tolist())) == len(ids)
    assert values.dtype == np.float32
    assert dict(zip(ids.tolist(), values.tolist(), strict=True)) == pytest.approx(expected, rel=1e-6)


def test_the_arrays_have_the_types_that_every_implementation_expects() -> None:
    sampling = Sampling(presence_penalty=1.0, banned_token_ids=(3,))
    penalties = Penalties(sampling)
    penalties.count(5)
    row = SampleRow(sampling, penalties, 2**64 - 1, 1)
    for rows in ([], [row], [row, row]):
        batch = gather(rows, [2] * len(rows), (4, 7), VOCAB)
        assert {name: getattr(batch, name).dtype.name for name in vars(batch)} == {
            "temperature": "float32",
            "top_p": "float32",
            "top_k": "int64",
            "orders": "uint8",
            "penalty_ids": "int64",
            "penalty_values": "float32",
            "penalty_starts": "int64",
            "noise_keys": "uint64",
            "turns": "int64",
            "steps": "int64",
            "min_p_cutoffs": "float64",
            "target_ids": "int64",
        }
        assert (batch.num_sampled, batch.num_rows) == (len(rows), len(rows) + 2)
        assert batch.penalty_starts.tolist() == [2 * row for row in range(len(rows) + 1)]
        assert batch.noise_keys.tolist() == [2**64 - 1] * len(rows)


def test_noise_keys_are_unsigned_however_small_they_are() -> None:
    sampling = Sampling()
    batch = gather([SampleRow(sampling, Penalties(sampling), 1, 0)], [0], (), VOCAB)
    assert batch.noise_keys.dtype == np.uint64


def test_tokens_are_counted_only_if_a_penalty_is_set() -> None:
    for sampling, expected in (
        (Sampling(presence_penalty=0, frequency_penalty=1, banned_token_ids=()), {5: 1.0}),
        (Sampling(presence_penalty=0, frequency_penalty=0.5, banned_token_ids=()), {5: 0.5}),
        (Sampling(presence_penalty=2, frequency_penalty=0, banned_token_ids=()), {5: 2.0}),
        (Sampling(presence_penalty=0, frequency_penalty=0, banned_token_ids=()), {}),
    ):
        penalties = Penalties(sampling)
        penalties.count(5)
        ids, values = penalties.subtracted(VOCAB)
        assert dict(zip(ids.tolist(), values.tolist(), strict=True)) == expected


def test_a_banned_token_beyond_the_vocabulary_is_left_out() -> None:
    penalties = Penalties(Sampling(banned_token_ids=(0, VOCAB - 1, VOCAB, VOCAB + 1)))
    assert penalties.subtracted(VOCAB)[0].tolist() == [0, VOCAB - 1]


@given(st.lists(st.integers(0, 9), max_size=60))
def test_exempt_tokens_are_penalised_for_their_presence_only(tokens: list[int]) -> None:
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.4, penalty_decay=0.9)
    penalties, counted = Penalties(sampling, frozenset({3, 4})), Penalties(sampling)
    for token in tokens:
        penalties.count(token)
        counted.count(token)
    exempted, all_counted = (
        dict(zip(ids.tolist(), values.tolist(), strict=True))
        for ids, values in (penalties.subtracted(VOCAB), counted.subtracted(VOCAB))
    )
    assert exempted == {token: 0.5 if token in (3, 4) else value for token, value in all_counted.items()}


def test_exempt_tokens_are_those_whose_text_is_a_substring_of_a_text() -> None:
    tokenizer = world_tokenizer()
    package = exempt_tokens(tokenizer, (" \t0123456789",))
    assert {tokenizer.decode([token]) for token in package} == {
        *" \t0123456789",
        *(" \t", "01", "12", "23", "34", "45", "56", "67", "78", "89"),
    }
    assert exempt_tokens(tokenizer, tuple(" \t0123456789")) == {33, 10, *range(49, 59)}
    assert exempt_tokens(tokenizer, ()) == frozenset()
    # The token of its first byte alone is no character.
    assert [tokenizer.token_bytes(token) for token in exempt_tokens(tokenizer, ("é",))] == ["é".encode()]


def test_an_empty_text_exempts_nothing_and_one_text_is_a_list_of_one() -> None:
    assert preset("rwkv-package").replace(no_penalty=[""]).no_penalty == ()
    assert Sampling.parse({"no_penalty": "01"}).no_penalty == ("01",)


class TestReference:
    """Edge cases of the reference implementation, with which all others are compared."""

    @staticmethod
    def choose(logits: list[float], num_draws: int = 1, **settings: Any) -> list[int]:
        sampling = Sampling(**{"temperature": 1.0, "top_p": 1.0, "banned_token_ids": (), **settings})
        rows = [SampleRow(sampling, Penalties(sampling), key, 0) for key in range(num_draws)]
        table = torch.tensor(logits).expand(num_draws, -1)
        return choosing.choose(table, gather(rows, [0] * num_draws, (), len(logits))).tokens.tolist()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_nan_and_infinite_logits_give_no_token(self, bad: float) -> None:
        assert self.choose([0.0, bad, 1.0]) == [-1]
        assert self.choose([0.0, bad, 1.0], temperature=0.0) == [-1]

    def test_no_token_is_left_when_all_are_impossible(self) -> None:
        assert self.choose([-math.inf, -math.inf]) == [-1]
        assert self.choose([0.0, 1.0], banned_token_ids=(0, 1)) == [-1]

    def test_two_best_tokens_are_not_greedy(self) -> None:
        assert set(self.choose([1.0, 1.0, 1.0, -9.0], num_draws=64, top_k=2)) == {0, 1}

    def test_adding_a_constant_to_all_logits_changes_no_choice(self) -> None:
        small = [0.0, 1.0, 2.0, 1.5]
        huge = [value + 1024.0 for value in small]
        for settings in ({}, {"top_p": 0.8}, {"top_k": 3}):
            assert self.choose(huge, num_draws=64, **settings) == self.choose(small, num_draws=64, **settings)

    def test_top_p_of_one_keeps_the_likeliest_and_the_least_likely(self) -> None:
        kept = choosing._kept(np.array([0.0, -50.0, -np.inf, -700.0]), 1.0, 0)  # pyright: ignore[reportPrivateUsage]
        assert kept.tolist() == [0, 1, 3]

    @pytest.mark.parametrize(
        ("probabilities", "top_p", "cutoff"),
        [([0.25, 0.5, 0.25], 0.5, 0.5), ([0.25, 0.5, 0.25], 0.51, 0.25), ([0.5, 0.25], 0.9, 0.0)],
    )
    def test_the_cutoff_is_the_probability_with_which_the_sum_reaches_top_p(
        self, probabilities: list[float], top_p: float, cutoff: float
    ) -> None:
        assert choosing._top_p_cutoff(np.array(probabilities), top_p) == cutoff  # pyright: ignore[reportPrivateUsage]


def test_each_row_keeps_its_own_settings_in_the_batch() -> None:
    settings = [
        Sampling(temperature=0.5, top_p=0.25, top_k=3, order="temperature-first"),
        Sampling(temperature=2.0, top_p=0.75, top_k=0, order="top-p-first"),
    ]
    rows = [SampleRow(sampling, Penalties(sampling), row, row + 3) for row, sampling in enumerate(settings)]
    batch = gather(rows, [6, 7], (), VOCAB)
    assert batch.temperature.tolist() == [0.5, 2.0]
    assert batch.top_p.tolist() == [0.25, 0.75]
    assert batch.top_k.tolist() == [3, 0]
    assert batch.orders.tolist() == [1, 0]
    assert batch.noise_keys.tolist() == [0, 1]
    assert batch.turns.tolist() == [3, 4]
    assert batch.steps.tolist() == [6, 7]


def test_logprobs_are_of_the_models_own_distribution_before_penalties() -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=0.5, presence_penalty=3.0, banned_token_ids=(0,))
    penalties = Penalties(sampling)
    penalties.count(4)
    sampled = choosing.choose(logits, gather([SampleRow(sampling, penalties, 1, 0)], [0], (), VOCAB))
    expected = logits.log_softmax(-1)[0, int(sampled.tokens[0])]
    assert sampled.logprobs[0] == pytest.approx(float(expected), abs=1e-6)
