"""What a run's manifest holds: the `identity` that its rows depend on, and `about`, how it was started."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rwkvbatch
from rwkvbatch import __version__
from rwkvbatch.config import CellSettings, DialoguePrompt, Sampling, Stopping
from rwkvbatch.errors import InputError
from rwkvbatch.prompt.templates import clean, clean_reply, load_prelude, with_turn_end
from rwkvbatch.results.manifest import GIVEN_FOR_ALL

if TYPE_CHECKING:
    from rwkvbatch.model.base import ModelSpec
    from rwkvbatch.prompt.tokenizer import Tokenizer
    from rwkvbatch.replay.models import Setup
    from rwkvbatch.replay.plan import Plan

GENERATION_RULES = 1
"""Raised whenever this program would give other replies than before to the same weights, script and settings."""

_FILES_OF_A_CELL = {"model", "strategy", "backend", "state", "template", "prelude"}


def make_identity(
    plan: Plan, specs: Mapping[Setup, ModelSpec], tokenizer_of: Callable[[ModelSpec], Tokenizer]
) -> dict[str, Any]:
    """All that the rows of `plan` depend on, as JSON values; raises as `cell_identities`."""
    cells = cell_identities(plan, specs, tokenizer_of)
    settings, script = plan.settings, "".join(conversation.sha256 for conversation in plan.conversations)
    return {
        "generation_rules": GENERATION_RULES,
        "script": {"sha256": _sha256(script.encode()), "conversations": len(plan.conversations)},
        "seed": settings.seed,
        "repeats": settings.repeats,
        "max_repeats": settings.max_repeats,
        "until_ci": settings.until_ci,
        # Only in races, so that other runs have the manifests that they had before there were any.
        **(
            {"race": {"margin": settings.race_margin, "level": settings.race_level, "rows": settings.race_rows}}
            if settings.race
            else {}
        ),
        "max_prompt_tokens": settings.max_prompt_tokens,
        GIVEN_FOR_ALL: sorted(plan.explicit & {"seed", *Sampling.model_fields, *Stopping.model_fields, *_own_of(plan)}),
        **_paragraphs(plan, cells),
        "cells": cells,
    }


def _paragraphs(plan: Plan, cells: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """That references keep their blank lines, where there are some to keep; earlier versions removed them."""
    references = (turn.reference for c in plan.conversations for turn in c.turns if turn.reference)
    kept = any(cell["turn_end"] != "blank-line" for cell in cells.values())
    return {"blank_lines_in_references": "kept"} if kept and any(clean(r) != clean_reply(r) for r in references) else {}


def _own_of(plan: Plan) -> frozenset[str]:
    """Settings of prompts that conversations have as params; runs of versions without such params name none."""
    params = (part.params for c in plan.conversations for part in (c, *c.turns) if part.params)
    return frozenset(DialoguePrompt.model_fields).intersection(chain.from_iterable(params))


def cell_identities(
    plan: Plan, specs: Mapping[Setup, ModelSpec], tokenizer_of: Callable[[ModelSpec], Tokenizer]
) -> dict[str, dict[str, Any]]:
    """What the rows of one cell depend on and those of others do not, by name, for the cells of `specs`, in order.

    Raises `UsageError` or `InputError` when a state, template or prelude file cannot be read.
    """
    spec_of = {cell: spec for setup, spec in specs.items() for cell in setup.cells}
    return {
        plan.cells[cell].name: _cell_identity(plan.cell_settings[cell], spec_of[cell], tokenizer_of(spec_of[cell]))
        for cell in sorted(spec_of)
    }


def _cell_identity(settings: CellSettings, spec: ModelSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    resolved = with_turn_end(settings, spec.weights_sha256)
    values = resolved.model_dump(mode="json", include=CellSettings.model_fields.keys() - _FILES_OF_A_CELL)
    state, template = settings.state, settings.template
    prelude = None if settings.prelude is None else load_prelude(settings.prelude)
    return {
        **values,
        "weights_sha256": spec.weights_sha256,
        "dtype": spec.dtype,
        "backend": spec.backend,
        "device": spec.device.partition(":")[0],
        "tokenizer_sha256": tokenizer.sha256,
        "state_sha256": None if state is None else sha256_of_file(state, "--state"),
        "template_sha256": None if template is None else sha256_of_file(template, "--template"),
        "prelude_sha256": None if prelude is None else _sha256(prelude.encode("utf-8", "surrogatepass")),
    }


def sha256_of_file(path: str, option: str) -> str:
    """Hex digest of a file that an option names; raises `InputError` if it cannot be read."""
    try:
        with Path(path).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be read: {error.strerror}") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_about(plan: Plan, specs: Mapping[Setup, ModelSpec], scripts: list[str], command: str) -> dict[str, Any]:
    """How the run was started: versions, machine, paths, and settings that do not change replies."""
    settings = plan.settings
    versions = {"python": platform.python_version()}
    for package in ("torch", "rwkv", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "rwkvbatch": __version__,
        "code_sha256": code_sha256(),
        "versions": versions,
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


@cache
def code_sha256() -> str:
    """Hex digest of this package's sources and native code, by relative path."""
    root = Path(rwkvbatch.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".so", ".pyd")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
