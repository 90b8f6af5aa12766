"""Standard streams that are closed, full, read by nobody, or of an encoding that lacks characters."""

from __future__ import annotations

import enum
import io
import os
import sys
import traceback
from typing import TYPE_CHECKING

from rwkvbatch.errors import InputError, RwkvBatchError, UsageError
from rwkvbatch.signals import Terminated

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class ExitCode(enum.IntEnum):
    """What the process tells its caller."""

    DONE = 0
    FAILED = 1
    """Done, but a check, a gate or a conversation failed."""
    USAGE = 2
    BAD_INPUT = 3
    INTERNAL = 4
    INTERRUPTED = 130
    UNREAD = 141
    """Nobody reads the output any more (`| head`); what a shell says of a program that SIGPIPE ended."""
    TERMINATED = 143


def report(error: BaseException, *, debug: bool) -> ExitCode:
    """Print one message for `error` on standard error and say how the process should end."""
    match error:
        case KeyboardInterrupt():
            _say("interrupted")
            return ExitCode.INTERRUPTED
        case Terminated():
            _say("terminated")
            return ExitCode.TERMINATED
        case RwkvBatchError():
            if debug:
                _say_traceback(error)
            _say(f"error: {error}" + (f"\n  {error.hint}" if error.hint else ""))
            if isinstance(error, UsageError):
                return ExitCode.USAGE
            return ExitCode.BAD_INPUT if isinstance(error, InputError) else ExitCode.INTERNAL
        case BrokenPipeError():
            return ExitCode.UNREAD
        case OSError():
            if debug:
                _say_traceback(error)
            place = "" if error.filename is None else f": {error.filename}"
            _say(
                f"error: input or output failed: {error.strerror or error}{place}\n"
                "  is there room, and may it be read and written? RWKVBATCH_DEBUG=1 shows the traceback"
            )
            return ExitCode.INTERNAL
        case MemoryError():
            if debug:
                _say_traceback(error)
            _say(f"error: not enough memory {error}".rstrip() + "\n  a smaller model, or less at once, needs less")
            return ExitCode.INTERNAL
        case _:
            if debug:
                _say_traceback(error)
            summary = " ".join(str(error).split())[:500]
            _say(
                f"internal error: {type(error).__name__}: {summary}\n"
                "  this is a fault of rwkvbatch; run again with RWKVBATCH_DEBUG=1 for the traceback"
            )
            return ExitCode.INTERNAL


def _say_traceback(error: BaseException) -> None:
    _print("".join(traceback.format_exception(error)).rstrip("\n"))


def _say(message: str) -> None:
    _print(f"rwkvbatch: {message}")


def _print(text: str) -> None:
    from rwkvbatch.prompt.escaping import printable

    print(printable(text), file=sys.stderr)  # noqa: T201


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
