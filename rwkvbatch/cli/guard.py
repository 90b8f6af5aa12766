"""Keeps foreign C code that ends the process, with whatever exit code, from ending the program as if it were done.

Before the first plug-in is loaded the program forks. The child continues; the parent waits for it, passes signals on,
and passes its exit code on, where the child said that it came to its end; without that the command is unfinished.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import NoReturn

from rwkvbatch.cli.exits import ExitCode, message
from rwkvbatch.signals import SIGNALS, end_with, leave_at_once

_report: int | None = None
"""The end of a pipe on which the guarded program says that it came to its end."""

_foreign_code = False


def continue_guarded() -> None:
    """Return in a child process whose end this one waits for; once. A process with threads goes on as it is."""
    global _foreign_code, _report
    _foreign_code = True
    if _report is not None or threading.active_count() > 1:
        return
    ours, _report = os.pipe()
    lifeline, life = os.pipe()  # closed by the system with the parent, however that ends
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child == 0:
        os.close(ours)
        os.close(life)
        end_with(lifeline)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os.close(_report)
    os.close(lifeline)
    _wait_for(child, ours)


def has_foreign_code() -> bool:
    """Whether this process has loaded a plug-in."""
    return _foreign_code


def came_to_its_end() -> None:
    """Let the exit code of this process count, if it is guarded."""
    if _report is not None:
        os.write(_report, b"\n")


def _wait_for(child: int, report: int) -> NoReturn:
    def pass_on(number: int, _: FrameType | None) -> None:
        os.kill(child, number)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    leave_at_once()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    elif code not in (ExitCode.INTERRUPTED, ExitCode.TERMINATED) and not _has_come_to_its_end(report):
        message(f"rwkvbatch: error: foreign code ended the process, with exit code {code}: that of a plug-in, probably")
        message("  what was reported as done is safe; `run` with --workers 2 ends a worker instead, and goes on")
        code = ExitCode.UNFINISHED
    os._exit(code)


def _has_come_to_its_end(report: int) -> bool:
    os.set_blocking(report, False)  # a process that foreign code left behind may hold the other end
    try:
        return os.read(report, 1) != b""
    except BlockingIOError:
        return False
