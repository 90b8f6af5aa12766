"""Whether two runs can be compared at all, and what a reader must know when they can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rwkvbatch.compare.loading import RunData
from rwkvbatch.errors import RunMismatchError

_WARNINGS: tuple[tuple[str, str], ...] = (
    ("seed", "other seeds: the runs do not share their luck, so differences are noisier than they need be"),
    ("history", "other history modes: later turns did not see the same conversation"),
    ("think", "other thinking modes: the prompts are not the same"),
    ("rwkvbatch", "other versions of rwkvbatch"),
)


def check_compatible(runs: Sequence[RunData], *, force: bool) -> list[str]:
    """Warnings about runs that differ in more than what is compared.

    Raises:
        RunMismatchError: two runs replayed different scripts, and `force` is off.
    """
    notes: list[str] = []
    for run in runs:
        notes.extend(run.notes)
    first = next((run for run in runs if run.manifest), None)
    if first is None:
        return notes
    for run in runs:
        if run is first or not run.manifest:
            continue
        expected, found = script_hash(first.manifest), script_hash(run.manifest)
        if expected and found and expected != found:
            problem = f"{run.source} replayed another script than {first.source} ({found[:12]}, not {expected[:12]})"
            if not force:
                raise RunMismatchError(problem, hint="--force compares conversations of the same id")
            notes.append(problem)
        for key, warning in _WARNINGS:
            if not _same(key, first.manifest, run.manifest):
                values = f"{first.name} {_shown(first.manifest, key)}, {run.name} {_shown(run.manifest, key)}"
                notes.append(f"{warning} ({values})")
        notes.extend(_same_thing_twice(first, run))
    return notes


def script_hash(manifest: Mapping[str, Any]) -> str | None:
    """The script's SHA-256, where the manifest names one."""
    script = manifest.get("script")
    digest: object = script.get("sha256") if isinstance(script, Mapping) else None  # pyright: ignore
    return digest if isinstance(digest, str) else None


def _same(key: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return key not in first or key not in second or first[key] == second[key]


def _shown(manifest: Mapping[str, Any], key: str) -> str:
    return str(manifest.get(key))[:40]


def _same_thing_twice(first: RunData, second: RunData) -> list[str]:
    """Two runs of the very same thing must not differ; if they do, reproducibility is broken."""
    keys = ("rwkvbatch", "model", "script", "seed", "history", "think", "cells")
    if not all(key in first.manifest and first.manifest[key] == second.manifest.get(key) for key in keys):
        return []
    return [
        f"{first.name} and {second.name} ran the very same thing (weights, script, settings, seed): "
        "every difference but in timings would be a fault"
    ]
