"""Error rates of gates on simulated data with a known truth.

- A/A: baseline and variants are equal; a `significantly` gate with `--fail-if` may fail in at most 5 of 100 tries.
- Margin: the variant is worse by exactly the margin; a non-inferiority gate (`--fail-unless ... significantly`) may
  pass in at most 5 of 100 tries.
- Size: with the number of conversations that `rwkvbatch plan` and the gate recommend, a non-inferiority gate passes in
  about 80 of 100 tries.

    python benchmarks/gate_errors.py                  # 1,000 tries each, some minutes
    python benchmarks/gate_errors.py --tries 100
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.gates.evaluation import judge
from rwkvbatch.comparison.gates.expressions import Gate
from rwkvbatch.comparison.gates.parsing import parse_gate
from rwkvbatch.comparison.gates.scopes import Column, GateScope
from rwkvbatch.comparison.pairing.matching import Dropped
from rwkvbatch.stats.sample_size import conversations_needed

Numbers = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], list[Numbers]]
"""Draws the values `[conversations, repetitions]` of a baseline and of some variants."""


def scope(variant: Numbers, baseline: Numbers) -> GateScope:
    """A pair in which every conversation has all repetitions."""
    conversations, repeats = (axis.ravel() for axis in np.indices(variant.shape))

    def column(_: str, of_baseline: bool, __: str | None) -> Column:
        return Column((baseline if of_baseline else variant).ravel(), conversations, repeats)

    return GateScope("variant", "baseline", column, dropped=(Dropped("variant"), Dropped("baseline")))


def yes_no(num_variants: int, worse: float = 0.0) -> Draw:
    """Yes/no outcomes; each conversation has a pass rate, which is lower by `worse` in the variants."""

    def draw(rng: np.random.Generator, conversations: int, repeats: int) -> list[Numbers]:
        rates = rng.uniform(worse, 1, (conversations, 1))
        shape = (conversations, repeats)
        variants = [(rng.random(shape) < rates - worse).astype(float) for _ in range(num_variants)]
        return [(rng.random(shape) < rates).astype(float), *variants]

    return draw


def heavy_tailed(num_variants: int) -> Draw:
    """Log-normal values, scaled by a difficulty of each conversation."""

    def draw(rng: np.random.Generator, conversations: int, repeats: int) -> list[Numbers]:
        difficulty = rng.gamma(4, 0.5, (conversations, 1))
        return [difficulty * rng.lognormal(0, 1, (conversations, repeats)) for _ in range(num_variants + 1)]

    return draw


def share_failed(gates: Sequence[Gate], draw: Draw, conversations: int, repeats: int, tries: int) -> float:
    """The share of tries in which any gate fails on any variant."""
    rng = np.random.default_rng(conversations)
    failed = 0
    for _ in range(tries):
        baseline, *variants = draw(rng, conversations, repeats)
        failed += any(result.failed for result in judge(gates, [scope(variant, baseline) for variant in variants]))
    return failed / tries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=1000)
    tries = parser.parse_args().tries
    worse = [parse_gate("score < baseline significantly")]
    for name, draw in (("yes/no, 1 variant", yes_no(1)), ("yes/no, 4 variants", yes_no(4))):
        for conversations in (8, 12, 30):
            if conversations == 8 and "4" in name:
                continue  # too few conversations for 4 variants: these gates always fail, with a reason
            share = share_failed(worse, draw, conversations, 2, tries)
            print(f"A/A, {name}, {conversations} conversations: {share:.1%} false failures", flush=True)
    more = [parse_gate("nll > baseline significantly")]
    print(f"A/A, heavy tails, 4 variants, 20 conversations: {share_failed(more, heavy_tailed(4), 20, 2, tries):.1%}")
    margin = [parse_gate("score >= baseline - 0.1 significantly", "--fail-unless")]
    for conversations in (12, 30):
        share = 1 - share_failed(margin, yes_no(1, worse=0.1), conversations, 2, tries)
        print(f"margin 0.1, worse by 0.1, {conversations} conversations: {share:.1%} false passes", flush=True)
    # The mean of p (1 - p) over uniform p is 1/6, and the difference of two outcomes has twice this variance.
    size = conversations_needed(0.1, 0.0, 2 / 6, 3)
    share = 1 - share_failed(margin, yes_no(1), size, 3, min(tries, 300))
    print(f"margin 0.1, equal, {size} conversations of 3 repetitions as planned for 80 %: {share:.0%} pass")


if __name__ == "__main__":
    main()
