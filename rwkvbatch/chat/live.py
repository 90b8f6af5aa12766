"""A text that grows at the bottom of the terminal, drawn so that nothing flickers and nothing is lost.

Only the rows that changed are written again, in one write. Rows that can no longer change are left behind and never
touched; so are those that would leave the screen, and when the window changes all but the last one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, MarkdownElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

from rwkvbatch.prompt.escaping import printable

# What these rules match would vanish or change: tags, entities, backslashes, link definitions, addresses of pictures.
_SILENT_RULES = (
    "html_block",
    "html_inline",
    "entity",
    "escape",
    "reference",
    "image",
    "lheading",
    "autolink",
)


_MAYBE_ITEM = re.compile(r"\s*(\d+[.)]?|[-+*]?)\s*")
"""A line that may become an item of the list above it."""


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar = {}


class _CodeBlock(CodeBlock):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip("\n")
        indent = 2 if options.max_width > 12 else 0
        yield Syntax(
            code,
            self.lexer_name,
            theme="ansi_dark",
            background_color="default",
            word_wrap=True,
            padding=(0, 0, 0, indent),
        )


class _ListItem(ListItem):
    """Numbers are shown as they were written: a list that counts wrongly is worth seeing."""

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
        for token in _all_tokens(self.parsed):
            token.content = printable(token.content)
            if token.type == "softbreak":
                token.type = "hardbreak"


def parse(markup: str) -> list[Token]:
    """The tokens of `markup`; those of blocks say which lines they stand for (`map`)."""
    parser = MarkdownIt().enable("strikethrough").enable("table").disable(list(_SILENT_RULES))
    # A line that is not indented ends a list: models write what follows right below it.
    parser.block.ruler.before("paragraph", "unindented", _is_unindented, {"alt": ["paragraph"]})
    return parser.parse(markup)


def _is_unindented(state: StateBlock, line: int, _end: int, silent: bool) -> bool:
    return silent and 0 <= state.sCount[line] < state.blkIndent


def block_lines(markup: str) -> list[int]:
    """The lines, counted from 0, with which the blocks of `markup` begin. Only the last one may change as it grows."""
    done, _, last = markup.rpartition("\n")
    if done and _MAYBE_ITEM.fullmatch(last):
        markup = done
    return [token.map[0] for token in parse(markup) if token.level == 0 and token.nesting >= 0 and token.map]


def open_fence(markup: str) -> str:
    """The line that opened a code block in whose middle `markup` ends, with its line end; empty if there is none."""
    lines = markup.split("\n")
    for token in reversed(parse(markup)):
        if token.level == 0 and token.map is not None:
            if token.type != "fence":
                return ""
            opening = lines[token.map[0]]
            closing = lines[token.map[1] - 1].strip() if token.map[1] - token.map[0] > 1 else ""
            closed = len(closing) >= len(token.markup) and not closing.strip(token.markup[0])
            return "" if closed else f"{opening}\n"
    return ""


def thinking_text(text: str) -> Text:
    """The thinking part of a reply."""
    return Text(printable(text), style="dim italic")


def split_thinking(text: str) -> tuple[str | None, str]:
    """The thinking part of a reply that may be still growing, and its answer.

    The first is None when there is none. What may become a tag is in neither.
    """
    begun = text.lstrip()
    if not begun.startswith("<think>"):
        return (None, "") if "<think>".startswith(begun) and begun else (None, text)
    inside = begun[len("<think>") :]
    thought, tag, answer = inside.partition("</think>")
    if not tag:
        for size in range(min(len("</think>") - 1, len(inside)), 0, -1):
            if "</think>".startswith(inside[-size:]):
                return inside[:-size], ""
    return thought, answer


def _all_tokens(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _all_tokens(token.children or [])


_BEGIN_UPDATE, _END_UPDATE = "\x1b[?2026h", "\x1b[?2026l"
"""Terminals that know these show everything between them at once; others pass over them."""


class Source(Protocol):
    """How a kind of text is shown."""

    def rows(self, text: str) -> RenderableType: ...
    def block_lines(self, text: str) -> list[int]:
        """The lines with which parts begin that are shown apart; all but the last can no longer change."""
        ...

    def context(self, text: str) -> str:
        """What has to stand before the text that follows `text`, when they are shown one after the other."""
        ...


class MarkdownSource:
    """The answer."""

    def rows(self, text: str) -> RenderableType:
        return ChatMarkdown(text)

    def block_lines(self, text: str) -> list[int]:
        return block_lines(text)

    def context(self, text: str) -> str:
        return open_fence(text)


class ThinkingSource:
    """What was thought before it."""

    def rows(self, text: str) -> RenderableType:
        return thinking_text(text.rstrip("\n"))

    def block_lines(self, text: str) -> list[int]:
        return [at for at, line in enumerate(text.split("\n")) if at == 0 or line.strip()]

    def context(self, text: str) -> str:
        return ""


class LiveText:
    """One growing text, from the cursor's row down.

    Args:
        console: a terminal.
        source: how the text is shown.
        size: columns and rows of the terminal, asked at each drawing.
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

    def push(self, text: str) -> None:
        """Add to the text; it is shown by the next `draw`."""
        self._text += text

    def draw(self, status: Text | None = None) -> None:
        """Show the text so far, with `status` in a row of its own below."""
        width, height = self._size()
        if (width != self._width or height < len(self._drawn)) and self._drawn:
            self._leave_drawn(width)
        self._width = width
        left_behind = self._leave_blocks()
        tail = self._rows(self._text)
        status_rows = [] if status is None else [self._status_row(status)]
        while len(tail) + len(status_rows) > max(height - 1, 2) and self._text:
            cut = self._cut(len(tail))
            left_behind += self._rows(self._text[:cut])
            self._drop(cut)
            tail = self._rows(self._text)
        self._write([*left_behind, *tail, *status_rows])
        self._drawn = [*tail, *status_rows]
        self._status = status
        self._drawn_length = len(self._text)

    def finish(self) -> None:
        """Show all of it and go to the next row."""
        self.draw()
        self.finish_as_drawn()

    def finish_as_drawn(self) -> None:
        """Leave what is there and go to the next row."""
        if self._drawn:
            self._console.file.write("\n")
        self._console.file.flush()
        self._drawn = []

    def _rows(self, text: str) -> list[str]:
        if not text.strip("\n"):
            return []
        with self._console.capture() as capture:
            # A column is left free, or terminals differ in where the cursor is after a full row.
            self._console.print(self._source.rows(self._context + text), width=max(self._width - 1, 1))
        rows = [row.rstrip(" ") for row in capture.get().split("\n")[:-1]]
        # Lists come with an empty row before them; the text alone says where such rows are.
        while rows and not rows[0] and not self._context:
            del rows[0]
        return rows

    def _status_row(self, status: Text) -> str:
        clipped = status.copy()
        clipped.truncate(max(self._width - 1, 1), overflow="ellipsis")
        with self._console.capture() as capture:
            self._console.print(clipped, end="", no_wrap=True)
        return capture.get()

    def _leave_blocks(self) -> list[str]:
        """The rows of whole blocks, which are no longer part of the text; an empty row where the text has one."""
        given = self._context.count("\n")
        starts = [line - given for line in self._source.block_lines(self._context + self._text)]
        lines = self._text.split("\n")
        rows: list[str] = []
        begun = 0
        for start in (line for line in starts[1:] if line > 0):
            block = "".join(f"{line}\n" for line in lines[begun:start])
            rows += self._rows(block)
            rows += [""] if block.endswith("\n\n") else []
            self._drop(len(block))
            begun = start
        return rows

    def _cut(self, num_rows: int) -> int:
        """Where to part the text so that its first part can be left behind: after a line, or between words."""
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
        """The window changed, and only the last rows are known to be where they were: above them, terminals wrap anew.

        The status goes, and so does the last row of the text where it still fits into one; the text goes on from its
        beginning. Where it does not fit, it stays and comes again below.
        """
        rows = self._drawn if self._status is None else self._drawn[:-1]
        last_row = rows[-1:] if self._status is None else self._drawn[-2:]
        cut = self._last_row_start(rows)
        goes = rows and cut is not None and all(Text.from_ansi(row).cell_len <= width for row in last_row)
        # What comes next begins in the text's last row, or below it: in the row of the status, or in a new one.
        up = self._status is not None and goes
        down = self._status is None and not goes
        self._console.file.write("\r" + ("\x1b[A" if up else "") + ("\n" if down else "\x1b[J"))
        self._drop(cut or 0)
        self._drawn, self._drawn_length = [], 0

    def _last_row_start(self, rows: list[str]) -> int | None:
        """Where in the text its last row begins; None when no place in it can be told, as in a table."""
        drawn = self._text[: self._drawn_length]
        if len(rows) < 2:
            return 0
        low = self._longest_below(len(rows), drawn)
        start = max(drawn.rfind(" ", 0, low), drawn.rfind("\n", 0, low)) + 1
        return start if self._rows(drawn[:start]) == rows[:-1] else None

    def _longest_below(self, num_rows: int, text: str) -> int:
        """The length of the longest beginning of `text` that takes fewer than `num_rows` rows."""
        low, high = 1, len(text)
        while high - low > 1:
            middle = (low + high) // 2
            if len(self._rows(text[:middle])) < num_rows:
                low = middle
            else:
                high = middle
        return low

    def _write(self, rows: list[str]) -> None:
        same = 0
        for old, new in zip(self._drawn, rows, strict=False):
            if old != new:
                break
            same += 1
        if same == len(rows) == len(self._drawn):
            return
        output = ""
        if self._drawn:
            # The cursor is in the last drawn row; go to the first one that changes, or to the last one that stays.
            up = len(self._drawn) - 1 - min(same, len(self._drawn) - 1)
            output = (f"\x1b[{up}A" if up else "") + "\r"
            if same == len(self._drawn):
                output += "\r\n" if rows[same:] else ""
            elif same == len(rows):
                # Rows went away: clear from here, and go back to the last one that stays.
                output += "\x1b[J" + ("\x1b[A" if same else "")
            if same < len(self._drawn) and same < len(rows):
                output += "\x1b[J"
        output += "\r\n".join(rows[same:])
        self._console.file.write(f"{_BEGIN_UPDATE}{output}{_END_UPDATE}")
        self._console.file.flush()
