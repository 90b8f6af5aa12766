"""Power of the paired clustered test beside the unpaired test of rows, and false alarms of the trend test.

    python benchmarks/comparison_simulation.py --samples 2000

Conversations differ in hardness, which both runs and all repetitions and turns of a conversation share. The
unpaired test is Welch's over all rows, as of two lists of scores: it ignores that both runs replayed the same
conversations, which costs power, and that the rows of a conversation resemble each other, which makes false alarms
where the runs are of different conversations. Trends are of checkpoints that do not differ.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.stats.signflip import compare_family

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


def differences(effect: float, conversations: int, samples: int, *, same: bool = True) -> Rates:
    """How often a true difference of `effect` is found. `same`: both runs have the same conversations."""
    rng = np.random.default_rng(conversations)
    paired = unpaired = 0
    for _ in range(samples):
        hardness = 0.5 + HARDNESS * rng.standard_normal(conversations)
        other = hardness if same else 0.5 + HARDNESS * rng.standard_normal(conversations)
        a, b = passes(rng, hardness), passes(rng, other + effect)
        sums = (b - a).sum(axis=1)[:, None]
        paired += compare_family(sums, np.full_like(sums, ROWS), widest=1.0).differences[0].p <= LEVEL
        unpaired += welch(a.ravel(), b.ravel()) <= LEVEL
    return Rates(paired / samples, unpaired / samples)


def trend_alarms(conversations: int, checkpoints: int, samples: int) -> float:
    """How often checkpoints that do not differ have a trend."""
    rng = np.random.default_rng(conversations * checkpoints)
    alarms = 0
    for _ in range(samples):
        hardness = 0.5 + HARDNESS * rng.standard_normal(conversations)
        means = np.stack([passes(rng, hardness).mean(axis=1) for _ in range(checkpoints)], axis=1)
        signs = [np.sign(means[:, later] - means[:, earlier]) for earlier, later in combinations(range(checkpoints), 2)]
        concordance = np.mean(signs, axis=0)[:, None]
        (test,) = compare_family(concordance, np.ones_like(concordance), widest=1.0).differences
        alarms += test.p <= LEVEL
    return alarms / samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    samples = parser.parse_args().samples
    print("conversations, true difference: paired clustered test, unpaired test of rows")
    for conversations in (10, 30):
        for effect in (0.0, 0.05, 0.1):
            found = differences(effect, conversations, samples)
            print(f"{conversations:3}, {effect:4.2f}: {found.paired:6.1%} {found.unpaired:6.1%}", flush=True)
        found = differences(0.0, conversations, samples, same=False)
        print(f"{conversations:3}, 0.00, different conversations: unpaired {found.unpaired:.1%}", flush=True)
    print("conversations, checkpoints without a difference: trends found")
    for conversations, checkpoints in ((10, 5), (30, 5), (30, 30)):
        alarms = trend_alarms(conversations, checkpoints, samples)
        print(f"{conversations:3}, {checkpoints:3}: {alarms:6.1%}", flush=True)


if __name__ == "__main__":
    main()
