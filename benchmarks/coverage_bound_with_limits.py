"""The best coverage that any rule can have of averages of repetitions, over several distributions at once.

    python benchmarks/coverage_bound_with_limits.py --samples 10000

First, the coverage of the interval of `compare` by the probability up to which it allows for the absence of
conversations at the ends of the range, which is 0.1. Then, how often each distribution is held at most: of small gains
and rare total losses the exact test is significant for the better in samples without a loss, whose interval then
excludes a true difference that is not above 0.

At last, rules. The end of an interval may be at any distance from the mean, not nearer than that of a t interval, by
what the sample shows: the class of its standard deviation, and of the conversation that is farthest out in the
direction of the end. It agrees with the exact sign-flip test: 0 is outside exactly where the test is significant. A
linear program finds the rule (mixtures included) whose coverage is the least far outside of 94 to 96 % over all of the
distributions; the same among sane rules, whose ends are nowhere nearer with more spread; and the one that holds
differences of 4 repetitions least often of those that hold all others in 94 % of samples or more. The rules are fitted
to the samples that they are judged on, which flatters them.

The same for a grid of differences: 3 to 20 % total losses, and gains of which each repetition has a chance of 10 to
40 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from interval_coverage import Draw, losses, repetitions
from interval_rules import LEAST, LEVEL, MOST, Floats, arguments, no_nearer, solve
from scipy.sparse import csr_array  # pyright: ignore[reportMissingTypeStubs]

from rwkvbatch.stats import spread
from rwkvbatch.stats.clustered import t_quantile
from rwkvbatch.stats.spread import Spread

SPREADS = np.array([-np.inf, 0.1, 0.13, 0.15, 0.17, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, np.inf])
"""Limits of the classes of a sample's standard deviation."""
FARTHEST = np.array([-np.inf, 0.01, 0.3, 0.55, 0.8, np.inf])
"""Limits of the classes of the conversation that is farthest out: none, steps of about a quarter, altogether."""
ENDS = np.arange(0.0, 1.2, 0.01)
"""How far the end is from the mean."""
MARGIN = 0.002
"""Of a row that no rule holds often enough, how much less than the most that it can be held is asked for."""
ABSENCES = (0.05, 0.1, 0.15, 0.2)
CHOSEN = 0.1
"""The one of them that `compare` has."""
STEPS = 20
"""Differences are multiples of a twentieth."""


ROW = "4 repetitions, 10 % gains"
ROWS: dict[str, tuple[Draw, float]] = {
    ROW: (repetitions, 0.1),
    "small gains, 10 % total losses": (losses(0.1), 0.9 * 0.15 - 0.1),
    "small gains, 5 % total losses": (losses(0.05), 0.95 * 0.15 - 0.05),
    "small gains, 15 % total losses": (losses(0.15), 0.85 * 0.15 - 0.15),
    "small gains, 20 % total losses": (losses(0.2), 0.8 * 0.15 - 0.2),
    "larger gains, 10 % total losses": (losses(0.1, 0.4), 0.9 * 0.4 - 0.1),
    "larger gains, 20 % total losses": (losses(0.2, 0.4), 0.8 * 0.4 - 0.2),
}
GRID: dict[str, tuple[Draw, float]] = {ROW: ROWS[ROW]} | {
    f"{gain:.0%} gains, {share:.0%} total losses": (losses(share, gain), (1 - share) * gain - share)
    for share in (0.03, 0.05, 0.07, 0.1, 0.15, 0.2)
    for gain in (0.1, 0.15, 0.25, 0.4)
}


@lru_cache(maxsize=200_000)
def p_of_steps(steps: tuple[int, ...], total: int) -> float:
    """The two-sided p-value of the exact sign-flip test of differences whose sizes are `steps`, with this sum."""
    shares = np.ones(1)
    for step in steps:
        longer = np.zeros(shares.size + 2 * step)
        longer[: shares.size] += shares / 2
        longer[2 * step :] += shares / 2
        shares = longer
    far = np.abs(np.arange(shares.size) - (shares.size - 1) // 2) >= abs(total)
    return min(1.0, float(shares[far].sum()))


def misses(draw: Draw, truth: float, conversations: int, num_samples: int) -> Floats:
    """`[classes, ends]`: the share of samples of this class whose end at this distance misses `truth`.

    Both ends of each sample count: the upper end is the lower one of the mirrored sample.
    """
    rng = np.random.default_rng(conversations)
    samples = np.stack([draw(rng, conversations) for _ in range(num_samples)])
    samples = samples[(samples != 0).any(axis=1)]
    steps = np.round(samples * STEPS).astype(np.int64)
    significant = np.array(
        [p_of_steps(tuple(sorted(abs(row[row != 0]).tolist())), int(row.sum())) <= LEVEL for row in steps]
    )
    deviation = samples.std(axis=1, ddof=1)
    usual = t_quantile(0.975, conversations - 1) * deviation / math.sqrt(conversations)
    wide = np.digitize(deviation, SPREADS[1:-1])
    found = np.zeros(((len(SPREADS) - 1) * (len(FARTHEST) - 1), len(ENDS)))
    for sign in (1.0, -1.0):
        mean, own_truth = sign * samples.mean(axis=1), sign * truth
        of = wide * (len(FARTHEST) - 1) + np.digitize(-(sign * samples).min(axis=1), FARTHEST[1:-1])
        for place, distance in enumerate(ENDS):
            end = mean - np.maximum(distance, usual)
            # Above 0 where the test finds a difference on this side, and nowhere else.
            end = np.where(significant & (mean > 0), np.maximum(end, 1e-6), np.minimum(end, 0.0))
            found[:, place] += np.bincount(of, own_truth < end - 1e-9, minlength=len(found)) / len(samples)
    return found


def by_absence(
    draw: Draw, truth: float, conversations: int, num_samples: int, absences: Sequence[float] = ABSENCES
) -> list[float]:
    """The coverage of the interval of `compare` by `absences`."""
    rng = np.random.default_rng(conversations)
    counts = np.ones(conversations)
    held = np.zeros(len(absences))
    kept, chosen = 0, spread.ABSENT
    for _ in range(num_samples):
        sample = draw(rng, conversations)
        if not sample.any():
            continue
        steps = np.round(sample * STEPS).astype(np.int64)
        significant = p_of_steps(tuple(sorted(abs(steps[steps != 0]).tolist())), int(steps.sum())) <= LEVEL
        own = Spread.of(sample, counts, 1.0)
        for place, absence in enumerate(absences):
            spread.ABSENT = 2 * absence / LEVEL
            low, high = own.tie_interval(LEVEL)
            if not significant:
                low, high = min(low, 0.0), max(high, 0.0)
            elif own.mean > 0:
                low = low if low > 0 else own.smallest_step
            else:
                high = high if high < 0 else -own.smallest_step
            held[place] += low <= truth + 1e-9 and truth <= high + 1e-9
        kept += 1
    spread.ABSENT = chosen
    return (held / kept).tolist()


def sane() -> csr_array:
    """What is at most 0 for rules whose ends are nowhere nearer with a larger standard deviation.

    It is for the same class of the farthest conversation.
    """
    farthest = len(FARTHEST) - 1
    classes = (len(SPREADS) - 1) * farthest
    return no_nearer([(place, place + farthest) for place in range(classes - farthest)], classes, len(ENDS))


def best_rule(
    found: Mapping[str, Floats], *, row: str | None = None, only_sane: bool = False
) -> dict[str, float] | None:
    """The coverage of each distribution with the rule that is the least far outside of [LEAST, MOST], and how far.

    `row`: instead with the one that holds this one least often of those that hold all others in `LEAST` or more.
    """
    classes, ends = next(iter(found.values())).shape
    rows: list[Floats] = []
    limits: list[float] = []
    for of in found.values():
        slack = -1.0 if row is None else 0.0
        rows.append(np.append(slack, of.ravel()))
        limits.append(max(1 - LEAST, float(of.min(axis=1).sum()) + MARGIN))
        if row is None:
            rows.append(np.append(slack, -of.ravel()))
            limits.append(MOST - 1)
    cost = np.append(1.0, np.zeros(classes * ends)) if row is None else np.append(0.0, -found[row].ravel())
    conditions = [np.array(rows)]
    if only_sane:
        slopes = sane().toarray()
        conditions.append(np.pad(slopes, ((0, 0), (1, 0))))
        limits += [0.0] * len(slopes)
    solved = solve(cost, conditions, limits, classes, ENDS)
    if solved is None:
        return None
    shares = {name: 1 - float(of.ravel() @ solved[1][1:]) for name, of in found.items()}
    return shares | {"outside": float(solved[1][0])}


def print_rules(found: Mapping[str, Floats], kinds: Mapping[str, tuple[str | None, bool]]) -> None:
    """Print the most that each distribution can be held, and the best rule of each kind: (`row`, `only_sane`)."""
    most = {name: 1 - float(of.min(axis=1).sum()) for name, of in found.items()}
    print("  at most:", ", ".join(f"{name} {share:.3f}" for name, share in most.items()))
    for title, (row, only_sane) in kinds.items():
        best = best_rule(found, row=row, only_sane=only_sane)
        shown = "none" if best is None else ", ".join(f"{name} {value:.3f}" for name, value in best.items())
        print(f"  {title}: {shown}", flush=True)


def main() -> None:
    given = arguments(__doc__, 10_000, [8, 12, 20, 40]).parse_args()
    kinds: dict[str, tuple[str | None, bool]] = {"any rule": (None, False), "sane rule": (None, True)}
    for n in given.conversations:
        for name, (draw, truth) in ROWS.items():
            shares = by_absence(draw, truth, n, given.samples // 2)
            print(f"{n:3} {name:34}", *(f"{share:.3f}" for share in shares), flush=True)
        print(f"{n} conversations, these rows")
        found = {name: misses(draw, truth, n, given.samples) for name, (draw, truth) in ROWS.items()}
        print_rules(found, kinds | {f"least of {ROW}": (ROW, False)})
        print(f"{n} conversations, the grid")
        own = {name: by_absence(*case, n, given.samples // 2, [CHOSEN])[0] for name, case in GRID.items()}
        print("  compare:", ", ".join(f"{name} {share:.3f}" for name, share in own.items()), flush=True)
        print_rules({name: misses(draw, truth, n, given.samples) for name, (draw, truth) in GRID.items()}, kinds)


if __name__ == "__main__":
    main()
