"""Sequential evidence, and the elimination of cells: its rule, and how rarely it drops a truly best cell."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from rwkvbatch.stats.sequential import Elimination, log_evidence, mean_exceeds


def elimination_with(wealths: list[float], level: float = 0.05) -> Elimination:
    """A race in which each cell's wealth is as given."""
    race = Elimination(len(wealths), level)
    race.add(np.zeros(len(wealths)))
    race._logs[:] = np.log(wealths)[:, None]  # pyright: ignore[reportPrivateUsage]
    return race


def closed_test(wealths: list[float], level: float) -> set[int]:
    """The cells of which every set that contains them has an average wealth of at least 1 / level."""
    cells = range(len(wealths))
    sets = [group for size in range(1, len(wealths) + 1) for group in combinations(cells, size)]
    return {i for i in cells if all(np.mean([wealths[j] for j in s]) >= 1 / level for s in sets if i in s)}


def test_the_rule_is_the_closed_test_by_average_wealth() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        wealths = list(np.exp(rng.normal(2.5, 2.0, rng.integers(2, 8))))
        expected = closed_test(wealths, 0.05)
        dropped = elimination_with(wealths).drop()
        if len(expected) == len(wealths):
            assert len(dropped) == len(wealths) - 1
        else:
            assert set(dropped) == expected


def test_a_clearly_worse_cell_is_dropped_after_few_draws_and_stays_out() -> None:
    race = Elimination(3, 0.05)
    for _ in range(9):
        race.add([1.0, 1.0, 0.0])
    assert race.drop() == (2,)
    assert list(race.left) == [0, 1]
    race.add([1.0, 0.0])
    assert list(race.played) == [10, 10, 9]
    assert race.leader == 0
    assert race.means[2] == 0.0
    assert race.mean_behind(0, 2) == 1.0
    assert race.mean_behind(0, 1) == pytest.approx(0.1)


def test_bets_are_against_the_leaders_before_the_draw() -> None:
    race = Elimination(3, 0.05)
    race.add([1.0, 0.5, 0.0])  # all lead: the first cell loses 1 - 0.25, the second nothing, the third gains 0.75
    race.drop()
    assert race.log_wealth[0] < 0
    assert race.log_wealth[1] == pytest.approx(0.0)
    assert race.log_wealth[2] > 0
    before = race.log_wealth.copy()
    race.add([0.0, 1.0, 0.0])  # only the first one led, with 0, and the second was its runner-up
    race.drop()
    assert race.log_wealth[0] > before[0]
    assert race.log_wealth[1] < before[1]
    assert race.log_wealth[2] == pytest.approx(before[2])


def test_equal_scores_are_evidence_of_nothing_but_of_the_margin() -> None:
    race = Elimination(4, 0.05)
    draws = math.ceil(math.log(3 / 0.05) / -math.log1p(-0.1)) + 40  # with what several shares cost
    for _ in range(draws):
        race.add([0.5] * 4)
    assert race.drop() == ()
    assert race.is_within(0.1)
    assert not race.is_within(0.01)


@pytest.mark.parametrize("scores", [[0.5], [0.5, 1.1], [0.5, math.nan], [-0.1, 0.5]])
def test_a_draw_that_is_not_one_score_for_each_cell_is_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="one score in"):
        Elimination(2, 0.05).add(scores)


def test_wealth_against_a_best_cell_does_not_grow_on_average() -> None:
    """The mean wealth of equal cells is 1 at any draw: that no bet looks ahead."""
    rng = np.random.default_rng(1)
    wealths: list[float] = []
    for _ in range(1500):
        race = Elimination(3, 1e-9)
        for scores in (rng.random((6, 3)) < 0.5).astype(float):
            race.add(scores)
        race.drop()
        wealths += list(np.exp(race.log_wealth))
    assert np.mean(wealths) == pytest.approx(1.0, abs=0.05)


def test_evidence_does_not_depend_on_the_order_and_grows_with_the_difference() -> None:
    draws = np.array([1.0, 0.0, 0.5, -1.0, 1.0, 1.0, 0.0, 1.0])
    assert log_evidence(draws) == pytest.approx(log_evidence(draws[::-1]))
    assert log_evidence(np.minimum(1, draws + 0.3)) > log_evidence(draws)
    assert log_evidence([]) == 0.0


def test_many_looks_raise_no_more_false_alarms_than_the_level() -> None:
    rng = np.random.default_rng(8)
    alarms = 0
    for _ in range(400):
        draws = rng.choice([-1.0, 0.0, 1.0], p=[0.25, 0.5, 0.25], size=200)
        alarms += any(mean_exceeds(draws[:n], 0.05) for n in range(5, 200, 5))
    assert alarms <= 0.05 * 400


def test_a_margin_is_reached_where_the_difference_is_surely_smaller() -> None:
    rng = np.random.default_rng(9)
    draws = rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.96, 0.02], size=400)
    assert mean_exceeds(-draws, 0.05, above=-0.1)
    assert not mean_exceeds(-draws, 0.05, above=0.0)
