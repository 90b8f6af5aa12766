"""SIGINT and SIGTERM where no run is under way: leaving at once, or unwinding.

An exception that a handler raises is dropped when it comes in the middle of an import or of a callback of the garbage
collector, and the command goes on as if nobody had asked it to end. So while modules are imported and nothing is
written, handlers end the process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = {signal.SIGINT: b"interrupted", signal.SIGTERM: b"terminated"}
_STANDARD_ERROR = 2


def leave_at_once() -> None:
    """From now on SIGINT and SIGTERM end the process, with one line and the exit code 130 or 143."""
    _set(_leave)


def unwind() -> None:
    """From now on SIGINT and SIGTERM raise exceptions, so that what was begun can be tidied up."""
    _set(_raise)


@contextmanager
def leaving_at_once() -> Generator[None]:
    """`leave_at_once` inside; must be entered in the main thread."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    leave_at_once()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _set(handle: Callable[[int, FrameType | None], None]) -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` and shells' background jobs want it
            signal.signal(number, handle)


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    os.write(_STANDARD_ERROR, b"rwkvbatch: " + _SIGNALS[signal.Signals(number)] + b"\n")
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    from rwkvbatch.cli.exits import Terminated

    del frame
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated
