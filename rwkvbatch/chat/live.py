"""Model text as Markdown, and a text that is drawn while it grows, without flicker or loss.

Only rows that changed are written again, in one write. Rows that are final are not touched again: those of complete
blocks, those that scroll off the screen, and after a change of the window's size all but the last one. (`rich.live`
draws everything again, and cuts or repeats text that is higher than the window.)
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, MarkdownElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

from rwkvbatch.prompt.escaping import printable

# Text that these rules match would vanish or change: tags, entities, backslashes, link definitions, image addresses.
_SILENT_RULES = ["html_block", "html_inline", "entity", "escape", "reference", "image", "lheading", "autolink"]

_MAYBE_ITEM = re.compile(r"\s*(\d+[.)]?|[-+*]?)\s*")
"""A line that may become an item of the list above it as it grows."""


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar = {}


class _CodeBlock(CodeBlock):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(
            str(self.text).rstrip("\n"),
            self.lexer_name,
            theme="ansi_dark",
            background_color="default",
            word_wrap=True,
            padding=(0, 0, 0, 2 if options.max_width > 12 else 0),
        )


class _ListItem(ListItem):
    """Shows the numbers that the model wrote, right or wrong."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _ListItem:
        return cls(f"{token.info}{token.markup}")

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        indent = len(self.mark) + 2
        lines = console.render_lines(self.elements, options.update(width=max(1, options.max_width - indent)))
        style = console.get_style("markdown.item.number", default="none")
        for at, line in enumerate(lines):
            yield Segment(f" {self.mark} " if at == 0 else " " * indent, style)
            yield from line
            yield Segment.line()


class ChatMarkdown(Markdown):
    """Model text as Markdown."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "list_item_open": _ListItem,
    }

    def __init__(self, markup: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = markup
        self.parsed = parse(markup)
        tokens = [*self.parsed]
        while tokens:
            token = tokens.pop()
            tokens += token.children or []
            token.content = printable(token.content)
            if token.type == "softbreak":
                token.type = "hardbreak"


def parse(markup: str) -> list[Token]:
    """The tokens of `markup`; those of blocks have their lines in `map`."""
    parser = MarkdownIt().enable("strikethrough").enable("table").disable(_SILENT_RULES)
    # A line that is not indented ends a list: models write the next paragraph directly below it.
    parser.block.ruler.before("paragraph", "unindented", _is_unindented, {"alt": ["paragraph"]})
    return parser.parse(markup)


def _is_unindented(state: StateBlock, line: int, _end: int, silent: bool) -> bool:
    return silent and 0 <= state.sCount[line] < state.blkIndent


def block_lines(markup: str) -> list[int]:
    """The lines, from 0, with which the blocks of `markup` begin. Only the last block may change as the text grows."""
    done, _, last = markup.rpartition("\n")
    if done and _MAYBE_ITEM.fullmatch(last):
        markup = done
    return [token.map[0] for token in parse(markup) if token.level == 0 and token.nesting >= 0 and token.map]


def open_fence(markup: str) -> str:
    """The opening line of the code block in which `markup` ends, with its line end; empty if there is none."""
    last = next((token for token in reversed(parse(markup)) if token.level == 0 and token.map), None)
    if last is None or last.map is None or last.type != "fence":
        return ""
    opening, *inside = markup.split("\n")[slice(*last.map)]
    closing = inside[-1].strip() if inside else ""
    closed = len(closing) >= len(last.markup) and not closing.strip(last.markup[0])
    return "" if closed else f"{opening}\n"


def thinking_text(text: str) -> Text:
    """The thinking part of a reply."""
    return Text(printable(text), style="dim italic")


def split_thinking(text: str) -> tuple[str | None, str]:
    """The thinking part (None without one) and the answer of a reply that may still grow.

    Text at the end that may become a tag is in neither.
    """
    begun = text.lstrip()
    if not begun.startswith("<think>"):
        return (None, "") if "<think>".startswith(begun) and begun else (None, text)
    inside = begun[len("<think>") :]
    thought, tag, answer = inside.partition("</think>")
    if not tag:
        size = next((size for size in range(7, 0, -1) if inside.endswith("</think>"[:size])), 0)
        return inside[: len(inside) - size], ""
    return thought, answer


_BEGIN_UPDATE, _END_UPDATE = "\x1b[?2026h", "\x1b[?2026l"
"""Synchronized output: terminals show everything between them at once, or ignore them."""


@dataclass(frozen=True)
class Source:
    """How a kind of text is shown.

    Attributes:
        rows: the text for rich.
        block_lines: the lines with which its blocks begin. Blocks are shown apart; only the last one may still change.
        context: what has to precede the text after a given one, when the two are shown apart.
    """

    rows: Callable[[str], RenderableType]
    block_lines: Callable[[str], list[int]]
    context: Callable[[str], str]


MARKDOWN = Source(ChatMarkdown, block_lines, open_fence)
"""Answers."""

THINKING = Source(
    lambda text: thinking_text(text.rstrip("\n")),
    lambda text: [at for at, line in enumerate(text.split("\n")) if at == 0 or line.strip()],
    lambda _text: "",
)
"""Thinking parts."""


class LiveText:
    """One growing text, from the cursor's row down.

    Args:
        console: a terminal.
        size: columns and rows of the terminal, read at each drawing.

    Attributes:
        num_pushed: characters of the text so far.
    """

    def __init__(self, console: Console, source: Source, size: Callable[[], tuple[int, int]] | None = None) -> None:
        self._console = console
        self._source = source
        self._size = size or (lambda: (console.size.width, console.size.height))
        self._context = ""
        self._text = ""
        self._drawn_length = 0
        self._drawn: list[str] = []
        self._status: Text | None = None
        self._width = 0
        self.num_pushed = 0

    def push(self, text: str) -> None:
        """Append `text`; the next `draw` shows it."""
        self.num_pushed += len(text)
        self._text += text

    def draw(self, status: Text | None = None) -> None:
        """Show the text, with `status` in a row below it."""
        width, height = self._size()
        if (width != self._width or height < len(self._drawn)) and self._drawn:
            self._leave_drawn(width)
        self._width = width
        final = self._complete_blocks()
        tail = self._rows(self._text)
        status_rows = [] if status is None else [self._status_row(status)]
        while len(tail) + len(status_rows) > max(height - 1, 2) and self._text:
            cut = self._cut(len(tail))
            final += self._rows(self._text[:cut])
            self._drop(cut)
            tail = self._rows(self._text)
        self._write([*final, *tail, *status_rows])
        self._drawn = [*tail, *status_rows]
        self._status = status
        self._drawn_length = len(self._text)

    def finish(self, *, draw: bool = True) -> None:
        """Go to the next row. Without `draw`, text pushed since the last one is not shown."""
        if draw:
            self.draw()
        if self._drawn:
            self._console.file.write("\n")
        self._console.file.flush()
        self._drawn = []

    def _rows(self, text: str) -> list[str]:
        if not text.strip("\n"):
            return []
        with self._console.capture() as capture:
            # One column stays free: terminals differ in where the cursor is after a full row.
            self._console.print(self._source.rows(self._context + text), width=max(self._width - 1, 1))
        rows = [row.rstrip(" ") for row in capture.get().split("\n")[:-1]]
        # rich puts an empty row before lists; only empty lines of the text count.
        while rows and not rows[0] and not self._context:
            del rows[0]
        return rows

    def _status_row(self, status: Text) -> str:
        clipped = status.copy()
        clipped.truncate(max(self._width - 1, 1), overflow="ellipsis")
        with self._console.capture() as capture:
            self._console.print(clipped, end="", no_wrap=True)
        return capture.get()

    def _complete_blocks(self) -> list[str]:
        """Remove complete blocks from the text and return their rows, with an empty row where the text has one."""
        given = self._context.count("\n")
        starts = [line - given for line in self._source.block_lines(self._context + self._text)]
        lines = self._text.split("\n")
        rows: list[str] = []
        for begin, end in pairwise([0, *(start for start in starts[1:] if start > 0)]):
            block = "".join(f"{line}\n" for line in lines[begin:end])
            rows += self._rows(block)
            rows += [""] if block.endswith("\n\n") else []
            self._drop(len(block))
        return rows

    def _cut(self, num_rows: int) -> int:
        """Where to split the text so that its first part is final: after a line, or between words."""
        end = self._text.rstrip("\n").rfind("\n")
        if end > 0:
            return end + 1
        low = self._longest_below(num_rows, self._text)
        space = self._text.rfind(" ", 0, low)
        return space + 1 if space > 0 else low

    def _drop(self, cut: int) -> None:
        self._context = self._source.context(self._context + self._text[:cut])
        self._text = self._text[cut:]

    def _leave_drawn(self, width: int) -> None:
        """Continue after a change of the window's size, when terminals may have wrapped all rows but the last anew.

        The status row is cleared, and the last row of the text too if it still fits into one row; the text continues
        from its beginning. If it does not fit, it stays and is shown again below.
        """
        rows = self._drawn if self._status is None else self._drawn[:-1]
        last_row = rows[-1:] if self._status is None else self._drawn[-2:]
        cut = self._last_row_start(rows)
        goes = rows and cut is not None and all(Text.from_ansi(row).cell_len <= width for row in last_row)
        # The next output begins in the text's last row, or below it: in the status row, or in a new one.
        up = self._status is not None and goes
        down = self._status is None and not goes
        self._console.file.write("\r" + ("\x1b[A" if up else "") + ("\n" if down else "\x1b[J"))
        self._drop(cut or 0)
        self._drawn, self._drawn_length = [], 0

    def _last_row_start(self, rows: list[str]) -> int | None:
        """Where in the text its last row begins; None when that is unknown, as in a table."""
        drawn = self._text[: self._drawn_length]
        if len(rows) < 2:
            return 0
        low = self._longest_below(len(rows), drawn)
        start = max(drawn.rfind(" ", 0, low), drawn.rfind("\n", 0, low)) + 1
        return start if self._rows(drawn[:start]) == rows[:-1] else None

    def _longest_below(self, num_rows: int, text: str) -> int:
        """The length of the longest beginning of `text` that has fewer than `num_rows` rows."""
        lengths = range(2, len(text))
        return 1 + bisect_left(lengths, num_rows, key=lambda length: len(self._rows(text[:length])))

    def _write(self, rows: list[str]) -> None:
        num_drawn = len(self._drawn)
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(self._drawn, rows, strict=False))))
        if same == len(rows) == num_drawn:
            return
        # The cursor is in the last drawn row.
        if same == num_drawn:
            output = "\r\n" if self._drawn else ""
        else:
            # Clear from the first row that changes; if none follows, go back to the last one that stays.
            up = num_drawn - 1 - same
            output = (f"\x1b[{up}A" if up else "") + "\r\x1b[J" + ("\x1b[A" if 0 < same == len(rows) else "")
        output += "\r\n".join(rows[same:])
        self._console.file.write(f"{_BEGIN_UPDATE}{output}{_END_UPDATE}")
        self._console.file.flush()
