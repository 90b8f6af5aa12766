"""Power of the paired clustered test beside the unpaired test of rows, and false alarms of the trend test.

    python benchmarks/comparison_simulation.py --samples 2000

Conversations differ in hardness, which both runs and all repetitions and turns of a conversation share. The
unpaired test is Welch's over all rows, as of two lists of scores: it ignores that both runs replayed the same
conversations, which costs power, and that the rows of a conversation resemble each other, which makes false alarms
where the runs are of different conversations. Trends are of checkpoints that do not differ, five times as many samples.

Further cases: few conversations; rows of the variant that are missing by chance, whose pairs are left out; rows that
ended in an error, which count as failed; and nll, whose conversations have a lognormal mean and rows with heavy tails.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.stats.family import compare_family

LEVEL = 0.05
ROWS = 8
"""Rows of a conversation in each run: 4 repetitions of 2 turns."""
HARDNESS = 0.25
"""Standard deviation of conversations' pass rates around their mean of 0.5."""


@dataclass(frozen=True)
class Rates:
    """Shares of samples in which a test finds a difference."""

    paired: float
    unpaired: float


def passes(rng: np.random.Generator, rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[conversations, ROWS]` yes/no outcomes of conversations with these pass rates."""
    return (rng.random((rates.size, ROWS)) < np.clip(rates, 0, 1)[:, None]).astype(np.float64)


def welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The p-value of Welch's test of two lists of numbers."""
    from scipy.stats import ttest_ind

    result: Any = ttest_ind(a, b, equal_var=False)  # its type does not declare its attributes
    return float(result.pvalue)


@dataclass(frozen=True)
class Case:
    """What a pair of runs is like.

    Attributes:
        effect: the true difference. conversations: how many. same: both runs have the same ones.
        missing: the share of the variant's rows that are not there. errors: that ended in an error.
        nll: numbers without limits instead of yes/no outcomes.
    """

    effect: float
    conversations: int
    same: bool = True
    missing: float = 0.0
    errors: float = 0.0
    nll: bool = False

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """`[conversations, ROWS]` the numbers of baseline and variant, and which pairs there are."""
        shape = (self.conversations, ROWS)
        if self.nll:
            level = rng.lognormal(0.5, 0.5, self.conversations)[:, None]
            a, b = (level * (1 + 0.2 * rng.standard_t(4, shape)) for _ in range(2))
            b = b + self.effect * level
        else:
            hardness = 0.5 + HARDNESS * rng.standard_normal(self.conversations)
            other = hardness if self.same else 0.5 + HARDNESS * rng.standard_normal(self.conversations)
            a, b = passes(rng, hardness), passes(rng, other + self.effect)
        b = np.where(rng.random(shape) < self.errors, 0.0, b)
        return a, b, rng.random(shape) >= self.missing


def found_in(case: Case, samples: int) -> Rates:
    """How often a difference is found."""
    rng = np.random.default_rng(case.conversations)
    paired = unpaired = 0
    for _ in range(samples):
        a, b, there = case.draw(rng)
        sums, counts = np.where(there, b - a, 0.0).sum(axis=1), there.sum(axis=1).astype(np.float64)
        widest = np.inf if case.nll else 1.0
        paired += compare_family(sums[:, None], counts[:, None], widest=widest).differences[0].p <= LEVEL
        unpaired += welch(a.ravel(), b[there]) <= LEVEL
    return Rates(paired / samples, unpaired / samples)


def trend_alarms(conversations: int, checkpoints: int, samples: int) -> tuple[float, float]:
    """How often checkpoints that do not differ have a trend, and the mean level that the exact test can attain."""
    rng = np.random.default_rng(conversations * checkpoints)
    earlier, later = np.triu_indices(checkpoints, 1)
    alarms, levels = 0, 0.0
    for _ in range(samples):
        hardness = 0.5 + HARDNESS * rng.standard_normal(conversations)
        means = np.stack([passes(rng, hardness).mean(axis=1) for _ in range(checkpoints)], axis=1)
        signs = np.sign(means[:, later] - means[:, earlier]).sum(axis=1)
        concordance = signs[:, None] / earlier.size
        (test,) = compare_family(concordance, np.ones_like(concordance), widest=1.0).differences
        alarms += test.p <= LEVEL
        levels += attainable(np.abs(signs).astype(np.int64))
    return alarms / samples, levels / samples


def attainable(steps: NDArray[np.int64]) -> float:
    """The largest p-value of a sign-flip test that is at most `LEVEL`, for differences of these whole sizes."""
    total = int(steps.sum())
    shares = np.zeros(2 * total + 1)
    shares[total] = 1.0
    for step in steps:
        shares = (np.roll(shares, step) + np.roll(shares, -step)) / 2
    tails = np.bincount(np.abs(np.arange(2 * total + 1) - total), shares)[::-1].cumsum()
    return float(tails[tails <= LEVEL + 1e-12].max(initial=0.0))


CASES = (
    *(("yes/no", Case(effect, conversations)) for conversations in (10, 30) for effect in (0.0, 0.05, 0.1)),
    *(("different conversations", Case(0.0, conversations, same=False)) for conversations in (10, 30)),
    *(("few conversations", Case(effect, conversations)) for conversations in (6, 8) for effect in (0.0, 0.2)),
    *(("20 % of rows missing", Case(effect, 30, missing=0.2)) for effect in (0.0, 0.1)),
    ("20 % of rows errors", Case(0.0, 30, errors=0.2)),
    *(("nll", Case(effect, conversations, nll=True)) for conversations in (10, 30) for effect in (0.0, 0.05, 0.1)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    samples = parser.parse_args().samples
    print("conversations, true difference: paired clustered test, unpaired test of rows")
    for name, case in CASES:
        found = found_in(case, samples)
        print(
            f"{name:28} {case.conversations:3}, {case.effect:4.2f}: {found.paired:6.1%} {found.unpaired:6.1%}",
            flush=True,
        )
    print("conversations, checkpoints without a difference: trends found, level that the exact test can attain")
    for conversations, checkpoints in ((10, 5), (30, 5), (100, 5), (30, 30)):
        alarms, level = trend_alarms(conversations, checkpoints, 5 * samples)
        print(f"{conversations:3}, {checkpoints:3}: {alarms:6.1%} {level:6.1%}", flush=True)


if __name__ == "__main__":
    main()
