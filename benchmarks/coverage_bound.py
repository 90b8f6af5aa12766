"""The best coverage that any rule of a sample's skewness can have, over several distributions of differences at once.

    python benchmarks/coverage_bound.py --samples 20000

The end of an interval may be any multiple of the standard error that a rule chooses by the class of the sample's
skewness, up to no end at all, but not nearer than the end of the exact sign-flip interval: nearer, the test would make
more than 5 % false alarms of differences that are spread evenly. A linear program finds the rule (mixtures of multiples
included) whose coverage is farthest from 94 to 96 % by the least amount over all of the distributions, on the samples
that are drawn, which flatters it. If that amount is above 0, no such rule keeps all of them within 94 to 96 %.

Sane rules are those that could be shipped: with more skewness towards an end, the end is nowhere nearer; from one
class to the next it moves by at most one standard error; and of no distribution are intervals wider on average than
those of `compare` by more than a twentieth. Mixtures of sane rules are included, so that the bound holds for them too.

The same over these distributions together with those that the constants of `compare` were not chosen with. Numbers of
which most are equal have a bound of their own (`coverage_bound_mostly_equal.py`).

At last, the largest coverage of lognormal differences that a rule can have that holds normal and exponential ones in at
most 96 % of samples, and none of the others but those of the last row in less than 94 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from interval_coverage import CASES, OTHERS, UNLIMITED, Draw
from interval_rules import LEAST, MOST, Floats, arguments, flip_ends, moments, solve

from rwkvbatch.stats.spread import Spread

SKEWNESS = np.array([-np.inf, -1.5, -0.8, -0.4, -0.15, 0.15, 0.4, 0.8, 1.2, 1.6, 2.2, 3.0, 4.0, np.inf])
"""Limits of the classes of a sample's skewness, towards the end in question."""
ENDS = np.array([0.0, *np.arange(1.0, 8.0, 0.1), 8.0, 10.0, 15.0, 25.0, np.inf])
"""How far the end is from the mean at least, in standard errors."""
JUMP = 1.0
"""How far a sane rule's end may move from one class to the next, in standard errors."""
WIDER = 1.05
"""How much wider a sane rule's intervals may be on average than those of `compare`."""
SKEWED, LAST = "lognormal, sigma 1", "normal, a tenth moved by 5"


@dataclass(frozen=True)
class Outcomes:
    """What ends do on the samples of one distribution.

    `missed` `[classes, ends]`: the share of samples with a skewness in this class whose end of this length misses the
    true mean. `reach` `[classes, ends]`: what these ends add to the mean width. `width`: that of `compare`.
    """

    missed: Floats
    reach: Floats
    width: float


def outcomes(draw: Draw, truth: float, conversations: int, num_samples: int, seed: int = 0) -> Outcomes:
    """Both ends of each sample count: the lower end is the upper one of the mirrored sample."""
    rng = np.random.default_rng([conversations, seed])
    samples = np.stack([draw(rng, conversations) for _ in range(num_samples)])
    mean, error, skewness = moments(samples)
    low, high = flip_ends(samples, rng).T
    missed = np.zeros((len(SKEWNESS) - 1, len(ENDS)))
    reach = np.zeros_like(missed)
    for signed, end, needed in ((skewness, high - mean, truth - mean), (-skewness, mean - low, mean - truth)):
        of = np.digitize(signed, SKEWNESS[1:-1])
        for place, least in enumerate(ENDS):
            length = np.maximum(end, least * error)
            missed[:, place] += np.bincount(of, needed > length, minlength=len(missed)) / len(samples)
            reach[:, place] += np.bincount(of, length, minlength=len(missed)) / len(samples)
    tails = np.array([Spread.of(sample, np.ones(conversations), math.inf).skewed.interval(0.05) for sample in samples])
    width = float((np.maximum(high, tails[:, 1]) - np.minimum(low, tails[:, 0])).mean())
    return Outcomes(missed, reach, width)


def sane(classes: int, ends: int) -> Floats:
    """`[rows, classes * ends]`: what is at most 0 for rules whose ends are monotone and do not jump.

    A rule is the share of each end in each class. Of a mixture of such rules, the share of ends of a length or more
    grows with the class, and is at most that of ends that are `JUMP` shorter in the class before.
    """
    rows: list[Floats] = []
    for place in range(classes - 1):
        for end in range(1, ends):
            longer = np.arange(ends) >= end
            shorter = ENDS[end] - JUMP - 1e-9 <= ENDS
            for sign, here in ((1.0, longer), (-1.0, shorter)):
                row = np.zeros((classes, ends))
                row[place], row[place + 1] = sign * here, -sign * longer
                rows.append(row.ravel())
    return np.array(rows)


@dataclass(frozen=True)
class Rule:
    """`shares` `[classes, ends]`: of each end in each class. `value`: what the program made the least or the most."""

    shares: Floats
    value: float

    def coverage(self, of: Outcomes) -> float:
        return 1 - float((of.missed * self.shares).sum())


def cheapest(
    cost: Floats, most: list[tuple[Floats, float]], found: Mapping[str, Outcomes], *, only_sane: bool
) -> Rule | None:
    """The rule of the least `cost` of `solve`; each of `most` is (row, what it is at most)."""
    shape = next(iter(found.values())).missed.shape
    if only_sane:  # no end at all is infinitely wide
        most = most + [(np.append(0.0, np.nan_to_num(of.reach, posinf=0.0)), WIDER * of.width) for of in found.values()]
        most = most + [(np.append(0.0, row), 0.0) for row in sane(*shape)]
    rows, limits = np.array([row for row, _ in most]), [limit for _, limit in most]
    solved = solve(cost, [rows], limits, shape[0], ENDS, only_finite=only_sane)
    return None if solved is None else Rule(solved[1][1:].reshape(shape), solved[0])


def least_outside(found: Mapping[str, Outcomes], *, only_sane: bool = False) -> Rule | None:
    """The rule whose coverage is the least far outside of [LEAST, MOST] at the least favourable distribution."""
    most: list[tuple[Floats, float]] = []
    for of in found.values():
        most.append((np.append(-1.0, of.missed), 1 - LEAST))
        most.append((np.append(-1.0, -of.missed), MOST - 1))
    size = next(iter(found.values())).missed.size
    return cheapest(np.append(1.0, np.zeros(size)), most, found, only_sane=only_sane)


def most_skewed(found: Mapping[str, Outcomes], *, only_sane: bool = False) -> Rule | None:
    """The rule with the largest coverage of `SKEWED` that holds normal and exponential differences in at most MOST."""
    most = [(np.append(0.0, -found[name].missed), MOST - 1) for name in ("normal", "exponential")]
    most += [(np.append(0.0, of.missed), 1 - LEAST) for name, of in found.items() if name not in (SKEWED, LAST)]
    return cheapest(np.append(0.0, found[SKEWED].missed), most, found, only_sane=only_sane)


def main() -> None:
    given = arguments(__doc__, 20_000, [8, 12, 20, 40]).parse_args()
    for n in given.conversations:
        cases = {name: CASES[name] for name in UNLIMITED} | OTHERS
        everything, fresh = (
            {name: outcomes(draw, truth, n, given.samples, seed) for name, (draw, truth, _) in cases.items()}
            for seed in (0, 1)
        )
        found = {name: everything[name] for name in UNLIMITED}
        with_others = found | {name: everything[name] for name in OTHERS}
        without = {name: of for name, of in found.items() if name != LAST}
        for title, rule in (
            ("any rule, with the other distributions", least_outside(with_others)),
            ("sane rule, with the other distributions", least_outside(with_others, only_sane=True)),
            ("any rule", least_outside(found)),
            ("any rule, without the last row", least_outside(without)),
            ("sane rule", least_outside(found, only_sane=True)),
            ("sane rule, without the last row", least_outside(without, only_sane=True)),
            (f"any rule, most of {SKEWED} at 0.96", most_skewed(found)),
            (f"sane rule, most of {SKEWED} at 0.96", most_skewed(found, only_sane=True)),
        ):
            if rule is None:
                print(f"{n} conversations, {title}: there is none", flush=True)
                continue
            shown = f"{100 * rule.value:.2f} points outside" if "at 0.96" not in title else f"{1 - rule.value:.4f}"
            print(f"{n} conversations, {title}: {shown}")
            for kind, of in (("fitted", everything), ("fresh", fresh)):
                print(
                    f"  {kind}:", ", ".join(f"{name} {rule.coverage(one):.3f}" for name, one in of.items()), flush=True
                )


if __name__ == "__main__":
    main()
