"""Everything typed and said, on disk as it happens: one JSON object a line, only ever added to.

Lines of a session that broke off can be gone on from: openings, exchanges and the places of branches are among them.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkvbatch.chat.dialogue_json import branch_values
from rwkvbatch.chat.session import Session
from rwkvbatch.errors import StorageError

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
