"""The whole program in forked processes, which start with all modules imported so that kills hit the work."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable, Sequence

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_OPTIONAL = ("integrations", "triton", "lm_eval")


def import_everything() -> None:
    """Import all modules of the package that need no extras, and adopt orphans."""
    import rwkvbatch

    for module in pkgutil.walk_packages(rwkvbatch.__path__, "rwkvbatch."):
        if not any(name in module.name for name in (*_OPTIONAL, "__main__")):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    adopt_orphans()


def adopt_orphans() -> None:
    """Make processes whose parent was killed children of this one, which then sees whether they end."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start_program(work: Sequence[str] | Callable[[], None], *, ends_with_parent: bool = False) -> int:
    """The id of a child that runs the program with arguments, or a function; its output is discarded."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        if ends_with_parent:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1) if os.environ.get("CRASH_HARNESS_SHOW") else (0, 1, 2):
            os.dup2(null, number)
        if callable(work):
            work()
            code = 0
        else:
            from rwkvbatch.cli.app import invoke

            code = int(invoke(list(work)))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
    finally:
        os._exit(code)


def wait(child: int, seconds: float | None = None) -> int | None:
    """The exit code, or minus the signal; None when the child still runs after `seconds`."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, 0 if until is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            return None
        time.sleep(0.002)


def kill(child: int) -> int:
    """Kill the child; its exit code, or minus the signal. It may have ended before."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    code = wait(child)
    assert code is not None
    return code


def run_program(work: Sequence[str] | Callable[[], None]) -> int | None:
    return wait(start_program(work), 300)


def check_exit(code: int | None) -> None:
    """Raise `RuntimeError` for an exit code other than 0 and 1 (a check of a reply failed)."""
    if code not in (0, 1):
        raise RuntimeError(f"the preparation ended with {code}; CRASH_HARNESS_SHOW=1 shows messages")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True
