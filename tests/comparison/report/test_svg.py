"""Figures of the report: drawn once, with the box that two drawings give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure as Drawing

from rwkvbatch.comparison import Analysis, compare
from rwkvbatch.comparison.metrics import metric_named
from rwkvbatch.comparison.report import charts, svg
from tests.comparison.make_run import make_run


def analysis_of(kind: str, folder: Path) -> Analysis:
    """Runs whose report has figures of this kind; those of a trend have a logarithmic axis, others long labels."""
    if kind == "trend":
        return compare(
            [str(make_run(folder / f"step-{10**n}", conversations=4, seed=n)) for n in range(4)], over="step"
        )
    if kind == "heat map":
        settings = {f"{t},{f}": {"temperature": t, "frequency_penalty": f} for t in (0.3, 1.0, 1.5) for f in (0.0, 0.5)}
    else:
        settings = {f"{kind}, and much more after it {t}": {"temperature": t} for t in (0.3, 0.7, 1.0)}
    path = make_run(
        folder / "run", conversations=4, repeats=1, cells=list(settings), settings=settings if kind != "dots" else None
    )
    return compare([str(path)])


def figures_of(analysis: Analysis) -> list[svg.Figure]:
    if analysis.trend is not None:
        return [charts.trend_figure(analysis.trend)]
    return [*charts.sweep_figures(analysis), *charts.turn_figures(analysis)]


@pytest.mark.parametrize("kind", ["heat map", "line", "dots", "trend"])
def test_a_figure_drawn_once_equals_one_with_a_measured_box(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysis = analysis_of(kind, tmp_path)
    monkeypatch.setattr(charts, "TURN_METRICS", (metric_named("score"),))
    drawn: list[Drawing] = []
    draw = Drawing.draw

    def counted(figure: Drawing, renderer: Any) -> None:
        drawn.append(figure)
        draw(figure, renderer)

    monkeypatch.setattr(Drawing, "draw", counted)
    once = figures_of(analysis)
    assert len(drawn) == len(once)
    monkeypatch.setattr(svg, "_tight_box", lambda _: "tight")
    with mpl.rc_context({"savefig.pad_inches": 0.06}):
        twice = figures_of(analysis)
    for drawn_once, drawn_twice in zip(once, twice, strict=True):
        text, numbers = without_numbers(drawn_once.svg)
        expected_text, expected_numbers = without_numbers(drawn_twice.svg)
        assert text == expected_text
        assert np.abs(np.subtract(numbers, expected_numbers)).max() < 1e-3


def without_numbers(text: str) -> tuple[str, list[float]]:
    """Text and numbers, without the names of clip paths, which are hashes of coordinates."""
    text = re.sub(r"-p[0-9a-f]{10}\b", "", text)
    number = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
    return number.sub("#", text), [float(found) for found in number.findall(text)]
