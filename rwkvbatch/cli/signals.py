"""SIGINT and SIGTERM where no run is under way: leaving at once, or unwinding.

An exception that a handler raises in the middle of an import is dropped, or turned into another one, and the command
goes on as if nobody had asked it to end. So while modules are imported, handlers end the process.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from rwkvbatch.run.stopping import TOGETHER_S

_SIGNALS = {signal.SIGINT: b"interrupted", signal.SIGTERM: b"terminated"}
_STANDARD_ERROR = 2


def leave_at_once() -> None:
    """From now on SIGINT and SIGTERM end the process, with one line and the exit code 130 or 143."""
    _set(_leave)


def unwind() -> None:
    """From now on the first SIGINT or SIGTERM raises an exception, so that what was begun can be tidied up.

    Two so close that they are one wish count as one; a later one leaves at once, and so does one during an import.
    """
    raised_s = -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal raised_s
        now_s = time.monotonic()
        if now_s - raised_s < TOGETHER_S:
            return
        if raised_s > -math.inf or _is_importing(frame):
            _leave(number, frame)
        raised_s = now_s
        _raise(number)

    _set(handle)


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


def _raise(number: int) -> NoReturn:
    from rwkvbatch.cli.exits import Terminated

    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
