"""`manifest.json`: a record of what was run, written before the first row and replaced when a command extends the run.

Its keys:

- `identity`: everything that the replies depend on, and which rows the run has. A command continues a directory if the
  settings of the whole run, and of the cells that both have, are the same. Its script, cells and repeats may differ
  (`refuse_other_run`).
- `shard`: which part of a whole run this is (`--shard`); only a command for the same part continues it.
- `about`: how and where the run was started. It is not compared.
- `former`: present while rows are adapted to another command, see `RunDirectory.begin_change`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, RunMismatchError, parsing_problem, shown_json
from rwkvbatch.fields import Items, read_record
from rwkvbatch.files import read_file
from rwkvbatch.hashes import json_sha256
from rwkvbatch.results.folder import Folder
from rwkvbatch.targets import MANIFEST_NAME

JsonObject = Mapping[str, Any]

FORMAT = 2
MAX_MANIFEST_BYTES = 64 * 2**20

GIVEN_FOR_ALL = "given_for_all"
"""Key of the identity: names of the settings that override the params of a conversation."""

PARAMS = "params"
"""Key of the identity's `script`: names of the settings in the params of its conversations and turns."""

FILLS_IN_SYSTEM = "system_only_where_script_has_none"
"""Key of a cell whose `system` applies only to conversations without a system message in the script."""

FORMER = "former"
"""Key of the manifest while rows are adapted: `identity` and `about` of the previous command."""

EXTENDABLE = frozenset(
    {"script", "repeats", "max_repeats", "until_ci", "race", GIVEN_FOR_ALL, "cells", "judging_rules"}
)
"""Keys of the identity that determine which rows a run has and how they are judged, not their replies: a row depends
only on its own cell."""

CHECKSUM = "sha256"
"""Key of the manifest: the hash of all other keys except `about`, as sorted JSON without spaces."""

DAMAGED_MANIFEST_NAME = "manifest.damaged"

_MAX_SHOWN = 12
_REPAIR = "the run's command with --repair rewrites it, if the rows and the script's copy are of that command"


def write_manifest(
    folder: Folder,
    identity: JsonObject,
    about: JsonObject,
    shard: JsonObject | None = None,
    *,
    former: JsonObject | None = None,
) -> None:
    """Write the manifest; raises as `Folder.save`. `former` is the value of the key `FORMER` while rows are adapted."""
    shard_item = {} if shard is None else {"shard": shard}
    former_item = {} if former is None else {FORMER: former}
    content: dict[str, Any] = {"format": FORMAT, "identity": identity, **shard_item, "about": about, **former_item}
    content[CHECKSUM] = checksum_of(json.loads(json.dumps(content)))
    text = json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")
    folder.save(MANIFEST_NAME, [text, b"\n"])


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a run directory; None if it has none.

    Raises:
        RunDirectoryError: the file cannot be read, or has another format.
        RunDamagedError: the file is damaged, or is not a manifest.
    """
    path = directory / MANIFEST_NAME
    try:
        content = json.loads(read_file(path, MAX_MANIFEST_BYTES))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        hint = "name the directory that `rwkvbatch run SCRIPT --out DIR` made"
        raise RunDirectoryError("is not a run directory", path=directory, hint=hint) from None
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror or error}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise RunDamagedError(f"is not JSON: {parsing_problem(error)}", path=path, hint=_REPAIR) from None
    manifest = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    checksum = manifest.pop(CHECKSUM, None)
    is_intact = checksum == checksum_of(manifest)
    if not _is_identity(manifest.get("identity")):
        raise RunDamagedError("is not the manifest of a run: it has no `identity`", path=path, hint=_REPAIR)
    if manifest.get("format") != FORMAT and (is_intact or checksum is None):
        raise RunDirectoryError(
            f"has format {manifest.get('format')!r}; this version reads {FORMAT}",
            path=path,
            hint="use the version that wrote it",
        )
    if not is_intact:
        raise RunDamagedError("was changed: its checksum does not match", path=path, hint=_REPAIR)
    try:
        read_record(_OptionalValues, manifest)
    except ValueError as error:
        raise RunDamagedError(f"is not the manifest of a run: {error}", path=path, hint=_REPAIR) from None
    match manifest.get(FORMER):
        case {"identity": identity} if _is_identity(identity):
            pass
        case _:
            manifest.pop(FORMER, None)
    return manifest


def _is_identity(value: Any) -> bool:
    match value:
        case {"cells": {**cells}}:
            return all(isinstance(values, dict) for values in cells.values())
        case _:
            return False


@dataclass(frozen=True)
class _About:
    vocab: str | None = None
    files: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict[str, Mapping[str, str | None]])


@dataclass(frozen=True)
class _Identity:
    given_for_all: Items[str] = ()


@dataclass(frozen=True)
class _OptionalValues:
    """The optional values of a manifest that this program reads, by their keys in the file."""

    identity: _Identity
    about: _About = field(default_factory=_About)


def checksum_of(values: JsonObject) -> str:
    return json_sha256({key: value for key, value in values.items() if key != "about"})


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
    """Refuse to continue a directory that contains another run than the requested one.

    Args:
        existing: the directory's manifest.
        identity, shard, about: those of the requested run; `about` names the files of differing hashes.
        extend: accept another script, other repeats and other cells, if the runs have a cell in common. Cells with the
            same name must have the same settings; without such cells, one with the same settings is enough.
        sides: what the message calls the existing and the requested run.

    Raises:
        RunMismatchError: the runs differ; the message lists the differences.
    """
    requested = json.loads(json.dumps({**_shard_name(shard), **identity}))
    stored: dict[str, Any] = {**_shard_name(existing.get("shard")), **existing["identity"]}
    old_given, new_given = _pop_overridden(stored), _pop_overridden(requested)
    old_cells, new_cells = stored.get("cells", {}), requested.get("cells", {})
    if extend:
        stored, requested = (
            {key: value for key, value in side.items() if key not in EXTENDABLE} for side in (stored, requested)
        )
        common = [name for name in old_cells if name in new_cells]
        if common or equal_cells(old_cells, new_cells):
            pairs = {name: name for name in common}
        else:
            pairs = _nearest(old_cells, new_cells)
        for old, new in pairs.items():
            name = f"cells.{old}" if old == new else f"cells.{old} (this command: {new})"
            stored[name], requested[name] = old_cells[old], new_cells[new]
    differences = _differences("", stored, requested)
    if old_given != new_given and not differences and not extend:
        name = "settings given for all conversations, which override a script's `params`"
        differences = [(name, ", ".join(old_given) or "none", ", ".join(new_given) or "none")]
    if differences:
        named = [_with_files(difference, existing.get("about"), about) for difference in differences[:_MAX_SHOWN]]
        lines = [f"    {name}: {sides[0]}: {old}; {sides[1]}: {new}" for name, old, new in named]
        if len(differences) > _MAX_SHOWN:
            lines.append(f"    and {len(differences) - _MAX_SHOWN} more")
        raise RunMismatchError("\n".join(["contains another run:", *lines]), path=directory, hint=hint)


def _pop_overridden(identity: dict[str, Any]) -> list[str]:
    """Remove `GIVEN_FOR_ALL`; returns those of its settings that override params of the script."""
    given: list[str] = identity.pop(GIVEN_FOR_ALL, [])
    match identity.get("script"):
        case {"params": [*params]}:
            return [name for name in given if name in params]
        case _:
            return given


def system_of(cell: Mapping[str, Any], in_script: str | None) -> str | None:
    """The system message of a conversation in a cell; None for none.

    Args:
        cell: the cell's settings.
        in_script: the conversation's system message in the script.
    """
    setting = cell.get("system")
    if not isinstance(setting, str) or (in_script is not None and cell.get(FILLS_IN_SYSTEM)):
        return in_script
    return setting or None


def is_same_run(existing: JsonObject, identity: JsonObject, shard: JsonObject | None = None) -> bool:
    """Whether a manifest is exactly that of the requested run, or part of a run."""
    sides = [
        {**_shard_name(part), **json.loads(json.dumps(values))}
        for part, values in ((existing.get("shard"), existing["identity"]), (shard, identity))
    ]
    return sides[0] == sides[1]


def equal_cells(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Maps old cells to new cells with the same settings, preferring the same name; without cells that have none."""
    new_by_settings: dict[str, str] = {}
    for name, values in new.items():
        new_by_settings.setdefault(json.dumps(values, sort_keys=True), name)
    return {
        name: name if new.get(name) == values else equal
        for name, values in old.items()
        if (equal := new_by_settings.get(json.dumps(values, sort_keys=True))) is not None
    }


def _nearest(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Maps the first old cell to the new cell with the fewest differences; empty without cells."""
    if not old or not new:
        return {}
    first, settings = next(iter(old.items()))
    return {first: min(new, key=lambda name: len(_differences("", settings, new[name])))}


_FILES = {
    "weights_sha256": "model",
    "tokenizer_sha256": "tokenizer",
    "state_sha256": "state",
    "template_sha256": "template",
    "prelude_sha256": "prelude",
}
"""The hashes of a cell, and the keys of the hashed files in `about.files`."""


def _with_files(difference: tuple[str, str, str], old_about: Any, new_about: Any) -> tuple[str, str, str]:
    """A difference between two hashes with the names of the hashed files; other differences unchanged."""
    name, *values = difference
    cell, _, key = name.removeprefix("cells.").rpartition(".")
    if key not in _FILES:
        return difference
    old_cell, _, new_cell = cell.removesuffix(")").partition(" (this command: ")
    files = [_file_of(old_about, old_cell, key), _file_of(new_about, new_cell or old_cell, key)]
    old, new = (f"{file} ({value})" if file else value for file, value in zip(files, values, strict=True))
    return f"{name} ({_FILES[key]})", old, new


def _file_of(about: Any, cell: str, key: str) -> str | None:
    """The file with a cell's hash, from a manifest's `about`; None if that does not name it."""
    match about:
        case {"files": {**cells}} if isinstance(cell_files := cells.get(cell), dict):
            file = cast("dict[str, Any]", cell_files).get(_FILES[key])
            return None if file is None else str(file)
        case _:
            pass
    return None


def shard_text(shard: Any) -> str | None:
    """A manifest's `shard` as text such as `2/8`; None for a whole run, and for an invalid value."""
    match shard:
        case {"part": int(part), "parts": int(parts)}:
            return f"{part}/{parts}"
        case _:
            return None


def _shard_name(shard: Any) -> dict[str, str]:
    return {} if shard is None else {"shard": shard_text(shard) or "unreadable"}


_ABSENT: Final = object()
"""The value of a key that is missing."""


def _differences(name: str, old: Any, new: Any) -> list[tuple[str, str, str]]:
    """Dotted name, old value and new value of all differences, at any depth."""
    if isinstance(old, dict) and isinstance(new, dict):
        old_values, new_values = cast("dict[str, Any]", old), cast("dict[str, Any]", new)
        differences: list[tuple[str, str, str]] = []
        for key in dict.fromkeys([*old_values, *new_values]):
            inner = f"{name}.{key}" if name else key
            differences += _differences(inner, old_values.get(key, _ABSENT), new_values.get(key, _ABSENT))
        return differences
    return [] if old == new else [(name, _short(old), _short(new))]


def _short(value: Any) -> str:
    return "nothing" if value is _ABSENT else shown_json(value)
