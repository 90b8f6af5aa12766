"""Sample sizes and detectable differences."""

from __future__ import annotations

import numpy as np
import pytest

from rwkvbatch.stats.clustered import clustered_mean
from rwkvbatch.stats.sample_size import components, conversations_needed, detectable_errors


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
