"""What is compared with what: variants (a cell of a run), their names, and the baseline of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rwkvbatch.compare.loading import RunData
from rwkvbatch.errors import UsageError


@dataclass(frozen=True)
class Variant:
    """One cell of one run. `label` is what a reader sees: as short as tells it from the others."""

    run: str
    cell: str
    label: str


@dataclass(frozen=True)
class Pair:
    """A variant and what it is held against."""

    baseline: Variant
    variant: Variant


def variants_of(runs: Sequence[RunData]) -> list[Variant]:
    """All cells of all runs, in the order of the manifests (where those name them), else of the rows."""
    cells = {run.name: _cells(run) for run in runs}
    if len(runs) == 1:
        name = runs[0].name
        several = len(cells[name]) > 1
        return [Variant(name, cell, cell if several else name) for cell in cells[name]]
    short = all(len(names) == 1 for names in cells.values())
    return [
        Variant(name, cell, name if short else f"{name}::{cell}")
        for name, names in cells.items()
        for cell in names
    ]


def pair_up(
    runs: Sequence[RunData], variants: Sequence[Variant], asked: str | None
) -> tuple[list[Pair], list[str]]:
    """Every variant but the baselines with its baseline; and what has none.

    `asked` (`--baseline`) is a variant's label, a run (its path or name) or a cell. A run with several cells
    is the baseline cell by cell; a cell is the baseline of all others of its run. Unasked, it is the first
    run, or with one run its first cell.

    Raises:
        UsageError: nothing is called `asked`.
    """
    if not variants:
        return [], []
    if asked is None:
        if len(runs) > 1:
            return _against_run(variants, runs[0].name)
        return _against_one(variants, variants[0]), []
    for variant in variants:
        if asked in (variant.label, f"{variant.run}::{variant.cell}"):
            return _against_one(variants, variant), []
    for run in runs:
        if asked.rstrip("/") in (run.name, run.source.rstrip("/")):
            return _against_run(variants, run.name)
        if asked == f"{run.source}::{asked.partition('::')[2]}":
            return pair_up(runs, variants, f"{run.name}::{asked.partition('::')[2]}")
    if any(variant.cell == asked for variant in variants):
        return _against_cell(variants, asked)
    raise UsageError(
        f"--baseline must be one of the runs or cells that are compared; got {asked!r}",
        hint=f"they are: {', '.join(variant.label for variant in variants)}",
    )


def _cells(run: RunData) -> list[str]:
    present = run.cells
    ordered = [name for name in run.facts.cells if name in present]
    return ordered + [name for name in present if name not in ordered]


def _against_one(variants: Sequence[Variant], baseline: Variant) -> list[Pair]:
    return [Pair(baseline, variant) for variant in variants if variant != baseline]


def _against_run(variants: Sequence[Variant], run: str) -> tuple[list[Pair], list[str]]:
    own = {variant.cell: variant for variant in variants if variant.run == run}
    others = [variant for variant in variants if variant.run != run]
    if len(own) == 1 or not others:
        return _against_one(variants, next(iter(own.values()))), []
    pairs = [Pair(own[variant.cell], variant) for variant in others if variant.cell in own]
    alone = [variant.label for variant in others if variant.cell not in own]
    notes = [f"{', '.join(alone)}: the baseline {run} has no cell of that name"] if alone else []
    return pairs, notes


def _against_cell(variants: Sequence[Variant], cell: str) -> tuple[list[Pair], list[str]]:
    baselines = {variant.run: variant for variant in variants if variant.cell == cell}
    others = [variant for variant in variants if variant.cell != cell]
    pairs = [Pair(baselines[variant.run], variant) for variant in others if variant.run in baselines]
    alone = [variant.label for variant in others if variant.run not in baselines]
    notes = [f"{', '.join(alone)}: its run has no cell {cell}"] if alone else []
    return pairs, notes
