"""Python programs in a pseudo-terminal whose screen can be read."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pexpect
import pyte

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30.0
LEAVE_S = 10.0
PROMPT = "›"


class Terminal:
    """Runs a Python program with `arguments` in a terminal of the given size."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        columns: int = 80,
        rows: int = 24,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.5)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        values = {
            **os.environ,
            "TERM": "xterm-256color",
            "COLORTERM": "",
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        }
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            if name not in (environment or {}):
                values.pop(name, None)
        self.process = pexpect.spawn(
            sys.executable, ["-u", *arguments], dimensions=(rows, columns), env=values, cwd=str(ROOT), timeout=TIMEOUT_S
        )
        # Answers of the terminal to requests such as that for the position of the cursor.
        self.screen.write_process_input = self.process.send

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        self.process.close(force=True)

    def leave(self) -> None:
        """Stop the reply and leave with Ctrl-D, because a killed program writes no coverage data."""
        end_s = time.monotonic() + LEAVE_S
        while self.process.isalive() and time.monotonic() < end_s:
            self.process.send("\x03\x04")
            for _ in range(10):
                self.read()

    @property
    def lines(self) -> list[str]:
        """All rows with the scrollback, without trailing spaces."""
        past = [
            "".join(row[column].data for column in range(self.screen.columns)).rstrip()
            for row in self.screen.history.top
        ]
        return [*past, *(row.rstrip() for row in self.screen.display)]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def send(self, text: str) -> None:
        self.process.send(text)

    def wait(self, condition: Callable[[], bool], description: str) -> None:
        """Read until `condition` holds."""
        end_s = time.monotonic() + TIMEOUT_S
        while not condition():
            while not self.read() and self.process.isalive() and time.monotonic() < end_s:
                pass
            assert time.monotonic() < end_s, f"waited for {description}; the screen:\n{self.text}"

    def wait_for(self, text: str) -> None:
        self.wait(lambda: text in self.text, repr(text))

    def wait_for_prompt(self) -> None:
        """Wait until an empty input line is the last one above the status line."""
        self.wait(self._at_prompt, "the prompt")

    def submit(self, text: str) -> None:
        """Type a line and wait until it has been executed."""
        num_prompts = self.num_prompts
        self.send(text + "\r")
        self.wait(lambda: self.num_prompts > num_prompts and self._at_prompt(), f"the prompt after {text!r}")

    @property
    def num_prompts(self) -> int:
        return sum(line.startswith(PROMPT) for line in self.lines)

    def _at_prompt(self) -> bool:
        shown = [line for line in self.screen.display if line.strip()]
        return len(shown) >= 2 and shown[-2].rstrip() == PROMPT and " · turn " in shown[-1]

    def read(self) -> bool:
        """Read and draw available output, waiting up to 0.05 s; returns whether there was any."""
        try:
            data = self.process.read_nonblocking(65536, timeout=0.05)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return False
        self.raw += data
        self.stream.feed(data.replace(b"\x1b[?2026h", b"").replace(b"\x1b[?2026l", b""))
        return True

    def resize(self, columns: int, rows: int) -> None:
        self.process.setwinsize(rows, columns)
        self.screen.resize(rows, columns)

    def wait_for_end(self) -> int | None:
        self.wait(lambda: not self.process.isalive(), "the end")
        self.read()
        return self.process.exitstatus
