"""Detects that foreign C code ended the process, so that its exit code is not taken for the program's.

Before the first plug-in is loaded, the program forks. The child continues; the parent forwards signals and waits. If
the child confirms its exit code, the parent exits with it; otherwise the parent reports the command as unfinished.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import NoReturn

from rwkvbatch.cli.exits import ExitCode, message
from rwkvbatch.signals import SIGNALS, end_with, leave_at_once

_confirmation: int | None = None
"""Write end of the pipe on which the guarded child confirms its exit code; None in an unguarded process."""

_foreign_code = False


def continue_guarded() -> None:
    """Fork; return in the child, and wait in the parent for the child's end.

    Nothing happens in a child that is guarded already, and in a process with several threads, which cannot fork safely.
    """
    global _foreign_code, _confirmation
    _foreign_code = True
    if _confirmation is not None or threading.active_count() > 1:
        return
    confirmation_read, _confirmation = os.pipe()
    # The system closes the write end with the parent, in whatever way that ends; this ends the child.
    lifeline, lifeline_write = os.pipe()
    former_mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child == 0:
        os.close(confirmation_read)
        os.close(lifeline_write)
        end_with(lifeline)
        signal.pthread_sigmask(signal.SIG_SETMASK, former_mask)
        return
    os.close(_confirmation)
    os.close(lifeline)
    _wait_for(child, confirmation_read)


def has_foreign_code() -> bool:
    """Whether this process has loaded a plug-in."""
    return _foreign_code


def confirm_exit_code() -> None:
    """Confirm to the parent, if this process is guarded, that the program itself ends it."""
    if _confirmation is not None:
        os.write(_confirmation, b"\n")


def _wait_for(child: int, confirmation: int) -> NoReturn:
    """Forward signals to the child until it ends, then end in the same way."""

    def forward(number: int, _: FrameType | None) -> None:
        os.kill(child, number)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    leave_at_once()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    elif code not in (ExitCode.INTERRUPTED, ExitCode.TERMINATED) and not _is_confirmed(confirmation):
        message(f"rwkvbatch: error: foreign code ended the process, with exit code {code}: that of a plug-in, probably")
        message("  what was reported as done is safe; `run` with --workers 2 ends a worker instead, and continues")
        code = ExitCode.UNFINISHED
    os._exit(code)


def _is_confirmed(confirmation: int) -> bool:
    os.set_blocking(confirmation, False)  # a process that foreign code started may keep the write end open
    try:
        return os.read(confirmation, 1) != b""
    except BlockingIOError:
        return False
