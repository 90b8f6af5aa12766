"""How often the interval of a paired difference holds the true difference, by the distribution of the differences.

    python benchmarks/interval_coverage.py --samples 1000

Each sample has one difference per conversation. Yes/no outcomes differ with the given probabilities of a gain and a
loss; the lognormal differences (sigma 1, less their mean) are the skewed case that a sign-flip test does not promise.
Samples in which all pairs are equal are left out: their interval, [0, 0], describes these conversations only.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.stats.signflip import compare_family

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def yes_no(gain: float, loss: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        return rng.choice([1.0, -1.0, 0.0], size=n, p=[gain, loss, 1 - gain - loss])

    return draw


def normal(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.normal(0.3, 1.0, n)


def lognormal(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.lognormal(0.0, 1.0, n) - math.exp(0.5)


CASES: dict[str, tuple[Draw, float, float]] = {
    "yes/no, 20 % gains, 10 % losses": (yes_no(0.2, 0.1), 0.1, 1.0),
    "yes/no, 5 % gains, no losses": (yes_no(0.05, 0.0), 0.05, 1.0),
    "normal": (normal, 0.3, math.inf),
    "lognormal": (lognormal, 0.0, math.inf),
}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--conversations", type=int, nargs="+", default=[8, 12, 40, 100])
    given = parser.parse_args()
    print(f"{'differences':34}", *(f"{n:>6}" for n in given.conversations))
    for name, (draw, truth, widest) in CASES.items():
        shares = (coverage(draw, truth, widest, n, given.samples) for n in given.conversations)
        print(f"{name:34}", *(f"{share:6.3f}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
