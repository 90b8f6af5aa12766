"""`manifest.json`: what was run, written before the first row, and replaced when another command extends the run.

`identity` holds all that replies depend on, and which rows there are. A command continues a directory if the settings
of the whole run and of the cells that both have are the same; its script, cells and repeats may be others
(`refuse_other_run`). `shard` is present when the run is a part of a whole (`--shard`), and then only the same part
continues it. `about` says how and where the run was started; nothing compares it. `former` is present while rows are
adapted to another command, see `RunDirectory.begin_change`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from rwkvbatch.config import CellSettings
from rwkvbatch.errors import RunDamagedError, RunDirectoryError, RunMismatchError, parsing_problem
from rwkvbatch.files import MANIFEST_NAME, OS_FILES, Files, read_file, save_file
from rwkvbatch.setting_names import identity_with_full_names

JsonObject = Mapping[str, Any]

FORMAT = 1
MAX_MANIFEST_BYTES = 64 * 2**20

GIVEN_FOR_ALL = "given_for_all"
"""Key of the identity: names of the settings that take the place of a conversation's own params."""

FILLS_IN_SYSTEM = "system_only_where_script_has_none"
"""Key of a cell whose `system` leaves the system messages of the script as they are."""

FORMER = "former"
"""Key of the manifest while rows are adapted: `identity` and `about` of the command before."""

EXTENDABLE = frozenset({"script", "repeats", "max_repeats", "until_ci", "race", GIVEN_FOR_ALL, "cells"})
"""Keys of the identity that say which rows a run has; a row depends on the settings of its own cell only."""

FIRST_SETTINGS = frozenset(
    {"temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "penalty_decay", "order",
     "banned_token_ids", "max_tokens", "max_seconds", "stop", "think", "history", "model", "strategy", "backend",
     "state", "template", "prelude"}
)  # fmt: skip
"""Settings of a cell that the first version had. Every later one has a default that leaves replies as they were."""

CHECKSUM = "sha256"
"""Key of the manifest: the hash of its other keys but `about`, as sorted JSON without spaces."""

DAMAGED_MANIFEST_NAME = "manifest.damaged"

_MAX_SHOWN = 12
_REPAIR = "the run's command with --repair writes it anew, if the rows and the script's copy are of that command"


def write_manifest(
    directory: Path,
    identity: JsonObject,
    about: JsonObject,
    shard: JsonObject | None = None,
    *,
    former: JsonObject | None = None,
    files: Files = OS_FILES,
    at: int | None = None,
) -> None:
    """Write the manifest atomically; `former` is that of the command before, while rows are adapted.

    Args:
        at: the open directory; `directory` is opened without it.

    Raises:
        StorageError: it could not be written.
    """
    part = {} if shard is None else {"shard": shard}
    before = {} if former is None else {FORMER: former}
    content: dict[str, Any] = {"format": FORMAT, "identity": identity, **part, "about": about, **before}
    content[CHECKSUM] = _checksum(json.loads(json.dumps(content)))
    text = json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
    save_file(directory / MANIFEST_NAME, [text, b"\n"], files=files, at=at)


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a run directory, None when it has none.

    Raises:
        RunDirectoryError: it cannot be read, or is of another format.
        RunDamagedError: it is no manifest.
    """
    path = directory / MANIFEST_NAME
    try:
        content = json.loads(read_file(path, MAX_MANIFEST_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror or error}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise RunDamagedError(f"is not JSON: {parsing_problem(error)}", path=path, hint=_REPAIR) from None
    manifest = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    checksum = manifest.pop(CHECKSUM, None)  # earlier versions wrote none
    if checksum is not None and checksum != _checksum(manifest):
        raise RunDamagedError("was changed: its checksum does not match", path=path, hint=_REPAIR)
    if not isinstance(manifest.get("identity"), dict):
        raise RunDamagedError("is not the manifest of a run: it has no object `identity`", path=path, hint=_REPAIR)
    if manifest.get("format") != FORMAT:
        raise RunDirectoryError(
            f"has format {manifest.get('format')!r}; this version reads {FORMAT}",
            path=path,
            hint="use the version that wrote it",
        )
    manifest["identity"] = identity_with_full_names(manifest["identity"])
    match manifest.get(FORMER):
        case {"identity": dict()} as former:
            former["identity"] = identity_with_full_names(former["identity"])
        case _:
            manifest.pop(FORMER, None)
    return manifest


def _checksum(values: JsonObject) -> str:
    checked = {key: value for key, value in values.items() if key != "about"}
    text = json.dumps(checked, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def refuse_other_run(
    directory: Path,
    existing: JsonObject,
    identity: JsonObject,
    shard: JsonObject | None = None,
    *,
    about: JsonObject | None = None,
    extend: bool = False,
    sides: tuple[str, str] = ("existing run", "this command"),
    hint: str = "give the settings that the run was started with, or another directory with --out",
) -> None:
    """Compare the run that a directory holds with the one that is wanted.

    Args:
        existing: a manifest.
        identity, shard, about: what it should hold; `about` names the files of differing hashes.
        extend: accept another script, other repeats and other cells, if at least one cell is in both: by its name, and
            then with the same settings, or by its settings.
        sides: what a message calls the existing and the wanted run.

    Raises:
        RunMismatchError: they differ; lists the differences.
    """
    wanted = json.loads(json.dumps({**_shard_name(shard), **identity}))
    found = {**_shard_name(existing.get("shard")), **existing["identity"]}
    before, now = found.pop(GIVEN_FOR_ALL, []), wanted.pop(GIVEN_FOR_ALL, [])
    old_cells, new_cells = _complete_cells(found.get("cells")), _complete_cells(wanted.get("cells"))
    found, wanted = {**found, "cells": old_cells}, {**wanted, "cells": new_cells}
    if extend:
        found, wanted = ({k: v for k, v in side.items() if k not in EXTENDABLE} for side in (found, wanted))
        same = equal_cells(old_cells, new_cells)
        both = [name for name in old_cells if name in new_cells]
        pairs = {name: name for name in both} if both or same else _nearest(old_cells, new_cells)
        for old, new in pairs.items():
            name = f"cells.{old}" if old == new else f"cells.{old} (this command: {new})"
            found[name], wanted[name] = old_cells[old], new_cells[new]
    differences = _differences("", found, wanted)
    if before != now and not differences and not extend:
        name = "settings given for all conversations, which override a script's `params`"
        differences = [(name, ", ".join(before) or "none", ", ".join(now) or "none")]
    if differences:
        named = [_with_files(each, existing.get("about"), about) for each in differences[:_MAX_SHOWN]]
        lines = [f"    {name}: {sides[0]}: {old}; {sides[1]}: {new}" for name, old, new in named]
        if len(differences) > _MAX_SHOWN:
            lines.append(f"    and {len(differences) - _MAX_SHOWN} more")
        raise RunMismatchError("\n".join(["holds another run:", *lines]), path=directory, hint=hint)


def system_of(cell: Mapping[str, Any], own: str | None) -> str | None:
    """The system message of a conversation in a cell, None for none, given the conversation's `own`."""
    given = cell.get("system")
    if not isinstance(given, str) or (own is not None and cell.get(FILLS_IN_SYSTEM)):
        return own
    return given or None


@cache
def default_settings() -> dict[str, Any]:
    """The settings of a cell at their defaults, as JSON values."""
    return json.loads(json.dumps(CellSettings().model_dump(mode="json")))


def is_same_run(existing: JsonObject, identity: JsonObject, shard: JsonObject | None = None) -> bool:
    """Whether a manifest is of the very run, or part of it, that is wanted."""
    sides = [
        {**_shard_name(part), **json.loads(json.dumps(values)), "cells": _complete_cells(values.get("cells"))}
        for part, values in ((existing.get("shard"), existing["identity"]), (shard, identity))
    ]
    return sides[0] == sides[1]


def equal_cells(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """By name of each old cell, the new cell of the same settings, if any; the one of the same name if it is one."""
    old, new = _complete_cells(old), _complete_cells(new)
    by_settings: dict[str, str] = {}
    for name, values in new.items():
        by_settings.setdefault(json.dumps(values, sort_keys=True), name)
    return {
        name: name if new.get(name) == values else same
        for name, values in old.items()
        if (same := by_settings.get(json.dumps(values, sort_keys=True))) is not None
    }


def _complete_cells(cells: Any) -> dict[str, Any]:
    """Cells with the settings that later versions added, at their defaults, which earlier versions acted by."""
    found = cast("dict[str, Any]", json.loads(json.dumps(cells)) if isinstance(cells, dict) else {})
    later = {name: value for name, value in default_settings().items() if name not in FIRST_SETTINGS}
    return {name: {**later, **values} if isinstance(values, dict) else values for name, values in found.items()}


def _nearest(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """The first old cell, and the new one with the fewest differences."""
    if not old or not new:
        return {}
    name, values = next(iter(old.items()))
    return {name: min(new, key=lambda other: len(_differences("", values, new[other])))}


_FILES = {
    "weights_sha256": "model",
    "tokenizer_sha256": "tokenizer",
    "state_sha256": "state",
    "template_sha256": "template",
    "prelude_sha256": "prelude",
}
"""The hashes of a cell, and what of `about.files` they are of."""


def _with_files(difference: tuple[str, str, str], old: Any, new: Any) -> tuple[str, str, str]:
    """A difference of two hashes with the names of the files."""
    name, *values = difference
    cell, _, key = name.removeprefix("cells.").rpartition(".")
    if key not in _FILES:
        return difference
    old_cell, _, new_cell = cell.removesuffix(")").partition(" (this command: ")
    files = [_file_of(about, cell, key) for about, cell in ((old, old_cell), (new, new_cell or old_cell))]
    shown = [f"{file} ({value})" if file else value for file, value in zip(files, values, strict=True)]
    return f"{name} ({_FILES[key]})", shown[0], shown[1]


def _file_of(about: Any, cell: str, key: str) -> str | None:
    """The file that a cell's hash is of, from a manifest's `about`; None where it does not say."""
    match about:
        case {"files": {**cells}} if isinstance(named := cells.get(cell), dict):
            file = cast("dict[str, Any]", named).get(_FILES[key])
            return None if file is None else str(file)
        case {"models": [*models]} if key == "weights_sha256":  # earlier versions named only these
            for model in models:
                if isinstance(model, dict) and cell in cast("dict[str, Any]", model).get("cells", ()):
                    return str(cast("dict[str, Any]", model).get("path"))
        case _:
            pass
    return None


def shard_text(shard: Any) -> str | None:
    """A manifest's `shard` as `2/8`; None for a whole run, and for what is not a shard."""
    match shard:
        case {"part": int(part), "parts": int(parts)}:
            return f"{part}/{parts}"
        case _:
            return None


def _shard_name(shard: Any) -> dict[str, str]:
    return {} if shard is None else {"shard": shard_text(shard) or "unreadable"}


def _differences(name: str, existing: Any, wanted: Any) -> list[tuple[str, str, str]]:
    """Name, existing value and wanted value of all that differs."""
    if isinstance(existing, dict) and isinstance(wanted, dict):
        old, new = cast("dict[str, Any]", existing), cast("dict[str, Any]", wanted)
        found: list[tuple[str, str, str]] = []
        for key in dict.fromkeys([*old, *new]):
            inner = f"{name}.{key}" if name else key
            found += _differences(inner, old.get(key, "nothing"), new.get(key, "nothing"))
        return found
    return [] if existing == wanted else [(name, _short(existing), _short(wanted))]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
