"""Numbers of a comparison as text: values, differences, intervals, p-values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from rwkvbatch.comparison.metrics.declarations import Metric
from rwkvbatch.comparison.statistics.differences import Comparison
from rwkvbatch.comparison.statistics.means import VariantMean
from rwkvbatch.results.summary import OVERFLOW

MISSING: Final = "—"
_HUGE = 1e9
_EXACT = 1e-12
"""A mean that is nearer to a limit is the limit but for rounding."""


def number(value: float, digits: int) -> str:
    """A value with `digits` decimals and no negative zero; a dash for NaN, a power of ten from 10^9.

    An infinite value is a perplexity that overflowed: JSON and CSV, which lack infinity, have no number in its place.
    """
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return OVERFLOW if value > 0 else f"-{OVERFLOW}"
    if abs(value) >= _HUGE:
        return f"{value:.3g}"
    text = f"{value:.{digits}f}"
    return text.replace("-", "") if float(text) == 0 else text


def shown_mean(metric: Metric, value: float, end: int = 0) -> str:
    """A mean as `number`; near a limit of the metric it has as many digits as tell it from the limit.

    Args:
        end: -1 for the lower end of an interval, which may be shown as the lowest value, 1 for the upper one, or 0.
    """
    text = number(value, metric.digits)
    if metric.log_of or not math.isfinite(metric.highest):
        return text
    for limit in (*[metric.lowest] * (end >= 0), *[metric.highest] * (end <= 0)):
        digits = metric.digits
        while not math.isclose(value, limit, rel_tol=0, abs_tol=_EXACT) and text == number(limit, digits):
            digits += 1
            text = number(value, digits)
    return text


def signed(value: float, digits: int) -> str:
    """As `number`, with a plus sign for positive values."""
    text = number(value, digits)
    return f"+{text}" if 0 < value < math.inf and not _is_zero(text) else text


def _is_zero(text: str) -> bool:
    """Whether all digits of a number, as it is shown, are 0."""
    return bool(text) and not text.strip("0.")


def interval(line: Comparison | VariantMean) -> str:
    """The 95 % interval, with signs for a difference; a dash if it is unknown or unlimited.

    If the difference is significant, an end that would round to 0 keeps one significant digit.
    """
    low, high = line.low, line.high
    if isinstance(line, VariantMean):
        return mean_interval(line.metric, low, high)
    if _is_unknown(low, high):
        return MISSING
    ends = (f"{end:+}" if math.isinf(end) else _signed_end(line, end) for end in (low, high))
    return f"[{', '.join(ends)}]"


def mean_interval(metric: Metric, low: float, high: float) -> str:
    """The interval of a mean; a dash if it is unknown or unlimited. Its ends may be shown as limits of the metric."""
    if _is_unknown(low, high):
        return MISSING
    ends = (f"{end}" if math.isinf(end) else shown_mean(metric, end, side) for end, side in ((low, -1), (high, 1)))
    return f"[{', '.join(ends)}]"


def _is_unknown(low: float, high: float) -> bool:
    return math.isnan(low) or (math.isinf(low) and math.isinf(high))


def difference(line: Comparison) -> str:
    """The difference with its sign; a significant one that would round to 0 keeps one significant digit."""
    return _signed_end(line, line.difference)


def _signed_end(line: Comparison, value: float) -> str:
    text = signed(value, line.metric.digits)
    return f"{value:+.1g}" if line.significant and value and _is_zero(text) else text


def detectable(value: float, digits: int) -> str:
    """A detectable difference; one that would round to 0 keeps one significant digit."""
    text = number(value, digits)
    return f"{value:.1g}" if value > 0 and _is_zero(text) else text


def p_value(p: float) -> str:
    """A p-value with 2 or 3 decimals; `<0.001` below 0.001."""
    if math.isnan(p):
        return MISSING
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def with_minus(text: str) -> str:
    """`text` with minus signs instead of hyphens."""
    return text.replace("-", "\u2212")


def check_name(check: Mapping[str, Any]) -> str:
    """A check of a `turn_record` in words: its kind and what it expects.

    Results of other programs do not say what they expect; they have their score in its place, unless it is 0 or 1.
    """
    if check["expected"] is not None:
        return f"{check['kind']} {check['expected']!r}"
    score = check["score"]
    return check["kind"] if score in (None, 0, 1) else f"{check['kind']} {_exact_enough(f'{score:.3g}', score)}"


def turn_value(metric: Metric, value: float) -> str:
    """The value of a metric in one turn, with fewer decimals than a mean: an integer for tokens, at most 2 for others.

    A share or score between 0 and 1 is never shown as 0 or 1.
    """
    text = number(value, 0 if metric.unit == "tokens" else min(metric.digits, 2))
    return _exact_enough(text, value) if metric.widest == 1 else text


def _exact_enough(text: str, value: float) -> str:
    """`text`, or `value` with more digits if it is between 0 and 1 and `text` is 0 or 1."""
    if not 0 < value < 1 or float(text) not in (0, 1):
        return text
    return f"{value:.1g}" if value < 0.5 else f"{value:.{math.ceil(-math.log10(1 - value))}f}".rstrip("0")
