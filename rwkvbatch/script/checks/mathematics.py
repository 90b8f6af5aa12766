"""Compares mathematical expressions by math-verify, in a process of its own with limits of time and memory.

Replies are not trusted: `9^{9^{9^9}}` keeps sympy busy in one call that nothing in the same process can end, and takes
all memory. So a child process compares, one pair at a time, and is replaced when it does not reply in time.

math-verify: https://github.com/huggingface/Math-Verify (`parse` and `verify`; the order of the two arguments matters).
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from importlib import import_module
from typing import Any

DEADLINE_S = 10.0
"""Seconds for one comparison."""
START_DEADLINE_S = 120.0
"""Seconds for the child to start: it imports sympy."""
MAX_MEMORY = 4 << 30
"""Bytes of address space that the child may use."""
MAX_LENGTH = 2_000
"""The most characters of an expression that is compared whole."""


class Equality(enum.Enum):
    """What a comparison found."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNREADABLE = "unreadable"
    """The text holds no expression."""
    GAVE_UP = "gave up"


# math_verify has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

_lock = threading.Lock()
_child: _Child | None = None


@lru_cache(maxsize=4096)
def compare(expected: str, text: str, *, whole: bool = True) -> Equality:
    """Whether the expression in `text` equals `expected`; the same pair is compared once.

    Args:
        whole: `text` is one expression in LaTeX; otherwise the last one in it is looked for.
    """
    global _child
    with _lock:
        if _child is None or _child.owner != os.getpid():
            _child = _Child()
        found = _child.ask({"expected": expected, "text": text[-MAX_LENGTH:] if whole else text, "whole": whole})
        if found is None:
            _child.end()
            _child = None
    return Equality.GAVE_UP if found is None else Equality(found)


class _Child:
    """The process that compares."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        call = "from rwkvbatch.script.checks.mathematics import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", call], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, whose end the child notices
        )  # fmt: skip
        atexit.register(self.end)
        self._started = False

    def ask(self, question: dict[str, Any]) -> str | None:
        """The result of one comparison; None if there is none in time."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            if not self._started and self._line(START_DEADLINE_S) is None:
                return None
            self._started = True
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        except OSError:
            return None
        return self._line(DEADLINE_S)

    def _line(self, seconds: float) -> str | None:
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], seconds)
        # The child writes a line in one call, which is far shorter than a pipe's buffer.
        return stdout.readline().decode().strip() or None if ready else None

    def end(self) -> None:
        """End the process."""
        if self.owner != os.getpid():
            return
        atexit.unregister(self.end)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


def serve() -> None:
    """Compare what comes on standard input, in lines of JSON, until it ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what libraries print is no result
    logging.disable(logging.CRITICAL)
    import_module("math_verify")
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        signal.alarm(int(DEADLINE_S) + 5)  # of a child whose parent is gone
        found = _compared(**json.loads(line))
        signal.alarm(0)
        print(found.value, file=out, flush=True)


def _compared(expected: str, text: str, whole: bool) -> Equality:
    library: Any = import_module("math_verify")
    try:
        wanted = library.parse(_as_latex(expected), parsing_timeout=None)
        found = library.parse(_as_latex(text) if whole else text, parsing_timeout=None)
        if not wanted or not found:
            return Equality.UNREADABLE
        return Equality.EQUAL if library.verify(wanted, found, timeout_seconds=None) else Equality.DIFFERENT
    except MemoryError:
        return Equality.GAVE_UP
    except Exception:  # a parser of text that a model wrote
        return Equality.UNREADABLE


def _as_latex(text: str) -> str:
    return text if "$" in text or "\\[" in text or "\\(" in text else f"${text}$"
