"""The trend of a metric over checkpoints in training order: a curve with a simultaneous band, and a test."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.declarations import Metric
from rwkvbatch.comparison.runs.data import RunData, Variant
from rwkvbatch.comparison.statistics.differences import LEVEL
from rwkvbatch.comparison.statistics.means import ends_of_mean
from rwkvbatch.comparison.values.all_variants import common_weights, side_by_side
from rwkvbatch.comparison.values.columns import rows_of
from rwkvbatch.comparison.values.conversations import conversation_values
from rwkvbatch.errors import RunMismatchError, UsageError
from rwkvbatch.script.lines import is_number
from rwkvbatch.stats.family import compare_family
from rwkvbatch.stats.signflip import LargestSums

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

MIN_CHECKPOINTS: Final = 3
"""The fewest checkpoints that have a trend; two have a difference."""
_FACTORS: Final = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}

TrendVerdict = Literal["improves", "worsens", "rises", "falls", "no trend found", "no change", "too little data"]


@dataclass(frozen=True)
class TrendPoint:
    """One checkpoint: its position `x` on the axis, and its mean with the ends of the simultaneous band."""

    variant: Variant
    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Trend:
    """A metric over checkpoints, in the rows that all of them have.

    Attributes:
        over: the name of the axis.
        points: the checkpoints, in the axis's order.
        level: the band contains all true means together with probability `1 - level`.
        level_each: the level of each checkpoint's interval that achieves this.
        concordance: mean over conversations of Kendall's tau (1938) of their means and the checkpoints' order: the
            share of pairs of checkpoints whose later one is higher, minus the share whose later one is lower.
        low, high: 95 % interval of `concordance`.
        p: p-value of the hypothesis that it is 0, by sign flips of whole conversations.
        decidable: whether this number of conversations can give a significant result at all.
        identical: whether no conversation's mean differs between checkpoints.
        num_values: number of rows (of `metric.level`) that each checkpoint contributes.
        num_conversations: their conversations.
        num_left_out: number of rows that only some checkpoints have.
    """

    over: str
    metric: Metric
    points: tuple[TrendPoint, ...]
    level: float
    level_each: float
    concordance: float
    low: float
    high: float
    p: float
    decidable: bool
    identical: bool
    num_values: int
    num_conversations: int
    num_left_out: int

    @property
    def verdict(self) -> TrendVerdict:
        """The conclusion, from the interval of the concordance alone."""
        if not self.decidable:
            return "too little data"
        if self.identical:
            return "no change"
        if self.low <= 0 <= self.high:
            return "no trend found"
        if self.metric.better == "none":
            return "rises" if self.low > 0 else "falls"
        return "improves" if (self.low > 0) == (self.metric.better == "higher") else "worsens"

    def as_dict(self) -> dict[str, Any]:
        """JSON values; numbers may be NaN or infinite."""
        names = ("over", "level", "level_each", "concordance", "low", "high", "p", "verdict")
        counts = ("num_values", "num_conversations", "num_left_out")
        return {
            "metric": self.metric.name,
            **{name: getattr(self, name) for name in (*names, *counts)},
            "points": [vars(point) | {"variant": point.variant.label} for point in self.points],
        }


def positions_over(over: str, variants: Sequence[Variant], runs: Sequence[RunData]) -> dict[Variant, float]:
    """The position of each variant on the axis.

    Args:
        over: numbers separated by commas, one for each variant in their order; or the word before the number in the
            variants' names (`step` for `rwkv7-step-1000.pth`). A suffix `k`, `m`, `b` or `g` of the number multiplies
            it by a thousand, a million or a billion. The names are, in order of precedence: the cell, its checkpoint,
            the run, and the run's path.

    Raises:
        UsageError: there are fewer than three variants, a variant has no number, or two have the same number.
    """
    if len(variants) < MIN_CHECKPOINTS:
        raise UsageError(f"--over needs at least {MIN_CHECKPOINTS} checkpoints, got {len(variants)}")
    labels = ", ".join(variant.label for variant in variants)
    if "," in over or _number(over) is not None:
        numbers = [_number(part) for part in over.split(",")]
        if None in numbers or len(numbers) != len(variants):
            raise UsageError(
                f"--over must have one number for each of the {len(variants)} checkpoints; got {over!r}",
                hint=f"in this order: {labels}",
            )
        positions = dict(zip(variants, (number for number in numbers if number is not None), strict=True))
    else:
        numbers_in_names = {variant: _in_names(over, variant, runs) for variant in variants}
        without_number = [variant.label for variant, number in numbers_in_names.items() if number is None]
        if without_number:
            raise UsageError(
                f"--over {over}: no number after {over!r} in the names of {', '.join(without_number[:5])}"
                + (f" and {len(without_number) - 5} more" if len(without_number) > 5 else ""),
                hint=f"give the numbers, such as --over 100,200,400, in this order: {labels}",
            )
        positions = {variant: number for variant, number in numbers_in_names.items() if number is not None}
    variant_at: dict[float, Variant] = {}
    for variant, number in positions.items():
        if (other := variant_at.setdefault(number, variant)) != variant:
            raise UsageError(
                f"--over {over}: {other.label} and {variant.label} are both at {number:g}",
                hint="compare one cell of each checkpoint, such as RUN::CELL",
            )
    return positions


def _number(text: str) -> float | None:
    match = re.fullmatch(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)([kmbg]?)\s*", text, re.IGNORECASE)
    return None if match is None else float(match[1]) * _FACTORS[match[2].lower()]


def _in_names(word: str, variant: Variant, runs: Sequence[RunData]) -> float | None:
    """The variant's setting called `word`, or the last number after `word` in one of its names; None without any."""
    run = next(run for run in runs if run.name == variant.run)
    models = [model for model in run.facts.models if variant.cell in (model.get("cells") or [variant.cell])]
    settings = run.facts.cells.get(variant.cell, {})
    setting = settings.get(word)
    if is_number(setting) and abs(setting) <= sys.float_info.max:
        return float(setting)
    names = [variant.cell, str(settings.get("model") or ""), *(str(model.get("path") or "") for model in models)]
    pattern = re.compile(
        rf"(?<![^\W\d_]){re.escape(word)}s?[\s=:_.-]*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?:([kmbg])(?![^\W\d_]))?",
        re.IGNORECASE,
    )
    for name in (*names, run.name, run.source):
        if matches := list(pattern.finditer(name)):
            return float(matches[-1][1]) * _FACTORS[(matches[-1][2] or "").lower()]
    return None


def trend_over(over: str, positions: Mapping[Variant, float], metric: Metric, table: pd.DataFrame) -> Trend:
    """The trend of `metric` over the variants at `positions`, tested over conversations.

    The test treats conversations as the sample: its conclusion holds for these checkpoints and other conversations of
    this kind, not for another training run.

    Args:
        table: see `comparable_rows`.

    Raises:
        RunMismatchError: no row is in all variants.
    """
    variants = sorted(positions, key=positions.__getitem__)
    common = _CommonRows.of(variants, metric, table)
    values, weights = common.values, common.weights
    if not len(values):
        raise RunMismatchError(
            f"--over: no {metric.level} with a number of {metric.name} is in all {len(variants)} checkpoints",
            hint="compare finished runs of the same script",
        )
    names, codes = np.unique(common.conversations, return_inverse=True)
    level_each, intervals = band(metric, values, codes, weights)
    points = [
        TrendPoint(variant, positions[variant], float(np.average(column, weights=weights)), *interval)
        for variant, column, interval in zip(variants, values.T, intervals, strict=True)
    ]
    means = _conversation_sums(values, codes, weights) / np.bincount(codes, weights)[:, None]
    signs = _signs_of_pairs(means)
    taus = signs.mean(axis=1)
    (test,) = compare_family(taus[:, None], np.ones((len(names), 1)), level=LEVEL, widest=1.0).differences
    return Trend(
        over="position" if "," in over else over, metric=metric, points=tuple(points), level=LEVEL,
        level_each=level_each, concordance=test.mean, low=test.low, high=test.high, p=test.p,
        decidable=test.decidable, identical=not signs.any(), num_values=len(values), num_conversations=len(names),
        num_left_out=common.num_left_out,
    )  # fmt: skip


def _signs_of_pairs(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[conversations, pairs of checkpoints]` 1 where the later mean is higher, -1 where it is lower, else 0.

    The mean of a row is Kendall's tau of the conversation's `means` `[conversations, checkpoints]` with their order.
    """
    scale = max(float(np.abs(means).max()), 1e-300)  # means that differ only by rounding count as equal
    pairs = list(combinations(range(means.shape[1]), 2))
    signs = [np.sign(np.round((means[:, later] - means[:, earlier]) / scale, 10)) for earlier, later in pairs]
    return np.stack(signs, axis=1)


def _conversation_sums(
    values: NDArray[np.float64], codes: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`[conversations, checkpoints]` weighted sums of `values` `[rows, checkpoints]`."""
    return np.stack([np.bincount(codes, column * weights) for column in values.T], axis=1).astype(np.float64)


def band(
    metric: Metric,
    values: NDArray[np.float64],
    conversations: NDArray[np.int64],
    weights: NDArray[np.float64] | None = None,
) -> tuple[float, list[tuple[float, float]]]:
    """A simultaneous band: intervals that contain all means together with probability `1 - LEVEL`.

    Args:
        values: `[rows, checkpoints]`.
        conversations: `[rows]` codes from 0 up.
        weights: `[rows]`; None for equal weights.

    Returns:
        The level of each interval, and the intervals, one for each checkpoint.
    """
    weights = np.ones(len(values)) if weights is None else weights
    sums = _conversation_sums(values, conversations, weights)
    means = np.average(values, axis=0, weights=weights)
    deviations = sums - np.bincount(conversations, weights)[:, None] * means
    level_each = LargestSums.of(deviations).level_each(LEVEL) if len(sums) > 1 else LEVEL / values.shape[1]
    return level_each, [ends_of_mean(metric, column, conversations, weights, level_each) for column in values.T]


@dataclass(frozen=True)
class _CommonRows:
    """The rows that all variants have.

    Attributes:
        values: `[rows, variants]`.
        conversations: `[rows]` names.
        weights: `[rows]`.
        num_left_out: number of rows that only some variants have, or whose weights differ between them.
    """

    values: NDArray[np.float64]
    conversations: NDArray[Any]
    weights: NDArray[np.float64]
    num_left_out: int

    @classmethod
    def of(cls, variants: Sequence[Variant], metric: Metric, table: pd.DataFrame) -> _CommonRows:
        import pandas as pd

        if metric.level == "conversation":
            columns = [conversation_values(rows_of(table, variant), metric) for variant in variants]
            values = pd.concat(columns, axis=1, join="outer", keys=range(len(columns)))
        else:
            values = side_by_side(variants, metric.column, table, "conversation")
        values = values.loc[values.notna().any(axis=1)]
        common = values.dropna()
        weights = np.ones(len(common))
        if (weight_column := metric.weight_column) is not None and weight_column in table:
            variant_weights = side_by_side(variants, weight_column, table, "conversation").loc[common.index]
            weights = common_weights(variant_weights)
            common, weights = common.loc[~np.isnan(weights)], weights[~np.isnan(weights)]
        return cls(
            common.to_numpy(dtype=np.float64),
            common.index.get_level_values(0).to_numpy(),
            weights,
            num_left_out=len(values) - len(common),
        )


_BARS: Final = "▁▂▃▄▅▆▇█"


def sparkline(trend: Trend, width: int) -> str:
    """The means of the checkpoints (of `width` evenly spaced ones, if there are more) as block characters."""
    means = [point.mean for point in trend.points]
    if len(means) > width:
        means = [means[round(index)] for index in np.linspace(0, len(means) - 1, width)]
    low, span = min(means), max(means) - min(means)
    if not span:
        return _BARS[len(_BARS) // 2] * len(means)
    return "".join(_BARS[round((mean - low) / span * (len(_BARS) - 1))] for mean in means)
