"""Error rates of races (`rwkvbatch run --race`): how often one drops a truly best cell, and how many rows it saves.

Simulates races with the class that plans them (`rwkvbatch.replay.planning.race.Race`) and scores with a known truth. A
race is wrong if any truly best cell was dropped at any look. It is wrong about the margin if it ended "within the
margin" with a leader that is truly worse than a remaining cell by at least the margin. Both may happen in 5 of 100
races.

    python benchmarks/race_simulation.py                     # 2,000 races of each kind; minutes
    python benchmarks/race_simulation.py --races 100 --json
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.replay.planning.race import Draws, Race

Floats = NDArray[np.float64]
MakeTruth = Callable[[np.random.Generator], Floats]
"""Draws `[conversations, cells]` probabilities that a turn passes."""

CONVERSATIONS, REPEATS, TURNS = 40, 10, 2
MARGIN = 0.1


def _pass_rates(rng: np.random.Generator, spread: float) -> Floats:
    """`[conversations]` pass rates; `spread` is the standard deviation of their logits."""
    return 1 / (1 + np.exp(-rng.normal(0.5, spread, CONVERSATIONS)))


def all_equal(rng: np.random.Generator) -> Floats:
    """Twelve cells with the same mean; each has other difficult conversations."""
    rates = _pass_rates(rng, 1.5)
    return np.stack([rng.permutation(rates) for _ in range(12)], axis=1)


def two_equal(rng: np.random.Generator) -> Floats:
    """Two cells with the same mean."""
    return all_equal(rng)[:, :2]


def five_best(rng: np.random.Generator) -> Floats:
    """Five equal best cells, and seven that are worse by 0.02 to 0.5."""
    truth = all_equal(rng)
    return np.concatenate([truth[:, :5], truth[:, 5:] * np.linspace(0.97, 0.3, 7)], axis=1)


def one_best(rng: np.random.Generator) -> Floats:
    """One best cell, and 49 whose pass rates are lower by 5 to 90 %, as in the grid of a sweep."""
    return _pass_rates(rng, 1.0)[:, None] * np.array([1.0, *np.linspace(0.95, 0.1, 49)])


def greedy(rng: np.random.Generator) -> Floats:
    """Eight equal cells that pass different conversations with certainty; only the sampled conversations are random."""
    passes = (np.arange(CONVERSATIONS) < CONVERSATIONS // 2).astype(np.float64)
    return np.stack([rng.permutation(passes) for _ in range(8)], axis=1)


def rare_loss(rng: np.random.Generator) -> Floats:
    """A best cell that always fails one conversation, which the others pass, and is slightly better in all others."""
    truth = np.full((CONVERSATIONS, 6), 0.90)
    truth[:, 0] = 0.90 + 0.91 / (CONVERSATIONS - 1)
    truth[0] = [0.0, *[0.90] * 5]
    return truth


def at_the_margin(rng: np.random.Generator) -> Floats:
    """One best cell, and eleven that are worse by exactly the margin, one of which may lead by chance."""
    truth = np.maximum(MARGIN, all_equal(rng)[:, :1])
    others = [rng.permutation(truth[:, 0]) - MARGIN for _ in range(11)]
    return np.stack([truth[:, 0], *others], axis=1)


KINDS: dict[str, MakeTruth] = {
    make.__name__: make for make in (all_equal, two_equal, five_best, one_best, greedy, rare_loss, at_the_margin)
}


@dataclass(frozen=True)
class Outcome:
    """Shares of races, between 0 and 1.

    Attributes:
        wrong: races that dropped a truly best cell. wrong_margin: races that ended "within the margin" with a leader
            that is not.
        found: races that ended with one cell, which is a best one. ended: races that ended before the budget.
        rows: mean share of the rows of the full grid.
    """

    kind: str
    races: int
    wrong: float
    wrong_margin: float
    found: float
    ended: float
    rows: float


def simulate(kind: str, races: int, *, seed: int = 0, repeats: int = REPEATS, margin: float | None = MARGIN) -> Outcome:
    """Run `races` races of one kind."""
    wrong = wrong_margin = found = ended = 0
    rows = 0.0
    for number in range(races):
        rng = np.random.default_rng([seed, number])
        truth = KINDS[kind](rng)
        means = truth.mean(axis=0)
        best = np.flatnonzero(means >= means.max() - 1e-12)
        draws = Draws(int(rng.integers(2**62)), range(CONVERSATIONS), repeats * CONVERSATIONS)
        probability = truth[np.asarray(draws.conversation)]
        # Common random numbers: in half of the draws, all cells share one random number per turn.
        independent = rng.random((TURNS, *probability.shape))
        shared = rng.random((TURNS, len(draws), 1))
        uniform = np.where(rng.random((len(draws), 1)) < 0.5, shared, independent)
        scores = (uniform < probability).mean(axis=0)
        race = Race(draws, [TURNS] * len(draws), means.size, scores.item, margin=margin)
        for _ in race.looks():
            pass
        remaining = race.state.left
        wrong += not np.isin(best, remaining).all()
        deficit = means[remaining].max() - means[race.state.leader]
        wrong_margin += race.ending == "within the margin" and deficit >= MARGIN - 1e-12
        found += remaining.size == 1 and remaining[0] in best
        ended += race.ending != "budget"
        rows += race.num_rows / (TURNS * means.size * len(draws))
    return Outcome(kind, races, wrong / races, wrong_margin / races, found / races, ended / races, rows / races)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=2000)
    parser.add_argument("--kind", choices=list(KINDS), action="append")
    parser.add_argument("--no-margin", action="store_true", help="race until the budget or until one cell remains")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for kind in args.kind or KINDS:
        outcome = simulate(kind, args.races, margin=None if args.no_margin else MARGIN)
        if args.json:
            print(json.dumps(asdict(outcome)), flush=True)
            continue
        error = math.sqrt(outcome.wrong * (1 - outcome.wrong) / outcome.races)
        print(
            f"{kind:14} a best cell dropped {outcome.wrong:6.2%} (standard error {error:.2%}), wrong about the margin "
            f"{outcome.wrong_margin:6.2%}, one best cell left {outcome.found:4.0%}, ended before the budget "
            f"{outcome.ended:4.0%}, rows {outcome.rows:4.0%} of the full grid",
            flush=True,
        )


if __name__ == "__main__":
    main()
