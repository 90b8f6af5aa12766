"""Whether runs can be compared at all, and what a reader must know when they can."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rwkvbatch.compare.loading import RunData
from rwkvbatch.compare.pairing import Pair
from rwkvbatch.errors import RunMismatchError

_PAIR_WARNINGS = (
    ("history", "other history modes: later turns did not see the same conversation"),
    ("think", "other thinking modes: the prompts are not the same"),
    ("template_sha256", "other templates: the prompts are not the same"),
    ("prelude_sha256", "other preludes: the prompts are not the same"),
)


def check_runs(runs: Sequence[RunData], *, force: bool) -> list[str]:
    """Warnings about runs that differ in more than what is compared.

    Raises:
        RunMismatchError: two runs replayed different scripts, and `force` is off.
    """
    notes = [note for run in runs for note in run.notes]
    known = [run for run in runs if run.manifest]
    for run in known[1:]:
        first = known[0]
        expected, found = first.facts.script_sha256, run.facts.script_sha256
        if expected and found and expected != found:
            problem = f"{run.source} replayed another script than {first.source}"
            if not force:
                raise RunMismatchError(
                    f"{problem} (hash {found[:12]}, not {expected[:12]})",
                    hint="--force compares the turns that have the same conversation id, turn and repeat",
                )
            notes.append(problem)
        if first.facts.seed != run.facts.seed:
            notes.append(
                "other seeds: the runs do not share their luck, so differences are noisier than they need be "
                f"({first.name} {first.facts.seed}, {run.name} {run.facts.seed})"
            )
        if first.facts.version != run.facts.version:
            notes.append(
                f"other versions of rwkvbatch ({first.name} {first.facts.version}, "
                f"{run.name} {run.facts.version})"
            )
        if first.facts.identity and first.facts.identity == run.facts.identity:
            notes.append(
                f"{first.name} and {run.name} ran the very same thing (weights, script, settings, seed): every "
                "difference but in timings would be a fault"
            )
    return notes


def refuse_parts(pair: Pair, runs: Sequence[RunData]) -> None:
    """Say why a pair without a common turn has none, where its runs are parts.

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
            hint="put the parts of each run together with `rwkvbatch merge PART... --out DIR`, and compare those",
        )
    of_same = [run.source for run in runs if run.facts.part is not None and run.facts.identity == identity]
    raise RunMismatchError(
        f"{one} and {other} of the same run: parts have no conversation in common",
        hint=f"put all parts together first: rwkvbatch merge {shlex.join(of_same)} --out DIR",
    )


def check_pairs(pairs: Sequence[Pair], runs: Sequence[RunData]) -> list[str]:
    """Warnings about pairs whose prompts were not made in the same way."""
    facts = {run.name: run.facts for run in runs}
    notes: list[str] = []
    for pair in pairs:
        for key, warning in _PAIR_WARNINGS:
            a = facts[pair.baseline.run].setting(pair.baseline.cell, key)
            b = facts[pair.variant.run].setting(pair.variant.cell, key)
            if a != b:
                notes.append(
                    f"{warning} ({pair.baseline.label}: {str(a)[:24]}, {pair.variant.label}: {str(b)[:24]})"
                )
    return notes
