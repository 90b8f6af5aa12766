"""Incremental decoding: text from tokens in whole characters, without stop texts."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Protocol

from rwkvbatch.errors import UsageError

REPLACEMENT = "\ufffd"

# `surrogateescape` maps each undecodable byte to one of these, which no valid UTF-8 decodes to.
_ESCAPED_RUN = re.compile("[\udc80-\udcff]+")


def decode_utf8(data: bytes) -> str:
    """`data` as text; each run of invalid bytes becomes one U+FFFD."""
    return _ESCAPED_RUN.sub(REPLACEMENT, data.decode("utf-8", "surrogateescape"))


class _TokenBytes(Protocol):
    def token_bytes(self, token: int) -> bytes: ...


class Utf8Stream:
    """`decode_utf8` of bytes that arrive in pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._in_invalid_run = False

    def push(self, data: bytes, *, final: bool = False) -> str:
        """The characters that `data` completes; with `final` also an incomplete one."""
        escaped = self._decoder.decode(data, final)
        if not escaped:
            return ""
        text = _ESCAPED_RUN.sub(REPLACEMENT, escaped)
        if self._in_invalid_run and _ESCAPED_RUN.match(escaped):
            text = text[1:]
        self._in_invalid_run = _ESCAPED_RUN.match(escaped[-1]) is not None
        return text


class TextStream:
    """The text of a growing reply, up to its first stop text.

    The stop text that is complete first ends the text (of two that end at the same character, the longer one), wherever
    token borders are. A piece is returned once it can be part of neither an incomplete character nor a stop text.

    Attributes:
        stopped_by: the stop text that ended the reply, or None.

    Raises:
        UsageError: a stop text is empty.
    """

    def __init__(self, tokenizer: _TokenBytes, stops: Sequence[str] = ()) -> None:
        if "" in stops:
            raise UsageError("a stop text must not be empty", hint="remove it")
        self.stopped_by: str | None = None
        self._tokenizer = tokenizer
        self._utf8 = Utf8Stream()
        # Longest first, so that the longest of the stop texts that end at the same character is found.
        self._matchers = [_Matcher(stop) for stop in sorted(set(stops), key=len, reverse=True)]
        self._held = ""
        self._pieces: list[str] = []
        self._ended = False

    @property
    def text(self) -> str:
        """The returned pieces, joined; after `finish` all text of the reply without the stop text."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    @property
    def held(self) -> str:
        """Whole characters not returned yet, because they may begin a stop text."""
        return self._held

    def push(self, token: int) -> str:
        """The text that is certain after `token`; empty after a stop text or `finish`."""
        return "" if self._ended else self._take(self._utf8.push(self._tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """The rest of the text. An incomplete character becomes U+FFFD."""
        if self._ended:
            return ""
        piece = self._take(self._utf8.push(b"", final=True))
        if self.stopped_by is None:
            piece += self._return(self._held)
        self._held, self._ended = "", True
        return piece

    def _take(self, new: str) -> str:
        window = self._held + new
        for at, character in enumerate(new, start=len(self._held) + 1):
            for matcher in self._matchers:
                if matcher.advance(character):
                    self.stopped_by, self._held, self._ended = matcher.text, "", True
                    return self._return(window[: at - len(matcher.text)])
        num_held = max((matcher.num_matched for matcher in self._matchers), default=0)
        self._held = window[len(window) - num_held :]
        return self._return(window[: len(window) - num_held])

    def _return(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece


class _Matcher:
    """Knuth-Morris-Pratt search for one text, a character at a time.

    `num_matched` is the length of the longest prefix of the text that is a suffix of the characters so far.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0
        self._fallback = _borders(text)

    def advance(self, character: str) -> bool:
        """Whether the text is complete with `character`."""
        while self.num_matched and self.text[self.num_matched] != character:
            self.num_matched = self._fallback[self.num_matched - 1]
        if self.text[self.num_matched] == character:
            self.num_matched += 1
        return self.num_matched == len(self.text)


def _borders(text: str) -> list[int]:
    """For each prefix of `text`, the length of its longest proper prefix that is also its suffix."""
    lengths, matched = [0] * len(text), 0
    for at in range(1, len(text)):
        while matched and text[at] != text[matched]:
            matched = lengths[matched - 1]
        if text[at] == text[matched]:
            matched += 1
        lengths[at] = matched
    return lengths
