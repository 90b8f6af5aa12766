"""The best coverage that any rule of a sample's skewness can have, over several distributions of differences at once.

    python benchmarks/coverage_bound.py --samples 20000

The end of an interval may be any multiple of the standard error that a rule chooses by the class of the sample's
skewness, up to no end at all, but not nearer than the end of the exact sign-flip interval: nearer, the test would make
more than 5 % false alarms of differences that are spread evenly. A linear program finds the rule (mixtures of multiples
included) whose coverage is farthest from 94 to 96 % by the least amount over all of the distributions, on the samples
that are drawn, which flatters it. If that amount is above 0, no such rule keeps all of them within 94 to 96 %.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np
from interval_coverage import CASES, Draw
from numpy.typing import NDArray
from scipy.optimize import linprog  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

Floats = NDArray[np.float64]

LEAST, MOST = 0.94, 0.96
SKEWNESS = np.array([-np.inf, -1.5, -0.8, -0.4, -0.15, 0.15, 0.4, 0.8, 1.2, 1.6, 2.2, np.inf])
"""Limits of the classes of a sample's skewness, towards the end in question."""
ENDS = np.array([0.0, *np.arange(1.0, 8.0, 0.1), 8.0, 10.0, 15.0, 25.0, np.inf])
"""How far the end is from the mean at least, in standard errors."""
_ENUMERATED = 13
_BATCH = 500


def flip_ends(samples: Floats, rng: np.random.Generator) -> Floats:
    """`[samples, 2]`: the ends of the sign-flip intervals at 95 % of `samples` `[samples, conversations]`."""
    n = samples.shape[1]
    if n <= _ENUMERATED:
        chosen = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
    else:
        half = rng.integers(0, 2, (999, n))
        chosen = np.concatenate([half, 1 - half, np.ones((1, n), np.int64)])
    skipped = math.floor(0.025 * (len(chosen) + 1)) - 1
    weights = (chosen / chosen.sum(axis=1, keepdims=True)).T
    found: list[Floats] = []
    for start in range(0, len(samples), _BATCH):
        means = samples[start : start + _BATCH] @ weights
        means.partition((skipped, means.shape[1] - 1 - skipped), axis=1)
        found.append(means[:, [skipped, means.shape[1] - 1 - skipped]])
    return np.concatenate(found)


def misses(draw: Draw, truth: float, conversations: int, num_samples: int) -> Floats:
    """`[classes, ends]`: the share of samples with a skewness in this class whose end of this length misses `truth`.

    Both ends of each sample count: the lower end is the upper one of the mirrored sample.
    """
    rng = np.random.default_rng(conversations)
    samples = np.stack([draw(rng, conversations) for _ in range(num_samples)])
    mean = samples.mean(axis=1)
    error = samples.std(axis=1, ddof=1) / math.sqrt(conversations)
    deviations = samples - mean[:, None]
    skewness = (deviations**3).mean(axis=1) / (deviations**2).mean(axis=1) ** 1.5
    skewness *= math.sqrt(conversations * (conversations - 1)) / (conversations - 2)
    low, high = flip_ends(samples, rng).T
    found = np.zeros((len(SKEWNESS) - 1, len(ENDS)))
    for signed, end, needed in ((skewness, high - mean, truth - mean), (-skewness, mean - low, mean - truth)):
        of = np.digitize(signed, SKEWNESS[1:-1])
        for place, least in enumerate(ENDS):
            missed = needed / error > np.maximum(end / error, least)
            found[:, place] += np.bincount(of, missed, minlength=len(found)) / num_samples
    return found


def best_rule(missed: Sequence[Floats]) -> tuple[float, list[float]]:
    """How far the coverage is from [LEAST, MOST] at the least favourable distribution, and each one's coverage."""
    classes, ends = missed[0].shape
    cost = np.append(np.zeros(classes * ends), 1.0)
    rows = [np.append(sign * of.ravel(), -1.0) for of in missed for sign in (1, -1)]
    limits = [limit for _ in missed for limit in (1 - LEAST, MOST - 1)]
    one_each = np.append(np.kron(np.eye(classes), np.ones(ends)), np.zeros((classes, 1)), axis=1)
    found = linprog(cost, A_ub=np.array(rows), b_ub=limits, A_eq=one_each, b_eq=np.ones(classes))
    rule = found.x[:-1].reshape(classes, ends)
    return float(found.x[-1]), [1 - float((of * rule).sum()) for of in missed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--conversations", type=int, nargs="+", default=[8, 12, 20])
    given = parser.parse_args()
    names = [name for name, (_, _, widest) in CASES.items() if math.isinf(widest)]
    for conversations in given.conversations:
        missed = {name: misses(*CASES[name][:2], conversations, given.samples) for name in names}
        for left_out in ([], ["normal, a tenth moved by 5"]):
            chosen = [name for name in names if name not in left_out]
            outside, shares = best_rule([missed[name] for name in chosen])
            print(f"{conversations} conversations: {100 * outside:.2f} points outside of 94 to 96 %:", flush=True)
            print(
                "  " + ", ".join(f"{name} {share:.3f}" for name, share in zip(chosen, shares, strict=True)), flush=True
            )


if __name__ == "__main__":
    main()
