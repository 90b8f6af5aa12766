"""How often the interval of a paired difference holds the true difference, by the distribution of the differences.

    python benchmarks/interval_coverage.py --samples 1000

Each sample has one difference per conversation. Yes/no outcomes differ with the given probabilities of a gain and a
loss; exponential and lognormal differences (less their mean) are skewed, and those of t with 3 degrees of freedom have
heavy tails. Samples in which all pairs are equal are left out: their interval, [0, 0], describes these conversations
only.

Means of single variants follow, of numbers without limits (`nll`, `tokens`, timings).

Before that, by enumeration: the levels that the test can attain, which are the largest p-values that are at most 5 %,
and the coverage of intervals of yes/no outcomes over all true shares of gains and losses.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from math import comb

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.stats import signflip
from rwkvbatch.stats.signflip import compare_family
from rwkvbatch.stats.spread import unlimited_interval

LEVEL = 0.05
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def yes_no(gain: float, loss: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return rng.choice([1.0, -1.0, 0.0], size=n, p=[gain, loss, 1 - gain - loss])

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


def mixture(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.normal(-0.5, 1.0, n) + 5.0 * (rng.random(n) < 0.1)


CASES: dict[str, tuple[Draw, float, float]] = {
    "yes/no, 20 % gains, 10 % losses": (yes_no(0.2, 0.1), 0.1, 1.0),
    "yes/no, 5 % gains, no losses": (yes_no(0.05, 0.0), 0.05, 1.0),
    "normal": (normal, 0.3, math.inf),
    "t, 3 degrees of freedom": (heavy, 0.3, math.inf),
    "exponential": (exponential, 0.0, math.inf),
    "lognormal, sigma 0.5": (lognormal(0.5), 0.0, math.inf),
    "lognormal, sigma 1": (lognormal(1.0), 0.0, math.inf),
    "normal, a tenth moved by 5": (mixture, 0.0, math.inf),
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


def coverage(draw: Draw, truth: float, widest: float, conversations: int, samples: int) -> float:
    """The share of samples whose 95 % interval holds `truth`."""
    rng = np.random.default_rng(conversations)
    held = kept = 0
    for _ in range(samples):
        values = draw(rng, conversations)[:, None]
        found = compare_family(values, np.ones_like(values), widest=widest).differences[0]
        kept += not found.identical
        held += not found.identical and found.low <= truth <= found.high
    return held / kept if kept else math.nan


def coverage_of_means(draw: Draw, truth: float, conversations: int, samples: int) -> float:
    """The share of samples whose interval of the mean by itself holds `truth`."""
    rng = np.random.default_rng(conversations)
    labels = np.arange(conversations)
    ends = [unlimited_interval(draw(rng, conversations), labels) for _ in range(samples)]
    return sum(low <= truth <= high for low, high in ends) / samples


def enumerated(conversations: int, step: float = 0.025) -> tuple[float, float, float]:
    """Of yes/no outcomes: the mean and the least coverage over true shares, and that of gains without losses.

    Of equal pairs, whose interval describes the sample, the bound of gates is taken.
    """
    outcomes = [(g, k - g) for k in range(conversations + 1) for g in range(k + 1)]
    least = 1 - (LEVEL / 2) ** (1 / conversations)
    ends: list[tuple[float, float]] = []
    for gains, losses in outcomes:
        values = np.repeat([1.0, -1.0, 0.0], [gains, losses, conversations - gains - losses])[:, None]
        found = compare_family(values, np.ones_like(values), widest=1.0).differences[0]
        ends.append((-least, least) if found.identical else (found.low, found.high))
    low, high = np.array(ends).T
    ways = np.array([float(comb(conversations, g) * comb(conversations - g, k)) for g, k in outcomes])
    gained, lost = np.array(outcomes, dtype=np.float64).T
    held: dict[tuple[float, float], float] = {}
    for gain in np.arange(0, 1 + step / 2, step):
        for loss in np.arange(0, 1 - gain + step / 2, step):
            rest = max(0.0, 1 - gain - loss)
            chance = ways * gain**gained * loss**lost * rest ** (conversations - gained - lost)
            covered = (low <= gain - loss + 1e-9) & (gain - loss - 1e-9 <= high)
            held[gain, loss] = float(chance[covered].sum())
    shares = np.array(list(held.values()))
    return float(shares.mean()), float(shares.min()), min(of for (_, loss), of in held.items() if loss == 0)


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
    print("\ncoverage of yes/no outcomes over all true shares: mean, least, least without losses")
    for n in (8, 12, 20, 30):
        print(f"{n:3}", *(f"{share:.3f}" for share in enumerated(n)), flush=True)
    print()
    print(f"{'differences':34}", *(f"{n:>6}" for n in given.conversations))
    for name, (draw, truth, widest) in CASES.items():
        shares = (coverage(draw, truth, widest, n, given.samples) for n in given.conversations)
        print(f"{name:34}", *(f"{share:6.3f}" for share in shares), flush=True)
    print("means by themselves")
    for name in UNLIMITED:
        draw, truth, _ = CASES[name]
        shares = (coverage_of_means(draw, truth, n, 5 * given.samples) for n in given.conversations)
        print(f"{name:34}", *(f"{share:6.3f}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
