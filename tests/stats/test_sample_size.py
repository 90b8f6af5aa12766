"""Sample sizes and detectable differences."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from rwkvbatch.stats.clustered import clustered_mean
from rwkvbatch.stats.sample_size import (
    components,
    conversations_needed,
    detectable_errors,
    sign_test_power,
    smallest_detectable,
)
from rwkvbatch.stats.signflip import exact_p
from rwkvbatch.stats.spread import Spread


def test_variance_components_are_those_of_the_simulation() -> None:
    rng = np.random.default_rng(6)
    true = rng.normal(0, 0.3, size=4000)
    drawn = true[:, None] + rng.normal(0, 0.6, size=(4000, 5))
    between, within = components(drawn.mean(axis=1), drawn.var(axis=1, ddof=1), np.full(4000, 5))
    assert between == pytest.approx(0.09, rel=0.1)
    assert within == pytest.approx(0.36, rel=0.05)


def test_the_sample_size_has_the_power_that_was_asked_for() -> None:
    needed = conversations_needed(0.2, 0.05, 0.2, 2, power=0.8)
    rng = np.random.default_rng(7)
    means = rng.normal(0.2, np.sqrt(0.05 + 0.1), size=(4000, needed))
    t = means.mean(axis=1) / (means.std(axis=1, ddof=1) / np.sqrt(needed))
    assert float((t > 2.05).mean()) == pytest.approx(0.8, abs=0.05)
    assert conversations_needed(0.5, 0.0, 0.0, 1) == 6


def test_a_detectable_mean_is_found_in_about_80_of_100_samples_by_t() -> None:
    rng = np.random.default_rng(4)
    truth = detectable_errors(25) * 2.0 / 5
    estimates = [clustered_mean(rng.normal(truth, 2.0, 25), np.arange(25)) for _ in range(3000)]
    assert np.mean([estimate.p_value() < 0.05 for estimate in estimates]) == pytest.approx(0.8, abs=0.03)


def enumerated_power(conversations: int, gains: float, losses: float, level: float) -> float:
    """The power of the two-sided sign test, from all numbers of gains and losses."""
    power = 0.0
    for differ in range(conversations + 1):
        tails = np.cumsum([comb(differ, more) / 2**differ for more in range(differ, -1, -1)])[::-1]
        ways = comb(conversations, differ) * (1 - gains - losses) ** (conversations - differ)
        for won in range(differ // 2 + 1, differ + 1):
            if 2 * tails[won] <= level:
                power += ways * comb(differ, won) * gains**won * losses ** (differ - won)
    return power


@pytest.mark.parametrize("level", [0.05, 0.005])
@pytest.mark.parametrize(("gains", "losses"), [(0.3, 0.1), (0.3, 0.0), (0.5, 0.25), (1.0, 0.0), (0.7, 0.3)])
def test_the_power_of_the_sign_test_is_that_of_its_enumeration(gains: float, losses: float, level: float) -> None:
    for number in (5, 6, 12, 60):
        expected = enumerated_power(number, gains, losses, level)
        assert sign_test_power(number, gains, losses, level) == pytest.approx(expected, abs=1e-9)


GAINS_AND_LOSSES = [
    (0.075, 0.025, 337), (0.2, 0.1, 249), (0.3, 0.1, 84), (0.4, 0.1, 46), (0.5, 0.25, 99),
    (0.3, 0.0, 25), (0.15, 0.0, 52),
]  # fmt: skip


@pytest.mark.parametrize(("gains", "losses", "size"), GAINS_AND_LOSSES)
def test_the_planned_number_of_yes_no_outcomes_finds_4_of_5(gains: float, losses: float, size: int) -> None:
    difference, variance = gains - losses, gains + losses - (gains - losses) ** 2
    assert conversations_needed(difference, variance, 0.0, 1, reach=1.0) == size
    assert smallest_detectable(size, variance, 0.0, 1, reach=1.0) == pytest.approx(difference, rel=0.02)
    for level in (0.05, 0.025, 0.01, 0.005):
        number = conversations_needed(difference, variance, 0.0, 1, level=level, reach=1.0)
        assert 0.79 <= sign_test_power(number, gains, losses, level) <= 0.85


@pytest.mark.parametrize(("num_conversations", "num_gains"), [(40, 2), (100, 3), (200, 1)])
@pytest.mark.parametrize("difference", [0.05, 0.1, 0.2])
def test_a_sample_that_varies_less_than_the_difference_can_promises_no_more(
    num_conversations: int, num_gains: int, difference: float
) -> None:
    """One outcome each: with gains alone, the least variance of a mean d is d (1 - d)."""
    sums = np.zeros(num_conversations)
    sums[:num_gains] = 1.0
    spread = Spread.of(sums, np.ones(num_conversations), 1.0)
    variance = num_conversations * spread.standard_error**2
    number = conversations_needed(difference, variance, 0.0, 1, reach=1.0, step=spread.step)
    assert 0.79 <= sign_test_power(number, difference, 0.0, 0.05) <= 0.85
    assert sign_test_power(num_conversations, spread.detectable(0.05), 0.0, 0.05) >= 0.78


@pytest.mark.parametrize(("repetitions", "difference"), [(2, 0.2), (3, 0.1)])
def test_the_planned_number_of_averages_finds_4_of_5(repetitions: int, difference: float) -> None:
    before, after = 0.5 - difference / 2, 0.5 + difference / 2
    within = before * (1 - before) + after * (1 - after)
    number = conversations_needed(difference, 0.0, within, repetitions, reach=1.0)
    rng = np.random.default_rng(0)
    samples = rng.binomial(repetitions, after, (1000, number)) - rng.binomial(repetitions, before, (1000, number))
    found = np.mean([(exact_p(sample.astype(float)) or 0.0) <= 0.05 for sample in samples])
    assert 0.77 <= found <= 0.86


def test_a_difference_that_its_variance_forbids_takes_the_fewest_conversations() -> None:
    assert conversations_needed(1.0, 0.0, 0.0, 1, reach=1.0) == 6
    assert conversations_needed(1.0, 0.5, 0.0, 1, reach=1.0) == 6
