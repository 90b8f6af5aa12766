"""Ctrl-C and SIGTERM while a run goes on: the first asks for an end, the second ends the process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

SHOW_CURSOR = b"\x1b[?25h"


class StopRequest:
    """Whether a signal asked for an end, and which.

    Attributes:
        signal_number: the first signal that came; 0 as long as there is none.
    """

    def __init__(self) -> None:
        self.signal_number = 0

    def __call__(self) -> bool:
        return self.signal_number != 0


@contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Generator[StopRequest]:
    """Catch SIGINT and SIGTERM inside; must be entered in the main thread.

    Args:
        say: prints one line when the first signal comes.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if request.signal_number:
            # Rows are whole lines on the disk already; nothing that an orderly end would do is needed for them.
            if sys.stderr.isatty():
                os.write(2, SHOW_CURSOR)
            os._exit(128 + number)
        request.signal_number = number
        say("ending after this step; once more to leave at once")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
