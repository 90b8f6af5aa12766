"""Means of a single variant and their intervals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.metrics.declarations import TURN_METRICS
from rwkvbatch.comparison.statistics.means import VariantMean
from rwkvbatch.stats.spread import unlimited_interval
from tests.comparison.make_run import make_run


def means_of(path: Path) -> dict[str, VariantMean]:
    analysis = compare([str(path)])
    return {mean.metric.name: mean for mean in analysis.means(analysis.variants[0])}


def nearly_all_at_a_limit(row: dict[str, Any], rng: np.random.Generator) -> None:
    passed = row["conversation"] != "talk-0" or row["turn"] > 0
    row["checks"] = [{"kind": "contains", "expected": "boat", "passed": passed, "score": float(passed)}]
    row["logprob"]["mean"] = -1.0 if row["conversation"] == "talk-0" else 0.0
    row["reference"]["nll"] = 1.0 if row["conversation"] == "talk-0" else 0.0


def test_an_interval_is_within_the_bounds_of_its_metric(tmp_path: Path) -> None:
    means = means_of(make_run(tmp_path / "a", conversations=3, change=nearly_all_at_a_limit))
    assert means["logprob"].high == 0.0
    assert means["nll"].low == 0.0
    assert means["perplexity"].low == 1.0
    assert 0.0 < means["score"].low < means["score"].mean < means["score"].high <= 1.0


@pytest.mark.parametrize("passed", [0.0, 1.0])
def test_means_at_a_limit_have_the_interval_of_clopper_and_pearson(tmp_path: Path, passed: float) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0].update(passed=bool(passed), score=passed)

    found = means_of(make_run(tmp_path / "a", conversations=10, change=change))["score"]
    # Clopper and Pearson with as many values as conversations.
    width = 1 - 0.025 ** (1 / 10)
    assert (found.low, found.high) == pytest.approx((0.0, width) if passed == 0 else (1 - width, 1.0))


def test_an_interval_within_the_bounds_is_that_of_an_unbounded_metric(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", conversations=12)
    table = compare([str(path)]).table
    low, high = unlimited_interval(table["logprob"], table["conversation"].factorize()[0])
    found = means_of(path)["logprob"]
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_conversation_has_no_interval(tmp_path: Path) -> None:
    found = means_of(make_run(tmp_path / "a", conversations=1))["nll"]
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("nll", [0.0, 1.5])
def test_equal_values_of_an_unbounded_metric_have_no_interval(tmp_path: Path, nll: float) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["reference"]["nll"] = nll

    found = means_of(make_run(tmp_path / "a", conversations=9, change=change))
    for name in ("nll", "perplexity"):
        assert (math.isnan(found[name].low), math.isnan(found[name].high)) == (True, True)
    assert found["nll"].mean == nll


@pytest.mark.parametrize("score", [0.0, 0.25, 0.5, 1.0])
def test_equal_scores_have_the_interval_for_unseen_conversations(tmp_path: Path, score: float) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0].update(passed=score == 1, score=score)

    found = means_of(make_run(tmp_path / "a", conversations=9, change=change))["score"]
    unseen = 1 - 0.025 ** (1 / 9)  # the largest share of other conversations of which none of 9 would be seen
    assert (found.low, found.high) == pytest.approx((score * (1 - unseen), score + (1 - score) * unseen))


@pytest.mark.parametrize("metric", TURN_METRICS, ids=lambda metric: metric.name)
def test_values_are_within_the_bounds_of_their_metric(metric: Any, tmp_path: Path) -> None:
    table = compare([str(make_run(tmp_path / "a", conversations=6))]).table
    values = table[metric.name].dropna()
    low, high = metric.shown(metric.lowest), metric.shown(metric.highest)
    assert ((values >= low) & (values <= high)).all()


def test_the_groups_of_a_single_variant_follow_its_mean_over_all_rows(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", conversations=6)
    analysis = compare([str(path)], by="turn", metrics=["score"])
    found = analysis.means(analysis.variants[0])
    assert [mean.group for mean in found] == [None, "turn 0", "turn 1"]
    assert found[0].mean == means_of(path)["score"].mean
    assert found[0].num_values == sum(mean.num_values for mean in found[1:])
