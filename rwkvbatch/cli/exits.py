"""Exit codes, and the way from an exception to one message and one of them."""

from __future__ import annotations

import enum
import sys
import traceback

from rwkvbatch.errors import InputError, RwkvBatchError, UsageError


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


class Terminated(BaseException):
    """SIGTERM arrived; raised by signal handlers that want the stack unwound."""


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
            _say(
                f"error: not enough memory {error}".rstrip()
                + "\n  a smaller model, or less at once, needs less"
            )
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
    from rwkvbatch.text.safe import printable

    print(printable(text), file=sys.stderr)  # noqa: T201
