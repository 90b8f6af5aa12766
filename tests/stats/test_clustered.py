"""The clustered mean: against scipy, against matrix formulas, and in simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

from rwkvbatch.stats.clustered import clustered_mean


def test_balanced_clusters_give_the_t_test_of_the_cluster_means() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, (7, 4))
    clusters = np.repeat(np.arange(7), 4)
    estimate = clustered_mean(values.ravel(), clusters)
    expected = stats.ttest_1samp(values.mean(axis=1), 0.0)
    interval = expected.confidence_interval(0.95)
    assert estimate.degrees == pytest.approx(6)
    assert estimate.p_value() == pytest.approx(expected.pvalue)
    assert estimate.interval() == pytest.approx((interval.low, interval.high))


def test_singleton_clusters_give_the_paired_t_test() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.normal(size=12), rng.normal(size=12)
    estimate = clustered_mean(after - before, np.arange(12))
    assert estimate.p_value() == pytest.approx(stats.ttest_rel(after, before).pvalue)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=8), st.integers(0, 2**32 - 1))
def test_unbalanced_clusters_match_the_cr2_formula_in_matrices(sizes: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=sum(sizes))
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    standard_error, degrees = _cr2_in_matrices(values, clusters)
    estimate = clustered_mean(values, clusters)
    assert estimate.standard_error == pytest.approx(standard_error)
    assert estimate.degrees == pytest.approx(degrees)


def _cr2_in_matrices(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Bell & McCaffrey's estimator written out: adjustment matrices, and the quadratic form's eigenvalues."""
    n = values.size
    ones = np.ones((n, 1))
    residual_maker = np.eye(n) - ones @ ones.T / n
    residuals = residual_maker @ values
    same_cluster = (clusters[:, None] == clusters[None, :]).astype(float)
    variance, columns = 0.0, []
    for cluster in np.unique(clusters):
        rows = np.flatnonzero(clusters == cluster)
        adjustment = np.linalg.inv(linalg.sqrtm(residual_maker[np.ix_(rows, rows)]).real)
        weights = adjustment @ np.ones(rows.size) / n
        variance += float(weights @ residuals[rows]) ** 2
        columns.append(residual_maker[:, rows] @ weights)
    form = np.stack(columns, axis=1)
    eigenvalues = np.linalg.eigvalsh(form.T @ same_cluster @ form)
    return math.sqrt(variance), float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


@pytest.mark.parametrize("num_clusters", [5, 12, 40])
@pytest.mark.parametrize("balanced", [True, False])
def test_intervals_cover_the_truth_in_at_least_94_of_100_clustered_samples(num_clusters: int, balanced: bool) -> None:
    rng = np.random.default_rng(num_clusters)
    covered, tries = 0, 4000
    sizes = np.full(num_clusters, 6) if balanced else 3 * rng.integers(1, 7, num_clusters)
    clusters = np.repeat(np.arange(num_clusters), sizes)
    for _ in range(tries):
        values = 0.4 + rng.normal(0, 1.0, num_clusters)[clusters] + rng.normal(0, 1.5, clusters.size)
        low, high = clustered_mean(values, clusters).interval()
        covered += low <= 0.4 <= high
    assert covered / tries >= 0.94


def test_taking_rows_for_independent_would_cover_far_less() -> None:
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(12), 6)
    covered = 0
    for _ in range(1000):
        values = rng.normal(0, 1.0, 12)[clusters] + rng.normal(0, 0.5, clusters.size)
        low, high = clustered_mean(values, np.arange(values.size)).interval()
        covered += low <= 0.0 <= high
    assert covered / 1000 < 0.80


def test_one_cluster_gives_a_mean_but_claims_nothing() -> None:
    estimate = clustered_mean([1.0, 2.0], ["a", "a"])
    assert estimate.mean == 1.5
    assert math.isnan(estimate.p_value())
    assert all(math.isnan(end) for end in estimate.interval())


def test_no_difference_anywhere_is_no_finding() -> None:
    estimate = clustered_mean([0.0] * 6, [0, 0, 1, 1, 2, 2])
    assert estimate.p_value() == 1.0
    assert estimate.interval() == (0.0, 0.0)


def test_two_conversations_that_agree_exactly_are_not_called_certain() -> None:
    estimate = clustered_mean([0.1, 0.1, 0.1, 0.1], [0, 0, 1, 1])
    assert estimate.p_value() == 0.5
    assert all(math.isnan(end) for end in estimate.interval())


def test_labels_of_any_kind_and_order_give_the_same_estimate() -> None:
    values = [1.0, 5.0, 2.0, 7.0, 3.0]
    assert clustered_mean(values, ["b", "a", "b", "a", "c"]) == clustered_mean(values, [7, 1, 7, 1, 9])


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="equal length"):
        clustered_mean([1.0, 2.0], [0])


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^no values$"):
        clustered_mean([], [])


def test_a_single_value_is_a_mean_of_one_value_in_one_cluster() -> None:
    estimate = clustered_mean([0.5], ["a"])
    assert (estimate.mean, estimate.num_values, estimate.num_clusters) == (0.5, 1, 1)
    assert math.isnan(estimate.degrees)


def test_values_and_clusters_are_counted() -> None:
    estimate = clustered_mean([1.0, 2.0, 3.0], [0, 0, 1])
    assert (estimate.num_values, estimate.num_clusters) == (3, 2)


@pytest.mark.parametrize("scale", [1e-100, 1e-30, 1e9])
def test_the_unit_of_the_values_does_not_matter(scale: float) -> None:
    values, clusters = np.random.default_rng(5).normal(0.5, 1.0, 12), np.repeat(np.arange(4), 3)
    assert clustered_mean(scale * values, clusters).p_value() == pytest.approx(
        clustered_mean(values, clusters).p_value()
    )


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_residue_of_rounding_is_no_spread(scale: float) -> None:
    values = [0.1 * scale, 0.3 * scale, 0.2 * scale] * 4
    estimate = clustered_mean(values, np.repeat(np.arange(4), 3))
    assert estimate.standard_error == 0.0
    assert estimate.p_value() == 0.125


def test_single_precision_is_summed_in_double_precision() -> None:
    values = np.random.default_rng(6).normal(1000.0, 1.0, 50).astype(np.float32)
    clusters = np.arange(50)
    assert clustered_mean(values, clusters) == clustered_mean(values.astype(np.float64), clusters)
