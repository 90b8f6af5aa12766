"""Renders model text as Markdown, and draws a growing text on a terminal without flicker or loss.

Only rows that changed are written again, in one write. Final rows are not written again: rows of complete blocks, rows
that scroll off the screen, and after a change of the window's size all rows but the last one. (`rich.live` draws all
rows again, and cuts or repeats text that is higher than the window.)
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import ClassVar, cast

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, MarkdownElement, TableElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

from rwkvbatch.chat.app import without_truncation
from rwkvbatch.prompt.escaping import printable

# These rules would remove or change text: tags, entities, backslashes, link definitions, image addresses.
_DISABLED_RULES = ["html_block", "html_inline", "entity", "escape", "reference", "image", "lheading", "autolink"]

_POSSIBLE_ITEM = re.compile(r"\s*(\d+[.)]?|[-+*]?)\s*")
"""A line that may become an item of the list above it when more text follows."""


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


class _Table(TableElement):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            yield without_truncation(cast("RenderableType", table))


class _ListItem(ListItem):
    """A list item with the number that the model wrote, which Markdown would replace by a consecutive one."""

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
        for index, line in enumerate(lines):
            yield Segment(f" {self.mark} " if index == 0 else " " * indent, style)
            yield from line
            yield Segment.line()


class ChatMarkdown(Markdown):
    """Model text as Markdown."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "table_open": _Table,
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
    """The tokens of `markup`. Those of blocks have the range of their lines in `map`."""
    parser = MarkdownIt().enable("strikethrough").enable("table").disable(_DISABLED_RULES)
    # An unindented line ends a list, because models write the next paragraph directly below a list.
    parser.block.ruler.before("paragraph", "unindented", _is_unindented, {"alt": ["paragraph"]})
    return parser.parse(markup)


def _is_unindented(state: StateBlock, line: int, _end: int, silent: bool) -> bool:
    return silent and 0 <= state.sCount[line] < state.blkIndent


def block_lines(markup: str) -> list[int]:
    """The first lines, from 0, of the blocks of `markup`. Only the last block may change when more text follows."""
    earlier_lines, _, last_line = markup.rpartition("\n")
    if earlier_lines and _POSSIBLE_ITEM.fullmatch(last_line):
        markup = earlier_lines
    return [token.map[0] for token in parse(markup) if token.level == 0 and token.nesting >= 0 and token.map]


def open_fence(markup: str) -> str:
    """The first line, with its line end, of the unclosed code block at the end of `markup`; empty if there is none."""
    last = next((token for token in reversed(parse(markup)) if token.level == 0 and token.map), None)
    if last is None or last.map is None or last.type != "fence":
        return ""
    first_line, *block_lines = markup.split("\n")[slice(*last.map)]
    last_line = block_lines[-1].strip() if block_lines else ""
    is_closed = len(last_line) >= len(last.markup) and not last_line.strip(last.markup[0])
    return "" if is_closed else f"{first_line}\n"


def thinking_text(text: str) -> Text:
    """The thinking part of a reply as styled text."""
    return Text(printable(text), style="dim italic")


def split_thinking(text: str) -> tuple[str | None, str]:
    """The thinking part (None if there is none) and the answer of a reply that may be incomplete.

    Text at the end that may be the beginning of a tag is in neither part.
    """
    stripped = text.lstrip()
    if not stripped.startswith("<think>"):
        return (None, "") if "<think>".startswith(stripped) and stripped else (None, text)
    after_tag = stripped[len("<think>") :]
    thought, closing_tag, answer = after_tag.partition("</think>")
    if not closing_tag:
        partial_tag = next((size for size in range(7, 0, -1) if after_tag.endswith("</think>"[:size])), 0)
        return after_tag[: len(after_tag) - partial_tag], ""
    return thought, answer


_BEGIN_UPDATE, _END_UPDATE = "\x1b[?2026h", "\x1b[?2026l"
"""Control sequences of synchronized output: a terminal shows all output between them at once, or ignores them."""


@dataclass(frozen=True)
class Source:
    """How a kind of text is rendered. Complete blocks are rendered separately from the text after them.

    Attributes:
        rows: makes a rich renderable of a text.
        block_lines: gives the first lines of a text's blocks, of which only the last block may still change.
        context: gives the text that must precede the continuation of a text if that is rendered separately.
    """

    rows: Callable[[str], RenderableType]
    block_lines: Callable[[str], list[int]]
    context: Callable[[str], str]


MARKDOWN = Source(ChatMarkdown, block_lines, open_fence)
"""For answers."""

THINKING = Source(
    lambda text: thinking_text(text.rstrip("\n")),
    lambda text: [index for index, line in enumerate(text.split("\n")) if index == 0 or line.strip()],
    lambda _text: "",
)
"""For thinking parts."""


class LiveText:
    """A growing text, drawn from the cursor's row downwards.

    Args:
        console: the console of a terminal.
        size: gives the columns and rows of the terminal; called at each drawing.

    Attributes:
        num_pushed: number of characters of the text so far.
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
            self._handle_resize(width)
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
        """Move the cursor to the next row. Without `draw`, text pushed since the last drawing is not shown."""
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
            # One column stays free, because the cursor's position after a full row differs between terminals.
            self._console.print(self._source.rows(self._context + text), width=max(self._width - 1, 1))
        rows = [row.rstrip(" ") for row in capture.get().split("\n")[:-1]]
        # rich puts an empty row before lists; only empty lines of the text are shown.
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
        """Remove complete blocks from the text. Returns their rows, with an empty row where the text has one."""
        num_context_lines = self._context.count("\n")
        starts = [line - num_context_lines for line in self._source.block_lines(self._context + self._text)]
        lines = self._text.split("\n")
        rows: list[str] = []
        for start, end in pairwise([0, *(start for start in starts[1:] if start > 0)]):
            block = "".join(f"{line}\n" for line in lines[start:end])
            rows += self._rows(block)
            rows += [""] if block.endswith("\n\n") else []
            self._drop(len(block))
        return rows

    def _cut(self, num_rows: int) -> int:
        """The length of the part of the text that becomes final: up to the end of a line, or else of a word."""
        line_end = self._text.rstrip("\n").rfind("\n")
        if line_end > 0:
            return line_end + 1
        max_length = self._longest_below(num_rows, self._text)
        space = self._text.rfind(" ", 0, max_length)
        return space + 1 if space > 0 else max_length

    def _drop(self, cut: int) -> None:
        """Remove the first `cut` characters, which are final."""
        self._context = self._source.context(self._context + self._text[:cut])
        self._text = self._text[cut:]

    def _handle_resize(self, width: int) -> None:
        """Continue after a change of the window's size, after which terminals may have wrapped all rows but the last.

        The status row is cleared. The last row of the text is cleared too if it fits into one row of the new width, and
        the text continues from its beginning. If it does not fit, it stays and is shown again below.
        """
        rows = self._drawn if self._status is None else self._drawn[:-1]
        last_rows = rows[-1:] if self._status is None else self._drawn[-2:]
        cut = self._last_row_start(rows)
        clears_last_row = rows and cut is not None and all(Text.from_ansi(row).cell_len <= width for row in last_rows)
        # The next output begins in the text's last row if that is cleared, otherwise in the row below it: the status
        # row, or a new row.
        moves_up = self._status is not None and clears_last_row
        moves_down = self._status is None and not clears_last_row
        self._console.file.write("\r" + ("\x1b[A" if moves_up else "") + ("\n" if moves_down else "\x1b[J"))
        self._drop(cut or 0)
        self._drawn, self._drawn_length = [], 0

    def _last_row_start(self, rows: list[str]) -> int | None:
        """The index in the text at which its last row begins; None if it is unknown, as in a table."""
        drawn_text = self._text[: self._drawn_length]
        if len(rows) < 2:
            return 0
        max_length = self._longest_below(len(rows), drawn_text)
        start = max(drawn_text.rfind(" ", 0, max_length), drawn_text.rfind("\n", 0, max_length)) + 1
        return start if self._rows(drawn_text[:start]) == rows[:-1] else None

    def _longest_below(self, num_rows: int, text: str) -> int:
        """The length of the longest prefix of `text` that has fewer than `num_rows` rows."""
        lengths = range(2, len(text))
        return 1 + bisect_left(lengths, num_rows, key=lambda length: len(self._rows(text[:length])))

    def _write(self, rows: list[str]) -> None:
        """Replace the drawn rows by `rows`, from the first one that differs."""
        num_drawn = len(self._drawn)
        num_same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(self._drawn, rows, strict=False))))
        if num_same == len(rows) == num_drawn:
            return
        # The cursor is in the last drawn row.
        if num_same == num_drawn:
            output = "\r\n" if self._drawn else ""
        else:
            # Clear from the first row that differs; if no new row follows, move up to the last row that stays.
            num_up = num_drawn - 1 - num_same
            output = (f"\x1b[{num_up}A" if num_up else "") + "\r\x1b[J"
            output += "\x1b[A" if 0 < num_same == len(rows) else ""
        output += "\r\n".join(rows[num_same:])
        self._console.file.write(f"{_BEGIN_UPDATE}{output}{_END_UPDATE}")
        self._console.file.flush()
