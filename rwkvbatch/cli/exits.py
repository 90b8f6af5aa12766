"""Exit codes, messages on standard error, and standard streams that are closed, full or of a narrow encoding."""

from __future__ import annotations

import enum
import io
import json
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from rwkvbatch.errors import InputError, RwkvBatchError, UsageError
from rwkvbatch.signals import Terminated

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class ExitCode(enum.IntEnum):
    """Exit status of the process."""

    DONE = 0
    FAILED = 1
    """Done, but a check, a gate or a conversation failed."""
    USAGE = 2
    BAD_INPUT = 3
    INTERNAL = 4
    INTERRUPTED = 130
    UNREAD = 141
    """The reader of the output is gone (`| head`); a shell's status of a program that SIGPIPE ended."""
    TERMINATED = 143


def report(error: BaseException, *, debug: bool) -> ExitCode:
    """Print one message for `error` on standard error; returns the exit code."""
    match error:
        case KeyboardInterrupt():
            _print_error("interrupted")
            return ExitCode.INTERRUPTED
        case Terminated():
            _print_error("terminated")
            return ExitCode.TERMINATED
        case RwkvBatchError():
            if debug:
                _print_traceback(error)
            _print_error(f"error: {error}" + (f"\n  {error.hint}" if error.hint else ""))
            if isinstance(error, UsageError):
                return ExitCode.USAGE
            return ExitCode.BAD_INPUT if isinstance(error, InputError) else ExitCode.INTERNAL
        case BrokenPipeError():
            return ExitCode.UNREAD
        case OSError():
            if debug:
                _print_traceback(error)
            place = "" if error.filename is None else f": {error.filename}"
            _print_error(
                f"error: input or output failed: {error.strerror or error}{place}\n"
                "  check free space and permissions; RWKVBATCH_DEBUG=1 shows the traceback"
            )
            return ExitCode.INTERNAL
        case MemoryError():
            if debug:
                _print_traceback(error)
            _print_error(
                f"error: not enough memory {error}".rstrip() + "\n  take a smaller model or a smaller --batch-size"
            )
            return ExitCode.INTERNAL
        case _:
            if debug:
                _print_traceback(error)
            summary = " ".join(str(error).split())[:500]
            _print_error(
                f"internal error: {type(error).__name__}: {summary}\n"
                "  this is a bug in rwkvbatch; run again with RWKVBATCH_DEBUG=1 for the traceback"
            )
            return ExitCode.INTERNAL


def _print_traceback(error: BaseException) -> None:
    _print("".join(traceback.format_exception(error)).rstrip("\n"))


def _print_error(text: str) -> None:
    _print(f"rwkvbatch: {text}")


def _print(text: str) -> None:
    from rwkvbatch.prompt.escaping import printable

    print(printable(text), file=sys.stderr)  # noqa: T201


def message(text: str, *, quiet: bool = False) -> None:
    """Print one line on standard error, unless `quiet`."""
    from rwkvbatch.prompt.escaping import printable

    if not quiet:
        print(printable(text, keep_newlines=False), file=sys.stderr)  # noqa: T201


def print_json(content: Any, *, indent: int | None = 2) -> None:
    """Print a JSON document on standard output."""
    from rwkvbatch.prompt.escaping import printable_json

    print(printable_json(json.dumps(content, indent=indent)))  # noqa: T201


STANDARD_ERROR = 2


class _StandardError(io.FileIO):
    """Drops what cannot be written: a run does not end because standard error is closed or full."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare_streams() -> None:
    """Open the null device for closed streams, before another file gets their number; make standard error never fail.

    Characters that a stream's encoding lacks become escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.__stdin__ is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.__stdout__ is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    encoding = "utf-8" if sys.__stderr__ is None else sys.__stderr__.encoding
    raw = io.BufferedWriter(_StandardError(STANDARD_ERROR, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True)


def flush_output() -> None:
    """Flush standard output.

    Raises:
        OSError: it could not be written. It is dropped then: the interpreter would try again and print a traceback.
    """
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        raise
