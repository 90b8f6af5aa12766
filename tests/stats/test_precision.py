"""Fixed-width stopping: its rate of false positives in simulated adaptive sweeps."""

from __future__ import annotations

import numpy as np
import pytest

from rwkvbatch.stats.clustered import clustered_mean
from rwkvbatch.stats.precision import needs_more_repeats, planning_width

CONVERSATIONS, FIRST, LAST = 16, 3, 20


def _experiment(rng: np.random.Generator, width: float, *, stop_on_significance: bool) -> tuple[float, int]:
    """p-value and repeats of one adaptive sweep of two equal cells: scores of 0 or 1, some scripts harder."""
    difficulty = rng.beta(2, 2, CONVERSATIONS)
    cell = rng.random((LAST, CONVERSATIONS)) < difficulty
    baseline = rng.random((LAST, CONVERSATIONS)) < difficulty
    differences = cell.astype(float) - baseline
    labels = np.broadcast_to(np.arange(CONVERSATIONS), differences.shape)
    repeats = FIRST
    while repeats < LAST:
        seen, seen_labels = differences[:repeats].ravel(), labels[:repeats].ravel()
        if stop_on_significance:
            if clustered_mean(seen, seen_labels).p_value() < 0.05:
                break
        elif not needs_more_repeats(seen, seen_labels, width=width):
            break
        repeats += 1
    return clustered_mean(differences[:repeats].ravel(), labels[:repeats].ravel()).p_value(), repeats


@pytest.mark.parametrize("width", [0.2, 0.3, 0.45])
def test_equal_cells_are_called_different_in_no_more_than_six_of_100_adaptive_sweeps(width: float) -> None:
    rng = np.random.default_rng(5)
    outcomes = [_experiment(rng, width, stop_on_significance=False) for _ in range(1500)]
    alarms = np.mean([p < 0.05 for p, _ in outcomes])
    assert alarms <= 0.06
    assert len({repeats for _, repeats in outcomes}) > 3, "the rule never had to decide"


def test_stopping_on_significance_would_raise_false_alarms() -> None:
    rng = np.random.default_rng(6)
    outcomes = [_experiment(rng, 0.3, stop_on_significance=True) for _ in range(400)]
    assert np.mean([p < 0.05 for p, _ in outcomes]) > 0.12


def test_with_one_difference_a_conversation_the_width_is_that_of_the_95_percent_interval() -> None:
    differences, labels = [0.1, 0.3, -0.2, 0.4], [0, 1, 2, 3]
    low, high = clustered_mean(differences, labels).interval(0.95)
    assert planning_width(differences, labels) == pytest.approx(high - low)


def test_conversation_means_that_happen_to_agree_do_not_look_precise() -> None:
    differences, labels = [-1.0, 1.1, -1.1, 1.0, -1.0, 1.05], [0, 0, 1, 1, 2, 2]
    low, high = clustered_mean(differences, labels).interval(0.95)
    assert planning_width(differences, labels) > 5 * (high - low)


def test_one_conversation_always_needs_more_repeats() -> None:
    assert needs_more_repeats([0.0, 0.1], [0, 0], width=10.0)


def test_where_the_interval_lies_does_not_matter() -> None:
    differences, labels = np.array([0.1, 0.3, -0.2, 0.4]), np.arange(4)
    for width in (0.5, 1.5):
        near = needs_more_repeats(differences, labels, width=width)
        assert near == needs_more_repeats(differences + 100, labels, width=width)


def test_single_precision_is_summed_in_double_precision() -> None:
    differences = np.repeat([1000.1, 1000.2, 1000.4], 5).astype(np.float32) + np.arange(15, dtype=np.float32)
    conversations = np.tile(np.arange(3), 5)
    exact = planning_width(differences.astype(np.float64), conversations)
    assert planning_width(differences, conversations) == exact


def test_a_width_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        needs_more_repeats([0.0], [0], width=0.0)


def test_the_interval_s_level_decides_with_the_width() -> None:
    differences, labels = [0.1, 0.3, -0.2, 0.4], [0, 1, 2, 3]
    width = planning_width(differences, labels)
    assert planning_width(differences, labels, level=0.5) < width / 2
    assert not needs_more_repeats(differences, labels, width=0.9 * width, level=0.5)
    assert needs_more_repeats(differences, labels, width=0.9 * width)
    assert not needs_more_repeats(differences, labels, width=width)
