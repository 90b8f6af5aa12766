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

import math

import numpy as np
from interval_coverage import CASES, OTHERS, Draw
from interval_rules import LEVEL, Outcomes, arguments, flip_ends, moments, no_nearer, show_rules

from rwkvbatch.stats.family import compare_family

SKEWNESS = np.array([-1.5, -0.8, -0.4, -0.15, 0.15, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.7, 3.0, 3.5, 4.0, 5.0])
"""Limits of the classes of a sample's skewness, towards the end in question."""
ENDS = np.array([*np.arange(0.0, 6.0, 0.15), *np.geomspace(6, 100, 30), np.inf])
"""How far the end is from the mean at least, in standard errors."""
WIDER = (1.05, 1.5)
"""How much wider sane rules' intervals may be on average than those of `compare`."""
NAMES = ("normal", "t, 3 degrees of freedom", "exponential", "lognormal, sigma 0.5", "lognormal, sigma 1")
FAMILIES = ((8, 5), (12, 5), (12, 11), (20, 5), (20, 11), (40, 5), (40, 11))
"""Conversations and variants."""


def outcomes(draw: Draw, truth: float, conversations: int, variants: int, num_samples: int) -> Outcomes:
    """Both ends of each sample count: the lower end is the upper one of the mirrored sample."""
    rng = np.random.default_rng(conversations)
    samples = np.stack([draw(rng, conversations) for _ in range(num_samples)]) - truth
    mean, error, skewness = moments(samples)
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


def main() -> None:
    given = arguments(__doc__, 40_000).parse_args()
    cases = {name: (CASES | OTHERS)[name] for name in NAMES}
    classes = len(SKEWNESS) + 1
    monotone = no_nearer([(place, place + 1) for place in range(classes - 1)], classes, len(ENDS))
    rules = {"any rule": (None, math.inf)} | {
        f"sane rule, {wider:g} times as wide": (monotone, wider) for wider in WIDER
    }
    for n, variants in FAMILIES:
        found = {name: outcomes(draw, truth, n, variants, given.samples) for name, (draw, truth, _) in cases.items()}
        print(f"{n} conversations, {variants} variants")
        show_rules(found, variants, ENDS, rules)


if __name__ == "__main__":
    main()
