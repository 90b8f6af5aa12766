"""The report's figures of what becomes of a metric from turn to turn: a line a variant."""

# matplotlib's figures and pandas' tables are barely typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rwkvbatch.compare.analysis import Analysis
from rwkvbatch.compare.metrics import TURN_METRICS, Metric
from rwkvbatch.compare.output.html.drawing import Figure, canvas, figure_title, label_of, report_style
from rwkvbatch.compare.output.html.svg import FAINT, PAPER, SERIES, inline_svg
from rwkvbatch.compare.output.wording import number
from rwkvbatch.compare.pairing import Variant
from rwkvbatch.compare.summary import mean_of, rows_of
from rwkvbatch.text.safe import printable

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


def _turn_figure(
    metric: Metric, analysis: Analysis, variants: Sequence[Variant], turns: Sequence[int]
) -> Figure:
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
