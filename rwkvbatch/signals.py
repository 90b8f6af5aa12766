"""The end of the process: handlers of SIGINT and SIGTERM, and protection from foreign code that ends the process.

Depending on the handler, a signal stops a run after its step, unwinds a command, stops a chat's reply, or ends the
process at once.
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
DUPLICATE_S = 0.1
"""Signals within this time count as one. For example, `timeout` signals the process and then its whole group."""

_SHOW_CURSOR = b"\x1b[?25h"
_MESSAGES = {signal.SIGINT: b"rwkvbatch: interrupted\n", signal.SIGTERM: b"rwkvbatch: terminated\n"}


end_process = os._exit
"""The original `os._exit`, for this program's own use; `forbid_process_exit` replaces it for foreign code."""

_F_SETSIG = 10
"""`F_SETSIG` of Linux, which the module `fcntl` lacks."""

before_foreign_code: Callable[[], None] | None = None
"""Called before a plug-in is loaded. The command line sets it to a function of `rwkvbatch.cli.guard`."""

_ENDINGS: dict[str, Callable[..., NoReturn]] = {"_exit": os._exit, "execv": os.execv, "execve": os.execve}
_endings_lock = threading.Lock()
_num_forbidding = 0


class Terminated(BaseException):
    """SIGTERM arrived; raised where `KeyboardInterrupt` is for SIGINT."""


class StoppedEarly(BaseException):
    """A signal arrived while models were loaded, before anything was written."""


ENDS_PROCESS = (KeyboardInterrupt, Terminated, StoppedEarly)
"""Exceptions that end the process. Any other exception of foreign code, `SystemExit` included, is an error of that
code."""


class ProcessEndedError(BaseException):
    """Foreign code tried to end the process. Not an `Exception`, so that the code does not catch it."""


class _Arrivals:
    """Distinguishes the first signal, its duplicates and later signals.

    Attributes:
        signal_number: the number of the first signal; 0 before it arrives.
    """

    signal_number = 0
    _first_s = 0.0

    def classify(self, number: int) -> Literal["first", "duplicate", "later"]:
        now_s = time.monotonic()
        if not self.signal_number:
            self.signal_number, self._first_s = number, now_s
            return "first"
        return "duplicate" if now_s - self._first_s < DUPLICATE_S else "later"


class StopRequest(_Arrivals):
    """A signal handler that requests the end of a run. Calling it returns whether a signal arrived."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._may_raise = False

    def __call__(self) -> bool:
        return self.signal_number != 0

    @contextmanager
    def interruptible(self) -> Generator[None]:
        """End the block at once when a signal arrives, for slow work that need not be finished.

        Raises:
            StoppedEarly: a signal arrived during or before the block.
        """
        self._raise_if_stopped()
        self._may_raise = True
        try:
            yield
        except BaseException:  # any: an import may have replaced the handler's exception by another one
            self._raise_if_stopped()
            raise
        finally:
            self._may_raise = False
        self._raise_if_stopped()  # an import may have dropped the exception

    def _raise_if_stopped(self) -> None:
        if self.signal_number:
            raise StoppedEarly from None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        match self.classify(number):
            case "first" if self._may_raise:
                raise StoppedEarly
            case "first":
                self._notify("stopping after this step; a second signal stops at once")
            case "later":
                # Rows are written as whole lines, so no cleanup is needed.
                cursor = _SHOW_CURSOR if sys.stderr.isatty() else b""
                _exit(number, cursor + b"stopped at once; finished rows are safe\n")
            case _:
                pass


@contextmanager
def handlers_restored() -> Generator[None]:
    """Restore the handlers of SIGINT and SIGTERM after the block, in the main thread."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def stop_on_signals(notify: Callable[[str], None]) -> Generator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request to stop; a second signal ends the process. For the main thread only.

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


def raise_on_signals() -> None:
    """Let the first SIGINT or SIGTERM raise `KeyboardInterrupt` or `Terminated`, so that open files are cleaned up.

    A later signal ends the process at once. So does a signal during an import, which might drop the exception.
    """
    arrivals = _Arrivals()

    def handle(number: int, frame: FrameType | None) -> None:
        arrival = arrivals.classify(number)
        if arrival == "duplicate":
            return
        if arrival == "later" or _is_importing(frame):
            _leave(number, frame)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    _handle_unless_ignored(handle)


@contextmanager
def call_on_signal(stop: Callable[[], None]) -> Generator[None]:
    """Call `stop` on the first SIGINT or SIGTERM; a later one ends the process. For the main thread only."""
    arrivals = _Arrivals()

    def handle(number: int, frame: FrameType | None) -> None:
        match arrivals.classify(number):
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
    """Ignore SIGINT and SIGTERM in a worker process, and unblock them if they were blocked at its start.

    Terminals, `timeout` and service managers signal all processes of a run; the run's driver handles the signal.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def end_with(lifeline: int) -> None:
    """End this process when the other end of the pipe `lifeline` is closed, even during a long call of a C function.

    A C function that holds the interpreter, such as a regular expression, blocks any thread that watches the pipe. On
    Linux the kernel sends SIGKILL instead (`F_SETSIG` of fcntl(2)). On other systems a thread watches the pipe.
    """
    if sys.platform == "linux":
        # Reopened for an open file description of this process: the inherited one would signal the parent.
        descriptor = os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([descriptor], [], [], 0)[0]:  # closed before the signal was requested
            end_process(1)
        return

    def watch() -> None:
        os.read(lifeline, 1)
        end_process(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


@contextmanager
def stopping_on_interrupt() -> Generator[list[int]]:
    """Record SIGINT in the block instead of raising; yields the list to which its number is appended."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    with handlers_restored():
        signal.signal(signal.SIGINT, lambda number, _: received.append(number))
        yield received


@contextmanager
def forbid_process_exit() -> Generator[None]:
    """Make `os._exit` and `os.exec*` raise `ProcessEndedError` in the block, in every thread of this process.

    Otherwise foreign code could end a run before its last row, with any exit code, even 0. Child processes are not
    affected. C code that ends the process is not detected.
    """
    global _num_forbidding
    with _endings_lock:
        _num_forbidding += 1
        if _num_forbidding == 1:
            _set_endings({name: _refusing(name, real) for name, real in _ENDINGS.items()})
    try:
        yield
    finally:
        with _endings_lock:
            _num_forbidding -= 1
            if not _num_forbidding:
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
    end_process(128 + number)  # the original function, even in `forbid_process_exit`


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
