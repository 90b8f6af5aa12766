"""Variants, their pairing with baselines, and warnings about runs that are not comparable."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rwkvbatch.comparison.runs.data import RunData, RunFacts
from rwkvbatch.errors import RunMismatchError, UsageError


@dataclass(frozen=True)
class Variant:
    """One cell of one run; `label` names it uniquely within the comparison."""

    run: str
    cell: str
    label: str


@dataclass(frozen=True)
class Pair:
    """A variant and its baseline."""

    baseline: Variant
    variant: Variant


def variants_of(runs: Sequence[RunData]) -> list[Variant]:
    """All cells of all runs that have rows, in the manifest's order, then in the order of their first rows.

    The label is the run if each run has one cell, the cell if there is one run, and `RUN::CELL` otherwise. A sweep of
    which only one cell is compared, or has rows, is labelled as a run with several cells.
    """
    one_cell_each = all(len(run.cells) == 1 and len(run.facts.cells) <= 1 for run in runs)
    variants: list[Variant] = []
    for run in runs:
        with_rows = run.cells
        for cell in dict.fromkeys((*(name for name in run.facts.cells if name in with_rows), *with_rows)):
            cell_label = cell if len(runs) == 1 else f"{run.name}::{cell}"
            variants.append(Variant(run.name, cell, label=run.name if one_cell_each else cell_label))
    return variants


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


def check_runs(runs: Sequence[RunData], *, force: bool) -> list[str]:
    """Notes of the runs, and on differences between them that make the comparison less reliable.

    Raises:
        RunMismatchError: two runs replayed different scripts, and `force` is false.
    """
    notes = [note for run in runs for note in run.notes]
    with_facts = [run for run in runs if run.facts != RunFacts()]
    if len(with_facts) < 2:
        return notes
    first, *others = with_facts
    expected = first.facts
    scripts = [
        run
        for run in others
        if expected.script_sha256 and run.facts.script_sha256 and run.facts.script_sha256 != expected.script_sha256
    ]
    if scripts and not force:
        hashes = f"hash {str(scripts[0].facts.script_sha256)[:12]}, expected {str(expected.script_sha256)[:12]}"
        raise RunMismatchError(
            f"{scripts[0].source} and {first.source} replayed different scripts ({hashes})",
            hint="--force compares the turns that have the same conversation id and ask the same",
        )
    if scripts:
        notes.append(f"{_first_names([run.source for run in scripts])} replayed another script than {first.source}")
    if seeds := [f"{run.name} {run.facts.seed}" for run in others if run.facts.seed != expected.seed]:
        notes.append(
            f"different seeds ({first.name} {expected.seed}, {_first_names(seeds)}): the runs do not use common "
            "random numbers, so differences are noisier than with equal seeds"
        )
    if versions := [f"{run.name} {run.facts.version}" for run in others if run.facts.version != expected.version]:
        notes.append(f"different versions of rwkvbatch ({first.name} {expected.version}, {_first_names(versions)})")
    equal: dict[str | None, list[str]] = {}
    for run in others:
        if expected.identity and run.facts.identity == expected.identity:
            equal.setdefault(_why_replies_may_differ(expected) or _why_replies_may_differ(run.facts), []).append(
                run.name
            )
    for cause, names in equal.items():
        same = f"{first.name} and {_first_names(names)} have the same weights, script, settings and seed"
        reason = "any that differs is a fault of the program" if cause is None else f"they may differ because {cause}"
        notes.append(f"{same}, so they should have the same replies; {reason}")
    return notes


_MOST_NAMED = 3


def _first_names(names: Sequence[str]) -> str:
    """The names with commas; the first ones and the number of the others if there are many."""
    if len(names) <= _MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: _MOST_NAMED - 1])} and {len(names) - _MOST_NAMED + 1:,} more"


def _why_replies_may_differ(facts: RunFacts) -> str | None:
    """Why the same run made again may have other replies; None if it has the same ones."""
    for model in facts.models:
        if model.get("bitwise") is False:
            name = str(model.get("path"))[:80]
            if "endpoint" in model:
                return f"{name} is a served model, which may reply differently at each request"
            return f"the backend of {name} does not guarantee the same replies for every batch"
    if any(settings.get("max_seconds") is not None for settings in facts.cells.values()):
        return "--max-seconds ends replies by the clock"
    return None


_PROMPT_SETTINGS = (
    ("history", "different history modes: later turns did not follow the same conversation"),
    ("think", "different thinking modes: the prompts are not the same"),
    ("template_sha256", "different templates: the prompts are not the same"),
    ("prelude_sha256", "different preludes: the prompts are not the same"),
    ("system", "different system messages: the prompts are not the same"),
    ("template", "different templates: the prompts are not the same"),
    ("prelude", "different preludes: the prompts are not the same"),
    ("bos", "different beginnings (--bos): the prompts are not the same"),
    ("reply_prefix", "different beginnings of replies (--reply-prefix): the prompts are not the same"),
    (
        "turn_end",
        "different ends of a turn, which count among the tokens of replies (tokens, logprob, distinct1, distinct2, "
        "loop); --turn-end sets one for both",
    ),
)
"""Settings that are compared, with what to say if they differ."""
_UNRESOLVED = (("turn_end", "auto"), ("bos", "auto"))
"""Settings of which the run does not say what they stood for, which may be what the other side has."""


def check_pairs(pairs: Sequence[Pair], runs: Sequence[RunData]) -> list[str]:
    """Notes on pairs with different settings of the prompt or the end of a turn, one for each setting and baseline."""
    cells = {run.name: run.facts.cells for run in runs}
    differing: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        baseline, variant = (cells[side.run].get(side.cell, {}) for side in (pair.baseline, pair.variant))
        for key, warning in _PROMPT_SETTINGS:
            if key not in baseline or key not in variant or baseline[key] == variant[key]:
                continue
            if (key, baseline[key]) not in _UNRESOLVED and (key, variant[key]) not in _UNRESOLVED:
                expected = f"{pair.baseline.label}: {_shown(baseline[key])}"
                differing.setdefault((warning, expected), []).append(f"{pair.variant.label}: {_shown(variant[key])}")
    return [f"{warning} ({expected}, {_first_names(variants)})" for (warning, expected), variants in differing.items()]


def _shown(value: object) -> str:
    """The first characters of a setting's value, in quotes if a text begins or ends with white space or is empty."""
    is_plain = not isinstance(value, str) or (value and value == value.strip())
    return (str(value) if is_plain else repr(value))[:24]


def refuse_parts(pair: Pair, runs: Sequence[RunData]) -> None:
    """Raise an error that explains why a pair has no common turn, if its runs are different parts (`--shard`).

    Raises:
        RunMismatchError: both sides are parts of a run, and not the same part.
    """
    run_of = {run.name: run for run in runs}
    baseline, variant = run_of[pair.baseline.run], run_of[pair.variant.run]
    if None in (baseline.facts.part, variant.facts.part) or baseline.facts.part == variant.facts.part:
        return
    baseline_part, variant_part = (f"{run.source} is part {run.facts.part}" for run in (baseline, variant))
    identity = baseline.facts.identity
    if identity != variant.facts.identity:
        raise RunMismatchError(
            f"{baseline_part} of a run and {variant_part} of another: they have no conversation in common",
            hint="merge the parts of each run with `rwkvbatch merge PART... --out DIR`, and compare those",
        )
    parts = [run.source for run in runs if run.facts.part is not None and run.facts.identity == identity]
    raise RunMismatchError(
        f"{baseline_part} and {variant_part} of the same run: parts have no conversation in common",
        hint=f"merge all parts first: rwkvbatch merge {shlex.join(parts)} --out DIR",
    )
