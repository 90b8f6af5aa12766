"""Figures of the report: drawn once, with the box and the places that two drawings of matplotlib give."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from html import unescape
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure as Drawing

from rwkvbatch.comparison import Analysis, compare
from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.comparison.report import charts, svg
from rwkvbatch.errors import UsageError
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
def test_a_figure_drawn_once_shows_what_matplotlib_shows_with_a_tight_box(
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
    figures = figures_of(analysis)
    assert len(drawn) == len(figures)
    monkeypatch.undo()
    for figure, drawing in zip(figures, drawn, strict=True):
        buffer = io.StringIO()
        with mpl.rc_context(dict(svg.STYLE)):
            drawing.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.06)
        ours, theirs = shown(figure.svg), shown(buffer.getvalue())
        assert [text for text, _ in ours] == [text for text, _ in theirs]
        assert len(ours) > 5
        places = [np.array([place for _, place in texts]) for texts in (ours, theirs)]
        assert np.abs(places[0] - places[1]).max() < 1e-3


def shown(text: str) -> list[tuple[str, tuple[float, ...]]]:
    """The size of a drawing, and its texts with their places in it."""
    root = ET.fromstring(text)
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    texts: list[tuple[str, tuple[float, ...]]] = [("", (width, height))]
    for element in root.iter("{http://www.w3.org/2000/svg}text"):
        place = [float(element.get(name, 0)) for name in ("x", "y")]
        if not any(place):  # a turned text
            place = [float(number) for number in re.findall(r"-?[\d.]+", element.attrib["transform"])[:2]]
        texts.append((element.text or "", (place[0] - left, place[1] - top)))
    return texts


@pytest.mark.parametrize("kind", ["heat map", "line", "dots", "trend"])
def test_each_variant_has_its_tooltip_at_one_shape(kind: str, tmp_path: Path) -> None:
    analysis = analysis_of(kind, tmp_path)
    root = ET.fromstring(figures_of(analysis)[0].svg)
    tips = [shape.findtext("{http://www.w3.org/2000/svg}title") for shape in root.iter() if shape.get("class") == "tip"]
    assert [str(tip).partition(": ")[0] for tip in tips] == [variant.label for variant in analysis.variants]


def test_lines_of_a_legend_above_the_figure_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "_TURN_METRICS", ())
    cells = [f"{'a long name of a cell, which takes a row of its own ' * 2}{n}" for n in range(8)]
    analysis = compare([str(make_run(tmp_path / "run", conversations=2, cells=cells))])
    root = ET.fromstring(charts.turn_figures(analysis)[0].svg)
    (legend,) = (group for group in root.iter() if str(group.get("id")).endswith("legend_1"))
    lines = [path.get("d") for path in legend.iter("{http://www.w3.org/2000/svg}path")]
    assert len(lines) == 8
    assert all(lines)


@pytest.mark.parametrize("num_settings", [0, 1, 2])
@pytest.mark.parametrize(("nll", "shown"), [(1e4, ">1e308"), (709.7, "1.65e+308")])
def test_a_mean_beyond_an_axis_is_drawn_without_a_dot_or_in_the_darkest_cell(
    num_settings: int, nll: float, shown: str, tmp_path: Path
) -> None:
    varied = [("temperature", (0.3, 1.0, 1.5)), ("frequency", (0.0, 0.5))][:num_settings]
    places = [
        dict(zip((name for name, _ in varied), values, strict=True)) for values in product(*(v for _, v in varied))
    ]
    settings = {f"cell {n}": place for n, place in enumerate(places if num_settings else [{}] * 4)}

    def change(row: dict[str, Any], _rng: np.random.Generator) -> None:
        if row["reference"]:
            row["reference"]["nll"] = nll if row["cell"] == "cell 1" else 0.1

    path = make_run(
        tmp_path / "run", conversations=3, repeats=1, cells=list(settings), settings=settings, change=change
    )
    figures = {figure.name: figure.svg for figure in charts.sweep_figures(compare([str(path)]))}
    assert (shown in unescape(figures["perplexity"])) == (num_settings == 2)
    assert "nan" not in figures["perplexity"]


@pytest.mark.parametrize("others", [{}, {"temperature": 0.5}])
def test_cells_with_an_integer_beyond_a_float_have_dots_with_labels(others: dict[str, float], tmp_path: Path) -> None:
    settings = {f"cell {n}": {"seed": 10 ** (400 * n), **(others if n else {})} for n in range(4)}
    path = make_run(tmp_path / "run", conversations=2, repeats=1, cells=list(settings), settings=settings)
    figure = charts.sweep_figures(compare([str(path)]))[0]
    assert all(f">{name}<" in figure.svg for name in settings)


def test_a_trend_over_an_integer_beyond_a_float_is_refused(tmp_path: Path) -> None:
    settings = {f"cell {n}": {"step": 10 ** (400 * n)} for n in range(4)}
    path = make_run(tmp_path / "run", conversations=2, repeats=1, cells=list(settings), settings=settings)
    with pytest.raises(UsageError, match="--over step"):
        compare([str(path)], over="step")


def test_a_chart_of_the_first_variants_says_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "TURN_METRICS", (metric_named("score"),))
    analysis = compare([str(make_run(tmp_path / "run", conversations=2, repeats=1, cells=["a", "b", "c"]))])
    assert "variants" not in charts.sweep_figures(analysis)[0].caption
    monkeypatch.setattr(charts, "_MAX_DOTS", 2)
    assert charts.sweep_figures(analysis)[0].caption.endswith(" The first 2 of 3 variants.")
