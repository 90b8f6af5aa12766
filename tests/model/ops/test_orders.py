"""The cuts in every order of the sampling steps, against a definition with sorted lists, for every implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from rwkvbatch.config import ORDERS, Sampling
from rwkvbatch.engine.request import NoiseKey
from rwkvbatch.engine.sampling import Penalties, SampleRow, gather
from rwkvbatch.model.ops import Operations
from rwkvbatch.model.ops.choosing import gumbel
from tests.model.ops.device import DEVICE
from tests.model.ops.test_choose import MAKE

# exp(-infinity - -infinity) of places beyond the vocabulary.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

VOCAB_SIZE = 24
LOGITS = (np.random.default_rng(5).standard_normal(VOCAB_SIZE) * 1.5).astype(np.float32)
CUTS = (
    {},
    {"top_p": 0.5},
    {"top_k": 6},
    {"top_p": 0.7, "top_k": 6},
    {"min_p": 0.2},
    {"top_p": 0.9, "min_p": 0.25},
    {"top_p": 0.7, "top_k": 9, "min_p": 0.05},
)
SETTINGS = [
    Sampling(**{"temperature": temperature, "top_p": 1.0, "order": order, **cuts})  # type: ignore[arg-type]
    for order in ORDERS
    for cuts in CUTS
    for temperature in (0.6, 1.7)
]


def distribution(sampling: Sampling, logits: np.ndarray = LOGITS) -> dict[int, float]:
    """The kept tokens and their probabilities, as a person would work them out."""

    def softmax(tokens: list[int], temperature: float) -> dict[int, float]:
        weights = {token: math.exp(float(logits[token] - logits.max()) / temperature) for token in tokens}
        return {token: weight / sum(weights.values()) for token, weight in weights.items()}

    first = ORDERS[sampling.order].temperature_first
    temperature = float(np.float32(sampling.temperature))
    kept = sorted(range(len(logits)), key=lambda token: (-logits[token], token))

    def top_k() -> list[int]:
        return kept[: sampling.top_k] if sampling.top_k else kept

    def top_p() -> list[int]:
        probabilities, total, least = softmax(kept, temperature if first else 1.0), 0.0, 0.0
        for token in kept:
            total, least = total + probabilities[token], probabilities[token]
            if total >= np.float32(sampling.top_p):
                break
        return [token for token in kept if probabilities[token] >= least]

    for cut in (top_k, top_p) if ORDERS[sampling.order].top_k_first else (top_p, top_k):
        kept = cut()
    probabilities = softmax(kept, temperature if first else 1.0)
    likeliest = max(probabilities.values())
    return softmax([token for token in kept if probabilities[token] >= sampling.min_p * likeliest], temperature)


def draw(ops: Operations, settings: Sequence[Sampling], logits: np.ndarray = LOGITS) -> list[int]:
    """One token for each of `settings`, all from the same logits; the place in the list is the place in the run."""
    rows = [
        SampleRow(sampling, Penalties(sampling), NoiseKey(3, f"c{at}").philox_key, 1)
        for at, sampling in enumerate(settings)
    ]
    table = torch.from_numpy(np.tile(logits, (len(rows), 1))).to(ops.device)
    return ops.choose(table, gather(rows, range(len(rows)), (), len(logits))).tokens.tolist()


@pytest.mark.parametrize("name", MAKE)
def test_each_place_gets_the_kept_token_that_its_noise_picks(name: str) -> None:
    # The interpreter of the kernels takes a tenth of a second for a row.
    settings = SETTINGS[1::4] if name == "cuda" else SETTINGS * 8
    expected: list[int] = []
    for at, sampling in enumerate(settings):
        kept = np.array(sorted(distribution(sampling)))
        scores = LOGITS[kept].astype(np.float64) / float(np.float32(sampling.temperature))
        expected.append(int(kept[np.argmax(scores + gumbel(NoiseKey(3, f"c{at}").philox_key, 1, at, kept))]))
    assert draw(MAKE[name](), settings) == expected


# The interpreter of the kernels takes a twentieth of a second for a row; the test above compares it place by place.
@pytest.mark.parametrize("name", [name for name in MAKE if name != "cuda" or DEVICE != "cpu"])
def test_tokens_are_distributed_as_defined(name: str) -> None:
    places = 1500  # in one batch
    settings = [
        Sampling(temperature=2.5, top_p=0.55, top_k=4, min_p=0.05, order=order)  # type: ignore[arg-type]
        for order in ORDERS
    ]
    actual = np.array(draw(MAKE[name](), settings * places)).reshape(places, len(settings))
    chi_squares, free = 0.0, 0
    for at, sampling in enumerate(settings):
        expected = distribution(sampling)
        counts = np.bincount(actual[:, at], minlength=VOCAB_SIZE)[list(expected)]
        wanted = np.array(list(expected.values())) * places
        assert (counts.sum(), wanted.min() >= 4) == (places, True)
        chi_squares, free = chi_squares + stats.chisquare(counts, wanted).statistic, free + len(expected) - 1
    assert stats.chi2.sf(chi_squares, free) > 1e-4


def test_the_orders_keep_different_tokens() -> None:
    """The negative control: with these settings no two orders have the same distribution."""
    settings = [Sampling(temperature=1.7, top_p=0.7, top_k=8, order=order) for order in ORDERS]  # type: ignore[arg-type]
    kept = [tuple(sorted(distribution(sampling))) for sampling in settings]
    assert len(set(kept)) == len(ORDERS)


@pytest.mark.parametrize("name", MAKE)
def test_top_p_after_top_k_is_a_share_of_the_first_of_equal_tokens_only(name: str) -> None:
    # Eight equal tokens, of which top_k keeps four: half of them reach 0.5, and with ties all four are kept. Below them
    # the rest would have been needed for half of the whole distribution.
    logits = np.full(VOCAB_SIZE, -1.0, np.float32)
    logits[4:12] = 0.0
    logits[20] = 2.0
    sampling = Sampling(temperature=1.0, top_p=0.5, top_k=5, order="top-k-first")
    assert set(distribution(sampling, logits)) == {20}  # e^2 of e^2 + 4
    assert set(draw(MAKE[name](), [sampling] * 4, logits)) == {20}
    wider = sampling.replace(top_p=0.7, temperature=9.0)
    assert set(distribution(wider, logits)) == {20, 4, 5, 6, 7}
    assert set(draw(MAKE[name](), [wider] * 8, logits)) <= {20, 4, 5, 6, 7}


@pytest.mark.parametrize("name", MAKE)
def test_min_p_of_one_keeps_the_equals_of_the_likeliest_token(name: str) -> None:
    logits = np.zeros(VOCAB_SIZE, np.float32)
    logits[[3, 9]] = 0.5
    sampling = Sampling(temperature=9.0, top_p=1.0, min_p=1.0)
    assert set(draw(MAKE[name](), [sampling] * 8, logits)) == {3, 9}
