"""The content of a run's manifest: `identity`, on which the rows depend, and `about`, which says how the run started.

Also the digests by which a row is recognized as one of another plan (`RowDigests`).
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rwkvbatch
from rwkvbatch import __version__
from rwkvbatch.config import CellSettings, DialoguePrompt, Sampling, Stopping
from rwkvbatch.config.names import first_turn_end
from rwkvbatch.endpoint.served import ServedSpec
from rwkvbatch.errors import InputError, WorkerError
from rwkvbatch.files import open_file
from rwkvbatch.prompt.templates import clean, clean_reply, load_prelude, template_path, with_turn_end
from rwkvbatch.results.manifest import FILLS_IN_SYSTEM, FIRST_SETTINGS, GIVEN_FOR_ALL, default_settings
from rwkvbatch.results.row_codec import RowDigest
from rwkvbatch.results.script_copy import script_sha256
from rwkvbatch.script.records import Conversation

if TYPE_CHECKING:
    from rwkvbatch.prompt.tokenizer import Tokenizer
    from rwkvbatch.replay.models import Setup, Spec
    from rwkvbatch.replay.plan import Plan

GENERATION_RULES = 1
"""Version of the replies: incremented when the same weights, script and settings give other replies than before."""

JUDGING_RULES = 2
"""Version of the checks: incremented when a check judges the same reply otherwise than before; rows are then judged
again."""

_ENDPOINT_SETTINGS = ("endpoint", "endpoint_model", "endpoint_api", "endpoint_body")
_NOT_BY_VALUE = {"model", "adapter", "strategy", "backend", "state", "template", "prelude", *_ENDPOINT_SETTINGS}
"""Settings that are in a cell's identity as a file hash or a property of the model, not as their value."""


def make_identity(plan: Plan, specs: Mapping[Setup, Spec], tokenizer_of: Callable[[Spec], Tokenizer]) -> dict[str, Any]:
    """All that the rows of `plan` depend on, as JSON values; raises as `cell_identities`."""
    cells = cell_identities(plan, specs, tokenizer_of)
    settings = plan.settings
    return {
        "generation_rules": GENERATION_RULES,
        "script": {"sha256": script_sha256(plan.conversations), "conversations": len(plan.conversations)},
        "seed": settings.seed,
        "repeats": settings.repeats,
        "max_repeats": settings.max_repeats,
        "until_ci": settings.until_ci,
        # Only in races, so that the manifests of other runs are the same as in versions without races.
        **(
            {"race": {"margin": settings.race_margin, "level": settings.race_level, "rows": settings.race_rows}}
            if settings.race
            else {}
        ),
        "max_prompt_tokens": settings.max_prompt_tokens,
        GIVEN_FOR_ALL: sorted(
            plan.explicit & {"seed", *Sampling.model_fields, *Stopping.model_fields, *_prompt_params(plan)}
        ),
        **_blank_lines_rule(plan, cells),
        "cells": cells,
    }


def _blank_lines_rule(plan: Plan, cells: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """An entry that tells the run from one of an earlier version, which removed blank lines from references.

    Empty if no reference has blank lines, or every cell ends replies at a blank line.
    """
    references = (turn.reference for c in plan.conversations for turn in c.turns if turn.reference)
    keeps_blank_lines = any(cell["turn_end"] != "blank-line" for cell in cells.values())
    if keeps_blank_lines and any(clean(r) != clean_reply(r) for r in references):
        return {"blank_lines_in_references": "kept"}
    return {}


def _prompt_params(plan: Plan) -> frozenset[str]:
    """Prompt settings that occur in the params of conversations or turns; manifests of earlier versions have none."""
    params = (part.params for c in plan.conversations for part in (c, *c.turns) if part.params)
    return frozenset(DialoguePrompt.model_fields).intersection(chain.from_iterable(params))


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
            **({FILLS_IN_SYSTEM: True} if _fills_in_system(plan, cell) else {}),
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
    values = resolved.model_dump(mode="json", include=CellSettings.model_fields.keys() - _NOT_BY_VALUE)
    state, template = settings.state, settings.template
    # Only for served models, so that the manifests of other runs are the same as in versions without endpoints.
    served = {} if settings.endpoint is None else {name: getattr(settings, name) for name in _ENDPOINT_SETTINGS}
    if isinstance(spec, ServedSpec):
        served["endpoint_model"] = spec.name
    prelude = None if settings.prelude is None else load_prelude(settings.prelude)
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


class RowDigests:
    """Digests of a plan's rows (`RowDigest`), which tell whether a row of another command is also a row of this plan.

    The content digest is a chain of hashes over the turns of a conversation up to the row's turn. The chain begins with
    `GENERATION_RULES`, the conversation's id and system message, and the settings and file hashes of the cell. Each
    turn adds its content (message and reference) and the settings and the seed of its reply. The digest does not depend
    on checks, tags, other conversations and cells, their order, or the number of repeats.

    Args:
        cells: the identity of each cell in order, see `cell_identities`.
    """

    def __init__(self, plan: Plan, cells: Sequence[Mapping[str, Any]]) -> None:
        self._plan = plan
        self.cells = cells
        self._contents_of = lru_cache(maxsize=4096)(self._contents)
        self._judging_of = lru_cache(maxsize=256)(self._judging)

    def of_row(self, row: int) -> RowDigest:
        """The digests of row `row` of the plan."""
        task, turn = self._plan.task_of_row(row)
        conversation = self._plan.conversation_of(task)
        contents = self.contents(conversation, self._plan.cell_of(task))
        return RowDigest(contents[turn], self.judging(conversation)[turn])

    def contents(self, conversation: int, cell: int) -> tuple[str, ...]:
        """`[turns]` the content digests of a conversation's rows in a cell."""
        return self._contents_of(conversation, cell)

    def judging(self, conversation: int) -> tuple[str, ...]:
        """`[turns]` the digests of a conversation's checks and tags."""
        return self._judging_of(conversation)

    def _contents(self, conversation: int, cell: int) -> tuple[str, ...]:
        task, values = self._plan.task(self._plan.number_of(conversation, cell, 0)), self.cells[cell]
        cell_values = {n: value for n, value in values.items() if n not in _REPLY_SETTINGS and _is_in_digest(n, value)}
        script = task.conversation
        previous = _digest([GENERATION_RULES, script.row_context, cell_values])
        digests = [""] * len(script.turns)
        weights = str(values["weights_sha256"])
        task_values = _reply_settings(task.settings, weights)
        for turn in script.order:
            of_turn, probe = task.of_turn(turn), script.turns[turn].probe
            if of_turn.settings is task.settings:
                turn_values = task_values
            else:
                turn_values = _reply_settings(of_turn.settings, weights)
            # The random numbers of a reply depend on the turn's index, which a probe's position in the chain does not
            # determine.
            index = [] if probe is None else [turn]
            digests[turn] = _digest([previous, script.row_contents[turn], turn_values, of_turn.seed, *index])
            if probe is None:  # later turns do not depend on a probe
                previous = digests[turn]
        return tuple(digests)

    def _judging(self, conversation: int) -> tuple[str, ...]:
        script = self._plan.conversations[conversation]
        return tuple(judging_digest(script, turn) for turn in range(len(script.turns)))


def judging_digest(conversation: Conversation, turn: int) -> str:
    """The digest of a turn's checks and of the conversation's tags."""
    return _digest([JUDGING_RULES, conversation.judging(turn)])[:16]


_REPLY_SETTINGS = frozenset(CellSettings.model_fields) - _NOT_BY_VALUE
"""Settings that may differ between the conversations or turns of a cell."""


def _reply_settings(settings: CellSettings, weights_sha256: str) -> dict[str, Any]:
    resolved = with_turn_end(settings, weights_sha256)
    values = resolved.model_dump(mode="json", include=set(_REPLY_SETTINGS))
    if resolved.turn_end == first_turn_end(settings.think, has_template=settings.template is not None):
        del values["turn_end"]  # so that rows of earlier versions keep their digests
    return {name: value for name, value in values.items() if _is_in_digest(name, value)}


def _is_in_digest(name: str, value: Any) -> bool:
    """Whether a setting is part of a digest. Settings of later versions are not at their defaults."""
    if name in FIRST_SETTINGS or name not in CellSettings.model_fields:
        return True
    return value != default_settings()[name]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=list)
    return _sha256(text.encode("ascii"))[:32]


MAX_STATE_BYTES = 2**34
"""Size limit of state files; the state file of a model of 14 billion parameters has 82 MB."""


def sha256_of_file(path: str, option: str) -> str:
    """Hex digest of a file that an option names; raises `InputError` if it cannot be read."""
    try:
        with open_file(Path(path).expanduser(), MAX_STATE_BYTES) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be read: {error.strerror}") from None


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
