"""Decoding of UTF-8 and of a growing reply, up to its first stop text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence

from rwkvbatch.errors import UsageError

REPLACEMENT = "\ufffd"

# `surrogateescape` maps each undecodable byte to one of these characters; valid UTF-8 never decodes to them.
_ESCAPED_RUN = re.compile("[\udc80-\udcff]+")


def decode_utf8(data: bytes) -> str:
    """`data` as text; each run of invalid bytes becomes one U+FFFD."""
    return _ESCAPED_RUN.sub(REPLACEMENT, data.decode("utf-8", "surrogateescape"))


class Utf8Stream:
    """`decode_utf8` of bytes that arrive in pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._in_invalid_run = False
        self._at_boundary = True  # neither in an invalid run nor in an incomplete character

    def push(self, data: bytes, *, final: bool = False) -> str:
        """The characters that are complete after `data`; with `final`, also U+FFFD for an incomplete one."""
        if self._at_boundary and data.isascii():
            return data.decode("ascii")
        escaped = self._decoder.decode(data, final)
        text = _ESCAPED_RUN.sub(REPLACEMENT, escaped)
        if escaped:
            if self._in_invalid_run and _ESCAPED_RUN.match(escaped):
                text = text[1:]
            self._in_invalid_run = _ESCAPED_RUN.match(escaped[-1]) is not None
        self._at_boundary = not self._in_invalid_run and not self._decoder.getstate()[0]
        return text


class TextStream:
    """The text of a growing reply, up to its first stop text.

    The stop text that is complete first ends the reply, wherever the tokens begin and end; of two that end at the same
    character, the longer one counts. Text is returned once it can no longer be part of an incomplete character or of a
    stop text.

    Attributes:
        stopped_by: the stop text that ended the reply, or None.
        held: complete characters that are not returned yet, because a stop text may begin with them.

    Raises:
        UsageError: a stop text is empty.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        if "" in stops:
            raise UsageError("a stop text must not be empty", hint="remove it")
        self.stopped_by: str | None = None
        self.held = ""
        self._token_bytes = token_bytes
        self._utf8 = Utf8Stream()
        self._stops = tuple(stops)
        self._inner_characters = frozenset("".join(stop[:-1] for stop in stops))  # all but each stop text's last one
        self._pieces: list[str] = []
        self._ended = False

    @property
    def text(self) -> str:
        """All text returned so far; after `finish`, the whole reply without the stop text."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def push(self, token: int) -> str:
        """The text that can be returned after `token`; empty after a stop text or `finish`."""
        return "" if self._ended else self._take(self._utf8.push(self._token_bytes(token)))

    def finish(self) -> str:
        """The remaining text. An incomplete character becomes U+FFFD."""
        if self._ended:
            return ""
        piece = self._take(self._utf8.push(b"", final=True))
        if self.stopped_by is None:
            piece += self._return(self.held)
        self.held, self._ended = "", True
        return piece

    def _take(self, new: str) -> str:
        window = self.held + new
        # The smallest is the stop text that ends first, and of several that end there the longest.
        if matches := [(window.index(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in window]:
            end, _, self.stopped_by = min(matches)
            self.held, self._ended = "", True
            return self._return(window[: end - len(self.stopped_by)])
        num_returned = len(window)
        if window and window[-1] in self._inner_characters:
            num_returned -= max(_overlap_length(stop, window) for stop in self._stops)
        self.held = window[num_returned:]
        return self._return(window[:num_returned])

    def _return(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece


def _overlap_length(stop: str, text: str) -> int:
    """The length of the longest proper prefix of `stop` that `text` ends with."""
    length = min(len(stop) - 1, len(text))
    while length and not text.endswith(stop[:length]):
        length -= 1
    return length
