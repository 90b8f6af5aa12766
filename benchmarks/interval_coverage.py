"""How often the interval of a paired difference holds the true difference, by the distribution of the differences.

    python benchmarks/interval_coverage.py --samples 1000

Each sample has one difference per conversation. Yes/no outcomes differ with the given probabilities of a gain and a
loss; exponential and lognormal differences (less their mean) are skewed, and those of t with 3 degrees of freedom have
heavy tails. Samples in which all pairs are equal are left out: their interval is that of what a sample of this size may
lack, whatever the distribution.

Distributions follow that the constants of the interval were not chosen with, and means of single variants: of numbers
without limits (`nll`, `tokens`, timings), and of numbers from 0 to 1. The mean width stands behind the coverage of
numbers with limits, and of numbers of which most are equal.

Before that, by enumeration: the levels that the test can attain, which are the largest p-values that are at most 5 %,
and the coverage of intervals of yes/no outcomes over all true shares of gains and losses, beside other intervals that
could be made to agree with the same test.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import comb
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.stats import signflip
from rwkvbatch.stats.bounded import bounded_interval
from rwkvbatch.stats.family import compare_family
from rwkvbatch.stats.spread import Spread, unlimited_interval

LEVEL = 0.05
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
Ends = tuple[float, float]
Interval = Callable[[NDArray[np.float64], NDArray[np.int64]], Ends]


def yes_no(gain: float, loss: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return rng.choice([1.0, -1.0, 0.0], size=n, p=[gain, loss, 1 - gain - loss])

    return draw


def repetitions(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Mean differences of four repetitions with pass rates of 0.2 to 0.7, and 0.1 higher ones."""
    rates = rng.uniform(0.2, 0.7, n)
    return (rng.binomial(4, rates + 0.1) - rng.binomial(4, rates)) / 4


def losses(share: float, gain: float = 0.15) -> Draw:
    """Gains of five repetitions, each with the chance `gain`, and a share of the conversations that fail altogether."""

    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return np.where(rng.random(n) < share, -1.0, rng.binomial(5, gain, n) / 5)

    return draw


def normal(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.normal(0.3, 1.0, n)


def heavy(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return 0.3 + rng.standard_t(3, n)


def exponential(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.exponential(1.0, n) - 1


def lognormal(sigma: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return rng.lognormal(0.0, sigma, n) - math.exp(sigma**2 / 2)

    return draw


def mixture(share: float) -> Draw:
    """Normal, and a share moved by 5; the mean is 0."""

    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return rng.normal(-5 * share, 1.0, n) + 5.0 * (rng.random(n) < share)

    return draw


CASES: dict[str, tuple[Draw, float, float]] = {
    "yes/no, 20 % gains, 10 % losses": (yes_no(0.2, 0.1), 0.1, 1.0),
    "yes/no, 5 % gains, no losses": (yes_no(0.05, 0.0), 0.05, 1.0),
    "4 repetitions, 10 % gains": (repetitions, 0.1, 1.0),
    "small gains, 5 % total losses": (losses(0.05), 0.95 * 0.15 - 0.05, 1.0),
    "small gains, 10 % total losses": (losses(0.1), 0.9 * 0.15 - 0.1, 1.0),
    "small gains, 20 % total losses": (losses(0.2), 0.8 * 0.15 - 0.2, 1.0),
    "normal": (normal, 0.3, math.inf),
    "t, 3 degrees of freedom": (heavy, 0.3, math.inf),
    "exponential": (exponential, 0.0, math.inf),
    "lognormal, sigma 0.5": (lognormal(0.5), 0.0, math.inf),
    "lognormal, sigma 1": (lognormal(1.0), 0.0, math.inf),
    "normal, a tenth moved by 5": (mixture(0.1), 0.0, math.inf),
}
OTHERS: dict[str, tuple[Draw, float, float]] = {
    "uniform": (lambda rng, n: rng.uniform(-1, 1, n), 0.0, math.inf),
    "Laplace": (lambda rng, n: rng.laplace(0, 1, n), 0.0, math.inf),
    "gamma, shape 2": (lambda rng, n: rng.gamma(2, 1, n), 2.0, math.inf),
    "gamma, shape 0.5": (lambda rng, n: rng.gamma(0.5, 1, n), 0.5, math.inf),
    "Weibull, shape 0.7": (lambda rng, n: rng.weibull(0.7, n), math.gamma(1 + 1 / 0.7), math.inf),
    "lognormal, sigma 0.75": (lognormal(0.75), 0.0, math.inf),
    "normal, 5 % moved by 5": (mixture(0.05), 0.0, math.inf),
    "normal, 20 % moved by 5": (mixture(0.2), 0.0, math.inf),
}
"""Distributions that the constants of `Spread` were not chosen with."""


def mostly_equal(share: float, differing: Draw) -> Draw:
    """A share of the conversations differs by such numbers; the others are 0, as those of equal replies."""
    return lambda rng, n: np.where(rng.random(n) < share, differing(rng, n), 0.0)


DIFFERING: dict[str, Draw] = {
    "normal around 1": lambda rng, n: rng.normal(1, 1, n),
    "exponential": lambda rng, n: rng.exponential(1, n),
}
"""Numbers with a mean of 1."""
MOSTLY_EQUAL: dict[str, tuple[Draw, float, float]] = {
    f"{share:.0%} differ, {name}": (mostly_equal(share, differing), share, math.inf)
    for name, differing in DIFFERING.items()
    for share in (0.05, 0.1, 0.2, 0.3, 0.6)
}


def averages(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Pass rates of four repetitions."""
    return rng.binomial(4, rng.beta(2, 2, n)) / 4


def failing(share: float) -> Draw:
    """Scores around 0.8, of which a share is 0."""

    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return np.where(rng.random(n) < share, 0.0, rng.beta(40, 10, n))

    return draw


WITH_LIMITS: dict[str, tuple[Draw, float]] = {
    "yes/no, 50 %": (lambda rng, n: rng.binomial(1, 0.5, n).astype(np.float64), 0.5),
    "yes/no, 90 %": (lambda rng, n: rng.binomial(1, 0.9, n).astype(np.float64), 0.9),
    "averages of 4 repetitions": (averages, 0.5),
    "scores of 0.8 +- 0.06": (failing(0.0), 0.8),
    "a tenth of them 0": (failing(0.1), 0.72),
}
UNLIMITED = [name for name, (_, _, widest) in CASES.items() if math.isinf(widest)]


def attainable(differing: int) -> float:
    """Of yes/no outcomes of which `differing` conversations differ: the largest p-value that is at most `LEVEL`."""
    tails = [
        2 * sum(comb(differing, j) for j in range(k, differing + 1)) for k in range(differing // 2 + 1, differing + 1)
    ]
    return max((tail / 2**differing for tail in tails if tail <= LEVEL * 2**differing), default=0.0)


def attainable_of_numbers(conversations: int) -> float:
    """Of differences without ties: all sign patterns have different means, and come in pairs."""
    return 2 * math.floor(LEVEL * 2**conversations / 2) / 2**conversations


def coverage(draw: Draw, truth: float, widest: float, conversations: int, samples: int) -> tuple[float, float]:
    """The share of samples whose 95 % interval holds `truth`, and the mean width."""
    rng = np.random.default_rng(conversations)
    ends: list[Ends] = []
    for _ in range(samples):
        values = draw(rng, conversations)[:, None]
        found = compare_family(values, np.ones_like(values), widest=widest).differences[0]
        if not found.identical:
            ends.append((found.low, found.high))
    return held(ends, truth)


def coverage_of_means(draw: Draw, truth: float, conversations: int, samples: int, interval: Interval) -> Ends:
    """The share of samples whose interval of the mean by itself holds `truth`, and the mean width."""
    rng = np.random.default_rng(conversations)
    labels = np.arange(conversations)
    return held([interval(draw(rng, conversations), labels) for _ in range(samples)], truth)


def held(ends: list[Ends], truth: float) -> tuple[float, float]:
    low, high = np.array(ends).T
    return float(((low <= truth + 1e-9) & (truth <= high + 1e-9)).mean()), float((high - low).mean())


def score_interval(gains: int, losses: int, n: int) -> Ends:
    """The differences that a score test does not reject (Tango 1998)."""
    z = NormalDist().inv_cdf(1 - LEVEL / 2)

    def score(difference: float) -> float:
        b = -gains - losses + (2 * n - gains + losses) * difference
        share = (math.sqrt(max(0.0, b * b + 8 * n * losses * difference * (1 - difference))) - b) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        distance = gains - losses - n * difference
        return distance / math.sqrt(variance) if variance > 1e-15 else math.copysign(math.inf, distance)

    def end(outside: float, limit: float) -> float:
        inside = (gains - losses) / n
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(score(middle)) <= limit else (inside, middle)
        return outside

    return end(-1.0, z), end(1.0, z)


def flip_interval(differences: NDArray[np.float64]) -> Ends:
    """Means over subsets of the conversations, counted by what is in a subset: any number of conversations will do."""
    sizes = [int((differences == value).sum()) for value in (1, -1, 0)]
    means: list[tuple[float, int]] = []
    for gained, lost, same in np.ndindex(*(size + 1 for size in sizes)):
        if gained + lost + same:
            ways = math.prod(comb(size, of) for size, of in zip(sizes, (gained, lost, same), strict=True))
            means.append(((gained - lost) / (gained + lost + same), ways))
    skipped = math.floor(LEVEL / 2 * 2**differences.size) - 1

    def end(ordered: list[tuple[float, int]]) -> float:
        return next(
            mean for (mean, _), below in zip(ordered, accumulate(w for _, w in ordered), strict=True) if below > skipped
        )

    return end(sorted(means)), end(sorted(means, reverse=True))


def intervals_of(differences: NDArray[np.float64]) -> dict[str, Ends]:
    """By name, those of `compare` and others that are moved to agree with its test."""
    n = differences.size
    found = compare_family(differences[:, None], np.ones((n, 1)), widest=1.0).differences[0]
    names = ("compare", "and sign flips", "score interval", "Newcombe's alone")
    if found.identical:
        # Their interval describes the sample: the bound of gates is taken.
        least = 1 - (LEVEL / 2) ** (1 / n)
        return dict.fromkeys(names, (-least, least))
    own = Spread.of(differences, np.ones(n), 1.0)
    assert own.gains is not None
    assert own.losses is not None
    (gain_low, gain_high), (loss_low, loss_high) = own.gains.wilson(LEVEL), own.losses.wilson(LEVEL)
    gain, loss = own.gains.mean, own.losses.mean
    below, above = math.hypot(gain - gain_low, loss_high - loss), math.hypot(gain_high - gain, loss - loss_low)
    flips, around = flip_interval(differences), own.tie_interval(LEVEL)
    others = {
        "and sign flips": (min(flips[0], around[0]), max(flips[1], around[1])),
        "score interval": score_interval(int((differences > 0).sum()), int((differences < 0).sum()), n),
        "Newcombe's alone": (own.mean - below, own.mean + above),
    }
    moved: dict[str, Ends] = {"compare": (found.low, found.high)}
    for name, (low, high) in others.items():
        low, high = max(low, -1.0), min(high, 1.0)
        if not found.significant:
            moved[name] = min(low, 0.0), max(high, 0.0)
        elif found.mean > 0:
            moved[name] = max(low, 1e-6), high
        else:
            moved[name] = low, min(high, -1e-6)
    return moved


@dataclass(frozen=True)
class Enumerated:
    """Coverage of intervals of yes/no outcomes over true shares: its mean, the least, the least without losses.

    `below`: the part of the shares with a coverage below 0.94. `width`: on average.
    """

    mean: float
    least: float
    without_losses: float
    below: float
    width: float


def enumerated(conversations: int, step: float = 0.025) -> dict[str, Enumerated]:
    """By name of the interval, over all true shares of gains and losses that are multiples of `step`."""
    outcomes = [(g, k - g) for k in range(conversations + 1) for g in range(k + 1)]
    found = [
        intervals_of(np.repeat([1.0, -1.0, 0.0], [gains, losses, conversations - gains - losses]))
        for gains, losses in outcomes
    ]
    ways = np.array([float(comb(conversations, g) * comb(conversations - g, k)) for g, k in outcomes])
    gained, lost = np.array(outcomes, dtype=np.float64).T
    shares = [
        (gain, loss) for gain in np.arange(0, 1 + step / 2, step) for loss in np.arange(0, 1 - gain + step / 2, step)
    ]
    chances = [
        ways * gain**gained * loss**lost * max(0.0, 1 - gain - loss) ** (conversations - gained - lost)
        for gain, loss in shares
    ]
    result: dict[str, Enumerated] = {}
    for name in found[0]:
        low, high = np.array([ends[name] for ends in found]).T
        held = np.array(
            [
                float(chance[(low <= gain - loss + 1e-9) & (gain - loss - 1e-9 <= high)].sum())
                for chance, (gain, loss) in zip(chances, shares, strict=True)
            ]
        )
        result[name] = Enumerated(
            float(held.mean()),
            float(held.min()),
            min(of for of, (_, loss) in zip(held.tolist(), shares, strict=True) if loss == 0),
            float((held < 0.94).mean()),
            float(np.mean([(chance * (high - low)).sum() for chance in chances])),
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--conversations", type=int, nargs="+", default=[8, 12, 20, 40, 100])
    parser.add_argument("--patterns", type=int, default=1998, help="sign patterns drawn beyond 13 conversations")
    given = parser.parse_args()
    # A tenth of what `compare` draws: ends of single intervals vary more, how often they hold the truth does not.
    signflip.DRAWN_PATTERNS = given.patterns
    numbers = (6, 7, 8, 9, 10, 12, 15, 20, 30)
    print("attainable levels, % (yes/no: by the conversations that differ)")
    print(f"{'conversations':14}", *(f"{n:5}" for n in numbers))
    print(f"{'yes/no':14}", *(f"{100 * attainable(n):5.2f}" for n in numbers))
    print(f"{'no ties':14}", *(f"{100 * attainable_of_numbers(n):5.2f}" for n in numbers))
    print("\ncoverage of yes/no outcomes over all true shares: mean, least, least without losses, below 0.94; width")
    for n in (8, 12, 20, 30):
        for name, of in enumerated(n).items():
            shares = (f"{share:.3f}" for share in (of.mean, of.least, of.without_losses, of.below))
            print(f"{n:3} {name:18}", *shares, f"{of.width:.2f}", flush=True)
    print()
    print(f"{'differences':34}", *(f"{n:>6}" for n in given.conversations))
    for title, cases in (("", CASES), ("other distributions", OTHERS), ("mostly equal", MOSTLY_EQUAL)):
        print(title)
        for name, (draw, truth, widest) in cases.items():
            found = [coverage(draw, truth, widest, n, given.samples) for n in given.conversations]
            show(name, found, widths=math.isfinite(widest) or name in MOSTLY_EQUAL)
    print("means by themselves")
    several = 5 * given.samples
    for name in UNLIMITED:
        draw, truth, _ = CASES[name]
        show(name, [coverage_of_means(draw, truth, n, several, unlimited_interval) for n in given.conversations])
    for name, (draw, truth) in WITH_LIMITS.items():
        found = [coverage_of_means(draw, truth, n, several, bounded_interval) for n in given.conversations]
        show(name, found, widths=True)


def show(name: str, found: list[Ends], *, widths: bool = False) -> None:
    texts = [f"{share:6.3f}" + (f" ({width:.2f})" if widths else "") for share, width in found]
    print(f"{name:34}", *texts, flush=True)


if __name__ == "__main__":
    main()
