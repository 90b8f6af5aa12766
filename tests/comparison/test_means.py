"""Means of one variant by itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.metrics import TURN_METRICS
from rwkvbatch.comparison.ranking import VariantMean
from rwkvbatch.stats.spread import unlimited_interval
from tests.comparison.make_run import make_run


def means_of(path: Path) -> dict[str, VariantMean]:
    analysis = compare([str(path)])
    return {mean.metric.name: mean for mean in analysis.means(analysis.variants[0])}


def nearly_all_pass_and_none_surprises(row: dict[str, Any], rng: np.random.Generator) -> None:
    passed = row["conversation"] != "talk-0" or row["turn"] > 0
    row["checks"] = [{"kind": "contains", "expected": "boat", "passed": passed, "score": float(passed)}]
    row["logprob"]["mean"] = -1.0 if row["conversation"] == "talk-0" else 0.0
    row["reference"]["nll"] = 1.0 if row["conversation"] == "talk-0" else 0.0


def test_an_interval_ends_at_what_the_metric_can_be(tmp_path: Path) -> None:
    means = means_of(make_run(tmp_path / "a", conversations=3, change=nearly_all_pass_and_none_surprises))
    assert means["logprob"].high == 0.0
    assert means["nll"].low == 0.0
    assert means["perplexity"].low == 1.0
    assert 0.0 < means["score"].low < means["score"].mean < means["score"].high <= 1.0


@pytest.mark.parametrize("passed", [0.0, 1.0])
def test_means_at_a_limit_have_intervals_that_mirror_each_other(tmp_path: Path, passed: float) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0].update(passed=bool(passed), score=passed)

    found = means_of(make_run(tmp_path / "a", conversations=10, change=change))["score"]
    # 1 - 0.025^(1/10), Clopper and Pearson with as many values as conversations.
    width = 1 - 0.025 ** (1 / 10)
    assert (found.low, found.high) == pytest.approx((0.0, width) if passed == 0 else (1 - width, 1.0))


def test_an_interval_within_what_is_possible_is_that_of_numbers_without_limits(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", conversations=12)
    table = compare([str(path)]).table
    low, high = unlimited_interval(table["logprob"], table["conversation"].factorize()[0])
    found = means_of(path)["logprob"]
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_what_cannot_be_known_stays_unknown(tmp_path: Path) -> None:
    found = means_of(make_run(tmp_path / "a", conversations=1))["nll"]
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("nll", [0.0, 1.5])
def test_equal_numbers_without_limits_do_not_show_how_others_vary(tmp_path: Path, nll: float) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["reference"]["nll"] = nll

    found = means_of(make_run(tmp_path / "a", conversations=9, change=change))
    for name in ("nll", "perplexity"):
        assert (math.isnan(found[name].low), math.isnan(found[name].high)) == (True, True)
    assert found["nll"].mean == nll


@pytest.mark.parametrize("score", [0.0, 0.25, 0.5, 1.0])
def test_equal_scores_leave_room_for_conversations_of_another_kind(tmp_path: Path, score: float) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0].update(passed=score == 1, score=score)

    found, others = means_of(make_run(tmp_path / "a", conversations=9, change=change))["score"], 1 - 0.025 ** (1 / 9)
    assert (found.low, found.high) == pytest.approx((score * (1 - others), score + (1 - score) * others))


@pytest.mark.parametrize("metric", TURN_METRICS, ids=lambda metric: metric.name)
def test_no_metric_goes_beyond_its_bounds(metric: Any, tmp_path: Path) -> None:
    table = compare([str(make_run(tmp_path / "a", conversations=6))]).table
    values = table[metric.name].dropna()
    low, high = metric.shown(metric.lowest), metric.shown(metric.highest)
    assert ((values >= low) & (values <= high)).all()
