"""Transcripts, which are written during a session, and saved sessions. Both have the same JSON values."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from rwkvbatch import files
from rwkvbatch.chat.session import Identity, Session
from rwkvbatch.chat.tree_codec import read_tree, tree_values
from rwkvbatch.errors import InputError, StorageError, parsing_problem
from rwkvbatch.hashes import json_sha256
from rwkvbatch.prompt.escaping import one_line
from rwkvbatch.targets import FileKind, check_target, file_head

FORMAT = 2
KIND = "rwkvbatch-chat"
MAX_SESSION_BYTES = 2**30
SESSION = FileKind("a saved session", lambda path: re.match(rf'\{{\s*"kind":\s*"{KIND}"', file_head(path)) is not None)
TRANSCRIPT = FileKind("a transcript", lambda path: '"event": "start"' in file_head(path).partition("\n")[0])
_START = b'{"event": "start"'
PIECE_S = 0.2
"""Longest time after which the text of a reply in progress is written to the transcript."""


def default_path(directory: Path) -> Path:
    """An unused file name in `directory`."""
    return directory / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}.jsonl"


def state_directory() -> Path:
    """The user's directory for transcripts and the input history."""
    import platformdirs

    return platformdirs.user_state_path("rwkvbatch")


def open_private(path: Path) -> int:
    """A descriptor that appends to `path`. A new file can be read only by its owner."""
    files.make_directory(path.parent, files.PRIVATE_DIRECTORY_MODE)
    return files.open_to_append(path, files.PRIVATE_MODE)


@dataclass(frozen=True)
class Unfinished:
    """The last message in a transcript, if the program ended before its reply.

    Attributes:
        num_characters: how many characters of the reply were written to the transcript. More may have been shown.
    """

    message: str
    num_characters: int


class Transcript:
    """A log of a session, one JSON object a line, from which the session can be restored after a crash.

    Args:
        path: the file to which lines are appended; None to write nothing.

    Raises:
        UsageError: the file exists and is not a transcript.
        StorageError: the file cannot be created.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._piece = ""
        self._piece_since_s = 0.0
        self._num_openings = self._num_exchanges = 0
        self._branches: dict[str, Any] = {}
        if path is not None:
            check_target(path, TRANSCRIPT, option="--transcript", append=True)
            with self._naming_the_file():
                self._descriptor = open_private(path)
                if not files.file_ends_a_line(path):  # a crash cut the last line off
                    files.write_all(files.OS_FILES, self._descriptor, b"\n")

    def start(self, session: Session) -> None:
        """Write the model, the settings and the whole tree, which replace those of earlier lines."""
        self._num_openings = self._num_exchanges = 0
        self._branches = {}
        self._event("start", format=FORMAT, **_session_values(session))
        self.record(session)

    def settings(self, session: Session) -> None:
        """Write the settings after a change."""
        self._event("settings", **_session_values(session))

    def typed(self, text: str) -> None:
        """Write a message or a command before it is executed."""
        self._event("typed", text=text)

    def piece(self, text: str) -> None:
        """Write the next piece of a reply in progress, at the latest with a piece that comes `PIECE_S` later."""
        now_s = time.monotonic()
        if not self._piece:
            self._piece_since_s = now_s
        self._piece += text
        if now_s - self._piece_since_s >= PIECE_S:
            self._flush_piece()

    def record(self, session: Session) -> None:
        """Write the changes of the tree since the last call."""
        self._piece = ""
        values = tree_values(session.tree, self._num_openings, self._num_exchanges)
        for opening in values.pop("openings"):
            self._event("opening", **opening)
        for exchange in values.pop("exchanges"):
            self._event("exchange", **exchange)
        self._num_openings, self._num_exchanges = len(session.tree.openings), len(session.tree.exchanges)
        if values != self._branches:
            self._branches = values
            self._event("branches", **values)

    def close(self) -> None:
        """Write the unwritten text of a reply in progress, and close the file."""
        if self._descriptor is not None:
            self._flush_piece()
            os.close(self._descriptor)
            self._descriptor = None

    def _event(self, event: str, **values: Any) -> None:
        """Write one line, which is durable when this method returns."""
        self._flush_piece()
        self._write({"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **values}, sync=True)

    def _flush_piece(self) -> None:
        if self._piece:
            text, self._piece = self._piece, ""
            # Without fsync: the line survives a crash of this process, and the complete reply is written soon.
            self._write({"event": "piece", "text": text}, sync=False)

    def _write(self, values: Mapping[str, Any], *, sync: bool) -> None:
        if self._descriptor is not None:
            with self._naming_the_file():
                files.write_all(files.OS_FILES, self._descriptor, _encoded(values))
                if sync:
                    files.OS_FILES.sync(self._descriptor)

    @contextlib.contextmanager
    def _naming_the_file(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self.path}: the transcript cannot be written: {error.strerror or error}",
                hint="choose another file with --transcript, or none with --no-transcript",
            ) from None


def _encoded(values: Mapping[str, Any], indent: int | None = None) -> bytes:
    return f"{one_line(json.dumps(values, ensure_ascii=False, indent=indent))}\n".encode("utf-8", "backslashreplace")


def _session_values(session: Session) -> dict[str, Any]:
    """The session without its tree, as JSON values."""
    spec = session.engine.model.spec
    return {
        "model": {"path": spec.path, "weights_sha256": spec.weights_sha256},
        "tokenizer_sha256": session.engine.tokenizer.sha256,
        **vars(session.identity),
        "template": session.settings.template,
        "settings": {**session.turn_settings(), "bos": session.settings.bos},
    }


def save_session(session: Session, path: Path, *, replace: bool = False) -> None:
    """Write the whole session atomically.

    Raises:
        UsageError: `path` is a file of another kind, or a saved session and `replace` is not set.
        StorageError: the file cannot be written.
    """
    check_target(path, SESSION, option="/save", replace=replace, how=f"/save! {path} replaces it")
    content = {"kind": KIND, "format": FORMAT, **_session_values(session), "dialogue": tree_values(session.tree)}
    content["sha256"] = json_sha256(content)
    files.save_file(path, [_encoded(content, indent=1)], private=True)


def load_session(session: Session, path: Path) -> Unfinished | None:
    """Continue a saved session, or the last session of a transcript, in `session`.

    Returns:
        the last message of a transcript, if it was not answered.

    Raises:
        InputError: the file or the file of an initial state cannot be read, is damaged, or belongs to another model.
        UsageError: the settings are not possible with the model.
    """
    spec = session.engine.model.spec
    content = _read(path)
    lines = [line for line in content.split(b"\n") if line.strip()]
    is_transcript = bool(lines) and b'"event": "start"' in lines[0]
    unfinished, unplaced = None, _Unplaced()
    if is_transcript:
        values, unfinished, unplaced = _from_transcript(path, lines)
    else:
        values = _from_session(path, content)
    if values.get("format") != FORMAT:
        raise InputError(
            f"expected a session of format {FORMAT}, found {values.get('format')!r}",
            path=path,
            hint="use the version of rwkvbatch that wrote it",
        )
    try:
        sha256, name = str(values["model"]["weights_sha256"]), str(values["model"]["path"])
        if sha256 != spec.weights_sha256:
            raise InputError(
                f"belongs to another model: expected weights {sha256[:12] or 'unknown'} ({name or 'unknown'}), "
                f"found {spec.weights_sha256[:12]} ({spec.path})",
                path=path,
                hint="load that model with /model or --model first",
            )
        tree = read_tree(values["dialogue"], spec.vocab_size)
        for opening in unplaced.openings:
            tree.begin_at(tree.openings[opening])
        for exchange in unplaced.exchanges:
            tree.move_to(tree.exchanges[exchange])
        identity = Identity(int(values["seed"]), str(values["conversation"]), int(values["repeat"]))
        settings = {"template": values["template"], **values["settings"]}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(f"is not a complete session: {type(error).__name__}: {error}", path=path) from None
    session.adopt(tree, session.settings.replace(**settings), identity)
    return unfinished


def _from_session(path: Path, content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise InputError("is not a saved session: it is not UTF-8 text", path=path) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not a saved session: {parsing_problem(error)}", path=path) from None
    if not isinstance(values, dict) or cast("dict[str, Any]", values).get("kind") != KIND:
        raise InputError("is not a saved session", path=path, hint="expected a file of /save, or a transcript")
    session = cast("dict[str, Any]", values)
    if session.pop("sha256", None) != json_sha256(session):
        raise InputError("is a damaged session: its checksum does not match", path=path)
    return session


@dataclass
class _Unplaced:
    """The openings and replies of a transcript that are on no branch, because the program ended before `branches`.

    Attributes:
        openings, exchanges: their numbers, in order; without the replies of `/again`, which only `/pick` puts on one.
    """

    openings: list[int] = field(default_factory=list[int])
    exchanges: list[int] = field(default_factory=list[int])


def _from_transcript(path: Path, lines: list[bytes]) -> tuple[dict[str, Any], Unfinished | None, _Unplaced]:
    """The last complete session's values in a transcript, its unanswered message, and exchanges on no branch yet.

    A session begins with a `start` line, which may be cut off, and is complete from its first `branches` line on. Later
    incomplete ones are skipped: `Transcript.start` was writing a session again that is still in the file.
    """
    starts = [n for n, line in enumerate(lines) if n == 0 or line.startswith(_START) or _START.startswith(line)]
    ends = [*starts[1:], len(lines)]
    events: list[tuple[str, dict[str, Any]]] = []
    for first, end in zip(reversed(starts), reversed(ends), strict=True):
        events = _events(path, lines, first, end)
        if any(kind == "branches" for kind, _ in events):
            break
    values: dict[str, Any] = {}
    tree: dict[str, Any] = {"openings": [], "exchanges": []}
    unfinished: Unfinished | None = None
    unplaced = _Unplaced()
    makes_alternatives = False
    for kind, event in events:
        event.pop("time", None)
        if kind == "typed":
            text = str(event.get("text"))
            is_message = not text.startswith("/") or text.startswith("//")
            unfinished = Unfinished(text, 0) if is_message and text.strip() else None
            command = text.strip()[1:].partition(" ")[0]  # as `commands.handle_line` reads it
            makes_alternatives = not is_message and command != "" and "again".startswith(command)
        elif kind == "piece" and unfinished is not None:
            unfinished = replace(unfinished, num_characters=unfinished.num_characters + len(str(event.get("text"))))
        elif kind == "exchange":
            unfinished = None
        if kind in ("start", "settings"):
            values |= event
        elif kind in ("opening", "exchange"):
            tree[f"{kind}s"].append(event)
            if kind == "opening":
                unplaced.openings.append(len(tree["openings"]) - 1)
            elif not makes_alternatives:
                unplaced.exchanges.append(len(tree["exchanges"]) - 1)
        elif kind == "branches":
            tree |= event
            unplaced = _Unplaced()
    return {**values, "dialogue": tree}, unfinished, unplaced


def _events(path: Path, lines: list[bytes], first: int, end: int) -> list[tuple[str, dict[str, Any]]]:
    """The kinds and values of the events in lines `first` to `end` - 1, a session of a transcript.

    An incomplete last line, which a crash may have cut even within a character, is ignored.

    Raises:
        InputError: another line is not an event.
    """
    events: list[tuple[str, dict[str, Any]]] = []
    for number in range(first, end):
        try:
            event = json.loads(lines[number].decode("utf-8"))
            events.append((event.pop("event"), event))
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            if number == end - 1:
                break
            problem = "is a damaged transcript: this line is not an event"
            raise InputError(problem, path=path, line=number + 1) from None
    return events


def _read(path: Path) -> bytes:
    try:
        return files.read_file(path, MAX_SESSION_BYTES)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from None
