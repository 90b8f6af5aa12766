"""The best coverage that any rule can have of several variants' skewed numbers without ties, all intervals together.

    python benchmarks/coverage_bound_families.py --samples 40000

Each of several variants has differences of its own, all from one distribution. A rule chooses each end of an interval
by the class of the sample's skewness: any multiple of the standard error, up to no end at all, but not nearer than the
end of the sign-flip interval at the level of a single test (where there are enough conversations for one). A linear
program finds the rule (mixtures of multiples included) for which the share of families whose intervals all hold the
truth is the least far outside of 94 to 96 % over all of the distributions, on the samples that are drawn, which
flatters it. If that amount is above 0, no such rule keeps all of them within 94 to 96 %.

Sane rules are those that could be shipped: every end is finite and nowhere nearer with more skewness towards it, and of
no distribution are intervals wider on average than those of `compare` by more than a twentieth, or by more than a half.
Behind each coverage stands the mean width: that of `compare` in standard deviations, and that of a rule relative to it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from coverage_bound import flip_ends
from interval_coverage import CASES, OTHERS, Draw
from numpy.typing import NDArray
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]
from scipy.sparse import csr_array, hstack, vstack  # pyright: ignore[reportMissingTypeStubs]

from rwkvbatch.stats.family import compare_family

Floats = NDArray[np.float64]

linprog: Any = optimize.linprog
"""Without a type: pyright takes 10 s to infer it from the source."""

LEVEL, LEAST, MOST = 0.05, 0.94, 0.96
SKEWNESS = np.array([-1.5, -0.8, -0.4, -0.15, 0.15, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.7, 3.0, 3.5, 4.0, 5.0])
"""Limits of the classes of a sample's skewness, towards the end in question."""
ENDS = np.array([*np.arange(0.0, 6.0, 0.15), *np.geomspace(6, 100, 30), np.inf])
"""How far the end is from the mean at least, in standard errors."""
WIDER = (1.05, 1.5)
"""How much wider sane rules' intervals may be on average than those of `compare`."""
NAMES = ("normal", "t, 3 degrees of freedom", "exponential", "lognormal, sigma 0.5", "lognormal, sigma 1")
FAMILIES = ((8, 5), (12, 5), (12, 11), (20, 5), (20, 11), (40, 5), (40, 11))
"""Conversations and variants."""


@dataclass(frozen=True)
class Outcomes:
    """What ends do on the samples of one variant.

    Attributes:
        missed: `[classes, ends]` the share of samples in this class whose end of this length misses the true mean.
        width: `[classes, ends]` what the finite ends add to the mean width.
        held, mean_width: of the intervals of `compare`, all of a family together.
    """

    missed: Floats
    width: Floats
    held: float
    mean_width: float


def outcomes(draw: Draw, truth: float, conversations: int, variants: int, num_samples: int) -> Outcomes:
    """Both ends of each sample count: the lower end is the upper one of the mirrored sample."""
    rng = np.random.default_rng(conversations)
    samples = np.stack([draw(rng, conversations) for _ in range(num_samples)]) - truth
    mean, error = samples.mean(axis=1), samples.std(axis=1, ddof=1) / math.sqrt(conversations)
    deviations = samples - mean[:, None]
    skewness = (deviations**3).mean(axis=1) / (deviations**2).mean(axis=1) ** 1.5
    skewness *= math.sqrt(conversations * (conversations - 1)) / (conversations - 2)
    level = 1 - (1 - LEVEL) ** (1 / variants)
    low, high = flip_ends(samples, rng, level).T if level * 2**conversations >= 2 else (mean, mean)
    missed = np.zeros((len(SKEWNESS) + 1, len(ENDS)))
    width = np.zeros_like(missed)
    for signed, end, needed in ((skewness, high - mean, -mean), (-skewness, mean - low, mean)):
        of = np.digitize(signed, SKEWNESS)
        for place, least in enumerate(ENDS):
            length = np.maximum(end, least * error)
            missed[:, place] += np.bincount(of, needed > length, minlength=len(missed)) / num_samples
            if math.isfinite(least):
                width[:, place] += np.bincount(of, length, minlength=len(missed)) / num_samples
    families = samples.reshape(-1)[: num_samples // 20 // variants * variants * conversations]
    held, widths = [], []
    for family in families.reshape(-1, conversations, variants):
        found = compare_family(family, np.ones_like(family), level=LEVEL).differences
        held.append(all(of.low <= 0 <= of.high for of in found))
        widths += [of.high - of.low for of in found]
    return Outcomes(missed, width, float(np.mean(held)), float(np.mean(widths)))


def monotone() -> csr_array:
    """`[rows, classes * ends]`: what is at most 0 for rules whose ends are nowhere nearer with more skewness."""
    shape = (len(SKEWNESS) + 1, len(ENDS))
    rows: list[csr_array] = []
    for place in range(shape[0] - 1):
        for end in range(1, shape[1]):
            row = np.zeros(shape)
            row[place, end:], row[place + 1, end:] = 1.0, -1.0
            rows.append(csr_array(row.reshape(1, -1)))
    return csr_array(vstack(rows))


def best_rule(found: Mapping[str, Outcomes], variants: int, wider: float) -> tuple[float, dict[str, str]]:
    """How far the best rule is outside of [LEAST, MOST], and what it does: coverage and relative mean width.

    Args:
        wider: see `WIDER`; infinite for any rule, also one without ends.
    """
    classes, ends = next(iter(found.values())).missed.shape
    rows: list[Floats] = []
    limits: list[float] = []
    for of in found.values():
        for sign, together in ((1.0, LEAST), (-1.0, MOST)):
            rows.append(np.append(-1.0, sign * variants * of.missed.ravel()))
            limits.append(-sign * math.log(together))
    conditions = csr_array(np.array(rows))
    bounds: list[tuple[float, float | None]] = [(0.0, None)] * (1 + classes * ends)
    if math.isfinite(wider):
        slopes: Any = monotone()  # its stubs have no shape
        conditions = vstack([conditions, hstack([csr_array((slopes.shape[0], 1)), slopes])])
        widths = np.array([np.append(0.0, of.width.ravel() / of.mean_width) for of in found.values()])
        conditions = vstack([conditions, csr_array(widths)])
        limits += [0.0] * slopes.shape[0] + [wider] * len(found)
        bounds[1:] = [(0.0, 0.0 if math.isinf(end) else None) for _ in range(classes) for end in ENDS]
    each = hstack([csr_array((classes, 1)), csr_array(np.kron(np.eye(classes), np.ones(ends)))])
    cost = np.append(1.0, 1e-6 * sum(of.width.ravel() / of.mean_width for of in found.values()))
    solved = linprog(cost, A_ub=conditions, b_ub=limits, A_eq=each, b_eq=np.ones(classes), bounds=bounds)
    if solved.x is None:
        raise RuntimeError(solved.message)
    shares = solved.x[1:]
    shown: dict[str, str] = {}
    for name, of in found.items():
        held = (1 - float(of.missed.ravel() @ shares)) ** variants
        width = f" ({float(of.width.ravel() @ shares) / of.mean_width:.2f})" if math.isfinite(wider) else ""
        shown[name] = f"{held:.3f}{width}"
    return float(solved.x[0]), shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=40_000)
    given = parser.parse_args()
    cases = {name: (CASES | OTHERS)[name] for name in NAMES}
    for n, variants in FAMILIES:
        found = {name: outcomes(draw, truth, n, variants, given.samples) for name, (draw, truth, _) in cases.items()}
        print(f"{n} conversations, {variants} variants")
        print("  compare:", ", ".join(f"{name} {of.held:.3f} ({of.mean_width:.2f})" for name, of in found.items()))
        for title, wider in (
            ("any rule", math.inf),
            *((f"sane rule, {wider:g} times as wide", wider) for wider in WIDER),
        ):
            outside, shown = best_rule(found, variants, wider)
            each = ", ".join(f"{name} {text}" for name, text in shown.items())
            print(f"  {title}: {100 * outside:.2f} points outside: {each}", flush=True)


if __name__ == "__main__":
    main()
