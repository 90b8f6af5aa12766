"""What the scripts `coverage_bound*.py` share: statistics of samples, and linear programs that find rules.

A rule chooses each end of an interval by the class of the sample. It is the share of each end in each class, so that
mixtures of rules are rules, too.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]
from scipy.sparse import csr_array, hstack, kron, vstack  # pyright: ignore[reportMissingTypeStubs]

Floats = NDArray[np.float64]

_linprog: Any = optimize.linprog
"""Without a type: pyright takes 10 s to infer it from the source."""

LEVEL, LEAST, MOST = 0.05, 0.94, 0.96
ENUMERATED = 13
"""The largest number of conversations of which all sign patterns are enumerated."""
BATCH = 500
"""Samples whose sign patterns are in memory at once."""


def moments(samples: Floats) -> tuple[Floats, Floats, Floats]:
    """`[samples]` each: mean, standard error and skewness of `samples` `[samples, conversations]`."""
    n = samples.shape[1]
    mean, error = samples.mean(axis=1), samples.std(axis=1, ddof=1) / math.sqrt(n)
    deviations = samples - mean[:, None]
    skewness = (deviations**3).mean(axis=1) / (deviations**2).mean(axis=1) ** 1.5
    return mean, error, skewness * (math.sqrt(n * (n - 1)) / (n - 2))


def flip_ends(samples: Floats, rng: np.random.Generator, level: float = LEVEL, patterns: int = 1998) -> Floats:
    """`[samples, 2]`: the ends of the sign-flip intervals at `level` of `samples` `[samples, conversations]`.

    With more than `ENUMERATED` conversations this number of patterns is drawn. Where no flip reaches the level, the
    ends are the smallest and the largest mean.
    """
    n = samples.shape[1]
    if n <= ENUMERATED:
        chosen = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
    else:
        half = rng.integers(0, 2, (patterns // 2, n))
        chosen = np.concatenate([half, 1 - half, np.ones((1, n), np.int64)])
    skipped = max(0, math.floor(level / 2 * (len(chosen) + 1) + 1e-9) - 1)
    weights = (chosen / chosen.sum(axis=1, keepdims=True)).T
    found: list[Floats] = []
    for start in range(0, len(samples), BATCH):
        means = samples[start : start + BATCH] @ weights
        means.partition((skipped, means.shape[1] - 1 - skipped), axis=1)
        found.append(means[:, [skipped, means.shape[1] - 1 - skipped]])
    return np.concatenate(found)


def no_nearer(pairs: Sequence[tuple[int, int]], classes: int, ends: int) -> csr_array:
    """`[rows, classes * ends]`: at most 0 for rules whose ends are nowhere nearer in the second class of each pair.

    The share of ends at a distance or farther is not smaller there than in the first class.
    """
    rise = np.zeros((len(pairs), classes))
    for row, (first, second) in enumerate(pairs):
        rise[row, first], rise[row, second] = 1.0, -1.0
    return csr_array(kron(rise, np.triu(np.ones((ends, ends)))[1:]))


def solve(
    cost: Floats,
    conditions: Iterable[Any],
    limits: Sequence[float],
    classes: int,
    ends: Floats,
    *,
    only_finite: bool = False,
) -> tuple[float, Floats] | None:
    """The lowest cost of a rule, and the rule `[1 + classes * ends]`; None if no rule meets the conditions.

    The first variable is not of the rule, and not negative.

    Args:
        cost: `[1 + classes * ends]`.
        conditions: `[rows, 1 + classes * ends]` each: what is at most `limits`.
        only_finite: without the rules that have no end at all in some samples.
    """
    bounds = [(0.0, 0.0 if only_finite and math.isinf(end) else None) for _ in range(classes) for end in ends]
    solved = _linprog(
        cost,
        A_ub=vstack([csr_array(rows) for rows in conditions]),
        b_ub=limits,
        A_eq=hstack([csr_array((classes, 1)), kron(np.eye(classes), np.ones((1, len(ends))))]),
        b_eq=np.ones(classes),
        bounds=[(0.0, None), *bounds],
    )
    return None if solved.x is None else (float(solved.fun), solved.x)


@dataclass(frozen=True)
class Outcomes:
    """What ends do on the samples of one variant.

    Attributes:
        missed: `[classes, ends]` the share of all samples that are in this class and whose end misses the true mean.
        width: `[classes, ends]` what the finite ends add to the mean width; 0 for no end at all.
        held, mean_width: of the intervals of `compare`, all of a family together.
        different: the share of samples in which not all pairs are equal.
    """

    missed: Floats
    width: Floats
    held: float
    mean_width: float
    different: float = 1.0


def best_rule(
    found: Mapping[str, Outcomes], variants: int, ends: Floats, sane: csr_array | None, wider: float
) -> tuple[float, dict[str, tuple[float, float]]]:
    """How far the best rule is outside of [LEAST, MOST] for all variants together, and each (coverage, mean width).

    The coverage is that of all variants, to the first order in what one of them misses.

    Args:
        ends: distances from the mean.
        sane: what is at most 0 for sane rules, see `no_nearer`; None for any rule, also one without ends.
        wider: how much wider a sane rule's intervals may be on average than those of `compare`.
    """
    classes = next(iter(found.values())).missed.shape[0]
    rows: list[Floats] = []
    limits: list[float] = []
    for of in found.values():
        # Of one variant, in which all pairs are equal in some samples; these count where there are several variants.
        share = of.missed.ravel() / (of.different if variants == 1 else 1.0)
        for sign, together in ((1.0, LEAST), (-1.0, MOST)):
            rows.append(np.append(-1.0, sign * variants * share))
            limits.append(-sign * math.log(together) if variants > 1 else sign * (1 - together))
    conditions: list[Any] = [np.array(rows)]
    if sane is not None:
        slopes: Any = sane  # its stubs have no shape
        conditions.append(hstack([csr_array((slopes.shape[0], 1)), slopes]))
        conditions.append(np.array([np.append(0.0, of.width.ravel() / of.mean_width) for of in found.values()]))
        limits += [0.0] * slopes.shape[0] + [wider] * len(found)
    cost = np.append(1.0, 1e-6 * sum(of.width.ravel() / of.mean_width for of in found.values()))
    solved = solve(cost, conditions, limits, classes, ends, only_finite=sane is not None)
    if solved is None:
        raise RuntimeError("no rule meets the conditions")
    outside, shares = float(solved[1][0]), solved[1][1:]

    def of_rule(of: Outcomes) -> tuple[float, float]:
        missed = float(of.missed.ravel() @ shares)
        held = (1 - missed) ** variants if variants > 1 else 1 - missed / of.different
        return held, float(of.width.ravel() @ shares) / of.mean_width

    return outside, {name: of_rule(of) for name, of in found.items()}


def show_rules(
    found: Mapping[str, Outcomes], variants: int, ends: Floats, rules: Mapping[str, tuple[csr_array | None, float]]
) -> None:
    """Print the coverage of `compare`, and that of the best rule of each kind: (`sane`, `wider`) of `best_rule`."""
    own = ", ".join(f"{name} {of.held:.3f} ({of.mean_width:.2f})" for name, of in found.items())
    print("  compare:", own, flush=True)
    for title, (sane, wider) in rules.items():
        outside, each = best_rule(found, variants, ends, sane, wider)
        shown = ", ".join(
            f"{name} {held:.3f}" + ("" if sane is None else f" ({width:.2f})") for name, (held, width) in each.items()
        )
        print(f"  {title}: {100 * outside:.2f} points outside: {shown}", flush=True)


def arguments(description: str | None, samples: int, conversations: Sequence[int] = ()) -> argparse.ArgumentParser:
    """A parser with `--samples`, and `--conversations` if it has defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=samples)
    if conversations:
        parser.add_argument("--conversations", type=int, nargs="+", default=list(conversations))
    return parser
