"""Variants, their baselines, and warnings about runs that are not alike."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rwkvbatch.comparison.loading import RunData, RunFacts
from rwkvbatch.errors import RunMismatchError, UsageError


@dataclass(frozen=True)
class Variant:
    """One cell of one run; `label` is the shortest name that is unique in the comparison."""

    run: str
    cell: str
    label: str


@dataclass(frozen=True)
class Pair:
    """A variant and its baseline."""

    baseline: Variant
    variant: Variant


def variants_of(runs: Sequence[RunData]) -> list[Variant]:
    """All cells of all runs: in the manifest's order, then in the order of their first rows."""
    several = len(runs) > 1
    short = all(len(run.cells) == 1 for run in runs)
    variants: list[Variant] = []
    for run in runs:
        present = run.cells
        for cell in dict.fromkeys((*(name for name in run.facts.cells if name in present), *present)):
            label = run.name if short else f"{run.name}::{cell}" if several else cell
            variants.append(Variant(run.name, cell, label))
    return variants


def pair_up(runs: Sequence[RunData], variants: Sequence[Variant], baseline: str | None) -> tuple[list[Pair], list[str]]:
    """Every variant that is not a baseline with its baseline; and notes on those without one.

    Args:
        baseline: a variant's label, a run (its path or name) or a cell; None for the first run, or the first cell of a
            single run. A run with several cells is the baseline cell by cell; a cell is the baseline within each run.

    Raises:
        UsageError: nothing is called `baseline`.
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
        alone = [variant.label for variant in others if variant.run not in baselines]
        return pairs, [f"{', '.join(alone)}: not compared, the run has no cell {baseline}"] if alone else []
    raise UsageError(
        f"--baseline must be one of the compared runs or cells; got {baseline!r}",
        hint=f"they are: {', '.join(variant.label for variant in variants)}",
    )


def _against_one(variants: Sequence[Variant], baseline: Variant) -> list[Pair]:
    return [Pair(baseline, variant) for variant in variants if variant != baseline]


def _against_run(variants: Sequence[Variant], run: str) -> tuple[list[Pair], list[str]]:
    own = {variant.cell: variant for variant in variants if variant.run == run}
    others = [variant for variant in variants if variant.run != run]
    if len(own) == 1 or not others:
        return _against_one(variants, next(iter(own.values()))), []
    pairs = [Pair(own[variant.cell], variant) for variant in others if variant.cell in own]
    alone = [variant.label for variant in others if variant.cell not in own]
    return pairs, [f"{', '.join(alone)}: not compared, the baseline {run} has no such cell"] if alone else []


def check_runs(runs: Sequence[RunData], *, force: bool) -> list[str]:
    """Notes on differences between runs other than those that are compared.

    Raises:
        RunMismatchError: two runs replayed different scripts, and `force` is false.
    """
    notes = [note for run in runs for note in run.notes]
    known = [run for run in runs if run.facts != RunFacts()]
    for run in known[1:]:
        first = known[0]
        expected, found = first.facts, run.facts
        if expected.script_sha256 and found.script_sha256 and expected.script_sha256 != found.script_sha256:
            problem = f"{run.source} and {first.source} replayed different scripts"
            if not force:
                raise RunMismatchError(
                    f"{problem} (hash {found.script_sha256[:12]}, expected {expected.script_sha256[:12]})",
                    hint="--force compares the turns that have the same conversation id, turn and repeat",
                )
            notes.append(problem)
        if expected.seed != found.seed:
            notes.append(
                f"different seeds ({first.name} {expected.seed}, {run.name} {found.seed}): the runs do not use common "
                "random numbers, so differences are noisier than with equal seeds"
            )
        if expected.version != found.version:
            notes.append(
                f"different versions of rwkvbatch ({first.name} {expected.version}, {run.name} {found.version})"
            )
        if expected.identity and expected.identity == found.identity:
            notes.append(
                f"{first.name} and {run.name} have the same weights, script, settings and seed: a difference in "
                "anything but timings is a fault of the program"
            )
    return notes


_PROMPT_SETTINGS = (
    ("history", "different history modes: later turns did not follow the same conversation"),
    ("think", "different thinking modes: the prompts are not the same"),
    ("template_sha256", "different templates: the prompts are not the same"),
    ("prelude_sha256", "different preludes: the prompts are not the same"),
    ("system", "different system messages: the prompts are not the same"),
    ("template", "different templates: the prompts are not the same"),
    ("prelude", "different preludes: the prompts are not the same"),
)


def check_pairs(pairs: Sequence[Pair], runs: Sequence[RunData]) -> list[str]:
    """Notes on pairs whose prompts were made in different ways."""
    cells = {run.name: run.facts.cells for run in runs}
    notes: list[str] = []
    for pair in pairs:
        a, b = (cells[side.run].get(side.cell, {}) for side in (pair.baseline, pair.variant))
        notes.extend(
            f"{warning} ({pair.baseline.label}: {str(a[key])[:24]}, {pair.variant.label}: {str(b[key])[:24]})"
            for key, warning in _PROMPT_SETTINGS
            if key in a and key in b and a[key] != b[key]
        )
    return notes


def refuse_parts(pair: Pair, runs: Sequence[RunData]) -> None:
    """Explain why a pair has no common turn, if its runs are parts (`--shard`).

    Raises:
        RunMismatchError: both are parts of a run, and not the same part.
    """
    named = {run.name: run for run in runs}
    sides = [named[side.run] for side in (pair.baseline, pair.variant)]
    parts = [run.facts.part for run in sides]
    if None in parts or parts[0] == parts[1]:
        return
    one, other = (f"{run.source} is part {part}" for run, part in zip(sides, parts, strict=True))
    identity = sides[0].facts.identity
    if identity != sides[1].facts.identity:
        raise RunMismatchError(
            f"{one} of a run and {other} of another: they have no conversation in common",
            hint="merge the parts of each run with `rwkvbatch merge PART... --out DIR`, and compare those",
        )
    of_same = [run.source for run in runs if run.facts.part is not None and run.facts.identity == identity]
    raise RunMismatchError(
        f"{one} and {other} of the same run: parts have no conversation in common",
        hint=f"merge all parts first: rwkvbatch merge {shlex.join(of_same)} --out DIR",
    )
