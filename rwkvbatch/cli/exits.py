"""Exit codes, messages on standard error, and handling of standard streams that are closed, full or not UTF-8."""

from __future__ import annotations

import codecs
import enum
import errno
import io
import json
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from rwkvbatch.errors import InputError, RwkvBatchError, UsageError, error_text, is_out_of_memory
from rwkvbatch.prompt.escaping import finite, printable, printable_json
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
    UNFINISHED = 5
    """The run ended before its last row, and no signal ended it; the same command continues it."""
    INTERRUPTED = 130
    UNREAD = 141
    """The reader of the output has closed the pipe (`| head`); the shell's status for a program ended by SIGPIPE."""
    TERMINATED = 143


def debugging() -> bool:
    """Whether the environment asks for tracebacks."""
    return os.environ.get("RWKVBATCH_DEBUG", "") not in ("", "0")


def report(error: BaseException, *, debug: bool) -> ExitCode:
    """Print a message about `error` on standard error, with `debug` also its traceback. Returns the exit code."""
    code, text = _explain(error)
    if debug and code <= ExitCode.INTERNAL:
        _print("".join(traceback.format_exception(error)).rstrip("\n"))
    if text:
        _print(f"rwkvbatch: {text}")
    return code


def _explain(error: BaseException) -> tuple[ExitCode, str]:
    """The exit code and the message of an error; the message may be empty."""
    match error:
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED, "interrupted"
        case Terminated():
            return ExitCode.TERMINATED, "terminated"
        case BrokenPipeError():
            return ExitCode.UNREAD, ""
        case RwkvBatchError():
            code = ExitCode.INTERNAL
            if isinstance(error, UsageError):
                code = ExitCode.USAGE
            elif isinstance(error, InputError):
                code = ExitCode.BAD_INPUT
            return code, f"error: {error}" + (f"\n  {error.hint}" if error.hint else "")
        case _ if is_out_of_memory(error):
            detail = "" if isinstance(error, OSError) else error_text(error)
            separator = ": " if isinstance(error, RuntimeError) else " "
            text = f"error: not enough memory{separator}{detail}".rstrip()
            hint = "take a smaller model, a smaller --batch-size, or a smaller --state-memory"
        case OSError():
            place = "" if error.filename is None else f": {error.filename}"
            text = f"error: input or output failed: {error.strerror or error}{place}"
            hint = "check free space and permissions; RWKVBATCH_DEBUG=1 shows the traceback"
        case _:
            text = f"internal error: {type(error).__name__}: {error_text(error, 500)}"
            hint = "this is a bug in rwkvbatch; run again with RWKVBATCH_DEBUG=1 for the traceback"
    return ExitCode.INTERNAL, f"{text}\n  {hint}"


def _print(text: str) -> None:
    print(printable(text), file=sys.stderr)  # noqa: T201


def message(text: str, *, quiet: bool = False) -> None:
    """Print one line on standard error, unless `quiet`."""
    if not quiet:
        print(printable(text, keep_newlines=False), file=sys.stderr)  # noqa: T201


def print_json(content: Any, *, indent: int | None = 2) -> None:
    """Print a JSON document on standard output; numbers that are not finite, which JSON does not have, are null."""
    print(printable_json(json.dumps(finite(content), indent=indent)))  # noqa: T201


class _UnbufferedOutput(io.FileIO):
    """Writes all data, in the place of an unbuffered standard output (`PYTHONUNBUFFERED`).

    That would write a part of the data before a disk is full or a limit is reached, and report no error.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        while rest:
            num_written = super().write(rest)
            if num_written is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            rest = rest[num_written:]
        return memoryview(data).nbytes


class _StandardError(io.FileIO):
    """Ignores write errors, so that a run does not end because standard error is closed or full."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


_ASCII_SIGNS = {
    **{"↑": "^", "↓": "v", "→": "->", "✓": "+", "✗": "x", "›": ">", "·": "-", "━": "=", "…": "...", "±": "+-"},
    **{"▸": ">", "╸": "=", "╺": "=", **{bar: str(height) for height, bar in enumerate("▁▂▃▄▅▆▇█", start=1)}},
    **dict.fromkeys("─—–−", "-"),
}


def _ascii_signs(error: UnicodeError) -> tuple[str, int]:
    """Error handler of encoders: replaces the signs of `_ASCII_SIGNS` and escapes other characters."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    signs = (_ASCII_SIGNS.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in characters)
    return "".join(signs), error.end


def prepare_streams() -> None:
    """Open the null device for closed standard streams, and make writes to standard error never fail.

    Otherwise another file would get the descriptor of a closed stream. Characters that a stream's encoding lacks are
    written as similar ASCII signs or as escapes. Standard output writes all or raises an error, also unbuffered.
    """
    codecs.register_error("ascii-signs", _ascii_signs)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    if sys.__stdin__ is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.__stdout__ is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if isinstance(getattr(sys.stdout, "buffer", None), io.FileIO):
        sys.stdout = io.TextIOWrapper(_UnbufferedOutput(1, "w", closefd=False), sys.stdout.encoding, write_through=True)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="ascii-signs")
    encoding = "utf-8" if sys.__stderr__ is None else sys.__stderr__.encoding
    raw = io.BufferedWriter(_StandardError(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(raw, encoding, "ascii-signs", line_buffering=True)


def flush_output() -> None:
    """Flush standard output.

    Raises:
        OSError: the output could not be written. It is then discarded, because the interpreter would try again at exit
            and print a traceback.
    """
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        raise
