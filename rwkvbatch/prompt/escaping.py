"""Making untrusted text harmless: the one place that decides what may be printed, or be part of a file name.

Model output, scripts and file names can hold escape sequences that recolour, retitle or reprogram a terminal,
bidirectional overrides that reorder what one reads, and lone surrogates that cannot be encoded at all.
"""

from __future__ import annotations

import re
import unicodedata

_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_NOT_IN_FILE_NAMES = re.compile(r"[^\w.+=@~-]+")
_MAX_FILE_NAME = 100


def printable(text: str, *, keep_newlines: bool = True) -> str:
    """`text` with everything that a terminal could act upon made visible as `\\xNN` or `\\uNNNN`.

    Works character by character, so text may be given in pieces: a sequence split over two pieces is as harmless
    as a whole one. Tabs become spaces; newlines are kept or shown.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character, keep_newlines) for character in text)


def printable_json(text: str) -> str:
    """A JSON text, written by `json.dumps`, that means the same and that a terminal may show.

    What a terminal could act upon stands only in strings there, and becomes `\\uNNNN`.
    """
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(
        f"\\u{ord(character):04x}" if character not in "\n\t" and _acts(character) else character for character in text
    )


def file_name(text: str) -> str:
    """What of `text` may be part of a file's name: letters, digits and a few signs, no dot in front, not too long.

    The names are for people, so two texts may have the same one; never empty.
    """
    found = _NOT_IN_FILE_NAMES.sub("-", text)
    # A file system counts bytes.
    found = found.encode("utf-8")[:_MAX_FILE_NAME].decode("utf-8", "ignore")
    return found.lstrip(".-~") or "unnamed"


def _acts(character: str) -> bool:
    # Cc: C0, DEL and C1 controls. Cs: lone surrogates. Zl, Zp: line and paragraph separators.
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI_CONTROLS


def _shown(character: str, keep_newlines: bool) -> str:
    if character == "\n":
        return "\n" if keep_newlines else "\\n"
    if character == "\t":
        return "    " if keep_newlines else "\\t"
    if _acts(character):
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character
