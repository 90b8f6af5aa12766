"""How the process ends: what SIGINT and SIGTERM do, and that foreign code does not end it in the middle of a run.

A signal stops a run after its step, unwinds a command, stops a chat's reply, or ends the process at once.
"""

from __future__ import annotations

import fcntl
import os
import posix
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER_S = 0.1
"""Signals within this time count as one: `timeout`, for one, signals the process and then its whole group."""

_SHOW_CURSOR = b"\x1b[?25h"
_MESSAGES = {signal.SIGINT: b"rwkvbatch: interrupted\n", signal.SIGTERM: b"rwkvbatch: terminated\n"}


end_process = os._exit
"""`os._exit` itself, for this program's own use: see `staying_alive`."""

_F_SETSIG = 10
"""The operation's number on Linux, which the module `fcntl` does not name."""

before_foreign_code: Callable[[], None] | None = None
"""Called before a plug-in is loaded. The program puts `rwkvbatch.cli.guard` here."""

_ENDINGS: dict[str, Callable[..., NoReturn]] = {"_exit": os._exit, "execv": os.execv, "execve": os.execve}
_endings_lock = threading.Lock()
_num_staying_alive = 0


class Terminated(BaseException):
    """SIGTERM arrived; raised where `KeyboardInterrupt` is for SIGINT."""


class StoppedEarly(BaseException):
    """A signal arrived while models were loaded, before anything was written."""


ENDS_PROCESS = (KeyboardInterrupt, Terminated, StoppedEarly)
"""What is raised to end the process. Any other exception of foreign code, `SystemExit` included, is its own fault."""


class ProcessEndedError(BaseException):
    """Foreign code tried to end the process. Not an `Exception`, so that its code does not catch it."""


class _Arrivals:
    """Distinguishes the first signal, its duplicates and later signals.

    Attributes:
        signal_number: of the first signal that arrived; 0 without one.
    """

    signal_number = 0
    _first_s = 0.0

    def take(self, number: int) -> Literal["first", "duplicate", "later"]:
        now_s = time.monotonic()
        if not self.signal_number:
            self.signal_number, self._first_s = number, now_s
            return "first"
        return "duplicate" if now_s - self._first_s < TOGETHER_S else "later"


class StopRequest(_Arrivals):
    """Called, tells whether a signal asked the run to stop."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._may_raise = False

    def __call__(self) -> bool:
        return self.signal_number != 0

    @contextmanager
    def interruptible(self) -> Generator[None]:
        """A signal ends the block at once: for slow work that need not be finished.

        Raises:
            StoppedEarly: a signal arrived inside or before.
        """
        self._raise_if_stopped()
        self._may_raise = True
        try:
            yield
        except BaseException:  # an import may turn the handler's exception into another one,
            self._raise_if_stopped()
            raise
        finally:
            self._may_raise = False
        self._raise_if_stopped()  # or drop it

    def _raise_if_stopped(self) -> None:
        if self.signal_number:
            raise StoppedEarly from None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        match self.take(number):
            case "first" if self._may_raise:
                raise StoppedEarly
            case "first":
                self._notify("stopping after this step; a second signal stops at once")
            case "later":
                # Written rows are whole lines already: they need no orderly end.
                cursor = _SHOW_CURSOR if sys.stderr.isatty() else b""
                _exit(number, cursor + b"stopped at once; finished rows are safe\n")
            case _:
                pass


@contextmanager
def handlers_restored() -> Generator[None]:
    """Give SIGINT and SIGTERM the handlers that they had before the block, in the main thread."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def stop_on_signals(notify: Callable[[str], None]) -> Generator[StopRequest]:
    """Turns SIGINT and SIGTERM into a request to stop; a second signal ends the process. For the main thread only.

    Args:
        notify: prints the message of the first signal.
    """
    request = StopRequest(notify)
    with handlers_restored():
        for number in SIGNALS:
            signal.signal(number, request.receive)
        yield request


def leave_at_once() -> None:
    """Let SIGINT and SIGTERM end the process with one line and the exit code 130 or 143."""
    _handle_unless_ignored(_leave)


@contextmanager
def leaving_at_once() -> Generator[None]:
    """`leave_at_once` inside the block, for the main thread only."""
    with handlers_restored():
        leave_at_once()
        yield


def unwind() -> None:
    """Let the first SIGINT or SIGTERM raise `KeyboardInterrupt` or `Terminated`, so that open files are tidied up.

    A later signal ends the process at once, and so does one during an import, which might drop the exception.
    """
    arrivals = _Arrivals()

    def handle(number: int, frame: FrameType | None) -> None:
        arrival = arrivals.take(number)
        if arrival == "duplicate":
            return
        if arrival == "later" or _is_importing(frame):
            _leave(number, frame)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    _handle_unless_ignored(handle)


@contextmanager
def calling(stop: Callable[[], None]) -> Generator[None]:
    """The first SIGINT or SIGTERM calls `stop` inside; a later one ends the process. For the main thread only."""
    arrivals = _Arrivals()

    def handle(number: int, frame: FrameType | None) -> None:
        match arrivals.take(number):
            case "first":
                stop()
            case "later":
                _leave(number, frame)
            case _:
                pass

    with handlers_restored():
        _handle_unless_ignored(handle)
        yield


def ignore() -> None:
    """Ignore SIGINT and SIGTERM in a worker process, also when they were blocked while it started.

    Terminals, `timeout` and service managers signal all processes of a run; its driver decides what to do.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def end_with(lifeline: int) -> None:
    """Let the system kill this process when the other end of the pipe `lifeline` is closed, whatever it is doing then.

    Code that never returns from a C function, such as a regular expression, keeps a thread that watches the pipe from
    running. Linux sends SIGKILL for it (`F_SETSIG` of fcntl(2)); elsewhere a thread has to do.
    """
    if sys.platform == "linux":
        # A description of this process's own: the one of the parent signals the parent.
        descriptor = os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([descriptor], [], [], 0)[0]:  # closed before this process could ask for the signal
            end_process(1)
        return

    def watch() -> None:
        os.read(lifeline, 1)
        end_process(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


@contextmanager
def stopping_on_interrupt() -> Generator[list[int]]:
    """SIGINT does not raise inside; its number is appended to the list that is yielded."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    with handlers_restored():
        signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
        yield noted


@contextmanager
def staying_alive() -> Generator[None]:
    """Inside, `os._exit` and `os.exec*` raise `ProcessEndedError` instead of ending this process, in every thread.

    They would end a run before its last row with any exit code, 0 among them. Child processes may end as they do. What
    C code does is not seen.
    """
    global _num_staying_alive
    with _endings_lock:
        _num_staying_alive += 1
        if _num_staying_alive == 1:
            _set_endings({name: _refusing(name, real) for name, real in _ENDINGS.items()})
    try:
        yield
    finally:
        with _endings_lock:
            _num_staying_alive -= 1
            if not _num_staying_alive:
                _set_endings(_ENDINGS)


def _set_endings(functions: Mapping[str, Callable[..., NoReturn]]) -> None:
    for module in (os, posix):
        for name, function in functions.items():
            setattr(module, name, function)


def _refusing(name: str, real: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
    process = os.getpid()

    def refuse(*arguments: Any) -> NoReturn:
        if os.getpid() != process:
            real(*arguments)
        shown = ", ".join(map(repr, arguments))
        raise ProcessEndedError(f"it tried to end the process: os.{name}({shown[:80]})")

    return refuse


def _handle_unless_ignored(handle: Callable[[int, FrameType | None], None]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` and shells' background jobs ignore them
            signal.signal(number, handle)


def _leave(number: int, frame: FrameType | None) -> None:
    _exit(number, _MESSAGES[signal.Signals(number)])


def _exit(number: int, message: bytes) -> None:
    os.write(2, message)
    end_process(128 + number)  # also while foreign code runs


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
