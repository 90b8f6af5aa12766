"""Lines of script files and standard input as bytes, read within limits; also the items of a JSON array as lines."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import stat
import sys
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from rwkvbatch.errors import ScriptError, parsing_problem
from rwkvbatch.script.lines import STDIN, SourceLine, refuse, shown_path

SKIP_FACTOR = 100
MIN_SKIP_BYTES = 2**26
"""A line that is too long is read to its end up to `SKIP_FACTOR` times the limit, or this size if that is more."""

MAX_ARRAY_BYTES = 2**29
"""Size limit of a `.json` file that holds an array."""

NAME_ONE_FILE = "name a .jsonl file, or - for standard input"

_GZIP = b"\x1f\x8b"
_READ_ERRORS = (OSError, EOFError, zlib.error)
"""Exceptions that reading a plain or compressed file may raise."""

_BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class RawLine:
    """A line without its line end; `data` is only its beginning if it is not `whole`.

    Attributes:
        error: why a conversation that a program gave cannot be a line; `data` is then its `repr`.
    """

    source: SourceLine
    data: bytes
    whole: bool
    error: ScriptError | None = None


@contextmanager
def opened(path: str, hint: str = NAME_ONE_FILE) -> Generator[BinaryIO]:
    """The opened file, or standard input for `-`, which is not closed; raises `ScriptError`.

    A file compressed with gzip is decompressed while it is read, whatever its name.
    """
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 (closed below; only the opening is guarded here)
    except (OSError, ValueError) as error:
        raise ScriptError(_unreadable(error), path=path, hint=hint) from None
    with file:
        try:
            compressed = file.peek(len(_GZIP)).startswith(_GZIP)
        except OSError:  # the first read reports it
            compressed = False
        yield cast("BinaryIO", gzip.GzipFile(fileobj=file)) if compressed else file


def _unreadable(error: Exception) -> str:
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def has_end(file: BinaryIO) -> bool:
    """Whether `file` is a regular file, which can be read to its end without waiting."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def read_text(path: str, max_bytes: int) -> RawLine:
    """The first `max_bytes` of a text file, as one line; raises `ScriptError`."""
    hint = "name a text file"
    with opened(path, hint) as file:
        try:
            data = file.read(max_bytes + 1)
        except _READ_ERRORS as error:
            raise ScriptError(_unreadable(error), path=path, hint=hint) from None
    return RawLine(SourceLine(path, 1), data[:max_bytes].removeprefix(_BOM), len(data) <= max_bytes)


def read_lines(file: BinaryIO, path: str, max_bytes: int) -> Iterator[RawLine]:
    """The lines of `file`, with at most `max_bytes` of a line in memory.

    The remainder of a longer line is read only when the next line is requested, so that refusing the line need not wait
    for its end.

    Raises:
        ScriptError: the file cannot be read, or a line is too long to be skipped.
    """
    max_skipped = max(SKIP_FACTOR * max_bytes, MIN_SKIP_BYTES)
    number = 1
    try:
        while data := file.readline(max_bytes + 2):
            is_at_end = data.endswith(b"\n") or len(data) < max_bytes + 2
            if number == 1:
                data = data.removeprefix(_BOM)
            data = data.removesuffix(b"\n").removesuffix(b"\r")
            yield RawLine(SourceLine(path, number), data[:max_bytes], len(data) <= max_bytes)
            num_read = len(data)
            while not is_at_end:
                chunk = file.readline(_CHUNK_BYTES)
                is_at_end = chunk.endswith(b"\n") or not chunk
                num_read += len(chunk)
                if num_read > max_skipped:
                    raise ScriptError(
                        f"the line has no end within {max_skipped:,} bytes, so it cannot be set aside",
                        path=shown_path(path),
                        line=number,
                        hint="is this a script? It must have one JSON object a line",
                    )
            number += 1
    except _READ_ERRORS as error:
        raise ScriptError(_unreadable(error), path=shown_path(path), line=number) from None


def read_lines_or_items(file: BinaryIO, path: str, max_bytes: int) -> Iterator[RawLine]:
    """The lines of a file. A `.json` file may hold one array, whose items are the lines, or one object instead.

    Raises:
        ScriptError: the file cannot be read, a line is too long to be skipped, or the array is too large or damaged.
    """
    if not path.lower().removesuffix(".gz").endswith(".json"):
        return read_lines(file, path, max_bytes)
    try:
        data = file.read(MAX_ARRAY_BYTES + 1)
    except _READ_ERRORS as error:
        raise ScriptError(_unreadable(error), path=path) from None
    beginning = data[:_CHUNK_BYTES].removeprefix(_BOM).lstrip()
    if not beginning.startswith((b"[", b"{")):
        return read_lines(io.BytesIO(data), path, max_bytes)
    if len(data) > MAX_ARRAY_BYTES:
        hint = "write one object a line into a .jsonl file (`jq -c '.[]' FILE`)"
        raise ScriptError(f"is larger than {MAX_ARRAY_BYTES:,} bytes, the most for a .json file", path=path, hint=hint)
    text = data.removeprefix(_BOM).decode("utf-8", "surrogateescape")
    if beginning.startswith(b"["):
        return _array_items(text, path, max_bytes)
    with contextlib.suppress(ValueError, RecursionError):
        value = text.strip()
        if "\n" in value and json.JSONDecoder().raw_decode(value)[1] == len(value):  # one object on several lines
            raw = value.encode("utf-8", "surrogateescape")
            return iter((RawLine(SourceLine(path, 1), raw[:max_bytes], len(raw) <= max_bytes),))
    return read_lines(io.BytesIO(data), path, max_bytes)


def _array_items(text: str, path: str, max_bytes: int) -> Iterator[RawLine]:
    """The items of a JSON array, each as a line; its number is that of the line on which the item begins."""
    decoder = json.JSONDecoder()
    line, counted_to, number = 1, 0, 0

    def line_at(index: int) -> int:
        nonlocal line, counted_to
        line += text.count("\n", counted_to, index)
        counted_to = index
        return line

    def skip_space(index: int) -> int:
        match = _SPACE.match(text, index)
        return index if match is None else match.end()

    index = skip_space(skip_space(0) + 1)
    while text[index : index + 1] != "]" or number:
        number += 1
        source = SourceLine(path, line_at(index), number)
        try:
            _, end = decoder.raw_decode(text, index)
        except json.JSONDecodeError as error:
            refuse(
                SourceLine(path, error.lineno), f"not JSON: {error.msg}", "the file must be one JSON array", error.colno
            )
        except (ValueError, RecursionError) as error:
            refuse(source, f"cannot be read: {parsing_problem(error)}", "remove the item")
        raw = text[index:end].encode("utf-8", "surrogateescape")
        yield RawLine(source, raw[:max_bytes], len(raw) <= max_bytes)
        index = skip_space(end)
        if text[index : index + 1] != ",":
            break
        index = skip_space(index + 1)
    if text[index : index + 1] != "]" or skip_space(index + 1) != len(text):
        found = text[index : index + 1]
        problem = "the array has no end" if index == len(text) else f"expected a comma or `]`, got {found!r}"
        hint = "the file must be one JSON array and nothing else"
        refuse(SourceLine(path, line_at(index)), f"not JSON: {problem}", hint)
