"""Saved sessions: JSON with a version, the model's hash and a checksum. (Saved states: `model/states.py`.)"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rwkvbatch.chat.session import Identity, Session
from rwkvbatch.chat.tree import Dialogue, branch_values, dialogue_values, read_dialogue
from rwkvbatch.config import with_full_names
from rwkvbatch.errors import InputError, StorageError

if TYPE_CHECKING:
    from rwkvbatch.model.base import ModelSpec, State

FORMAT = 1
PRIVATE_MODE = 0o600
PIECE_S = 0.2
"""A reply under way is written at least so often."""


def default_path(directory: Path) -> Path:
    """A name in `directory` that no other session has."""
    return directory / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}.jsonl"


def state_directory() -> Path:
    """The user's directory for transcripts and the history of the input line."""
    import platformdirs

    return platformdirs.user_state_path("rwkvbatch")


def open_private(path: Path, flags: int = 0) -> int:
    """A descriptor whose writes go to the end of `path`, which only its owner may read.

    Raises:
        OSError: it cannot be made or opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | flags, PRIVATE_MODE)


class Transcript:
    """Writes what happens to a file, or nowhere when `path` is None.

    Raises:
        StorageError: the file cannot be made.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._piece = ""
        self._piece_since_s = 0.0
        self._num_openings = self._num_exchanges = 0
        self._branches: dict[str, Any] = {}
        if path is not None:
            try:
                self._descriptor = open_private(path)
            except OSError as error:
                raise _unwritable(path, error) from None

    def start(self, session: Session, about: Mapping[str, Any]) -> None:
        """The first line of a session: which model, and with what it begins."""
        self._num_openings = self._num_exchanges = 0
        self._branches = {}
        self.event("start", format=FORMAT, **about)
        self.keep(session)

    def typed(self, text: str) -> None:
        """A message or a command, before it is acted upon."""
        self.event("typed", text=text)

    def piece(self, text: str) -> None:
        """A piece of a reply under way."""
        now_s = time.monotonic()
        if not self._piece:
            self._piece_since_s = now_s
        self._piece += text
        if now_s - self._piece_since_s >= PIECE_S:
            self._flush_piece()

    def keep(self, session: Session) -> None:
        """What has become of the dialogue since the last call."""
        self._piece = ""
        content = session.dialogue
        for opening in content.openings[self._num_openings :]:
            self.event("opening", **vars(opening))
        for exchange in content.exchanges[self._num_exchanges :]:
            self.event("exchange", **vars(exchange))
        self._num_openings, self._num_exchanges = len(content.openings), len(content.exchanges)
        branches = branch_values(content)
        if branches != self._branches:
            self._branches = branches
            self.event("branches", **branches)

    def event(self, event: str, **values: Any) -> None:
        """One line, on the disk when this returns.

        Raises:
            StorageError: it could not be written.
        """
        if event != "piece" and self._piece:
            self._flush_piece()
        self._write({"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **values}, sync=True)

    def close(self) -> None:
        """What is left of a broken-off reply is written."""
        if self._descriptor is not None:
            self._flush_piece()
            os.close(self._descriptor)
            self._descriptor = None

    def _flush_piece(self) -> None:
        if self._piece:
            text, self._piece = self._piece, ""
            # Not forced to the disk: it survives the end of this process, and the whole reply follows soon.
            self._write({"event": "piece", "text": text}, sync=False)

    def _write(self, values: Mapping[str, Any], *, sync: bool) -> None:
        if self._descriptor is None:
            return
        data = json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            if sync:
                os.fsync(self._descriptor)
        except OSError as error:
            raise _unwritable(self.path, error) from None


def _unwritable(path: Path | None, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: the transcript cannot be written: {error.strerror}",
        hint="give another file with --transcript, or none with --no-transcript",
    )


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
    write_private(path, json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace") + b"\n")


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
            with_full_names(values["settings"]),
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
    from rwkvbatch.replay.identity import sha256_of_file

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
