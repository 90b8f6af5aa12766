"""Markdown as chats need it: line ends kept, nothing left out, nothing that could act upon the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, MarkdownElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

from rwkvbatch.text.safe import printable

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

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
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
