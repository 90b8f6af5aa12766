"""Ctrl-C and SIGTERM while a run goes on: the first asks for an end, the second ends the process."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

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
                _leave(number)
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


def _leave(number: int) -> None:
    # Rows are whole lines on the disk already; nothing that an orderly end would do is needed for them.
    os.write(2, (SHOW_CURSOR if sys.stderr.isatty() else b"") + b"left at once; finished rows are safe\n")
    os._exit(128 + number)
