"""The trend of a metric over checkpoints in training order: a curve with a simultaneous band, and a test."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.loading import RunData
from rwkvbatch.comparison.matching import conversation_values, rows_of
from rwkvbatch.comparison.metrics import Metric
from rwkvbatch.comparison.paired import LEVEL
from rwkvbatch.comparison.pairing import Variant
from rwkvbatch.comparison.ranking import ends_of_mean
from rwkvbatch.errors import RunMismatchError, UsageError
from rwkvbatch.stats.family import compare_family
from rwkvbatch.stats.signflip import simultaneous_level

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

MIN_CHECKPOINTS: Final = 3
"""Two checkpoints have a difference, not a trend."""
_FACTORS: Final = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}

TrendVerdict = Literal["improves", "worsens", "rises", "falls", "no trend found", "no change", "too little data"]


@dataclass(frozen=True)
class TrendPoint:
    """One checkpoint: its position, and the mean with the band's ends there."""

    variant: Variant
    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Trend:
    """The primary metric over checkpoints, of the rows that all of them have.

    Attributes:
        over: the name of the axis. points: in its order.
        level: the band holds all true means together with probability `1 - level`. level_each: of each interval in it.
        concordance: mean over conversations of (pairs of checkpoints whose later one is higher, minus those whose later
            one is lower) over all pairs; from -1 to 1 (Kendall 1938 within each conversation). low, high: its
            95 % interval. p: of the hypothesis that it is 0, by sign flips of whole conversations.
        num_values: rows (of `metric.level`) of each checkpoint that count. num_left_out: rows that only some have.
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
    num_values: int
    num_conversations: int
    num_left_out: int

    @property
    def verdict(self) -> TrendVerdict:
        """The conclusion; it follows from the interval of the concordance alone."""
        if not self.decidable:
            return "too little data"
        if self.low == self.high == 0:
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
            variants' names (`step` for `rwkv7-step-1000.pth`; `k`, `m` and `b` after it are thousand, million and
            billion). Names are, in this order, those of the cell, of its checkpoint, of the run, and the run's path.

    Raises:
        UsageError: there are fewer than three variants, not one number for each, or two have the same.
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
        found = {variant: _in_names(over, variant, runs) for variant in variants}
        lacking = [variant.label for variant, number in found.items() if number is None]
        if lacking:
            raise UsageError(
                f"--over {over}: no number after {over!r} in the names of {', '.join(lacking[:5])}"
                + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""),
                hint=f"give the numbers, such as --over 100,200,400, in this order: {labels}",
            )
        positions = {variant: number for variant, number in found.items() if number is not None}
    of: dict[float, Variant] = {}
    for variant, number in positions.items():
        if (other := of.setdefault(number, variant)) != variant:
            raise UsageError(
                f"--over {over}: {other.label} and {variant.label} are both at {number:g}",
                hint="compare one cell of each checkpoint, such as RUN::CELL",
            )
    return positions


def _number(text: str) -> float | None:
    match = re.fullmatch(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)([kmbg]?)\s*", text, re.IGNORECASE)
    return None if match is None else float(match[1]) * _FACTORS[match[2].lower()]


def _in_names(word: str, variant: Variant, runs: Sequence[RunData]) -> float | None:
    run = next(run for run in runs if run.name == variant.run)
    models = [m for m in run.facts.models if variant.cell in (m.get("cells") or [variant.cell])]
    settings = run.facts.cells.get(variant.cell, {})
    own = settings.get(word)
    if isinstance(own, int | float) and not isinstance(own, bool):
        return float(own)
    names = [variant.cell, str(settings.get("model") or ""), *(str(m.get("path") or "") for m in models)]
    pattern = re.compile(
        rf"(?<![^\W\d_]){re.escape(word)}s?[\s=:_.-]*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?:([kmbg])(?![^\W\d_]))?",
        re.IGNORECASE,
    )
    for name in (*names, run.name, run.source):
        if found := list(pattern.finditer(name)):
            return float(found[-1][1]) * _FACTORS[(found[-1][2] or "").lower()]
    return None


def trend_over(over: str, positions: Mapping[Variant, float], metric: Metric, table: pd.DataFrame) -> Trend:
    """The trend of `metric` over the variants at `positions`, tested over conversations.

    The test treats conversations as the sample: it is about these checkpoints and other conversations of this kind,
    not about another training run.

    Args:
        table: see `comparable_rows`.

    Raises:
        RunMismatchError: no row is in all variants.
    """
    variants = sorted(positions, key=positions.__getitem__)
    values, conversations, num_left_out, weights = _common(variants, metric, table)
    if not len(values):
        raise RunMismatchError(
            f"--over: no {metric.level} with a number of {metric.name} is in all {len(variants)} checkpoints",
            hint="compare finished runs of the same script",
        )
    codes, labels = np.unique(conversations, return_inverse=True)
    counts = np.bincount(labels, weights)
    sums = np.stack([np.bincount(labels, column * weights) for column in values.T], axis=1)
    each, ends = band(metric, values, labels, weights)
    points = [
        TrendPoint(variant, positions[variant], float(np.average(column, weights=weights)), *own)
        for variant, column, own in zip(variants, values.T, ends, strict=True)
    ]
    means = sums / counts[:, None]
    # Means that differ only by rounding are equal.
    scale = max(float(np.abs(means).max()), 1e-300)
    pairs = list(combinations(range(len(variants)), 2))
    signs = [np.sign(np.round((means[:, later] - means[:, earlier]) / scale, 10)) for earlier, later in pairs]
    concordance = np.sum(signs, axis=0) / len(pairs)
    (test,) = compare_family(concordance[:, None], np.ones((len(codes), 1)), level=LEVEL, widest=1.0).differences
    return Trend(
        over="position" if "," in over else over, metric=metric, points=tuple(points), level=LEVEL, level_each=each,
        concordance=test.mean, low=test.low, high=test.high, p=test.p, decidable=test.decidable,
        num_values=len(values), num_conversations=len(codes), num_left_out=num_left_out,
    )  # fmt: skip


def band(
    metric: Metric,
    values: NDArray[np.float64],
    conversations: NDArray[np.int64],
    weights: NDArray[np.float64] | None = None,
) -> tuple[float, list[tuple[float, float]]]:
    """The level of each interval of a band that holds all means together, and the intervals.

    Args:
        values: `[rows, checkpoints]`. conversations: `[rows]` codes from 0 up. weights: `[rows]`, how much a row
            counts; None where all count equally.
    """
    weights = np.ones(len(values)) if weights is None else weights
    sums = np.stack([np.bincount(conversations, column * weights) for column in values.T], axis=1)
    means = np.average(values, axis=0, weights=weights)
    deviations = sums - np.bincount(conversations, weights)[:, None] * means
    each = simultaneous_level(deviations, level=LEVEL) if len(sums) > 1 else LEVEL / values.shape[1]
    return each, [ends_of_mean(metric, column, conversations, weights, each) for column in values.T]


def _common(
    variants: Sequence[Variant], metric: Metric, table: pd.DataFrame
) -> tuple[NDArray[np.float64], NDArray[Any], int, NDArray[np.float64]]:
    """`[rows, variants]` values of the rows that all variants have, their conversations, the number of other rows, and
    `[rows]` how much each counts."""
    import pandas as pd

    if metric.level == "conversation":
        columns = [conversation_values(rows_of(table, variant), metric) for variant in variants]
    else:
        keys = ["conversation", "turn", "repeat", "question"]
        columns = [
            rows_of(table, variant, [*keys, metric.column]).set_index(keys)[metric.column] for variant in variants
        ]
    wide = pd.concat(columns, axis=1, join="outer", keys=range(len(columns)))
    wide = wide.loc[wide.notna().any(axis=1)]
    found = wide.dropna()
    weights = np.ones(len(found))
    if metric.weight_column in table:
        keys = ["conversation", "turn", "repeat", "question"]
        each = [rows_of(table, variant).set_index(keys)[metric.weight_column] for variant in variants]
        all_weights = pd.concat(each, axis=1, join="outer").loc[found.index].to_numpy(dtype=np.float64)
        same = all_weights.min(axis=1) == all_weights.max(axis=1)
        found, weights = found.loc[same], all_weights[same, 0]
    return (
        found.to_numpy(dtype=np.float64),
        found.index.get_level_values(0).to_numpy(),
        len(wide) - len(found),
        weights,
    )


_LEVELS: Final = "▁▂▃▄▅▆▇█"


def sparkline(trend: Trend, width: int) -> str:
    """The means as bars of block characters, one for each checkpoint; of more than `width`, evenly spaced ones."""
    means = [point.mean for point in trend.points]
    if len(means) > width:
        means = [means[round(place)] for place in np.linspace(0, len(means) - 1, width)]
    low, span = min(means), max(means) - min(means)
    if not span:
        return _LEVELS[len(_LEVELS) // 2] * len(means)
    return "".join(_LEVELS[round((mean - low) / span * (len(_LEVELS) - 1))] for mean in means)
