"""The pairs of variants with their baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rwkvbatch.comparison.runs.data import RunData, Variant
from rwkvbatch.errors import UsageError


@dataclass(frozen=True)
class Pair:
    """A variant and its baseline."""

    baseline: Variant
    variant: Variant

    @property
    def of_race(self) -> bool:
        """Whether the rows of a side are of a race: how many there are depends on the scores, so no test holds."""
        return bool(self.baseline.race or self.variant.race)


def pair_up(runs: Sequence[RunData], variants: Sequence[Variant], baseline: str | None) -> tuple[list[Pair], list[str]]:
    """Pairs of each variant with its baseline, and notes on variants without one.

    Args:
        baseline: a variant's label, a run (its path or name) or a cell; None for the first run, or the first cell of a
            single run. If a run has several cells, its cells are the baselines of equally named cells of other runs.
            If a cell is given, it is the baseline of the other cells of its own run.

    Raises:
        UsageError: no variant, run or cell is called `baseline`.
    """
    if not variants:
        return [], []
    if baseline is None:
        return _against_run(variants, runs[0].name) if len(runs) > 1 else (_against_one(variants, variants[0]), [])
    for variant in variants:
        if baseline in (variant.label, f"{variant.run}::{variant.cell}"):
            return _against_one(variants, variant), []
    for run in runs:
        if baseline.rstrip("/") in (run.name, run.source.rstrip("/")):
            return _against_run(variants, run.name)
        cell = baseline.partition("::")[2]
        if baseline == f"{run.source}::{cell}":
            return pair_up(runs, variants, f"{run.name}::{cell}")
    if any(variant.cell == baseline for variant in variants):
        baselines = {variant.run: variant for variant in variants if variant.cell == baseline}
        others = [variant for variant in variants if variant.cell != baseline]
        pairs = [Pair(baselines[variant.run], variant) for variant in others if variant.run in baselines]
        unpaired = [variant.label for variant in others if variant.run not in baselines]
        return pairs, [f"{', '.join(unpaired)}: not compared, the run has no cell {baseline}"] if unpaired else []
    raise UsageError(
        f"--baseline must be one of the compared runs or cells; got {baseline!r}",
        hint=f"they are: {', '.join(variant.label for variant in variants)}",
    )


def _against_one(variants: Sequence[Variant], baseline: Variant) -> list[Pair]:
    return [Pair(baseline, variant) for variant in variants if variant != baseline]


def _against_run(variants: Sequence[Variant], run: str) -> tuple[list[Pair], list[str]]:
    """Pairs with the cells of `run` as baselines, and notes on variants without one."""
    baselines = {variant.cell: variant for variant in variants if variant.run == run}
    others = [variant for variant in variants if variant.run != run]
    if len(baselines) == 1 or not others:
        return _against_one(variants, next(iter(baselines.values()))), []
    pairs = [Pair(baselines[variant.cell], variant) for variant in others if variant.cell in baselines]
    unpaired = [variant.label for variant in others if variant.cell not in baselines]
    return pairs, [f"{', '.join(unpaired)}: not compared, the baseline {run} has no such cell"] if unpaired else []
