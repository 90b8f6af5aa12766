"""A run's manifest: `identity`, on which the rows depend, and `about`, which says how the run started."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rwkvbatch
from rwkvbatch import __version__
from rwkvbatch.config import CellSettings, DialoguePrompt, Sampling, Stopping
from rwkvbatch.endpoint.served import ServedSpec
from rwkvbatch.errors import WorkerError
from rwkvbatch.hashes import sha256_of_file
from rwkvbatch.prompt.templates import load_prelude, template_path, with_turn_end
from rwkvbatch.replay.judging.checks import JUDGING_RULES
from rwkvbatch.results.manifest import FILLS_IN_SYSTEM, GIVEN_FOR_ALL, PARAMS
from rwkvbatch.results.script_copy import script_sha256

if TYPE_CHECKING:
    from rwkvbatch.prompt.tokenizer import Tokenizer
    from rwkvbatch.replay.planning.plan import Plan
    from rwkvbatch.replay.planning.setups import Setup, Spec

GENERATION_RULES = 1
"""Version of the replies: incremented when the same weights, script and settings give other replies than before."""

_ENDPOINT_SETTINGS = ("endpoint", "endpoint_model", "endpoint_api", "endpoint_body")
NOT_BY_VALUE = {"model", "adapter", "strategy", "backend", "state", "template", "prelude", *_ENDPOINT_SETTINGS}
"""Settings that are in a cell's identity as a file hash or a property of the model, not as their value."""


def make_identity(plan: Plan, specs: Mapping[Setup, Spec], tokenizer_of: Callable[[Spec], Tokenizer]) -> dict[str, Any]:
    """All that the rows of `plan` depend on, as JSON values; raises as `cell_identities`."""
    cells = cell_identities(plan, specs, tokenizer_of)
    settings = plan.settings
    return {
        "generation_rules": GENERATION_RULES,
        "judging_rules": JUDGING_RULES,
        "script": {
            "sha256": script_sha256(plan.conversations),
            "conversations": len(plan.conversations),
            PARAMS: sorted({name for c in plan.conversations for part in (c, *c.turns) for name in part.params}),
        },
        "seed": settings.seed,
        "repeats": settings.repeats,
        "max_repeats": settings.max_repeats,
        "until_ci": settings.until_ci,
        "race": {"margin": settings.race_margin, "level": settings.race_level, "rows": settings.race_rows}
        if settings.race
        else None,
        "max_prompt_tokens": settings.max_prompt_tokens,
        GIVEN_FOR_ALL: sorted(
            plan.explicit & {"seed", *Sampling.model_fields, *Stopping.model_fields, *DialoguePrompt.model_fields}
        ),
        "cells": cells,
    }


def cell_identities(
    plan: Plan, specs: Mapping[Setup, Spec], tokenizer_of: Callable[[Spec], Tokenizer]
) -> dict[str, dict[str, Any]]:
    """By name, for the cells of `specs` in order: the settings and hashes on which only the rows of that cell depend.

    Raises:
        UsageError, InputError: a state, template or prelude file cannot be read.
    """
    spec_of = {cell: spec for setup, spec in specs.items() for cell in setup.cells}
    return {
        plan.cells[cell].name: {
            **_cell_identity(plan.cell_settings[cell], spec_of[cell], tokenizer_of(spec_of[cell])),
            FILLS_IN_SYSTEM: _fills_in_system(plan, cell),
        }
        for cell in sorted(spec_of)
    }


def check_same(here: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare the identities of cells on this node with those `expected`.

    Raises:
        WorkerError: they differ, for example because of other weights or another kind of device.
    """
    for cell, values in expected.items():
        for key, value in values.items():
            if here[cell][key] != value:
                hint = "the same files must be in the same places on every node, and all devices of one kind"
                raise WorkerError(f"{key} of cell {cell} is {here[cell][key]} here, but {value} elsewhere", hint=hint)


def _fills_in_system(plan: Plan, cell: int) -> bool:
    return plan.cell_settings[cell].system is not None and not plan.replaces_system(cell)


def _rounding_rules(spec: Spec) -> dict[str, int]:
    if isinstance(spec, ServedSpec):
        return {}
    from rwkvbatch.model.ops import rounding_rules  # imports torch, which runs of served models do without

    return rounding_rules(spec.dtype)


def _cell_identity(settings: CellSettings, spec: Spec, tokenizer: Tokenizer) -> dict[str, Any]:
    resolved = with_turn_end(settings, spec.weights_sha256)
    values = resolved.model_dump(mode="json", include=CellSettings.model_fields.keys() - NOT_BY_VALUE)
    state, template = settings.state, settings.template
    # Without an endpoint, nothing uses those that the environment or a settings file may have.
    served = {name: settings.endpoint and getattr(settings, name) for name in _ENDPOINT_SETTINGS}
    if isinstance(spec, ServedSpec):
        served["endpoint_model"] = spec.name
        served["turn_end"] = settings.turn_end  # `auto` is what the server makes of it
    prelude = load_prelude(settings.prelude)
    return {
        **values,
        **served,
        **_rounding_rules(spec),
        "weights_sha256": spec.weights_sha256,
        "dtype": spec.dtype,
        "backend": spec.backend,
        "device": spec.device.partition(":")[0],
        "tokenizer_sha256": tokenizer.sha256,
        "state_sha256": None if state is None else sha256_of_file(state, "--state"),
        "template_sha256": None if template is None else sha256_of_file(template_path(template), "--template"),
        "prelude_sha256": None if prelude is None else _sha256(prelude.encode("utf-8", "surrogatepass")),
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def _versions() -> Mapping[str, str]:
    """The versions of Python and of the packages on which replies may depend."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "rwkv", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def make_about(plan: Plan, specs: Mapping[Setup, Spec], scripts: list[str], command: str) -> dict[str, Any]:
    """The manifest's `about`: versions, machine, paths, and settings that do not change replies."""
    settings = plan.settings
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "rwkvbatch": __version__,
        "code_sha256": code_sha256(),
        "versions": dict(_versions()),
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "scripts": scripts,
        "files": {
            plan.cells[cell].name: _files_of(plan.cell_settings[cell], spec)
            for setup, spec in specs.items()
            for cell in setup.cells
        },
        "only": list(settings.only),
        "limit": settings.limit,
        "shuffle_seed": settings.shuffle_seed,
        "models": [
            {**_about_model(spec), "cells": [plan.cells[cell].name for cell in setup.cells]}
            for setup, spec in specs.items()
        ],
        "batch_size": settings.batch_size,
        "threads": settings.threads,
        "workers": settings.workers,
        "devices": list(settings.devices),
        "state_memory": settings.state_memory,
        "vocab": settings.vocab,
    }


def _about_model(spec: Spec) -> dict[str, Any]:
    if isinstance(spec, ServedSpec):
        return {"path": spec.path, "endpoint": spec.url, "name": spec.name, "bitwise": False}
    return {
        "path": spec.path,
        **({} if spec.adapter is None else {"adapter": spec.adapter}),
        "generation": spec.generation,
        "layers": spec.num_layers,
        "width": spec.width,
        "parameters": spec.num_parameters,
        "vocabulary": spec.vocab_size,
        "weights_sha256": spec.weights_sha256,
        "device": spec.device,
        "bitwise": spec.bitwise,
    }


def _files_of(settings: CellSettings, spec: Spec) -> dict[str, str | None]:
    """The names of the files whose hashes are in a cell's identity."""
    return {"model": spec.path, "state": settings.state, "template": settings.template, "prelude": settings.prelude}


@cache
def code_sha256() -> str:
    """Hex digest of this package's sources and native code, by relative path."""
    root = Path(rwkvbatch.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".so", ".pyd")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
