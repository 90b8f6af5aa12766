"""The report's figures of what becomes of a metric from turn to turn: a line a variant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.loading import varied_settings
from rwkvbatch.comparison.metrics import TURN_METRICS, Metric
from rwkvbatch.comparison.paired import Pair, Variant
from rwkvbatch.comparison.ranking import VariantMean, mean_of, rows_of
from rwkvbatch.comparison.report.svg import (
    ACCENT,
    BAD,
    FAINT,
    GOOD,
    INK,
    PAPER,
    SERIES,
    Figure,
    canvas,
    figure_title,
    inline_svg,
    is_number,
    label_of,
    report_style,
)
from rwkvbatch.comparison.report.wording import number
from rwkvbatch.prompt.escaping import printable

# matplotlib's figures and pandas' tables are barely typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


_MAX_DOTS = 60


@dataclass(frozen=True)
class _Point:
    variant: Variant
    mean: VariantMean
    verdict: str

    @property
    def tip(self) -> str:
        digits = self.mean.metric.digits
        ends = ""
        if not math.isnan(self.mean.low):
            ends = f" [{number(self.mean.low, digits)}, {number(self.mean.high, digits)}]"
        verdict = f"; {self.verdict} than the baseline" if self.verdict in ("better", "worse") else ""
        return printable(f"{self.variant.label}: {number(self.mean.mean, digits)}{ends}{verdict}")


def sweep_figures(analysis: Analysis) -> list[Figure]:
    """One figure a metric: how its mean goes over the variants."""
    means = {v: {m.metric.name: m for m in analysis.means(v)} for v in analysis.variants}
    verdicts = {
        (line.pair.variant, line.metric.name): line.verdict for line in analysis.comparisons if line.group is None
    }
    settings = _settings(analysis)
    axes = _axes(settings)
    figures: list[Figure] = []
    with report_style():
        for metric in TURN_METRICS:
            points = [
                _Point(v, means[v][metric.name], verdicts.get((v, metric.name), ""))
                for v in analysis.variants
                if metric.name in means[v]
            ]
            if len(points) < 2 or all(p.mean.mean == points[0].mean.mean for p in points):
                continue
            figures.append(_sweep_figure(metric, points, axes, settings, analysis.pairs))
    return figures


def _settings(analysis: Analysis) -> dict[Variant, dict[str, Any]]:
    facts = {run.name: run.facts for run in analysis.runs}
    several = len(analysis.runs) > 1
    return {v: {**facts[v.run].cells.get(v.cell, {}), **({"run": v.run} if several else {})} for v in analysis.variants}


def _axes(settings: dict[Variant, dict[str, Any]]) -> list[str]:
    """The settings that make the sweep: numbers that differ between variants, if they tell all of them apart."""
    varied = varied_settings({variant.label: values for variant, values in settings.items()})
    names = [key for key, values in varied.items() if all(map(is_number, values)) or key == "run"]
    places = {tuple(str(values.get(name)) for name in names) for values in settings.values()}
    return names if len(places) == len(settings) else []


def _sweep_figure(
    metric: Metric,
    points: Sequence[_Point],
    axes: Sequence[str],
    settings: dict[Variant, dict[str, Any]],
    pairs: Sequence[Pair],
) -> Figure:
    numeric = [name for name in axes if name != "run"]
    if len(axes) == 2 and len(points) > 3:
        svg = _heat_map(metric, points, axes, settings, pairs)
        caption = (
            "Mean of each cell. The outlined cell is the baseline; a dot marks cells that differ from it beyond "
            "noise: green for better, red for worse."
        )
    elif len(axes) == 1 and numeric and len(points) > 2:
        svg = _line(metric, points, numeric[0], settings)
        caption = "Mean and 95 % interval of each cell, clustered by conversation."
    else:
        svg = _dots(metric, points[:_MAX_DOTS])
        caption = "Mean and 95 % interval, clustered by conversation."
    return Figure(metric.name, figure_title(metric), caption, svg)


def _heat_map(
    metric: Metric,
    points: Sequence[_Point],
    axes: Sequence[str],
    settings: dict[Variant, dict[str, Any]],
    pairs: Sequence[Pair],
) -> str:
    from matplotlib.patches import FancyBboxPatch

    first, second = (_ordered({settings[p.variant][name] for p in points}) for name in axes)
    if len(first) > len(second):
        across, down, values_across, values_down = axes[0], axes[1], first, second
    else:
        across, down, values_across, values_down = axes[1], axes[0], second, first
    figure, plot = canvas(1.4 + 1.15 * len(values_across), 0.7 + 0.62 * len(values_down))
    baselines = {pair.baseline for pair in pairs}
    means = [p.mean.mean for p in points]
    low, span = min(means), max(means) - min(means) or 1.0
    tips: dict[str, str] = {}
    for i, p in enumerate(points):
        x = values_across.index(settings[p.variant][across])
        y = values_down.index(settings[p.variant][down])
        strength = 0.06 + 0.54 * (p.mean.mean - low) / span
        box = FancyBboxPatch(
            (x - 0.46, y - 0.44), 0.92, 0.88, boxstyle="round,pad=0,rounding_size=0.07", facecolor=(ACCENT, strength),
            edgecolor="none", gid=f"tip-{i}",
        )  # fmt: skip
        plot.add_patch(box)
        if p.variant in baselines:
            box.set_edgecolor(FAINT)
            box.set_linewidth(1.2)
        tips[f"tip-{i}"] = p.tip
        plot.text(x, y, number(p.mean.mean, metric.digits), ha="center", va="center", color=INK)
        if p.verdict in ("better", "worse", "differs"):
            colour = {"better": GOOD, "worse": BAD}.get(p.verdict, INK)
            plot.plot([x + 0.36], [y - 0.32], "o", markersize=4.5, color=colour, markeredgewidth=0)
    plot.set_xlim(-0.5, len(values_across) - 0.5)
    plot.set_ylim(len(values_down) - 0.5, -0.5)
    plot.set_xticks(range(len(values_across)), [label_of(value) for value in values_across])
    plot.set_yticks(range(len(values_down)), [label_of(value) for value in values_down])
    plot.set_xlabel(across)
    plot.set_ylabel(down)
    for spine in plot.spines.values():
        spine.set_visible(False)
    return inline_svg(figure, label=f"{metric.title} over {across} and {down}", tips=tips, prefix=f"h-{metric.name}")


def _line(metric: Metric, points: Sequence[_Point], axis: str, settings: dict[Variant, dict[str, Any]]) -> str:
    figure, plot = canvas(8.4, 3.2)
    ordered = sorted(points, key=lambda p: settings[p.variant][axis])
    x = [float(settings[p.variant][axis]) for p in ordered]
    y = [p.mean.mean for p in ordered]
    plot.plot(x, y, color=ACCENT, linewidth=1.8)
    tips = _error_dots(plot, x, ordered, vertical=True)
    plot.set_xticks(x, [label_of(value) for value in x])
    plot.set_xlabel(axis)
    plot.grid(axis="y")
    plot.spines["left"].set_visible(False)
    plot.margins(x=0.05, y=0.12)
    return inline_svg(figure, label=f"{metric.title} over {axis}", tips=tips, prefix=f"l-{metric.name}")


def _dots(metric: Metric, points: Sequence[_Point]) -> str:
    figure, plot = canvas(7.6, 0.75 + 0.36 * len(points))
    places = list(range(len(points)))
    tips = _error_dots(plot, [float(place) for place in places], points, vertical=False)
    plot.set_yticks(places, [label_of(p.variant.label) for p in points])
    plot.set_ylim(len(points) - 0.4, -0.6)
    plot.grid(axis="x")
    plot.spines["left"].set_visible(False)
    plot.margins(x=0.08)
    return inline_svg(figure, label=f"{metric.title} by variant", tips=tips, prefix=f"d-{metric.name}")


def _error_dots(plot: Any, places: Sequence[float], points: Sequence[_Point], *, vertical: bool) -> dict[str, str]:
    tips: dict[str, str] = {}
    for i, (place, p) in enumerate(zip(places, points, strict=True)):
        colour = {"better": GOOD, "worse": BAD}.get(p.verdict, ACCENT)
        if not math.isnan(p.mean.low):
            ends, here = [p.mean.low, p.mean.high], [place, place]
            plot.plot(*((here, ends) if vertical else (ends, here)), color=colour, linewidth=2, alpha=0.55,
                      solid_capstyle="round")  # fmt: skip
        spot = ([place], [p.mean.mean]) if vertical else ([p.mean.mean], [place])
        plot.plot(*spot, "o", markersize=8, color=colour, markeredgecolor=PAPER, markeredgewidth=1.4, gid=f"tip-{i}")
        tips[f"tip-{i}"] = p.tip
    return tips


def _ordered(values: set[Any]) -> list[Any]:
    return sorted(values, key=lambda value: (isinstance(value, str), value))


# matplotlib's figures and pandas' tables are barely typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


_LEGEND_CHARACTERS = 78  # in a row as wide as the figure
_SHOWN = ("nll", "score", "tokens", "loop")


def turn_figures(analysis: Analysis) -> list[Figure]:
    """One figure a metric: its mean at each turn, a line a variant; none for single-turn scripts."""
    turns = sorted(int(turn) for turn in analysis.table["turn"].unique())
    variants = analysis.variants[: len(SERIES)]
    if len(turns) < 2:
        return []
    figures: list[Figure] = []
    with report_style():
        figures.extend(
            _turn_figure(metric, analysis, variants, turns)
            for metric in TURN_METRICS
            if metric.name in _SHOWN and bool(analysis.table[metric.name].notna().any())
        )
    return figures


def _turn_figure(metric: Metric, analysis: Analysis, variants: Sequence[Variant], turns: Sequence[int]) -> Figure:
    figure, plot = canvas(8.4, 3.2)
    tips: dict[str, str] = {}
    for number_, variant in enumerate(variants):
        rows = rows_of(analysis.table, variant)
        x: list[float] = []
        y: list[float] = []
        for turn in turns:
            own = rows.loc[rows["turn"] == turn]
            values = own[metric.name].to_numpy(dtype=np.float64)
            if np.isnan(values).all():
                continue
            estimate = mean_of(metric, values, own["conversation"].to_numpy())
            low, high = estimate.low, estimate.high
            shift = (number_ - (len(variants) - 1) / 2) * 0.05
            x.append(turn + shift)
            y.append(estimate.mean)
            if not math.isnan(low):
                plot.plot([turn + shift] * 2, [low, high], color=SERIES[number_], linewidth=1.6, alpha=0.45)
            gid = f"tip-{number_}-{turn}"
            plot.plot([turn + shift], [estimate.mean], "o", markersize=6.5, color=SERIES[number_],
                      markeredgecolor=PAPER, gid=gid)  # fmt: skip
            tips[gid] = printable(f"{variant.label}, turn {turn}: {number(estimate.mean, metric.digits)}")
        plot.plot(x, y, color=SERIES[number_], linewidth=1.6, label=label_of(variant.label), zorder=1.5)
    plot.set_xticks(list(turns))
    plot.set_xlabel("turn")
    plot.grid(axis="y")
    plot.spines["left"].set_visible(False)
    longest = max(len(label_of(variant.label)) for variant in variants)
    plot.legend(
        frameon=False, labelcolor=FAINT, loc="lower left", bbox_to_anchor=(0, 1),
        ncols=max(1, min(4, _LEGEND_CHARACTERS // (longest + 6))),
        handlelength=1.2, borderaxespad=0.2,
    )  # fmt: skip
    svg = inline_svg(figure, label=f"{metric.title} by turn", tips=tips, prefix=f"t-{metric.name}")
    caption = "Mean and 95 % interval at each turn."
    if len(variants) < len(analysis.variants):
        caption += f" The first {len(variants)} of {len(analysis.variants)} variants."
    return Figure(metric.name, figure_title(metric), caption, svg)
