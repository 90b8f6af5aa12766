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

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from interval_rules import BATCH, ENUMERATED, LEVEL, Floats, Outcomes, arguments, moments, no_nearer, show_rules
from numpy.typing import NDArray
from scipy.sparse import csr_array  # pyright: ignore[reportMissingTypeStubs]

from rwkvbatch.stats.family import compare_family

Codes = NDArray[np.int64]

DIFFERING = np.array([1, 2, 3, 4, 5, 6, 8, 11, 16, 25])
"""The smallest number of conversations that differ in each class."""
SKEWNESS = np.array([-0.8, 0.0, 0.8, 1.6, 2.4])
"""Limits of the classes of a sample's skewness, towards the end in question."""
ENDS = np.array([*np.arange(0.0, 4.0, 0.1), *np.geomspace(4, 400, 40), np.inf])
"""How far the end is from the mean, in standard errors."""
WIDER = 1.05
"""How much wider a sane rule's intervals may be on average than those of `compare`."""

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


def significant(samples: Floats, level: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which samples `[samples, conversations]` the two-sided sign-flip test finds significant at `level`."""
    n = samples.shape[1]
    codes = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 if n <= ENUMERATED else rng.integers(0, 2, (9_999, n))
    signs = (1.0 - 2.0 * codes).T
    found = [
        (np.abs(batch @ signs) >= np.abs(batch.sum(axis=1, keepdims=True)) - 1e-9).sum(axis=1)
        for batch in np.split(samples, range(BATCH, len(samples), BATCH))
    ]
    drawn = 0 if n <= ENUMERATED else 1  # the sample itself
    return (np.concatenate(found) + drawn) / (signs.shape[1] + drawn) <= level


def classes_of(differing: Codes, skewness: Floats) -> Codes:
    return (np.digitize(differing, DIFFERING) - 1) * (len(SKEWNESS) + 1) + np.digitize(skewness, SKEWNESS)


def outcomes(row: MostlyEqual, conversations: int, variants: int, num_samples: int) -> Outcomes:
    """Of one of the variants. Both ends of each sample count: the lower end is the upper one of the mirrored sample."""
    rng = np.random.default_rng(conversations)
    drawn = row.draw(rng, (num_samples, conversations))
    samples = drawn[(drawn != 0).any(axis=1)]
    mean, error, skewness = moments(samples)
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
    return Outcomes(missed, width, held, mean_width, len(samples) / len(drawn))


def sane() -> csr_array:
    """What is at most 0 for sane rules: with more skewness or fewer that differ, the end is nowhere nearer."""
    skewed = len(SKEWNESS) + 1
    classes = len(DIFFERING) * skewed
    pairs = [(place, place + 1) for place in range(classes) if (place + 1) % skewed]
    pairs += [(place, place - skewed) for place in range(skewed, classes)]
    return no_nearer(pairs, classes, len(ENDS))


def main() -> None:
    parser = arguments(__doc__, 10_000, [8, 12, 20, 40])
    parser.add_argument("--variants", type=int, nargs="+", default=[1, 8])
    given = parser.parse_args()
    rules = {"any rule": (None, math.inf), "sane rule": (sane(), WIDER)}
    for n in given.conversations:
        for variants in given.variants:
            found = {name: outcomes(row, n, variants, given.samples) for name, row in ROWS.items()}
            print(f"{n} conversations, {variants} variants")
            show_rules(found, variants, ENDS, rules)


if __name__ == "__main__":
    main()
