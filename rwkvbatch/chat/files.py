"""Saved sessions: JSON with a version, the model's hash and a checksum. (Saved states: `model/states.py`.)"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rwkvbatch.chat.dialogue import Dialogue
from rwkvbatch.chat.dialogue_json import dialogue_values, read_dialogue
from rwkvbatch.chat.session import Identity, Session
from rwkvbatch.chat.transcript import FORMAT, PRIVATE_MODE
from rwkvbatch.errors import InputError, StorageError

if TYPE_CHECKING:
    from rwkvbatch.model.base import ModelSpec, State

KIND = "rwkvbatch-chat"
MAX_SESSION_BYTES = 2**30


@dataclass(frozen=True)
class SavedSession:
    """What `/load` needs. `settings` are those that may change from turn to turn, by their names."""

    dialogue: Dialogue
    settings: Mapping[str, Any]
    identity: Identity
    template: str | None


def describe(session: Session) -> dict[str, Any]:
    """All of a session but its dialogue, JSON-ready."""
    spec = session.engine.model.spec
    return {
        "model": {"path": spec.path, "weights_sha256": spec.weights_sha256},
        "tokenizer_sha256": session.engine.tokenizer.sha256,
        "seed": session.identity.seed,
        "conversation": session.identity.conversation,
        "repeat": session.identity.repeat,
        "template": session.settings.template,
        "settings": session.kept_settings(),
    }


def save_session(session: Session, path: Path) -> None:
    """Write the whole session, at once or not at all.

    Raises:
        StorageError: it could not be written.
    """
    content = {
        "kind": KIND,
        "format": FORMAT,
        **describe(session),
        "dialogue": dialogue_values(session.dialogue),
    }
    content["sha256"] = _checksum(content)
    write_private(
        path, json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace") + b"\n"
    )


def load_session(path: Path, spec: ModelSpec) -> SavedSession:
    """A saved session, or the transcript of one that broke off.

    Raises:
        InputError: it cannot be read, is damaged, or belongs to another model.
    """
    content = _read(path)
    lines = [line for line in content.split("\n") if line.strip()]
    is_transcript = bool(lines) and '"event": "start"' in lines[0]
    values = _from_transcript(path, lines) if is_transcript else _from_session(path, content)
    if values.get("format") != FORMAT:
        raise InputError(
            f"has format {values.get('format')!r}; this version reads {FORMAT}",
            path=path,
            hint="use the version that wrote it",
        )
    try:
        _refuse_other_model(path, str(values["model"]["weights_sha256"]), str(values["model"]["path"]), spec)
        return SavedSession(
            read_dialogue(values["dialogue"]),
            values["settings"],
            Identity(int(values["seed"]), str(values["conversation"]), int(values["repeat"])),
            values["template"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"is not a whole session: {type(error).__name__}: {error}", path=path) from None


def restore(session: Session, saved: SavedSession) -> None:
    """Let `session` go on where `saved` ended.

    Raises:
        UsageError, InputError: an initial state's file is not what it was, or the settings do not go with the model.
    """
    from rwkvbatch.model.states import load_state
    from rwkvbatch.run.planning.digests import sha256_of_file

    states: dict[int, State] = {}
    for opening in saved.dialogue.openings:
        if opening.state is not None:
            if sha256_of_file(opening.state, "the initial state") != opening.state_sha256:
                raise InputError("is not the initial state that this session began with", path=opening.state)
            states[opening.number] = load_state(opening.state, session.engine.model.spec)
    session.use_settings(session.settings.replace(**{"template": saved.template, **saved.settings}))
    session.identity = saved.identity
    session.adopt(saved.dialogue, states)


def _from_session(path: Path, content: str) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not a saved session: {error}", path=path) from None
    if not isinstance(values, dict) or cast("dict[str, Any]", values).get("kind") != KIND:
        raise InputError("is not a saved session", path=path, hint="/save FILE and the transcript write them")
    found = cast("dict[str, Any]", values)
    if found.pop("sha256", None) != _checksum(found):
        raise InputError("is damaged: its checksum does not match", path=path)
    return found


def _from_transcript(path: Path, lines: list[str]) -> dict[str, Any]:
    """The session as its last whole line left it; what follows another `start` takes the place of what was before."""
    values: dict[str, Any] = {}
    dialogue: dict[str, Any] = {}
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            kind = event.pop("event")
        except (ValueError, AttributeError, KeyError):
            if number == len(lines):
                break
            raise InputError("is damaged", path=path, line=number) from None
        event.pop("time", None)
        if kind == "start":
            values = event
            dialogue = {"openings": [], "exchanges": []}
        elif kind in ("opening", "exchange"):
            dialogue[f"{kind}s"].append(event)
        elif kind == "settings":
            values |= event
        elif kind == "branches":
            dialogue |= event
    return {**values, "dialogue": dialogue}


def _refuse_other_model(path: Path, sha256: str, name: str, spec: ModelSpec) -> None:
    if sha256 != spec.weights_sha256:
        raise InputError(
            f"belongs to another model: its weights are {sha256[:12] or 'unknown'} ({name or 'unknown'}), "
            f"those here {spec.weights_sha256[:12]} ({spec.path})",
            path=path,
            hint="load that model with /model or --model first",
        )


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_SESSION_BYTES:
            raise InputError(f"is larger than {MAX_SESSION_BYTES:,} bytes", path=path)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from None
    except UnicodeDecodeError:
        raise InputError("is not a saved session: it is no text", path=path) from None


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, at once or not at all.

    Raises:
        StorageError: it could not be written.
    """
    path = path.expanduser()
    temporary = path.with_name(f".rwkvbatch-{secrets.token_hex(8)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from None
