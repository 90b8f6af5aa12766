"""Makes `docs/chat.svg`, a session with the bundled model as its terminal shows it.

python -m tests.chat.record docs/chat.svg
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

from tests.chat.terminal import Terminal

LINES = ("My name is Ada.", "What is my name?", "/branch side", "What is 3 plus 4?", "/tokens 4", "/switch main")
COLUMNS, ROWS = 84, 34
COLORS = {"brown": "yellow", "default": None}


def styled(cell: pyte.screens.Char) -> Style:
    """The style of a terminal cell for rich."""
    names = {name: COLORS.get(name, name) for name in (cell.fg, cell.bg)}

    def color(name: str) -> str | None:
        known = names[name]
        if known is None or len(known) != 6 or known.isalpha():
            return known.replace("bright", "bright_") if known else None
        return f"#{known}"

    return Style(
        color=color(cell.fg), bgcolor=color(cell.bg), bold=cell.bold, italic=cell.italics, reverse=cell.reverse
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        arguments = ["-m", "rwkvbatch", "chat", "--transcript", f"{directory}/t.jsonl"]
        with Terminal(arguments, columns=COLUMNS, rows=ROWS, environment={"XDG_STATE_HOME": directory}) as terminal:
            terminal.wait_for_prompt()
            for line in LINES:
                terminal.submit(line)
            screen = terminal.screen
            console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
            for row in range(ROWS):
                text = Text()
                for column in range(COLUMNS):
                    cell = screen.buffer[row][column]
                    text.append(cell.data, styled(cell))
                console.print(text, soft_wrap=True)
    Path(sys.argv[1]).write_text(console.export_svg(title="rwkvbatch chat"), encoding="utf-8")


if __name__ == "__main__":
    main()
