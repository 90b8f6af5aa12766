"""Each metric on rows whose answer is plain."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvbatch.compare.metrics import TURN_METRICS
from rwkvbatch.compare.metrics.loops import longest_repeat
from tests.compare.make_run import make_row

METRICS = {metric.name: metric for metric in TURN_METRICS}


def value(name: str, **changes: object) -> float | None:
    of = METRICS[name].of
    assert of is not None
    return of(make_row("x", **changes))


def check(score: float, weight: float = 1.0) -> dict[str, object]:
    return {
        "kind": "k",
        "expected": 1,
        "passed": score == 1.0,
        "score": score,
        "weight": weight,
        "detail": None,
    }


def test_score_is_the_weighted_mean_of_the_checks() -> None:
    assert value("score", checks=[check(1.0, 3.0), check(0.5, 1.0)]) == pytest.approx(0.875)


def test_passed_needs_every_check() -> None:
    assert value("passed", checks=[check(1.0), check(0.5)]) == 0.0
    assert value("passed", checks=[check(1.0), check(1.0)]) == 1.0


def test_a_turn_without_checks_has_no_score() -> None:
    assert value("score", checks=[]) is None
    assert value("passed", checks=[]) is None


@pytest.mark.parametrize(
    ("finish", "expected"), [("stop", 1.0), ("eos", 1.0), ("length", 0.0), ("time", 0.0)]
)
def test_stopped_tells_replies_that_ended_by_themselves(finish: str, expected: float) -> None:
    assert value("stopped", finish=finish) == expected


def test_distinct_counts_different_ngrams() -> None:
    ids = [1, 2, 1, 2, 3]
    assert value("distinct1", reply_ids=ids) == pytest.approx(3 / 5)
    assert value("distinct2", reply_ids=ids) == pytest.approx(3 / 4)


def test_a_reply_of_one_token_has_no_distinct_2() -> None:
    assert value("distinct2", reply_ids=[7]) is None


def test_a_looping_reply_scores_near_one_and_one_without_repeats_zero() -> None:
    assert value("loop", reply_ids=[1, 2, 3] * 20) == pytest.approx(57 / 60)
    assert value("loop", reply_ids=list(range(60))) == 0.0


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40))
def test_the_longest_repeat_is_what_trying_every_length_finds(ids: list[int]) -> None:
    def occurs_twice(n: int) -> bool:
        grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        return len(set(grams)) < len(grams)

    assert longest_repeat(ids) == max([n for n in range(1, len(ids)) if occurs_twice(n)], default=0)


def test_reference_metrics_are_missing_without_a_reference() -> None:
    assert value("nll", reference=None) is None
    assert value("matched", reference=None) is None
