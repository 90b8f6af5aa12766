"""What changed between two replies, word by word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_MAX_WORDS = 4000


@dataclass(frozen=True)
class Piece:
    """A run of text that both have (`same`), or only the first (`gone`) or the second (`new`)."""

    kind: Literal["same", "gone", "new"]
    text: str


def word_diff(before: str, after: str) -> list[Piece]:
    """The pieces that make `before` (same and gone) and `after` (same and new), in reading order.

    Texts of more than 4000 words are not searched: they come as one `gone` and one `new` piece.
    """
    if before == after:
        return [Piece("same", before)] if before else []
    first, second = _WORDS.findall(before), _WORDS.findall(after)
    if max(len(first), len(second)) > _MAX_WORDS:
        return [Piece("gone", before), Piece("new", after)]
    return list(_joined(_pieces(first, second)))


def _pieces(first: list[str], second: list[str]) -> Iterator[Piece]:
    for kind, a_from, a_to, b_from, b_to in SequenceMatcher(
        None, first, second, autojunk=False
    ).get_opcodes():
        if kind == "equal":
            yield Piece("same", "".join(first[a_from:a_to]))
            continue
        if a_to > a_from:
            yield Piece("gone", "".join(first[a_from:a_to]))
        if b_to > b_from:
            yield Piece("new", "".join(second[b_from:b_to]))


def _joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """A lone space between two changes reads better as part of them."""
    gone, new = "", ""
    for piece in pieces:
        if piece.kind == "gone":
            gone += piece.text
        elif piece.kind == "new":
            new += piece.text
        elif piece.text.isspace() and (gone or new):
            gone, new = gone + piece.text, new + piece.text
        else:
            yield from _flushed(gone, new)
            gone, new = "", ""
            yield piece
    yield from _flushed(gone, new)


def _flushed(gone: str, new: str) -> Iterator[Piece]:
    if (gone and not gone.isspace()) or gone != new:
        if gone:
            yield Piece("gone", gone)
        if new:
            yield Piece("new", new)
    elif gone:
        yield Piece("same", gone)
