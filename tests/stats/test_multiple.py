"""Holm's correction against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvbatch.stats.clustered import holm


def test_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_adjusted_values_reject_exactly_what_the_step_down_procedure_rejects(p: list[float], alpha: float) -> None:
    rejected = set()
    for step, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[index] * (len(p) - step) > alpha:
            break
        rejected.add(index)
    assert set(np.flatnonzero(holm(p) <= alpha)) == rejected


def test_nan_stays_nan_and_does_not_make_the_others_stricter() -> None:
    adjusted = holm([0.02, np.nan, 0.5])
    assert adjusted[0] == pytest.approx(0.04)
    assert np.isnan(adjusted[1])


def test_any_false_alarm_among_ten_true_nulls_is_rarer_than_one_in_eighteen() -> None:
    rng = np.random.default_rng(0)
    alarms = sum(bool((holm(rng.uniform(size=10)) < 0.05).any()) for _ in range(4000))
    assert alarms / 4000 < 1 / 18


def test_adjusted_values_never_exceed_1_whatever_kind_of_numbers_they_come_from() -> None:
    assert holm([0.9, 0.8, 0.7]).tolist() == [1.0, 1.0, 1.0]
    assert holm([1, 0, 1]).tolist() == [1.0, 0.0, 1.0]
