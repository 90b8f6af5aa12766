"""Comparisons with the best: against t tests, and in simulated sweeps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rwkvbatch.stats.clustered import best_p_values, clustered_mean, holm

ALPHA = 0.05
EQUAL = (0.0,) * 6
CLOSE_RIVALS = (0.05, *(0.0,) * 5)
THREE_BEST = (0.6, 0.6, 0.6, 0.0, 0.0, 0.0)
WINNER = (2.0, *(0.0,) * 5)


def sweep(
    rng: np.random.Generator, truth: tuple[float, ...], *, num_clusters: int = 16, binary: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Values `[n, k]` and clusters `[n]` of one made-up sweep with unequal conversations.

    What makes conversations hard is common to all cells; what suits a cell is common to a conversation's rows.
    """
    clusters = np.repeat(np.arange(num_clusters), rng.integers(2, 6, num_clusters))
    hard = rng.normal(0, 1.0, num_clusters)[clusters, None]
    suits = rng.normal(0, 0.4, (num_clusters, len(truth)))[clusters]
    values = np.array(truth) + hard + suits + rng.normal(0, 0.8, (clusters.size, len(truth)))
    return (values > 0).astype(float) if binary else values, clusters


def could_be_best(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    return ~(holm(best_p_values(values, clusters)) < ALPHA)


def share_where_a_best_cell_is_left_out(
    truth: tuple[float, ...], *, sweeps: int = 1000, num_clusters: int = 16, binary: bool = False
) -> float:
    rng = np.random.default_rng(7)
    best = np.array(truth) == max(truth)
    kept = [
        could_be_best(*sweep(rng, truth, num_clusters=num_clusters, binary=binary))[best].all() for _ in range(sweeps)
    ]
    return 1.0 - float(np.mean(kept))


# A rate of 5 % shows as more than 6.5 % in one of seventy simulations of 1000 sweeps.
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("truth", [EQUAL, CLOSE_RIVALS, THREE_BEST])
def test_the_truly_best_cells_are_left_out_in_at_most_5_of_100_sweeps(truth: tuple[float, ...], binary: bool) -> None:
    assert share_where_a_best_cell_is_left_out(truth, binary=binary) <= 0.065


def test_the_truly_best_cells_are_left_out_in_at_most_5_of_100_sweeps_of_five_conversations() -> None:
    assert share_where_a_best_cell_is_left_out(EQUAL, num_clusters=5) <= 0.065


def test_uncorrected_tests_against_the_best_mean_would_leave_out_equal_cells_far_more_often() -> None:
    rng, left_out = np.random.default_rng(8), 0
    for _ in range(200):
        values, clusters = sweep(rng, EQUAL)
        best = values.mean(axis=0).argmax()
        p_values = [
            clustered_mean(values[:, best] - values[:, cell], clusters).p_value() for cell in range(6) if cell != best
        ]
        left_out += min(p_values) < ALPHA
    assert left_out / 200 > 0.20


def test_without_the_correction_for_all_candidates_equal_cells_are_not_all_kept() -> None:
    rng = np.random.default_rng(9)
    left_out = [(best_p_values(*sweep(rng, EQUAL)) < ALPHA).any() for _ in range(200)]
    assert np.mean(left_out) > 0.10


def test_a_clear_winner_is_nearly_always_named_alone() -> None:
    rng = np.random.default_rng(10)
    alone = [could_be_best(*sweep(rng, WINNER)).tolist() == [True] + [False] * 5 for _ in range(200)]
    assert np.mean(alone) > 0.98


def test_the_best_mean_is_always_among_those_that_could_be_best() -> None:
    rng = np.random.default_rng(11)
    for _ in range(100):
        values, clusters = sweep(rng, (0.0, 0.1, 0.2), num_clusters=3)
        assert best_p_values(values, clusters)[values.mean(axis=0).argmax()] == 1.0


def test_a_p_value_is_the_smallest_one_sided_t_test_times_the_number_of_rivals() -> None:
    values = np.random.default_rng(12).normal((0.0, 0.3, 0.9), 1.0, (15, 3))
    found = best_p_values(values, np.arange(15))
    for cell in range(3):
        rivals = [
            stats.ttest_rel(values[:, rival], values[:, cell], alternative="greater").pvalue
            for rival in range(3)
            if rival != cell
        ]
        assert found[cell] == pytest.approx(min(1.0, 2 * min(rivals)))


def test_equal_columns_are_not_distinguished() -> None:
    column = np.random.default_rng(13).normal(size=12)
    assert best_p_values(np.stack([column] * 3, axis=1), np.arange(12)).tolist() == [1.0, 1.0, 1.0]


def test_two_conversations_that_agree_exactly_tell_nothing_apart() -> None:
    values = np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert best_p_values(values, [0, 1]).tolist() == [0.5, 1.0, 0.5]


def test_one_conversation_gives_no_p_value() -> None:
    assert np.isnan(best_p_values([[0.0, 1.0, 2.0], [0.0, 1.0, 3.0]], ["a", "a"])).all()


def test_a_candidate_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"two columns or more.*\(3, 1\)"):
        best_p_values(np.zeros((3, 1)), [0, 1, 2])
