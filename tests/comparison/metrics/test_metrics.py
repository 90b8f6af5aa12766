"""Metrics of turns on rows with known values."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvbatch.comparison.metrics.declarations import TURN_METRICS, longest_repeat
from rwkvbatch.comparison.metrics.ngrams import count_ngrams
from tests.comparison.make_run import make_row

METRICS = {metric.name: metric for metric in TURN_METRICS}


def value(name: str, **changes: object) -> float | None:
    value_of = METRICS[name].value
    assert value_of is not None
    return value_of(make_row("x", **changes))


def check(score: float, weight: float = 1.0) -> dict[str, object]:
    return {"kind": "k", "expected": 1, "passed": score == 1.0, "score": score, "weight": weight, "detail": None}


def test_score_is_the_weighted_mean_of_the_checks() -> None:
    assert value("score", checks=[check(1.0, 3.0), check(0.5, 1.0)]) == pytest.approx(0.875)


def test_passed_needs_every_check() -> None:
    assert value("passed", checks=[check(1.0), check(0.5)]) == 0.0
    assert value("passed", checks=[check(1.0), check(1.0)]) == 1.0


def test_a_turn_without_checks_has_no_score() -> None:
    assert value("score", checks=[]) is None
    assert value("passed", checks=[]) is None


@pytest.mark.parametrize(("finish_reason", "expected"), [("stop", 1.0), ("eos", 1.0), ("length", 0.0), ("time", 0.0)])
def test_stopped_is_1_for_replies_that_ended_by_stop_or_eos(finish_reason: str, expected: float) -> None:
    assert value("stopped", finish_reason=finish_reason) == expected


def test_distinct_is_the_share_of_different_ngrams() -> None:
    ids = [1, 2, 1, 2, 3]
    assert value("distinct1", reply_ids=ids) == pytest.approx(3 / 5)
    assert value("distinct2", reply_ids=ids) == pytest.approx(3 / 4)


def test_a_reply_of_one_token_has_no_distinct_2() -> None:
    assert value("distinct2", reply_ids=[7]) is None


def test_loop_is_near_1_for_a_looping_reply_and_0_without_repeats() -> None:
    assert value("loop", reply_ids=[1, 2, 3] * 20) == pytest.approx(57 / 60)
    assert value("loop", reply_ids=list(range(60))) == 0.0


def test_the_longest_repeat_may_overlap_itself() -> None:
    assert longest_repeat([7, 7, 7]) == 2
    assert longest_repeat([1, 2, 3, 1, 2]) == 2
    assert longest_repeat([]) == 0


few_ids = st.lists(st.integers(0, 3), max_size=40)
loops = st.builds(lambda ids, times: (ids * times)[:90], few_ids, st.integers(2, 20))
any_ids = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=10)


@settings(deadline=None)
@given(st.lists(few_ids | loops | any_ids, max_size=6))
def test_ngrams_of_many_replies_at_once_equal_those_of_each(replies: list[list[int]]) -> None:
    counts = count_ngrams([array("q", ids) for ids in replies])
    for metric in TURN_METRICS:
        if metric.ngram_values is not None:
            assert metric.value is not None
            alone = [metric.value({"reply_ids": ids, "finish_reason": "stop"}) for ids in replies]
            np.testing.assert_array_equal(metric.ngram_values(counts), np.array(alone, dtype=np.float64))


def test_reference_metrics_are_missing_without_a_reference() -> None:
    assert value("nll", reference=None) is None
    assert value("matched", reference=None) is None


def accuracies(logprobs: Sequence[float], counts: Sequence[tuple[int, int]], right: object) -> list[float | None]:
    """The accuracies of choices `a`, `b`, ... with these sums of log-probabilities and (bytes, characters)."""
    scores = [
        {"name": name, "logprob": logprob, "tokens": 1, "bytes": num_bytes, "characters": characters}
        for name, logprob, (num_bytes, characters) in zip("abcd", logprobs, counts, strict=False)
    ]
    checks = [] if right is None else [check(1.0) | {"kind": "choice", "expected": right}]
    return [value(name, choices={"scores": scores}, checks=checks) for name in ("acc", "acc_norm", "acc_bytes")]


@pytest.mark.parametrize(
    ("right", "expected"), [("a", [1, 0, 0]), ("b", [0, 1, 0]), (2, [0, 0, 1]), (3, [0, 0, 0]), (None, [None] * 3)]
)
def test_accuracies_of_choices_are_those_of_lm_evaluation_harness(right: object, expected: list[float | None]) -> None:
    # By sum, a is the likeliest; per character (-3, -1, -1.5, -9) it is b; per byte (-3, -1, -0.5, -9) it is c.
    assert accuracies([-3.0, -4.0, -6.0, -9.0], [(1, 1), (4, 4), (12, 4), (1, 1)], right) == expected


@pytest.mark.parametrize(("right", "expected"), [("a", 1.0), ("b", 0.0)])
def test_the_first_of_equal_choices_counts(right: str, expected: float) -> None:
    assert accuracies([-2.0, -2.0], [(2, 2), (2, 2)], right) == [expected] * 3


def test_accuracies_are_unknown_without_choices_and_against_a_choice_that_the_row_lacks() -> None:
    assert value("acc", choices=None, checks=[check(1.0) | {"kind": "choice", "expected": "a"}]) is None
    assert accuracies([-1.0, -2.0], [(1, 1), (1, 1)], "z") == [None] * 3


@pytest.mark.parametrize(("nll", "finite"), [(3.0, True), (250.0, True), (700.0, True), (710.0, False)])
def test_a_perplexity_is_the_exponential_where_it_is_finite(nll: float, finite: bool) -> None:
    text = {"nll": nll, "tokens": 1, "bytes": 4, "logprob": -nll, "matched": 0}
    for name in ("perplexity", "text_perplexity"):
        assert value(name, reference=text) == (pytest.approx(math.exp(nll)) if finite else None)
