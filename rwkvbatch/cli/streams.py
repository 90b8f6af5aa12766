"""Standard streams that are closed, full, read by nobody, or of an encoding that lacks characters."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STANDARD_ERROR = 2


class _Talk(io.FileIO):
    """What cannot be written is dropped: a run does not end because nobody can listen."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare_streams() -> None:
    """Give closed streams the null device, before another file gets their number; let standard error never fail.

    Characters that a stream's encoding lacks become escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
    if sys.__stdin__ is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.__stdout__ is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    encoding = "utf-8" if sys.__stderr__ is None else sys.__stderr__.encoding
    raw = io.BufferedWriter(_Talk(STANDARD_ERROR, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True)


def flush_output() -> None:
    """Write out what standard output still holds.

    Raises:
        OSError: it could not be written. It is dropped then, or the interpreter would try again and show a traceback.
    """
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        raise
