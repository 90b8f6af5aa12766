"""Charts of the report: metrics over the settings of a sweep, over checkpoints, over turns, and by distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.metrics.declarations import TURN_METRICS, Metric, metric_named
from rwkvbatch.comparison.numbers import interval, mean_interval, shown_mean, with_minus
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
    drawable,
    fits_axis,
    inline_svg,
    label_of,
    report_style,
)
from rwkvbatch.comparison.runs.data import Variant, varied_settings
from rwkvbatch.comparison.runs.table import PROBE_COLUMNS
from rwkvbatch.comparison.statistics.means import VariantMean, mean_of
from rwkvbatch.comparison.statistics.trend import Trend
from rwkvbatch.comparison.values.columns import rows_of
from rwkvbatch.comparison.values.groups import UNITS, Unit, distance_groups
from rwkvbatch.comparison.values.metric_values import weights_of
from rwkvbatch.comparison.wording import TREND_NOTE, metric_title, trend_title
from rwkvbatch.prompt.escaping import printable

if TYPE_CHECKING:
    import pandas as pd

# matplotlib and pandas are partly typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

_MAX_DOTS = 60
_LOG_AXIS = 50
"""The axis of checkpoints is logarithmic above this ratio of the last to the first."""
_LABEL_DISTANCE = 3.5
"""Points between an axis and its labels, as matplotlib has them for ticks."""
_LEGEND_CHARACTERS = 78
"""The number of characters that fit into a row of the legend."""
_GROUP_COLUMNS = ("conversation_code", "turn", *PROBE_COLUMNS)
"""The columns that `_lines` copies along with the metric's; copying all would take longer than drawing the charts."""
_TURN_METRICS = ("nll", "score", "tokens", "loop")
_COLOURS = {"better": GOOD, "worse": BAD}

_Settings = Mapping[Variant, Mapping[str, Any]]


@dataclass(frozen=True)
class _Point:
    """A variant's mean in one metric, and the verdict on its difference from the baseline; empty without one."""

    variant: Variant
    mean: VariantMean
    verdict: str

    @property
    def tip(self) -> str:
        """The tooltip."""
        interval_text = "" if math.isnan(self.mean.low) else f" {interval(self.mean)}"
        verdict = f"; {self.verdict} than the baseline" if self.verdict in _COLOURS else ""
        mean = with_minus(f"{shown_mean(self.mean.metric, self.mean.mean)}{interval_text}")
        return printable(f"{self.variant.label}: {mean}{verdict}")


def sweep_figures(analysis: Analysis) -> list[Figure]:
    """The primary metric's figure, then one per other metric whose mean differs between variants.

    Only differences in the primary metric are coloured by their verdicts.
    """
    means = {
        variant: {mean.metric.name: mean for mean in analysis.means(variant, turns_only=True)}
        for variant in analysis.variants
    }
    verdicts = {
        (line.pair.variant, line.metric.name): line.verdict for line in analysis.comparisons if not line.exploratory
    }
    cells = {run.name: run.facts.cells for run in analysis.runs}
    has_several_runs = len(analysis.runs) > 1
    settings = {
        variant: {**cells[variant.run].get(variant.cell, {}), **({"run": variant.run} if has_several_runs else {})}
        for variant in analysis.variants
    }
    axes = _axes(settings)
    baselines = frozenset(pair.baseline for pair in analysis.pairs)
    figures: list[Figure] = []
    with report_style():
        for metric in _primary_first(analysis, TURN_METRICS):
            points = [
                _Point(variant, means[variant][metric.name], verdicts.get((variant, metric.name), ""))
                for variant in analysis.variants
                if metric.name in means[variant]
            ]
            is_primary = metric == analysis.primary and len(points) > 1
            if is_primary or len({point.mean.mean for point in points}) > 1:
                figure = _sweep_figure(metric, points, axes, settings, baselines)
                caption = figure.caption + _caption_on_turns(analysis)
                figures.append(replace(figure, caption=caption, exploratory=metric != analysis.primary))
    return figures


def _caption_on_turns(analysis: Analysis) -> str:
    """A sentence for captions if charts have turns that the tables lack; empty otherwise."""
    if not any(variant_dropped.missing or variant_dropped.different for variant_dropped in analysis.dropped):
        return ""
    return " Of all turns of a variant; means in tables are of those that have a counterpart."


def _primary_first(analysis: Analysis, metrics: Iterable[Metric]) -> list[Metric]:
    first = [] if analysis.primary is None else [analysis.primary]
    return [*first, *(metric for metric in metrics if metric not in first)]


def _axes(settings: _Settings) -> list[str]:
    """The numeric settings, and `run`, that differ between variants, if together they identify each variant."""
    varied = varied_settings({variant.label: values for variant, values in settings.items()})
    names = [name for name, values in varied.items() if all(map(fits_axis, values)) or name == "run"]
    positions = {tuple(str(values.get(name)) for name in names) for values in settings.values()}
    return names if len(positions) == len(settings) else []


def _sweep_figure(
    metric: Metric, points: Sequence[_Point], axes: Sequence[str], settings: _Settings, baselines: frozenset[Variant]
) -> Figure:
    if len(axes) == 2 and len(points) > 3:
        svg = _heat_map(metric, points, axes, settings, baselines)
        caption = (
            "Mean of each cell. The outlined cell is the baseline; in the primary metric a dot marks cells that differ "
            "significantly from it: green for better, red for worse."
        )
    elif len(axes) == 1 and axes[0] != "run" and len(points) > 2:
        svg = _line(metric, points, axes[0], settings)
        caption = "Mean and 95 % interval of each cell, clustered by conversation."
    else:
        svg = _dots(metric, points[:_MAX_DOTS])
        caption = "Mean and 95 % interval, clustered by conversation."
        if len(points) > _MAX_DOTS:
            caption += f" The first {_MAX_DOTS} of {len(points)} variants."
    return Figure(metric.name, metric_title(metric), caption, svg)


def _heat_map(
    metric: Metric, points: Sequence[_Point], axes: Sequence[str], settings: _Settings, baselines: frozenset[Variant]
) -> str:
    from matplotlib.patches import FancyBboxPatch

    # The axis with more values is horizontal.
    (y_name, y_values), (x_name, x_values) = sorted(
        ((name, _ordered({settings[point.variant][name] for point in points})) for name in axes),
        key=lambda axis: len(axis[1]),
    )
    figure, plot = canvas(1.4 + 1.15 * len(x_values), 0.7 + 0.62 * len(y_values))
    means = drawable(point.mean.mean for point in points)
    finite = [mean for mean in means if math.isfinite(mean)] or [0.0]
    low, span = min(finite), max(finite) - min(finite) or 1.0
    tips: dict[str, list[str]] = {}
    for i, (point, mean) in enumerate(zip(points, means, strict=True)):
        x = x_values.index(settings[point.variant][x_name])
        y = y_values.index(settings[point.variant][y_name])
        opacity = 0.06 + 0.54 * min(1.0, max(0.0, (mean - low) / span))
        box = FancyBboxPatch(
            (x - 0.46, y - 0.44), 0.92, 0.88, boxstyle="round,pad=0,rounding_size=0.07", facecolor=(ACCENT, opacity),
            edgecolor="none", gid=f"tip-{i}",
        )  # fmt: skip
        plot.add_patch(box)
        if point.variant in baselines:
            box.set_edgecolor(FAINT)
            box.set_linewidth(1.2)
        tips[f"tip-{i}"] = [point.tip]
        plot.text(x, y, shown_mean(metric, point.mean.mean), ha="center", va="center", color=INK)
        if point.verdict in ("better", "worse", "differs"):
            colour = _COLOURS.get(point.verdict, INK)
            plot.plot([x + 0.36], [y - 0.32], "o", markersize=4.5, color=colour, markeredgewidth=0)
    plot.set_xlim(-0.5, len(x_values) - 0.5)
    plot.set_ylim(len(y_values) - 0.5, -0.5)
    plot.set_xticks(range(len(x_values)), [label_of(value) for value in x_values])
    plot.set_yticks(range(len(y_values)), [label_of(value) for value in y_values])
    plot.set_xlabel(x_name)
    plot.set_ylabel(y_name)
    for spine in plot.spines.values():
        spine.set_visible(False)
    return inline_svg(figure, label=f"{metric.title} over {x_name} and {y_name}", tips=tips, prefix=f"h-{metric.name}")


def _line(metric: Metric, points: Sequence[_Point], axis: str, settings: _Settings) -> str:
    figure, plot = canvas(8.4, 3.2, grid="y")
    ordered = sorted(points, key=lambda point: settings[point.variant][axis])
    x = [float(settings[point.variant][axis]) for point in ordered]
    plot.plot(x, drawable(point.mean.mean for point in ordered), color=ACCENT, linewidth=1.8)
    tips = _error_dots(plot, x, ordered, vertical=True)
    plot.set_xticks(x, [label_of(value) for value in x])
    plot.set_xlabel(axis)
    plot.margins(x=0.05, y=0.12)
    return inline_svg(figure, label=f"{metric.title} over {axis}", tips=tips, prefix=f"l-{metric.name}")


def _dots(metric: Metric, points: Sequence[_Point]) -> str:
    figure, plot = canvas(7.6, 0.75 + 0.36 * len(points), grid="x")
    positions = range(len(points))
    tips = _error_dots(plot, positions, points, vertical=False)
    # Texts in the place of labels of ticks: a tick also has a line at each side and one of the grid to be drawn.
    transform, valign, halign = plot.get_yaxis_text1_transform(_LABEL_DISTANCE)
    for position, point in zip(positions, points, strict=True):
        text = label_of(point.variant.label)
        plot.text(0, position, text, transform=transform, va=valign, ha=halign, color=FAINT)
    plot.set_yticks([])
    plot.set_ylim(len(points) - 0.4, -0.6)
    plot.margins(x=0.08)
    return inline_svg(figure, label=f"{metric.title} by variant", tips=tips, prefix=f"d-{metric.name}")


def _error_dots(
    plot: Any, positions: Sequence[float], points: Sequence[_Point], *, vertical: bool
) -> dict[str, Sequence[str]]:
    """Draw each point's mean as a dot on its interval, vertical or horizontal; returns the tooltips."""
    colours = [_COLOURS.get(point.verdict, ACCENT) for point in points]
    known = [i for i, point in enumerate(points) if not math.isnan(point.mean.low)]
    lows, highs = (drawable(getattr(points[i].mean, end) for i in known) for end in ("low", "high"))
    (plot.vlines if vertical else plot.hlines)(
        [positions[i] for i in known], lows, highs, colors=[colours[i] for i in known], linewidth=2, alpha=0.55,
        capstyle="round", zorder=2,
    )  # fmt: skip
    means = drawable(point.mean.mean for point in points)
    x, y = (positions, means) if vertical else (means, positions)
    return {"dots": _scatter(plot, x, y, [point.tip for point in points], "dots", colours, size=8, edge=1.4)}


def _scatter(
    plot: Any, x: Sequence[float], y: Sequence[float], tips: Sequence[str], gid: str, colours: Sequence[str],
    *, size: float, edge: float = 1.0,
) -> list[str]:  # fmt: skip
    """Draw dots of a diameter in points. Returns their tooltips; infinite values have neither."""
    drawn = [i for i in range(len(tips)) if math.isfinite(x[i]) and math.isfinite(y[i])]
    places = ([values[i] for i in drawn] for values in (x, y))
    plot.scatter(
        *places, s=size**2, c=[colours[i] for i in drawn], edgecolors=PAPER, linewidths=edge, gid=gid, zorder=2
    )
    return [tips[i] for i in drawn]


def trend_figure(trend: Trend, *, exploratory: bool = False) -> Figure:
    """The means of the checkpoints with the simultaneous band."""
    title = trend_title(trend, exploratory=exploratory)
    tips: list[str] = []
    x = [point.x for point in trend.points]
    with report_style():
        figure, plot = canvas(8.4, 3.2, grid="y")
        known = [not math.isnan(point.low) for point in trend.points]
        lows, highs = [point.low for point in trend.points], [point.high for point in trend.points]
        plot.fill_between(x, lows, highs, where=known, facecolor=(ACCENT, 0.16), edgecolor="none")
        y = [point.mean for point in trend.points]
        plot.plot(x, y, color=ACCENT, linewidth=1.8)
        for point in trend.points:
            mean = shown_mean(trend.metric, point.mean)
            numbers = with_minus(f"{mean} {mean_interval(trend.metric, point.low, point.high)}")
            tips.append(printable(f"{point.variant.label}: {numbers}"))
        if min(x) > 0 and max(x) / min(x) > _LOG_AXIS:
            plot.set_xscale("log")
        plot.set_xlabel(label_of(trend.over))
        plot.margins(x=0.03, y=0.12)
        tips = _scatter(plot, x, y, tips, "dots", [ACCENT] * len(x), size=6)
        svg = inline_svg(figure, label=title, tips={"dots": tips}, prefix=f"trend-{trend.metric.name}")
    caption = f"Mean of each checkpoint; the band contains all true means together at 95 %. {TREND_NOTE}"
    return Figure(trend.metric.name, title, caption, svg, exploratory=exploratory)


def _ordered(values: set[Any]) -> list[Any]:
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def turn_figures(analysis: Analysis) -> list[Figure]:
    """One figure per metric with values at several turns of dialogues: its mean at each turn, one line per variant.

    If there are more variants than colours, the baselines and the variants that differ most are shown.
    """
    dialogue = analysis.table.loc[analysis.table["probe_turns"].isna()]
    turns = sorted(int(turn) for turn in dialogue["turn"].unique())
    if len(turns) < 2:
        return []
    variants, caption = most_different(analysis, len(SERIES)), "Mean and 95 % interval at each turn."
    if len(variants) < len(analysis.variants):
        metric = "" if analysis.primary is None else f" in {analysis.primary.name}"
        counts = f"{len(variants)} of {len(analysis.variants)}"
        caption += f" The baseline and the variants that differ most{metric}: {counts}."
    caption += _caption_on_turns(analysis)
    shown = [metric for metric in TURN_METRICS if metric.name in _TURN_METRICS or metric == analysis.primary]
    with report_style():
        return [
            Figure(
                metric.name, metric_title(metric), caption, _turn_lines(metric, analysis, variants, turns),
                exploratory=metric != analysis.primary,
            )
            for metric in _primary_first(analysis, shown)
            if metric.level == "turn" and dialogue.loc[dialogue[metric.column].notna(), "turn"].nunique() > 1
        ]  # fmt: skip


def most_different(analysis: Analysis, at_most: int) -> list[Variant]:
    """The baselines and the variants with the largest differences in the first family, in the order of the variants."""
    if len(analysis.variants) <= at_most:
        return list(analysis.variants)
    family = analysis.comparisons[0].family if analysis.comparisons else ""
    sizes = {
        line.pair.variant: abs(line.difference)
        for line in analysis.comparisons
        if line.family == family and not math.isnan(line.difference)
    }
    baselines = {pair.baseline for pair in analysis.pairs}
    order = sorted(analysis.variants, key=lambda variant: (variant not in baselines, -sizes.get(variant, -1.0)))
    chosen = set(order[:at_most])
    return [variant for variant in analysis.variants if variant in chosen]


def _turn_lines(metric: Metric, analysis: Analysis, variants: Sequence[Variant], turns: Sequence[int]) -> str:
    def groups(rows: pd.DataFrame) -> Iterator[tuple[float, str, pd.DataFrame]]:
        for turn in turns:
            yield turn, f"turn {turn}", rows.loc[(rows["turn"] == turn) & rows["probe_turns"].isna()]

    return _lines(metric, analysis, variants, groups, "turn", f"t-{metric.name}", ticks=turns)


def _lines(
    metric: Metric, analysis: Analysis, variants: Sequence[Variant],
    groups: Callable[[pd.DataFrame], Iterable[tuple[float, str, pd.DataFrame]]], axis: str, prefix: str,
    *, ticks: Sequence[int] = (), log: bool = False,
) -> str:  # fmt: skip
    """The mean and interval of each group, with one line per variant.

    Args:
        groups: yields each group's position on the axis, its name and its rows.
        log: whether the axis is logarithmic.
    """
    figure, plot = canvas(8.4, 3.2, grid="y")
    tips: dict[str, list[str]] = {}
    weights = [] if metric.weight_column is None else [metric.weight_column]
    columns = [name for name in dict.fromkeys([*_GROUP_COLUMNS, metric.column, *weights]) if name in analysis.table]
    for i, (variant, colour) in enumerate(zip(variants, SERIES, strict=False)):
        x: list[float] = []
        estimates: list[VariantMean] = []
        own_tips: list[str] = []
        offset = (i - (len(variants) - 1) / 2) * 0.05
        for position, name, rows in groups(rows_of(analysis.table, variant, columns)):
            values = rows[metric.column].to_numpy(dtype=np.float64)
            if np.isnan(values).all():
                continue
            estimate = mean_of(metric, values, rows["conversation_code"].to_numpy(), weights=weights_of(rows, metric))
            x.append(position * (1 + offset) if log else position + offset)
            estimates.append(estimate)
            tip = f"{variant.label}, {name}: {with_minus(shown_mean(metric, estimate.mean))}"
            own_tips.append(printable(tip))
        ends = [(position, one.low, one.high) for position, one in zip(x, estimates, strict=True) if one.low == one.low]
        if ends:
            plot.vlines(
                *zip(*ends, strict=True), colors=colour, linewidth=1.6, alpha=0.45, capstyle="projecting", zorder=2
            )
        y = [estimate.mean for estimate in estimates]
        tips[f"dots-{i}"] = _scatter(plot, x, y, own_tips, f"dots-{i}", [colour] * len(x), size=6.5)
        plot.plot(x, y, color=colour, linewidth=1.6, label=label_of(variant.label), zorder=1.5)
    if ticks:
        plot.set_xticks(list(ticks))
    if log:
        plot.set_xscale("log", base=2)
    plot.set_xlabel(axis)
    longest = max(len(label_of(variant.label)) for variant in variants)
    plot.legend(
        frameon=False, labelcolor=FAINT, loc="lower left", bbox_to_anchor=(0, 1),
        ncols=max(1, min(4, _LEGEND_CHARACTERS // (longest + 6))),
        handlelength=1.2, borderaxespad=0.2,
    )  # fmt: skip
    return inline_svg(figure, label=f"{metric.title} by {axis}", tips=tips, prefix=prefix)


def memory_figures(analysis: Analysis) -> list[Figure]:
    """The share of passed probes by the number of turns, and of tokens, since the fact that they ask about was said."""
    metric = metric_named("passed")
    probes = analysis.table.loc[analysis.table["probe_turns"].notna()]
    if not bool(probes["passed"].notna().any()):
        return []
    variants = most_different(analysis, len(SERIES))
    figures: list[Figure] = []
    for unit in UNITS:
        if probes[f"probe_{unit}"].nunique() < 2:
            continue
        log = unit == "tokens"

        def groups(rows: pd.DataFrame, unit: Unit = unit, log: bool = log) -> Iterator[tuple[float, str, pd.DataFrame]]:
            for group in distance_groups(rows):
                if group.unit == unit:
                    yield max(group.middle, 1.0) if log else group.middle, group.label, rows.loc[group.rows]

        with report_style():
            axis = f"{unit} since the fact was said"
            svg = _lines(metric, analysis, variants, groups, axis, f"m-{unit}", log=log)
        caption = "Share of probes whose checks all passed, with 95 % intervals."
        figures.append(Figure(f"by {unit}", f"Probes passed by {axis}", caption, svg, exploratory=True))
    return figures
