"""Power of the paired clustered test compared with an unpaired test of rows, simultaneous intervals, and trends.

    python benchmarks/comparison_simulation.py --samples 2000

Conversations differ in difficulty, which both runs and all repetitions and turns of a conversation share. The unpaired
test is Welch's test of all rows as two lists of scores. It ignores that both runs replayed the same conversations,
which costs power. It also ignores that the rows of a conversation are correlated, which causes false alarms if the runs
have different conversations. Simultaneous intervals are simulated for several variants of one baseline. Trends are
simulated for equal checkpoints, with five times as many samples.

Further cases are: few conversations; randomly missing rows of the variant, whose pairs are left out; rows that ended in
an error, which count as failed; and nll with a lognormal mean of each conversation and heavy-tailed rows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.stats.family import compare_family

LEVEL = 0.05
ROWS = 8
"""Rows per conversation in each run: 4 repetitions of 2 turns."""
RATE_DEVIATION = 0.25
"""Standard deviation of the conversations' pass rates around their mean of 0.5."""


@dataclass(frozen=True)
class Rates:
    """Shares of samples in which a test finds a difference."""

    paired: float
    unpaired: float


def passes(rng: np.random.Generator, rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[conversations, ROWS]` yes/no outcomes of conversations with the pass rates `rates`."""
    return (rng.random((rates.size, ROWS)) < np.clip(rates, 0, 1)[:, None]).astype(np.float64)


def welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The p-value of Welch's test of two samples."""
    from scipy.stats import ttest_ind

    result: Any = ttest_ind(a, b, equal_var=False)  # its type does not declare its attributes
    return float(result.pvalue)


@dataclass(frozen=True)
class Case:
    """A design of a pair of runs.

    Attributes:
        effect: the true difference. conversations: number of conversations. same: whether both runs have the same ones.
        missing: share of the variant's rows that are missing. errors: share of its rows that ended in an error.
        nll: values without limits instead of yes/no outcomes.
    """

    effect: float
    conversations: int
    same: bool = True
    missing: float = 0.0
    errors: float = 0.0
    nll: bool = False

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """The values of baseline and variant, and which pairs exist; all are `[conversations, ROWS]`."""
        shape = (self.conversations, ROWS)
        if self.nll:
            means = rng.lognormal(0.5, 0.5, self.conversations)[:, None]
            baseline, variant = (means * (1 + 0.2 * rng.standard_t(4, shape)) for _ in range(2))
            variant = variant + self.effect * means
        else:
            rates = 0.5 + RATE_DEVIATION * rng.standard_normal(self.conversations)
            variant_rates = rates if self.same else 0.5 + RATE_DEVIATION * rng.standard_normal(self.conversations)
            baseline, variant = passes(rng, rates), passes(rng, variant_rates + self.effect)
        variant = np.where(rng.random(shape) < self.errors, 0.0, variant)
        return baseline, variant, rng.random(shape) >= self.missing


def detection_rates(case: Case, samples: int) -> Rates:
    """The shares of `samples` samples in which each test finds a difference."""
    rng = np.random.default_rng(case.conversations)
    paired = unpaired = 0
    for _ in range(samples):
        baseline, variant, exists = case.draw(rng)
        sums = np.where(exists, variant - baseline, 0.0).sum(axis=1)
        counts = exists.sum(axis=1).astype(np.float64)
        widest = np.inf if case.nll else 1.0
        paired += compare_family(sums[:, None], counts[:, None], widest=widest).differences[0].p <= LEVEL
        unpaired += welch(baseline.ravel(), variant[exists]) <= LEVEL
    return Rates(paired / samples, unpaired / samples)


@dataclass(frozen=True)
class SeveralVariants:
    """Variants of one baseline that all have the same true `difference`."""

    draw: Callable[[np.random.Generator, int, int], NDArray[np.float64]]
    difference: float
    widest: float

    @classmethod
    def yes_no(cls, gain: float, loss: float) -> SeveralVariants:
        """The baseline passes half of the conversations.

        A variant passes others with the probability `2 * gain`, and fails these with the probability `2 * loss`.
        """

        def draw(rng: np.random.Generator, conversations: int, variants: int) -> NDArray[np.float64]:
            passed = rng.random((conversations, 1)) < 0.5
            chances = rng.random((conversations, variants))
            return np.where(passed, -1.0 * (chances < 2 * loss), 1.0 * (chances < 2 * gain))

        return cls(draw, gain - loss, 1.0)

    @classmethod
    def numbers(cls, difference: float, correlation: float) -> SeveralVariants:
        """Normal differences, in standard deviations, with this correlation between variants."""

        def draw(rng: np.random.Generator, conversations: int, variants: int) -> NDArray[np.float64]:
            shared, own = rng.standard_normal((conversations, 1)), rng.standard_normal((conversations, variants))
            return difference + math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own

        return cls(draw, difference, math.inf)

    @classmethod
    def mostly_equal(cls, share: float, *, exponential: bool = False) -> SeveralVariants:
        """Differences with a mean of 1 in a share of the conversations, for each variant by itself; 0 in the others."""

        def draw(rng: np.random.Generator, conversations: int, variants: int) -> NDArray[np.float64]:
            size = (conversations, variants)
            differing = rng.exponential(1, size) if exponential else rng.normal(1, 1, size)
            return np.where(rng.random(size) < share, differing, 0.0)

        return cls(draw, share, math.inf)

    def held(self, conversations: int, variants: int, samples: int) -> float:
        """The share of samples in which the simultaneous intervals hold the true differences of all variants."""
        rng = np.random.default_rng(conversations * variants)
        held = 0
        for _ in range(samples):
            differences = self.draw(rng, conversations, variants)
            found = compare_family(differences, np.ones_like(differences), widest=self.widest).differences
            held += all(variant.low <= self.difference <= variant.high for variant in found)
        return held / samples


def trend_alarms(conversations: int, checkpoints: int, samples: int) -> tuple[float, float]:
    """The share of samples in which equal checkpoints have a trend, and the mean level that the exact test attains."""
    rng = np.random.default_rng(conversations * checkpoints)
    earlier, later = np.triu_indices(checkpoints, 1)
    alarms, levels = 0, 0.0
    for _ in range(samples):
        rates = 0.5 + RATE_DEVIATION * rng.standard_normal(conversations)
        means = np.stack([passes(rng, rates).mean(axis=1) for _ in range(checkpoints)], axis=1)
        signs = np.sign(means[:, later] - means[:, earlier]).sum(axis=1)
        concordance = signs[:, None] / earlier.size
        (test,) = compare_family(concordance, np.ones_like(concordance), widest=1.0).differences
        alarms += test.p <= LEVEL
        levels += attainable_level(np.abs(signs).astype(np.int64))
    return alarms / samples, levels / samples


def attainable_level(sizes: NDArray[np.int64]) -> float:
    """The largest p-value up to `LEVEL` that a sign-flip test of differences of these integer `sizes` can have."""
    total = int(sizes.sum())
    probabilities = np.zeros(2 * total + 1)  # of the sums from -total to total
    probabilities[total] = 1.0
    for size in sizes:
        probabilities = (np.roll(probabilities, size) + np.roll(probabilities, -size)) / 2
    tails = np.bincount(np.abs(np.arange(2 * total + 1) - total), probabilities)[::-1].cumsum()
    return float(tails[tails <= LEVEL + 1e-12].max(initial=0.0))


CASES = (
    *(("yes/no", Case(effect, conversations)) for conversations in (10, 30) for effect in (0.0, 0.05, 0.1)),
    *(("different conversations", Case(0.0, conversations, same=False)) for conversations in (10, 30)),
    *(("few conversations", Case(effect, conversations)) for conversations in (6, 8) for effect in (0.0, 0.2)),
    *(("20 % of rows missing", Case(effect, 30, missing=0.2)) for effect in (0.0, 0.1)),
    ("20 % of rows errors", Case(0.0, 30, errors=0.2)),
    *(("nll", Case(effect, conversations, nll=True)) for conversations in (10, 30) for effect in (0.0, 0.05, 0.1)),
)


SIZES = ((8, 5), (12, 5), (12, 11), (20, 5), (20, 11), (40, 5))
SEVERAL = {
    **{
        f"yes/no, {gain:.0%} gains, {loss:.0%} losses": SeveralVariants.yes_no(gain, loss)
        for gain, loss in ((0.2, 0.1), (0.3, 0.05), (0.4, 0.4))
    },
    **{
        f"numbers, {size} SD, correlation {correlation}": SeveralVariants.numbers(size, correlation)
        for size in (0, 3)
        for correlation in (0, 0.8)
    },
    **{f"numbers, {share:.0%} differ": SeveralVariants.mostly_equal(share) for share in (0.1, 0.3)},
    "numbers, 30% differ, exponential": SeveralVariants.mostly_equal(0.3, exponential=True),
}


def show_power(samples: int) -> None:
    print("conversations, true difference: paired clustered test, unpaired test of rows")
    for name, case in CASES:
        rates = detection_rates(case, samples)
        print(
            f"{name:28} {case.conversations:3}, {case.effect:4.2f}: {rates.paired:6.1%} {rates.unpaired:6.1%}",
            flush=True,
        )


def show_families(samples: int) -> None:
    print("samples whose simultaneous intervals hold all true differences, by (conversations, variants):", *SIZES)
    for name, variants in SEVERAL.items():
        print(f"{name:36}", *(f"{variants.held(*size, samples):.3f}" for size in SIZES), flush=True)


def show_trends(samples: int) -> None:
    print("conversations, checkpoints without a difference: trends found, level that the exact test can attain")
    for conversations, checkpoints in ((10, 5), (30, 5), (100, 5), (30, 30)):
        alarms, level = trend_alarms(conversations, checkpoints, 5 * samples)
        print(f"{conversations:3}, {checkpoints:3}: {alarms:6.1%} {level:6.1%}", flush=True)


PARTS = {"power": show_power, "families": show_families, "trends": show_trends}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    for part in given.parts:
        PARTS[part](given.samples)


if __name__ == "__main__":
    main()
