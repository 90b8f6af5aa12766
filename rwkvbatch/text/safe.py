"""Making untrusted text harmless for a terminal: the one place that decides what may be printed.

Model output, scripts and file names can hold escape sequences that recolour, retitle or reprogram a terminal,
bidirectional overrides that reorder what one reads, and lone surrogates that cannot be encoded at all.
"""

from __future__ import annotations

import unicodedata

_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, *, keep_newlines: bool = True) -> str:
    """`text` with everything that a terminal could act upon made visible as `\\xNN` or `\\uNNNN`.

    Works character by character, so text may be given in pieces: a sequence split over two pieces is as harmless
    as a whole one. Tabs become spaces; newlines are kept or shown.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character, keep_newlines) for character in text)


def _shown(character: str, keep_newlines: bool) -> str:
    if character == "\n":
        return "\n" if keep_newlines else "\\n"
    if character == "\t":
        return "    " if keep_newlines else "\\t"
    # Cc: C0, DEL and C1 controls. Cs: lone surrogates. Zl, Zp: line and paragraph separators.
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI_CONTROLS:
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character
