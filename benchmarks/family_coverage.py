"""How often the intervals of several variants' numbers hold all true differences together, and what the test finds.

    python benchmarks/family_coverage.py --samples 40000

Each variant has differences of its own, without ties, all from one distribution. In the last rows the long tails of
every other variant are on the other side, or only the first variant is skewed. Ends are those of `compare`: of the
correction for skewness (`stats.skewness`, by the family's samples) and of sign flips, here at the level of independent
variants and, from 14 conversations on, with 4,000 drawn patterns, so that tens of thousands of samples take seconds.
`--check` has `compare_family` itself beside it. Where the level of a single interval is below what flips can reach, the
ends are those of a t interval.

Behind each share, in brackets: the mean width in standard deviations, and the share of variants that differ by 1.5,
1.2, 0.9 and 0.6 standard deviations (with 8, 12, 20 and 40 conversations) that are found, with 0 on the side of the
long tail. The standard error of a share of 0.95 is 0.22 sqrt(variants / samples): 0.0024 for 5 of 40,000.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
from coverage_bound import flip_ends
from interval_coverage import CASES, OTHERS
from numpy.typing import NDArray

from rwkvbatch.stats.clustered import t_quantile
from rwkvbatch.stats.family import compare_family
from rwkvbatch.stats.spread import Spread, with_lacked_skewness

Floats = NDArray[np.float64]
LEVEL = 0.05
NAMES = ("normal", "t, 3 degrees of freedom", "exponential", "lognormal, sigma 0.5", "lognormal, sigma 1")
SIZES = ((8, 5), (12, 5), (12, 11), (20, 5), (20, 11), (40, 5), (40, 11))
DIFFERENCES = {8: 1.5, 12: 1.2, 20: 0.9, 40: 0.6}
"""True differences that are looked for, in standard deviations, by the number of conversations."""


@dataclass(frozen=True)
class Ends:
    """`[families, variants]`: the ends of the intervals."""

    low: Floats
    high: Floats


def families(name: str, conversations: int, variants: int, num_samples: int) -> Floats:
    """`[families, conversations, variants]` of numbers with a mean of 0 and a standard deviation of about 1."""
    draw, truth, _ = (CASES | OTHERS)[name]
    rng = np.random.default_rng([conversations, variants])
    shape = (num_samples // variants, conversations, variants)
    values = draw(rng, math.prod(shape)).reshape(shape) - truth
    return values / values.std()


def ends_of(values: Floats) -> Ends:
    """The ends for `[families, conversations, variants]`."""
    num_families, conversations, variants = values.shape
    level = 1 - (1 - LEVEL) ** (1 / variants)
    samples = values.transpose(0, 2, 1).reshape(-1, conversations)
    if level * 2**conversations >= 2:
        low, high = flip_ends(samples, np.random.default_rng(1), level, 4000).T
    else:
        half = t_quantile(1 - level / 2, conversations - 1) * samples.std(axis=1, ddof=1) / math.sqrt(conversations)
        low, high = samples.mean(axis=1) - half, samples.mean(axis=1) + half
    counts = np.ones(conversations)
    tails: list[tuple[float, float]] = []
    for start in range(0, len(samples), variants):
        spreads = [Spread.of(sample, counts, math.inf) for sample in samples[start : start + variants]]
        tails += [spread.skewed.interval(level) for spread in with_lacked_skewness(spreads)]
    below, above = np.array(tails).T
    shape = (num_families, variants)
    return Ends(np.minimum(low, below).reshape(shape), np.maximum(high, above).reshape(shape))


def shown(values: Floats) -> str:
    """Coverage, mean width and the share that is found."""
    ends = ends_of(values)
    held = float(((ends.low <= 0) & (ends.high >= 0)).all(axis=1).mean())
    found = float((ends.high < DIFFERENCES[values.shape[1]]).mean())
    return f"{held:.3f} ({float((ends.high - ends.low).mean()):.2f}, {found:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=40_000, help="of single variants, in each row")
    parser.add_argument("--check", type=int, default=0, metavar="N", help="compare_family on N families of each row")
    given = parser.parse_args()
    for conversations, variants in SIZES:
        print(f"{conversations} conversations, {variants} variants", flush=True)
        drawn = {name: families(name, conversations, variants, given.samples) for name in NAMES}
        skewed = drawn[NAMES[-1]]
        drawn[f"{NAMES[-1]}, tails on both sides"] = np.where(np.arange(variants) % 2, -skewed, skewed)
        drawn[f"{NAMES[-1]}, one of the variants"] = np.where(np.arange(variants) == 0, skewed, drawn["normal"])
        for name, values in drawn.items():
            checked = ""
            if given.check:
                held = [
                    all(each.low <= 0 <= each.high for each in compare_family(family, np.ones_like(family)).differences)
                    for family in values[: given.check]
                ]
                checked = f"; compare_family, {len(held)} families: {np.mean(held):.3f}"
            print(f"  {name:42} {shown(values)}{checked}", flush=True)


if __name__ == "__main__":
    main()
