"""Trends over checkpoints: positions, the test, the band, formats."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.report.formats import as_json, as_markdown, escaped
from rwkvbatch.comparison.report.html import as_html
from rwkvbatch.comparison.report.terminal import print_analysis
from rwkvbatch.comparison.statistics.trend import Trend, sparkline
from rwkvbatch.errors import UsageError
from tests.comparison.make_run import make_run


def trend_of(tmp_path: Path, slope: float, *, names: str = "step-{}", conversations: int = 20, **options: Any) -> Trend:
    paths: list[str] = []
    for position, step in enumerate((100, 200, 1000, 3000)):

        def change(row: dict[str, Any], rng: np.random.Generator, position: int = position) -> None:
            row["checks"][0]["score"] = float(np.clip(0.5 + slope * position + rng.normal(0, 0.05), 0, 1))

        paths.append(
            str(make_run(tmp_path / names.format(step), conversations=conversations, change=change, seed=position))
        )
    # In the order of a shell: step-100, step-1000, step-200, step-3000.
    found = compare(sorted(paths), over=options.pop("over", "step"), **options).trend
    assert found is not None
    return found


@pytest.mark.parametrize(("slope", "verdict"), [(0.1, "improves"), (-0.1, "worsens"), (0.0, "no trend found")])
def test_the_verdict_depends_on_the_slope_and_the_direction_of_the_metric(
    tmp_path: Path, slope: float, verdict: str
) -> None:
    trend = trend_of(tmp_path, slope)
    assert [point.x for point in trend.points] == [100, 200, 1000, 3000]
    assert trend.verdict == verdict
    assert (trend.p <= 0.05) == (verdict != "no trend found") == (not trend.low <= 0 <= trend.high)
    if slope:
        assert abs(trend.concordance) > 0.8


@pytest.mark.usefixtures("undrawn")
def test_trends_of_other_metrics_are_exploratory(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator, position: int) -> None:
        row["checks"][0]["score"] = float(np.clip(0.3 + 0.1 * position + rng.normal(0, 0.05), 0, 1))
        row["reference"]["nll"] = 2.0 + 0.2 * position + float(rng.normal(0, 0.02))

    paths = [
        str(make_run(tmp_path / f"step-{n}", conversations=12, seed=n, change=partial(change, position=n)))
        for n in range(4)
    ]
    analysis = compare(paths, over="step", metrics=["nll", "perplexity", "score", "accuracy"])
    assert [(trend.metric.name, trend.verdict) for trend in analysis.trends] == [
        ("score", "improves"),
        ("nll", "worsens"),
    ]
    assert analysis.trend is analysis.trends[0]
    for metric, beginning in (
        ("perplexity", "perplexity has no trend"),
        ("accuracy", "no turn has a value of accuracy"),
    ):
        (note,) = [note for note in analysis.notes if metric in note]
        assert note.startswith(beginning)
    shown = json.loads(as_json(analysis))["trends"]
    assert [(trend["metric"], trend["exploratory"]) for trend in shown] == [("score", False), ("nll", True)]
    assert as_html(analysis).count('class="trend-figure"') == 2
    assert "(exploratory) over step: 4 checkpoints" in as_markdown(analysis).replace("\\", "")


def test_few_conversations_are_too_little_data(tmp_path: Path) -> None:
    assert trend_of(tmp_path, 0.1, conversations=4).verdict == "too little data"


def test_concordance_is_the_mean_of_kendalls_tau_by_conversation(tmp_path: Path) -> None:
    from scipy.stats import kendalltau

    scores = np.random.default_rng(3).permutation(6 * 4).reshape(6, 4) / 24

    def change(row: dict[str, Any], _rng: np.random.Generator) -> None:
        number, cell = int(row["conversation"].removeprefix("talk-")), int(row["cell"].removeprefix("step="))
        row["checks"][0]["score"] = scores[number, cell]

    cells = [f"step={n}" for n in range(4)]
    path = make_run(tmp_path / "a", cells=cells, conversations=6, repeats=1, turns=1, change=change)
    trend = compare([str(path)], over="step").trend
    assert trend is not None
    assert trend.concordance == pytest.approx(np.mean([kendalltau(range(4), row).statistic for row in scores]))


def test_the_first_checkpoint_is_the_baseline_and_units_of_positions_are_read(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / name, seed=1)) for name in ("tokens-2b", "tokens-500m", "tokens-1.5b")]
    analysis = compare(paths, over="tokens")
    assert analysis.trend is not None
    assert [point.x for point in analysis.trend.points] == [5e8, 1.5e9, 2e9]
    assert {pair.baseline.label for pair in analysis.pairs} == {"tokens-500m"}
    assert analysis.trend.verdict == "no change"


def test_positions_are_read_from_a_list(tmp_path: Path) -> None:
    trend = trend_of(tmp_path, 0.1, over="100,1000,200,3e3")
    assert [point.variant.label for point in trend.points] == ["step-100", "step-200", "step-1000", "step-3000"]


@pytest.mark.parametrize(("slope", "verdict"), [(5, "rises"), (-5, "falls")])
def test_a_metric_without_direction_rises_or_falls(tmp_path: Path, slope: int, verdict: str) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator, position: int) -> None:
        row["tokens"]["reply"] = 40 + slope * position + int(rng.integers(3))

    paths = [str(make_run(tmp_path / f"step-{n}", seed=n, change=partial(change, position=n))) for n in range(3)]
    analysis = compare(paths, over="step", primary="tokens")
    assert analysis.trend is not None
    assert (analysis.trend.metric.name, analysis.trend.verdict) == ("tokens", verdict)


def test_the_trend_of_all_k_is_computed_by_conversation(tmp_path: Path) -> None:
    def change(row: dict[str, Any], _: np.random.Generator, position: int) -> None:
        passed = int(row["conversation"].removeprefix("talk-")) < 4 * position
        row["checks"][0] |= {"passed": passed, "score": float(passed)}

    paths = [str(make_run(tmp_path / f"step-{n}", change=partial(change, position=n))) for n in range(4)]
    trend = compare(paths, over="step", primary="all_2").trend
    assert trend is not None
    assert [point.mean for point in trend.points] == [0, 4 / 12, 8 / 12, 1]
    assert (trend.num_values, trend.num_conversations, trend.verdict) == (12, 12, "improves")


def test_positions_are_read_from_a_setting_of_the_cells(tmp_path: Path) -> None:
    settings = {name: {"temperature": value} for name, value in (("a", 0.5), ("b", 2), ("c", 1.0))}
    trend = compare(
        [str(make_run(tmp_path / "run", cells=list(settings), settings=settings))], over="temperature"
    ).trend
    assert trend is not None
    assert [(point.variant.cell, point.x) for point in trend.points] == [("a", 0.5), ("c", 1.0), ("b", 2.0)]


def test_two_checkpoints_are_refused(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / f"step-{n}")) for n in range(2)]
    with pytest.raises(UsageError, match="--over needs at least 3 checkpoints, got 2"):
        compare(paths, over="step")


def test_the_sparkline_has_a_bar_for_each_mean_that_fits(tmp_path: Path) -> None:
    trend = trend_of(tmp_path / "a", 0.1)
    points = [replace(trend.points[0], mean=mean) for mean in (0.0, 0.5, 0.25, 1.0)]
    assert sparkline(replace(trend, points=tuple(points)), 80) == "▁▅▃█"
    assert sparkline(replace(trend, points=tuple(points)), 2) == "▁█"
    assert sparkline(replace(trend, points=tuple(points[:1] * 3)), 80) == "▅▅▅"


@pytest.mark.parametrize(
    ("over", "message"),
    [("epoch", "no number after 'epoch'"), ("1,2,3", "one number for each of the 4"), ("1,2,2,3", "are both at 2")],
)
def test_invalid_positions_are_refused(tmp_path: Path, over: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trend_of(tmp_path, 0.1, over=over)


def test_rows_missing_at_some_checkpoints_are_left_out_and_counted(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / f"step-{n}", conversations=12 - 2 * (n == 2), seed=n)) for n in range(3)]
    trend = compare(paths, over="step", force=True).trend
    assert trend is not None
    assert (trend.num_values, trend.num_conversations, trend.num_left_out) == (40, 10, 8)


@pytest.mark.usefixtures("undrawn")
def test_every_format_has_the_trend(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / f"step-{n}", seed=n)) for n in range(3)]
    analysis = compare(paths, over="step")
    assert [point["x"] for point in json.loads(as_json(analysis))["trend"]["points"]] == [0, 1, 2]
    assert "| step | checkpoint | mean | 95 % band |" in as_markdown(analysis)
    assert analysis.trend is not None
    text = io.StringIO()
    print_analysis(analysis, Console(file=text, width=100))
    means = [point.mean for point in analysis.trend.points]
    scale = f"  bars from {min(means):.3f} to {max(means):.3f}"
    assert f"\n{sparkline(analysis.trend, 100 - len(scale))}{scale}\n" in text.getvalue()
    page = as_html(analysis)
    assert page.index('class="trend-figure"') < page.index('id="verdicts"')
    assert json.loads(as_json(compare(paths)))["trend"] is None


@pytest.mark.usefixtures("undrawn")
def test_the_band_near_a_limit_is_the_same_in_markdown_and_html(tmp_path: Path) -> None:
    """Ends of a band may be shown as the limits, unlike means."""
    analysis = compare([str(make_run(tmp_path / f"step-{n}", seed=n)) for n in range(3)], over="step")
    assert analysis.trend is not None
    ends = ((0.9999, 0.9996, 0.99996), (0.0001, 0.00004, 0.0004), (0.5, math.nan, math.nan))
    points = tuple(
        replace(point, mean=mean, low=low, high=high)
        for point, (mean, low, high) in zip(analysis.trend.points, ends, strict=True)
    )
    analysis = replace(analysis, trends=(replace(analysis.trend, points=points),))
    page, markdown = as_html(analysis), as_markdown(analysis)
    for name, mean, band in (
        ("step-0", "0.9999", "[0.9996, 1.000]"),
        ("step-1", "0.0001", "[0.000, 0.0004]"),
        ("step-2", "0.500", "—"),
    ):
        assert f"| {name} | {mean} | {escaped(band)} |" in markdown
        assert f"{name}: {mean} {band}<" in page


@pytest.mark.slow
def test_the_band_covers_all_means_in_95_of_100_samples() -> None:
    from rwkvbatch.comparison.metrics.declarations import metric_named
    from rwkvbatch.comparison.statistics.trend import band

    rng, num_covered, num_samples = np.random.default_rng(1), 0, 150
    conversations = np.repeat(np.arange(30), 2)
    for _ in range(num_samples):
        true = np.linspace(0.4, 0.7, 8)
        ease = rng.normal(0, 0.1, (30, 1)).repeat(2, axis=0)
        values = (rng.random((60, 8)) < np.clip(true + ease, 0, 1)).astype(float)
        _, ends = band(metric_named("score"), values, conversations)
        num_covered += all(low <= mean <= high for mean, (low, high) in zip(true, ends, strict=True))
    assert num_covered / num_samples >= 0.92


def test_a_metric_that_rises_and_falls_again_has_changed(tmp_path: Path) -> None:
    """Kendall's tau is 0 in every conversation."""

    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        score = float(row["cell"] == "step=2")
        row["checks"][0] |= {"passed": score == 1, "score": score}

    path = str(make_run(tmp_path / "a", cells=("step=1", "step=2", "step=3"), conversations=12, change=change))
    trend = compare(path, over="step").trend
    assert trend is not None
    assert (trend.verdict, trend.concordance) == ("no trend found", 0)
    assert trend.low < 0 < trend.high
