"""Documents for `rwkvbatch score`: text files, JSON lines with `text`, and folders of them, as a script.

Each document becomes a conversation of one plain text. A text file is one document; its id is its path.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from rwkvbatch.config import ScriptLimits
from rwkvbatch.errors import ScriptError, UsageError, counted
from rwkvbatch.files import open_file
from rwkvbatch.script.lines import STDIN
from rwkvbatch.script.reader import Reading, Script
from rwkvbatch.script.shape import MAX_ID_LENGTH

JSON_ENDINGS = frozenset({".jsonl", ".ndjson"})
FILES_SHOWN = 3
"""Files left out that a warning names."""
_CHUNK_BYTES = 1 << 16


class LeftOutWarning(UserWarning):
    """Files of a folder are no text in UTF-8, or empty, and were left out."""


def read_documents(paths: Sequence[str], *, limits: ScriptLimits | None = None, skip_bad: bool = False) -> Script:
    """The documents of files and folders; `-` is standard input, in JSON lines.

    Files that end in `.jsonl` or `.ndjson` have one document a line (`text`, or `prompt` and `continuation`; further
    keys are ignored). Every other file is one document of UTF-8 text. A folder stands for all files in it and in its
    folders, by name, without hidden ones; there, files that are not text are left out with a `LeftOutWarning`.

    Args:
        skip_bad: set lines and files that cannot be used aside instead of raising.

    Raises:
        ScriptError: a file that cannot be read, is not UTF-8, is empty, or is longer than a line of a script may be;
            or a bad line.
        UsageError: no path, or a folder without any document.
    """
    if not paths or "" in paths:
        raise UsageError("no file is given" if not paths else "the name of a file is empty", hint="name a text file")
    given = [path for path in paths if path != STDIN]
    if len(paths) - len(given) > 1:
        raise UsageError("standard input (-) can be read only once", hint="give - once")
    files = [(path, found) for path in paths for found in _files(path)]
    reading = Reading(limits or ScriptLimits(), skip_bad, several=len(files) > 1, documents=True)
    left_out: list[str] = []
    for path, file in files:
        if file == STDIN or Path(file).suffix.lower() in JSON_ENDINGS:
            reading.read_file(file)
        elif file == path or _is_text(file):
            reading.add_text(file, _name(file))
        else:
            left_out.append(file)
    if not reading.conversations:
        raise UsageError("holds no document: " + ", ".join(paths), hint="name text files, .jsonl files or folders")
    if left_out:
        shown = ", ".join(left_out[:FILES_SHOWN])
        more = f" and {len(left_out) - FILES_SHOWN:,} more" if len(left_out) > FILES_SHOWN else ""
        count = counted(len(left_out), "file")
        warnings.warn(
            f"{count} of folders left out, without text in UTF-8: {shown}{more}", LeftOutWarning, stacklevel=2
        )
    digest = hashlib.sha256("".join(found.sha256 for found in reading.conversations).encode("ascii")).hexdigest()
    return Script(tuple(reading.conversations), digest, tuple(reading.skipped))


def _files(path: str) -> Iterator[str]:
    """The file `path`, or all files of that folder, by name."""
    if path == STDIN or not Path(path).is_dir():
        yield path
        return

    def refuse(error: OSError) -> None:
        raise ScriptError(f"cannot be read: {error.strerror}", path=str(error.filename)) from None

    found: list[str] = []
    for folder, folders, names in os.walk(path, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [str(Path(folder) / name) for name in names if not name.startswith(".")]
    yield from sorted(name for name in found if Path(name).is_file())


def _is_text(path: str) -> bool:
    """Whether a file of a folder begins like text: UTF-8 without NUL bytes."""
    try:
        with open_file(path) as file:
            data = file.read(_CHUNK_BYTES)
    except OSError:
        return True  # reading it says why it cannot be read
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character may be cut at the end of what was read.
        return b"\0" not in data and len(data) == _CHUNK_BYTES and error.start >= len(data) - 3
    return bool(data) and b"\0" not in data


def _name(path: str) -> str:
    """The id of a text file's document."""
    return path if path.isprintable() and path == path.strip() and len(path) <= MAX_ID_LENGTH else _digest(path)


def _digest(path: str) -> str:
    return f"file-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
