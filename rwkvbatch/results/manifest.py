"""`manifest.json`: what was run, written once before the first row.

`identity` holds all that a reply depends on: a directory is continued only by a run of the same identity. `shard` is
present when the run is a part of a whole (`--shard`), and then only the same part continues it. `about` says how and
where the run was started; nothing compares it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rwkvbatch.config import identity_with_full_names
from rwkvbatch.errors import RunDamagedError, RunDirectoryError, RunMismatchError
from rwkvbatch.files import MANIFEST_NAME, OS_FILES, Files, read_file, save_file

JsonObject = Mapping[str, Any]

FORMAT = 1
MAX_MANIFEST_BYTES = 64 * 2**20

GIVEN_FOR_ALL = "given_for_all"
"""Key of the identity: names of the settings that take the place of a conversation's own params."""

_MAX_SHOWN = 12


def write_manifest(
    directory: Path,
    identity: JsonObject,
    about: JsonObject,
    shard: JsonObject | None = None,
    *,
    files: Files = OS_FILES,
    at: int | None = None,
) -> None:
    """Write the manifest atomically.

    Args:
        at: the open directory; `directory` is opened without it.

    Raises:
        StorageError: it could not be written.
    """
    part = {} if shard is None else {"shard": shard}
    content = {"format": FORMAT, "identity": identity, **part, "about": about}
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
        raise RunDamagedError(f"is not JSON: {error}", path=path) from None
    manifest = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    if not isinstance(manifest.get("identity"), dict):
        raise RunDamagedError("is not the manifest of a run: it has no object `identity`", path=path)
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
    existing: JsonObject,
    identity: JsonObject,
    shard: JsonObject | None = None,
    *,
    sides: tuple[str, str] = ("existing run", "this command"),
    hint: str = "give the settings that the run was started with, or another directory with --out",
) -> None:
    """Compare the run that a directory holds with the one that is wanted.

    Args:
        existing: a manifest.
        identity, shard: what it should hold.
        sides: what a message calls the existing and the wanted run.

    Raises:
        RunMismatchError: they differ; lists the differences.
    """
    wanted = json.loads(json.dumps({**_shard_name(shard), **identity}))
    found = {**_shard_name(existing.get("shard")), **existing["identity"]}
    before, now = found.pop(GIVEN_FOR_ALL, []), wanted.pop(GIVEN_FOR_ALL, [])
    differences = _differences("", found, wanted)
    if before != now and not differences:
        name = "settings given for all conversations, which override a script's `params`"
        differences = [(name, ", ".join(before) or "none", ", ".join(now) or "none")]
    if differences:
        lines = [f"    {name}: {sides[0]}: {old}; {sides[1]}: {new}" for name, old, new in differences[:_MAX_SHOWN]]
        if len(differences) > _MAX_SHOWN:
            lines.append(f"    and {len(differences) - _MAX_SHOWN} more")
        raise RunMismatchError("\n".join(["holds another run:", *lines]), path=directory, hint=hint)


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
