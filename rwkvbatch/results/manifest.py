"""`manifest.json`: what was run, written once before the first row.

`identity` holds all that a reply depends on: a directory is continued only by a run of the same identity. `shard` is
there when the run is a part of a whole (`--shard`), and then only the same part continues it. `about` says how and
where it was started, for people; nothing compares it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import rwkvbatch
from rwkvbatch import __version__
from rwkvbatch.config import Sampling, Stopping, identity_with_full_names
from rwkvbatch.errors import RunDirectoryError, RunMismatchError, StorageError
from rwkvbatch.files import Files, replace_file
from rwkvbatch.replay.identity import sha256_of_file, text_sha256
from rwkvbatch.replay.models import Setup
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.settings import CellSettings

if TYPE_CHECKING:
    from rwkvbatch.model.base import ModelSpec
    from rwkvbatch.prompt.tokenizer import Tokenizer

MANIFEST_NAME = "manifest.json"
FORMAT = 1

GENERATION_RULES = 1
"""Raised whenever this program would give other replies than before to the same weights, script and settings."""

_FILES_OF_A_CELL = ("model", "strategy", "backend", "state", "template", "prelude")
_MAX_SHOWN = 12
_GIVEN = "given_for_all"


def make_identity(
    plan: Plan, specs: Mapping[Setup, ModelSpec], tokenizer_of: Callable[[ModelSpec], Tokenizer]
) -> dict[str, Any]:
    """All that the rows of `plan` depend on, as JSON values.

    Raises:
        UsageError: a state, template or prelude file cannot be read.
    """
    settings = plan.settings
    return {
        "generation_rules": GENERATION_RULES,
        "script": {
            "sha256": hashlib.sha256("".join(c.sha256 for c in plan.conversations).encode()).hexdigest(),
            "conversations": len(plan.conversations),
        },
        "seed": settings.seed,
        "repeats": settings.repeats,
        "max_repeats": settings.max_repeats,
        "until_ci": settings.until_ci,
        "max_prompt_tokens": settings.max_prompt_tokens,
        # These take the place of a conversation's own params.
        _GIVEN: sorted(plan.explicit & {"seed", *Sampling.model_fields, *Stopping.model_fields}),
        "cells": cell_identities(plan, specs, tokenizer_of),
    }


def cell_identities(
    plan: Plan, specs: Mapping[Setup, ModelSpec], tokenizer_of: Callable[[ModelSpec], Tokenizer]
) -> dict[str, dict[str, Any]]:
    """All that the rows of a cell depend on and that others do not share, by the cell's name, in the plan's order.

    Args:
        specs: of the models of those cells that are wanted.

    Raises:
        UsageError: a state, template or prelude file cannot be read.
    """
    spec_of = {cell: spec for setup, spec in specs.items() for cell in setup.cells}
    return {
        plan.cells[cell].name: _cell_identity(plan.cell_settings[cell], spec, tokenizer_of(spec))
        for cell, spec in sorted(spec_of.items(), key=lambda item: item[0])
    }


def make_about(plan: Plan, specs: Mapping[Setup, ModelSpec], scripts: list[str], command: str) -> dict[str, Any]:
    """How the run was started: versions, machine, paths, and settings that do not change replies."""
    settings = plan.settings
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "rwkvbatch": __version__,
        "code_sha256": code_sha256(),
        "versions": {"python": platform.python_version(), **_versions("torch", "rwkv", "numpy")},
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "scripts": scripts,
        "only": list(settings.only),
        "limit": settings.limit,
        "shuffle_seed": settings.shuffle_seed,
        "models": [
            {
                "path": spec.path,
                "generation": spec.generation,
                "layers": spec.num_layers,
                "width": spec.width,
                "parameters": spec.num_parameters,
                "vocabulary": spec.vocab_size,
                "weights_sha256": spec.weights_sha256,
                "device": spec.device,
                "bitwise": spec.bitwise,
                "cells": [plan.cells[cell].name for cell in setup.cells],
            }
            for setup, spec in specs.items()
        ],
        "batch_size": settings.batch_size,
        "threads": settings.threads,
        "workers": settings.workers,
        "devices": list(settings.devices),
        "state_memory": settings.state_memory,
    }


def make_shard(plan: Plan) -> dict[str, Any] | None:
    """Which part of a whole run the plan is, and how many rows the whole has; None for a whole run."""
    shard = plan.shard
    return None if shard is None else {"part": shard.part, "parts": shard.parts, "rows_of_run": plan.num_rows}


def write_manifest(
    files: Files,
    directory: Path,
    identity: Mapping[str, Any],
    about: Mapping[str, Any],
    shard: Mapping[str, Any] | None = None,
) -> None:
    """Write the manifest, so that it is there in full or not at all.

    Raises:
        StorageError: it could not be written.
    """
    part = {} if shard is None else {"shard": shard}
    content = {"format": FORMAT, "identity": identity, **part, "about": about}
    text = json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
    try:
        replace_file(files, directory / MANIFEST_NAME, [text, b"\n"])
    except OSError as error:
        raise StorageError(f"{directory / MANIFEST_NAME}: write failed: {error.strerror or error}") from error


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a run directory, None when it has none.

    Raises:
        RunDirectoryError: it cannot be read, or is not one.
    """
    path = directory / MANIFEST_NAME
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror or error}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise RunDirectoryError(f"is not JSON: {error}", path=path) from None
    manifest = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    if not isinstance(manifest.get("identity"), dict):
        raise RunDirectoryError("is not the manifest of a run", path=path)
    if manifest.get("format") != FORMAT:
        raise RunDirectoryError(
            f"has format {manifest.get('format')!r}; this version reads {FORMAT}",
            path=path,
            hint="use the version that wrote it",
        )
    manifest["identity"] = identity_with_full_names(manifest["identity"])
    return manifest


def refuse_other_run(
    directory: Path,
    there: Mapping[str, Any],
    identity: Mapping[str, Any],
    shard: Mapping[str, Any] | None = None,
    *,
    hint: str = "give the settings it was started with, or another directory with --out",
) -> None:
    """Compare the run that is there with the one that is wanted.

    Args:
        there: a manifest. identity, shard: what it should say.

    Raises:
        RunMismatchError: they differ; says in what.
    """
    wanted = json.loads(json.dumps({**_shard_name(shard), **identity}))
    found = {**_shard_name(there.get("shard")), **there["identity"]}
    before, now = found.pop(_GIVEN, []), wanted.pop(_GIVEN, [])
    differences = _differences("", found, wanted)
    if before != now and not differences:
        differences = [
            "settings given for all conversations, which win over a script's `params`: "
            f"there {', '.join(before) or 'none'}, now {', '.join(now) or 'none'}"
        ]
    if differences:
        shown = "\n".join(f"    {line}" for line in differences[:_MAX_SHOWN])
        more = f"\n    and {len(differences) - _MAX_SHOWN} more" if len(differences) > _MAX_SHOWN else ""
        raise RunMismatchError(f"holds a run of something else:\n{shown}{more}", path=directory, hint=hint)


@cache
def code_sha256() -> str:
    """Hex digest of this package's sources and native code, by relative path."""
    root = Path(rwkvbatch.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".so", ".pyd")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _cell_identity(settings: CellSettings, spec: ModelSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    values = {key: value for key, value in settings.model_dump(mode="json").items() if key in CellSettings.model_fields}
    for key in _FILES_OF_A_CELL:
        del values[key]
    state, template = settings.state, settings.template
    return {
        **values,
        "weights_sha256": spec.weights_sha256,
        "dtype": spec.dtype,
        "backend": spec.backend,
        "device": spec.device.partition(":")[0],
        "tokenizer_sha256": tokenizer.sha256,
        "state_sha256": None if state is None else sha256_of_file(state, "--state"),
        "template_sha256": None if template is None else sha256_of_file(template, "--template"),
        "prelude_sha256": text_sha256(settings),
    }


def _shard_name(shard: Any) -> dict[str, str]:
    match shard:
        case None:
            return {}
        case {"part": part, "parts": parts}:
            return {"shard": f"{part}/{parts}"}
        case _:
            return {"shard": "not to be understood"}


def _differences(name: str, there: Any, wanted: Any) -> list[str]:
    if isinstance(there, dict) and isinstance(wanted, dict):
        old, new = cast("dict[str, Any]", there), cast("dict[str, Any]", wanted)
        lines: list[str] = []
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{name}.{key}" if name else key
            lines += _differences(inner, old.get(key, "nothing"), new.get(key, "nothing"))
        return lines
    return [] if there == wanted else [f"{name}: there {_short(there)}, now {_short(wanted)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _versions(*packages: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
