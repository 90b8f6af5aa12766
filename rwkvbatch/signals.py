"""Ctrl-C while a reply comes, and what is typed meanwhile."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

SHOW_CURSOR = b"\x1b[?25h"
TOGETHER_S = 0.1
"""Two signals so close are one wish: `timeout`, for one, sends it to the process and then to its whole group."""


class StoppedEarly(BaseException):
    """A signal came while models were loaded: nothing was begun."""


class StopRequest:
    """Whether a signal asked for an end, and which.

    Attributes:
        signal_number: the first signal that came; 0 as long as there is none.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._came_s = 0.0
        self._may_raise = False

    def __call__(self) -> bool:
        return self.signal_number != 0

    @contextmanager
    def interruptible(self) -> Generator[None]:
        """A signal leaves the block at once, for work that takes long and that nobody has to finish.

        Raises:
            StoppedEarly: one came, inside or before.
        """
        if self.signal_number:
            raise StoppedEarly
        self._may_raise = True
        try:
            yield
        except BaseException:  # an import turns the exception from the handler into any other one,
            if self.signal_number:
                raise StoppedEarly from None
            raise
        finally:
            self._may_raise = False
        if self.signal_number:  # or drops it
            raise StoppedEarly

    def receive(self, number: int, say: Callable[[str], None]) -> None:
        """Take a signal; called by its handler."""
        now_s = time.monotonic()
        if self.signal_number:
            if now_s - self._came_s >= TOGETHER_S:
                _leave_run(number)
            return
        self.signal_number, self._came_s = number, now_s
        if self._may_raise:
            raise StoppedEarly
        say("ending after this step; once more to leave at once")


@contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Generator[StopRequest]:
    """Catch SIGINT and SIGTERM inside; must be entered in the main thread.

    Args:
        say: prints one line when the first signal comes.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        request.receive(number, say)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_run(number: int) -> None:
    # Rows are whole lines on the disk already; nothing that an orderly end would do is needed for them.
    os.write(2, (SHOW_CURSOR if sys.stderr.isatty() else b"") + b"left at once; finished rows are safe\n")
    os._exit(128 + number)


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


@contextlib.contextmanager
def stopping_on_interrupt() -> Generator[list[int]]:
    """While this lasts an interrupt does not raise; it is noted in the list that is given."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGINT, lambda number, _frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def unechoed_input() -> Generator[None]:
    """What is typed while this lasts is not shown; the next line input finds it."""
    try:
        import termios

        descriptor = sys.stdin.fileno()
        before: list[Any] = termios.tcgetattr(descriptor)
    except (ImportError, OSError, ValueError):
        yield
        return
    quiet = before.copy()
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    try:
        termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
