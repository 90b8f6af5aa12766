"""Rules for the interval of numbers of which most are equal: how often each holds the true mean, and its width.

    python benchmarks/mostly_equal_intervals.py --samples 20000

Each rule is applied to the same samples, in which a share of the conversations differs by normal or exponential numbers
with a mean of 1, and the others are 0. Of one variant, samples in which all pairs are equal are left out. Of eight
variants that change by themselves, the share in which all of their intervals hold is the eighth power of one at a level
of 5 % divided by 8; equal pairs have an unlimited interval. Behind it stands the mean width relative to the first rule:

- n: the interval with as many degrees of freedom as the conversations, as numbers without ties have it.
- limits: that of a sample with two more conversations, at the largest and the smallest number, where it is wider.
- two parts, k and k - 1: the share that differs (its score interval) times the mean of those that differ (a t interval
  with k or k - 1 degrees of freedom; half of one more at either end of their usual size), by the squares of the parts'
  distances (Zou and Donner 2008).
- t: the first, and a t interval with as many degrees of freedom as conversations differ, k.
- t, 5 k and k: the same, and Hall's transformation with 5 k and with k degrees of freedom.

`compare` has 5 k for an interval of 95 % and k for those of many variants.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from coverage_bound_mostly_equal import MostlyEqual
from interval_rules import LEVEL, Floats, arguments, flip_ends, moments
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

from rwkvbatch.stats.skewness import MOST, NOISE, SMALL_SAMPLE, lacked_skewness

Ends = tuple[Floats, Floats]
VARIANTS = 8


def quantile(level: float, degrees: Floats | float) -> Floats:
    """Of Student's t distribution, for a two-sided interval."""
    found: Any = stdtrit(np.asarray(degrees, dtype=np.float64), 1 - level / 2)
    return found


def wider(first: Ends, second: Ends) -> Ends:
    return np.minimum(first[0], second[0]), np.maximum(first[1], second[1])


def around(center: Floats, half: Floats) -> Ends:
    return center - half, center + half


def hall(samples: Floats, level: float, degrees: Floats | float) -> Ends:
    """The interval by Hall's transformation on the sides of long tails (`rwkvbatch.stats.skewness`)."""
    n = samples.shape[1]
    mean, error, skewness = moments(samples)
    varying = np.minimum((samples != 0).sum(axis=1), n - 1)
    small = (level / LEVEL) ** (varying / (n - 1))
    limit = (MOST - (MOST - min(0.96, 0.9 + 0.75 / n)) * small) / quantile(level, degrees if level < LEVEL else n - 1)
    ends: list[Floats] = []
    # All samples are those of one family.
    for side, lacked in zip((-1, 1), lacked_skewness(skewness, np.full(skewness.size, n)), strict=True):
        s = np.maximum(0.0, side * skewness + (1 - small) * lacked / math.sqrt(n))
        a = np.minimum(limit, s**3 / (s**2 + NOISE**2) * (1 + SMALL_SAMPLE / n**2) / math.sqrt(n))
        a = np.maximum(a, 1e-6)
        ends.append(
            mean + side * 3 / a * (1 - np.cbrt(1 - a * (quantile(level, degrees) + a / 6))) * error * (a > 1e-6)
        )
    low, high = ends
    return low, high


def two_parts(samples: Floats, level: float, fewer: int) -> Ends:
    """The share that differs times the mean of those that differ, with `fewer` degrees of freedom than these."""
    n = samples.shape[1]
    k = (samples != 0).sum(axis=1)
    z, share, total, squares = float(quantile(level, math.inf)), k / n, samples.sum(axis=1), (samples**2).sum(axis=1)
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt((share * (1 - share) + z * z / (4 * n)) / n) / (1 + z * z / n)
    mean, enlarged = total / k, total / (k + 1)
    variance = np.maximum(0.0, (squares + squares / k) / (k + 1) - enlarged**2) * (k + 1) / k
    low, high = around(enlarged, quantile(level, np.maximum(k - fewer, 0.5)) * np.sqrt(variance / (k + 1)))
    less, more = share - (center - half), center + half - share
    below = np.where(mean > 0, mean * less, -mean * more)
    above = np.where(mean > 0, mean * more, -mean * less)
    return (share * mean - np.hypot(share * (mean - low), below), share * mean + np.hypot(share * (high - mean), above))


def rules(samples: Floats, level: float) -> dict[str, Ends]:
    n = samples.shape[1]
    k = (samples != 0).sum(axis=1).astype(np.float64)
    mean, error = samples.mean(axis=1), samples.std(axis=1, ddof=1) / math.sqrt(n)
    usual, center = np.sqrt((samples**2).sum(axis=1) / k), samples.sum(axis=1) / (n + 2)
    squares = ((samples - center[:, None]) ** 2).sum(axis=1) + usual**2 + 2 * center**2
    ties = around(center, quantile(level, n + 1) * np.sqrt(squares * (n + 2) / (n + 1)) / (n + 2))
    low, high = flip_ends(samples, np.random.default_rng(1), level).T
    base = wider((low, high), around(mean, 0.0 * error))
    if level * 2**n < 2:
        base = wider(base, around(mean, quantile(level, n - 1) * error))
    with_ties = wider(base, ties)
    some_equal = k < n - 1
    base = np.where(some_equal, with_ties[0], base[0]), np.where(some_equal, with_ties[1], base[1])
    limits = np.column_stack([samples, np.maximum(samples.max(axis=1), 0), np.minimum(samples.min(axis=1), 0)])
    extended = around(limits.mean(axis=1), quantile(level, n + 1) * limits.std(axis=1, ddof=1) / math.sqrt(n + 2))
    plain = wider(base, around(mean, quantile(level, np.minimum(k, n - 1)) * error))
    all_of_n = wider(base, hall(samples, level, n - 1))
    return {
        "n": all_of_n,
        "limits": wider(all_of_n, extended),
        "two parts, k": two_parts(samples, level, 0),
        "two parts, k - 1": two_parts(samples, level, 1),
        "t": wider(plain, all_of_n),
        "t, 5 k": wider(plain, hall(samples, level, np.minimum(5 * k, n - 1))),
        "t, k": wider(plain, hall(samples, level, np.minimum(k, n - 1))),
    }


def main() -> None:
    given = arguments(__doc__, 20_000, [8, 12, 20, 40]).parse_args()
    for variants in (1, VARIANTS):
        for n in given.conversations:
            for row in (MostlyEqual(share, of) for share in (0.1, 0.3) for of in ("normal around 1", "exponential")):
                drawn = row.draw(np.random.default_rng(n), (given.samples, n))
                samples = drawn[(drawn != 0).any(axis=1)]
                shown: list[str] = []
                first = math.nan
                for name, (low, high) in rules(samples, LEVEL / variants).items():
                    missed = int(((low > row.truth) | (high < row.truth)).sum())
                    held = 1 - missed / len(samples) if variants == 1 else (1 - missed / len(drawn)) ** variants
                    width = float((high - low).mean())
                    first = width if name == "n" else first
                    shown.append(f"{name}: {held:.3f} ({width / first:.2f})")
                print(
                    f"{variants} variants, {n} conversations, {row.share:.0%} {row.sizes}:",
                    "; ".join(shown),
                    flush=True,
                )


if __name__ == "__main__":
    main()
