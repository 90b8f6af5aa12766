"""Ctrl-C while a reply comes, and what is typed meanwhile."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Generator
from typing import Any


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
