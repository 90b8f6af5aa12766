"""The best coverage that any rule can have of numbers of which most are equal, over several distributions at once.

    python benchmarks/coverage_bound_mostly_equal.py --samples 10000

The end of an interval may be any multiple of the standard error, up to no end at all, by what the sample shows: how
many conversations differ, and the class of its skewness. It agrees with the exact sign-flip test: 0 is outside exactly
where the test is significant. A linear program finds the rule (mixtures of multiples included) whose coverage is the
least far outside of 94 to 96 % over all of the distributions, on the samples that it is judged on, which flatters it.
If that amount is above 0, no such rule keeps all of them within 94 to 96 %. Samples whose pairs are all equal are left
out.

Sane rules are those that could be shipped: every end is finite, and nowhere nearer with fewer conversations that
differ or with more skewness towards it, and of no distribution are intervals wider on average than those of `compare`
by more than a twentieth. Mixtures of sane rules are included.

With several variants that change by themselves, the intervals of all of them together shall hold in 94 to 96 %: each
in the root of these shares, of all samples. The test is at 5 % divided by the number of variants.

Beside `compare` stands the mean width of its intervals, and beside sane rules that of theirs relative to it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]
from scipy.sparse import csr_array, hstack, vstack  # pyright: ignore[reportMissingTypeStubs]

from rwkvbatch.stats.family import compare_family

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

linprog: Any = optimize.linprog
"""Without a type: pyright takes 10 s to infer it from the source."""

LEVEL, LEAST, MOST = 0.05, 0.94, 0.96
DIFFERING = np.array([1, 2, 3, 4, 5, 6, 8, 11, 16, 25])
"""The smallest number of conversations that differ in each class."""
SKEWNESS = np.array([-0.8, 0.0, 0.8, 1.6, 2.4])
"""Limits of the classes of a sample's skewness, towards the end in question."""
ENDS = np.array([*np.arange(0.0, 4.0, 0.1), *np.geomspace(4, 400, 40), np.inf])
"""How far the end is from the mean, in standard errors."""
WIDER = 1.05
"""How much wider a sane rule's intervals may be on average than those of `compare`."""
_ENUMERATED = 13
_BATCH = 500


SIZES: dict[str, tuple[Callable[[np.random.Generator, tuple[int, ...]], Floats], float]] = {
    "normal around 1": (lambda rng, shape: rng.normal(1, 1, shape), 1.0),
    "close to 1": (lambda rng, shape: rng.normal(1, 0.3, shape), 1.0),
    "normal around 0.3": (lambda rng, shape: rng.normal(0.3, 1, shape), 0.3),
    "exponential": (lambda rng, shape: rng.exponential(1, shape), 1.0),
    "lognormal": (lambda rng, shape: rng.lognormal(0, 1, shape), math.exp(0.5)),
}
"""Numbers of the conversations that differ, and their mean."""
SHARES = (0.1, 0.3, 0.6)
"""Of the conversations that differ."""


@dataclass(frozen=True)
class MostlyEqual:
    """Differences that are 0 but for a share of the conversations, for each variant by itself."""

    share: float
    sizes: str

    @property
    def truth(self) -> float:
        return self.share * SIZES[self.sizes][1]

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        return np.where(rng.random(shape) < self.share, SIZES[self.sizes][0](rng, shape), 0.0)

    def held(self, conversations: int, variants: int, samples: int) -> tuple[float, float]:
        """How often the intervals of `compare` hold the truth, all of a family together, and their mean width.

        Of one variant, samples in which all pairs are equal are left out.
        """
        rng = np.random.default_rng(conversations * variants)
        held: list[bool] = []
        widths: list[float] = []
        for _ in range(samples):
            values = self.draw(rng, (conversations, variants))
            if variants > 1 or values.any():
                found = compare_family(values, np.ones_like(values)).differences
                held.append(all(of.low <= self.truth <= of.high for of in found))
                widths += [of.high - of.low for of in found if not of.identical]
        return float(np.mean(held)), float(np.mean(widths))


ROWS = {f"{share:.0%} {sizes}": MostlyEqual(share, sizes) for sizes in SIZES for share in SHARES}


@dataclass(frozen=True)
class Outcomes:
    """What ends do on the samples of one distribution.

    Attributes:
        missed: `[classes, ends]` the share of all samples that are in this class and whose end misses the true mean.
        width: `[classes, ends]` what the finite ends add to the mean width; 0 for no end at all.
        different: the share of samples in which not all pairs are equal.
        held, mean_width: of the intervals of `compare`.
    """

    missed: Floats
    width: Floats
    different: float
    held: float
    mean_width: float


def significant(samples: Floats, level: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which samples `[samples, conversations]` the two-sided sign-flip test finds significant at `level`."""
    n = samples.shape[1]
    codes = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 if n <= _ENUMERATED else rng.integers(0, 2, (9_999, n))
    signs = (1.0 - 2.0 * codes).T
    found = [
        (np.abs(batch @ signs) >= np.abs(batch.sum(axis=1, keepdims=True)) - 1e-9).sum(axis=1)
        for batch in np.split(samples, range(_BATCH, len(samples), _BATCH))
    ]
    drawn = 0 if n <= _ENUMERATED else 1  # the sample itself
    return (np.concatenate(found) + drawn) / (signs.shape[1] + drawn) <= level


def classes_of(differing: Codes, skewness: Floats) -> Codes:
    return (np.digitize(differing, DIFFERING) - 1) * (len(SKEWNESS) + 1) + np.digitize(skewness, SKEWNESS)


def outcomes(row: MostlyEqual, conversations: int, variants: int, num_samples: int) -> Outcomes:
    """Of one of the variants. Both ends of each sample count: the lower end is the upper one of the mirrored sample."""
    rng = np.random.default_rng(conversations)
    drawn = row.draw(rng, (num_samples, conversations))
    samples = drawn[(drawn != 0).any(axis=1)]
    mean, error = samples.mean(axis=1), samples.std(axis=1, ddof=1) / math.sqrt(conversations)
    deviations = samples - mean[:, None]
    skewness = (deviations**3).mean(axis=1) / (deviations**2).mean(axis=1) ** 1.5
    skewness *= math.sqrt(conversations * (conversations - 1)) / (conversations - 2)
    differing, excludes_zero = (samples != 0).sum(axis=1), significant(samples, LEVEL / variants, rng)
    missed = np.zeros((len(DIFFERING) * (len(SKEWNESS) + 1), len(ENDS)))
    width = np.zeros_like(missed)
    for sign in (1.0, -1.0):
        of, own_mean = classes_of(differing, sign * skewness), sign * mean
        for place, distance in enumerate(ENDS):
            end = own_mean + distance * error
            # Below 0 where the test finds a difference on this side, and nowhere else.
            end = np.where(excludes_zero & (own_mean < 0), np.minimum(end, -1e-6), np.maximum(end, 0.0))
            missed[:, place] += np.bincount(of, end < sign * row.truth - 1e-9, minlength=len(missed)) / len(drawn)
            if math.isfinite(distance):
                width[:, place] += np.bincount(of, end - own_mean, minlength=len(missed)) / len(samples)
    held, mean_width = row.held(conversations, variants, num_samples // 20 // variants)
    return Outcomes(missed, width, len(samples) / len(drawn), held, mean_width)


def sane() -> csr_array:
    """`[rows, classes * ends]`: what is at most 0 for sane rules, whose share of ends at a distance or farther is
    nowhere smaller in the next class of skewness, nor in the class with fewer conversations that differ."""
    shape = (len(DIFFERING), len(SKEWNESS) + 1, len(ENDS))
    rows: list[csr_array] = []
    for differing, skewness, end in np.ndindex(shape):
        for other in ((differing, skewness + 1), (differing - 1, skewness)):
            if end and other[0] >= 0 and other[1] < shape[1]:
                row = np.zeros(shape)
                row[differing, skewness, end:] = 1.0
                row[(*other, slice(end, None))] = -1.0
                rows.append(csr_array(row.reshape(1, -1)))
    return csr_array(vstack(rows))


def best_rule(
    found: Mapping[str, Outcomes], variants: int, *, only_sane: bool
) -> tuple[float, dict[str, tuple[float, float]]]:
    """How far the best rule is outside of [LEAST, MOST] for all variants together, and each (coverage, mean width).

    The coverage is that of all variants, to the first order in what one of them misses.
    """
    classes, ends = next(iter(found.values())).missed.shape
    rows: list[Floats] = []
    limits: list[float] = []
    for of in found.values():
        # Of one variant, in which all pairs are equal in some samples; these count where there are several variants.
        share = of.missed.ravel() / (of.different if variants == 1 else 1.0)
        for sign, together in ((1.0, LEAST), (-1.0, MOST)):
            rows.append(np.append(-1.0, sign * variants * share))
            limits.append(-sign * math.log(together) if variants > 1 else sign * (1 - together))
    each = hstack([csr_array((classes, 1)), csr_array(np.kron(np.eye(classes), np.ones(ends)))])
    conditions = csr_array(np.array(rows))
    bounds: list[tuple[float, float | None]] = [(0.0, None)] + [(0.0, None)] * (classes * ends)
    if only_sane:
        monotone: Any = sane()  # its stubs have no shape
        conditions = vstack([conditions, hstack([csr_array((monotone.shape[0], 1)), monotone])])
        widths = np.array([np.append(0.0, of.width.ravel() / of.mean_width) for of in found.values()])
        conditions = vstack([conditions, csr_array(widths)])
        limits += [0.0] * monotone.shape[0] + [WIDER] * len(found)
        bounds[1:] = [(0.0, 0.0 if math.isinf(end) else None) for _ in range(classes) for end in ENDS]
    cost = np.append(1.0, 1e-6 * sum(of.width.ravel() / of.mean_width for of in found.values()))
    solved = linprog(cost, A_ub=conditions, b_ub=limits, A_eq=each, b_eq=np.ones(classes), bounds=bounds)
    if solved.x is None:
        raise RuntimeError(solved.message)
    shares, outside = solved.x[1:], float(solved.x[0])

    def of_rule(of: Outcomes) -> tuple[float, float]:
        missed = float(of.missed.ravel() @ shares)
        held = (1 - missed) ** variants if variants > 1 else 1 - missed / of.different
        return held, float(of.width.ravel() @ shares) / of.mean_width

    return outside, {name: of_rule(of) for name, of in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--conversations", type=int, nargs="+", default=[8, 12, 20, 40])
    parser.add_argument("--variants", type=int, nargs="+", default=[1, 8])
    given = parser.parse_args()
    for n in given.conversations:
        for variants in given.variants:
            found = {name: outcomes(row, n, variants, given.samples) for name, row in ROWS.items()}
            print(f"{n} conversations, {variants} variants")
            print(
                "  compare:",
                ", ".join(f"{name} {of.held:.3f} ({of.mean_width:.2f})" for name, of in found.items()),
                flush=True,
            )
            for title, only_sane in (("any rule", False), ("sane rule", True)):
                outside, each = best_rule(found, variants, only_sane=only_sane)
                widths = {name: f" ({width:.2f})" if only_sane else "" for name, (_, width) in each.items()}
                shown = ", ".join(f"{name} {held:.3f}{widths[name]}" for name, (held, _) in each.items())
                print(f"  {title}: {100 * outside:.2f} points outside: {shown}", flush=True)


if __name__ == "__main__":
    main()
