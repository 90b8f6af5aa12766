"""`deadline`: a time limit for Python code that has none, such as checks of plug-ins and schemas, and templates."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

_set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)


class _PassedError(BaseException):
    """Raised in the thread whose deadline has passed. Not an `Exception`, so that its code does not catch it."""


@contextmanager
def deadline(seconds: float) -> Generator[None]:
    """End the block with a `TimeoutError` after `seconds`. Works in any thread.

    Python code is interrupted between two bytecode instructions. A call of a C function is not interrupted. See
    https://docs.python.org/3/c-api/init.html#c.PyThreadState_SetAsyncExc.

    Raises:
        TimeoutError: the block took longer.
    """
    thread = threading.get_ident()
    lock = threading.Lock()
    ended = sent = False

    def interrupt() -> None:
        nonlocal sent
        with lock:
            if not ended:
                sent = True
                _set_exception(thread, _PassedError)

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    try:
        try:
            timer.start()
            yield
        finally:
            with lock:
                ended = True
            timer.cancel()
            if sent:
                # A pending interruption is delivered here. Withdrawing it with a null exception has side effects:
                # CPython would check for it at every call and jump from then on, and 3.11 loops for ever when profiled.
                for _ in range(10):
                    time.sleep(0.001)
    except _PassedError:
        raise TimeoutError(f"took longer than {seconds:g} s") from None
    if sent:
        raise TimeoutError(f"took longer than {seconds:g} s")
