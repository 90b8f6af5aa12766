"""Compares mathematical expressions by math-verify, in a child process with limits of time and memory.

Replies are not trusted: sympy evaluates `9^{9^{9^9}}` in one call that takes all memory and that nothing in the same
process can interrupt. Therefore a child process compares one pair at a time, and is replaced if it exceeds the limits.

math-verify: https://github.com/huggingface/Math-Verify (`parse` and `verify`; the order of the two arguments matters).
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import json
import logging
import os
import re
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
"""Time limit for one comparison."""
START_DEADLINE_S = 120.0
"""Time limit for the start of the child process, which imports sympy."""
MAX_MEMORY = 4 << 30
"""Limit of the child's address space, in bytes."""
MAX_LENGTH = 2_000
"""Number of characters of an expression that are compared."""


class Equality(enum.Enum):
    """Result of a comparison."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNREADABLE = "unreadable"
    """The text has no expression that can be read."""
    GAVE_UP = "gave up"


# math_verify has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

_DELIMITER = re.compile(r"(?<!\\)(?:\$|\\[\[(])")
_lock = threading.Lock()
_child: _Child | None = None


@lru_cache(maxsize=4096)
def compare(expected: str, text: str, *, whole: bool = True) -> Equality:
    """Whether the expression in `text` equals `expected`. Results are cached.

    Args:
        whole: whether `text` is one expression in LaTeX; otherwise the last expression in it is used.
    """
    global _child
    with _lock:
        if _child is None or _child.owner != os.getpid():
            _child = _Child()
        result = _child.ask({"expected": expected, "text": text[-MAX_LENGTH:] if whole else text, "whole": whole})
        if result is None:
            _child.end()
            _child = None
    return Equality.GAVE_UP if result is None else Equality(result)


class _Child:
    """The child process that compares, see `serve`."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        call = "from rwkvbatch.script.checks.mathematics import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", call], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C interrupts only the parent; the child ends with it
        )  # fmt: skip
        atexit.register(self.end)
        self._started = False

    def ask(self, question: dict[str, Any]) -> str | None:
        """The result of one comparison; None if there is none within the time limit."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            if not self._started and self._read_line(START_DEADLINE_S) is None:
                return None
            self._started = True
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        except OSError:
            return None
        return self._read_line(DEADLINE_S)

    def _read_line(self, timeout_s: float) -> str | None:
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], timeout_s)
        # `readline` does not block: the child writes a line in one call, and it is far shorter than a pipe's buffer.
        return stdout.readline().decode().strip() or None if ready else None

    def end(self) -> None:
        """Kill the process, unless it belongs to the process from which this one was forked."""
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
    """Answer the questions on standard input, one JSON object a line, until its end."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # so that the output of libraries does not mix with results
    logging.disable(logging.CRITICAL)
    import_module("math_verify")
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        signal.alarm(int(DEADLINE_S) + 5)  # ends this process even if the parent is gone
        result = _compared(**json.loads(line))
        signal.alarm(0)
        print(result.value, file=out, flush=True)


def _compared(expected: str, text: str, whole: bool) -> Equality:
    library: Any = import_module("math_verify")
    try:
        gold = library.parse(_as_latex(expected), parsing_timeout=None)
        answer = library.parse(_as_latex(text) if whole else text, parsing_timeout=None)
        if not gold or not answer:
            return Equality.UNREADABLE
        return Equality.EQUAL if library.verify(gold, answer, timeout_seconds=None) else Equality.DIFFERENT
    except MemoryError:
        return Equality.GAVE_UP
    except Exception:  # any exception, because the parsed text is written by a model
        return Equality.UNREADABLE


def _as_latex(text: str) -> str:
    """`text` as a formula, unless it has formulas between delimiters; neither `\\$` nor `\\\\[2pt]` is one."""
    return text if _DELIMITER.search(text) else f"${text}$"
