"""The bytes of a script's lines, from a file or standard input. No more of a line is held than the limit."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rwkvbatch.errors import ScriptError
from rwkvbatch.script.records import SourceLine

STDIN = "-"
_BOM = b"\xef\xbb\xbf"
PAST_LIMITS = 100
MIN_PAST_BYTES = 2**26
"""So many times `Limits.max_line_bytes`, or so many bytes, a bad line may have and still be set aside."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RawLine:
    """A line without its end: `data` is all of it, or as much as may be held where it is not `whole`."""

    source: SourceLine
    data: bytes
    whole: bool


@contextmanager
def opened(path: str) -> Generator[BinaryIO]:
    """The file, or standard input for `-`, which stays open.

    Raises:
        ScriptError: it cannot be read.
    """
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 (closed below; only the opening is guarded here)
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise ScriptError(
            f"cannot be read: {reason}", path=path, hint="name a .jsonl file, or - for standard input"
        ) from None
    with file:
        yield file


def has_end(file: BinaryIO) -> bool:
    """Whether it can be read to its end without waiting for anybody."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def raw_lines(file: BinaryIO, path: str, max_bytes: int) -> Iterator[RawLine]:
    """Lines without their ends. No more than `max_bytes` of a line are ever held.

    The rest of a longer one is read past when the next line is asked for: whoever refuses it does not wait for its end.

    Raises:
        ScriptError: the file cannot be read, or a line that was read past does not end.
    """
    most = max(PAST_LIMITS * max_bytes, MIN_PAST_BYTES)
    number = 0
    while True:
        number += 1
        data = _read_up_to(file, max_bytes + 2, path, number)
        if not data:
            return
        ended = data.endswith(b"\n") or len(data) < max_bytes + 2
        if number == 1:
            data = data.removeprefix(_BOM)
        data = data.removesuffix(b"\n").removesuffix(b"\r")
        yield RawLine(SourceLine(path, number), data[:max_bytes], len(data) <= max_bytes)
        num_read = len(data)
        while not ended:
            rest = _read_up_to(file, _CHUNK_BYTES, path, number)
            ended = rest.endswith(b"\n") or not rest
            num_read += len(rest)
            if num_read > most:
                raise ScriptError(
                    f"the line has no end within {most:,} bytes, so it is not set aside",
                    path=shown_path(path),
                    line=number,
                    hint="is this a script? It must have one JSON object a line",
                )


def _read_up_to(file: BinaryIO, num_bytes: int, path: str, line: int) -> bytes:
    try:
        return file.readline(num_bytes)
    except OSError as error:
        raise ScriptError(f"cannot be read: {error.strerror}", path=shown_path(path), line=line) from None


def shown_path(path: str) -> str:
    """The file as errors name it."""
    return "<stdin>" if path == STDIN else path
