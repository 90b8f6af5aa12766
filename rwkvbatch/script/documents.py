"""Documents for `rwkvbatch score` as a script: text files, JSON lines with `text`, and folders of them.

Each document becomes a conversation of one plain text. A text file is one document; its id is its path.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from rwkvbatch.config import ScriptLimits
from rwkvbatch.errors import ScriptError, UsageError, counted, listed
from rwkvbatch.script.lines import STDIN
from rwkvbatch.script.raw_lines import read_text
from rwkvbatch.script.reader import Script, ScriptReader, refuse_repeated
from rwkvbatch.script.shape import MAX_ID_LENGTH

JSON_ENDINGS = frozenset({".jsonl", ".ndjson"})
FILES_SHOWN = 3
"""Largest number of omitted files that a warning names."""
_CHUNK_BYTES = 1 << 16


class LeftOutWarning(UserWarning):
    """Files of a folder were omitted: empty ones, other ones than text in UTF-8, and links that are not followed."""


def read_documents(paths: Sequence[str], *, limits: ScriptLimits | None = None, skip_bad: bool = False) -> Script:
    """The documents of files and folders; `-` is standard input, in JSON lines.

    Files that end in `.jsonl` or `.ndjson` have one document a line (`text`, or `prompt` and `continuation`; further
    keys are ignored). Every other file is one document of UTF-8 text. Files compressed with gzip are decompressed, and
    a name's `.gz` does not count as its ending. A folder stands for all files in it and its
    subfolders, sorted by name, except hidden ones; files in it that are not text are omitted with a `LeftOutWarning`,
    and so are links to folders and to nothing.

    Args:
        skip_bad: set bad lines and unusable files aside instead of raising.

    Raises:
        ScriptError: a file cannot be read, is not UTF-8, is empty, or is longer than a line of a script may be; or a
            line is bad.
        UsageError: no path, a folder without any document, or a file or standard input is given twice.
    """
    if not paths or "" in paths:
        raise UsageError("no file is given" if not paths else "the name of a file is empty", hint="name a text file")
    files = [(path, file) for path in paths for file in _files(path)]
    refuse_repeated([file for _, file in files])
    reader = ScriptReader(limits or ScriptLimits(), skip_bad, has_several_files=len(files) > 1, documents=True)
    left_out: list[str] = []
    unusable: list[str] = []
    for path, file in files:
        if file != path and not Path(file).is_file():
            unusable.append(file)
        elif file == STDIN or Path(file.lower().removesuffix(".gz")).suffix in JSON_ENDINGS:
            reader.read_file(file)
        elif file == path or _is_text(file):
            reader.add_text(file, _document_id(file))
        else:
            left_out.append(file)
    if not reader.conversations:
        raise UsageError("contains no document: " + ", ".join(paths), hint="name text files, .jsonl files or folders")
    if left_out:
        names = listed(left_out, FILES_SHOWN)
        text = f"{counted(len(left_out), 'file')} of folders left out, without text in UTF-8: {names}"
        warnings.warn(text, LeftOutWarning, stacklevel=2)
    if unusable:
        count = counted(len(unusable), "name")
        names = listed(unusable, FILES_SHOWN)
        text = f"{count} in folders left out (links to folders, broken links, special files): {names}"
        warnings.warn(text, LeftOutWarning, stacklevel=2)
    return reader.script()


def _files(path: str) -> Iterator[str]:
    """The file `path`, or the files of the folder `path` and its links to folders, sorted by name."""
    if path == STDIN or not Path(path).is_dir():
        yield path
        return

    def refuse(error: OSError) -> None:
        raise ScriptError(f"cannot be read: {error.strerror}", path=str(error.filename)) from None

    files: list[str] = []
    for folder, subfolders, names in os.walk(path, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        links = [name for name in subfolders if (Path(folder) / name).is_symlink()]  # `os.walk` does not follow them
        files += [str(Path(folder) / name) for name in (*names, *links) if not name.startswith(".")]
    yield from sorted(files)


def _is_text(path: str) -> bool:
    """Whether a file of a folder, decompressed, begins like text: UTF-8 without NUL bytes."""
    try:
        beginning = read_text(path, _CHUNK_BYTES)
    except ScriptError:
        return True  # reading all of it raises the error
    data = beginning.data
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        # The last character of the chunk may be cut.
        return b"\0" not in data and not beginning.whole and error.start >= len(data) - 3
    return bool(data) and b"\0" not in data


def _document_id(path: str) -> str:
    """The id of a text file's document: its path, or a hash of a path that cannot be an id."""
    if path.isprintable() and path == path.strip() and len(path) <= MAX_ID_LENGTH:
        return path
    return f"file-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
