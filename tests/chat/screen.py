"""A file that draws on an emulated terminal (pyte), whose lines and scrollback can be read."""

from __future__ import annotations

import io

import pyte
from rich.console import Console


class ScreenFile(io.StringIO):
    """A text file whose writes go to a terminal of the given size."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.5)
        self.screen.set_mode(pyte.modes.LNM)
        self.stream = pyte.Stream(self.screen)
        self.written: list[str] = []
        self.ended_full: frozenset[str] = frozenset()

    def write(self, text: str) -> int:
        self.written += [text] if text else []
        self.stream.feed(text.replace("\x1b[?2026h", "").replace("\x1b[?2026l", ""))
        return len(text)

    def reflow(self, columns: int, rows: int) -> None:
        """Resize as most terminals do: text that no longer fits into a row continues in the next one."""
        lines = [line.rstrip() for line in self.lines()]
        # pyte does not know whether a full row was wrapped or ended there.
        self.ended_full = frozenset(line[-columns:] for line in lines if line and len(line) % columns == 0)
        text = "\r\n".join(lines)
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.5)
        self.screen.set_mode(pyte.modes.LNM)
        self.stream = pyte.Stream(self.screen)
        self.stream.feed(text)

    def lines(self) -> list[str]:
        """All lines with the scrollback, without trailing spaces and trailing empty lines.

        A full row continues in the next one, because the terminal wraps lines.
        """
        columns = self.screen.columns
        past = ["".join(row[column].data for column in range(columns)) for row in self.screen.history.top]
        lines, is_full = list[str](), False
        for row in (row.rstrip() for row in (*past, *self.screen.display)):
            lines[-1:] = [lines[-1] + row] if is_full else [*lines[-1:], row]
            is_full = len(row) == columns and row not in self.ended_full
        return "\n".join(lines).rstrip("\n").split("\n")

    def console(self) -> Console:
        return Console(
            file=self,
            force_terminal=True,
            width=self.screen.columns,
            height=self.screen.lines,
            color_system="truecolor",
            highlight=False,
        )
