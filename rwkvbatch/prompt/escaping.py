"""Escaping of untrusted text for terminals and file names.

Model output, scripts and file names can contain escape sequences that reprogram a terminal, bidirectional overrides
that reorder text, and lone surrogates that cannot be encoded.
"""

from __future__ import annotations

import re
import unicodedata

_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_NOT_IN_FILE_NAMES = re.compile(r"[^\w.+=@~-]+")
_MAX_FILE_NAME = 100


def printable(text: str, *, keep_newlines: bool = True) -> str:
    """`text` with every character that a terminal could act upon escaped as `\\xNN` or `\\uNNNN`.

    Works character by character, so text may be given in pieces. Tabs become spaces; newlines are kept or escaped.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character, keep_newlines) for character in text)


def printable_json(text: str) -> str:
    """A JSON text written by `json.dumps`, with the same meaning, that is safe for a terminal.

    Characters that a terminal could act upon occur only in strings there, and become `\\uNNNN`.
    """
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(
        f"\\u{ord(character):04x}" if character not in "\n\t" and _acts(character) else character for character in text
    )


def file_name(text: str) -> str:
    """`text` reduced to a safe part of a file name: letters, digits and a few signs, no leading dot, limited length.

    Never empty. Different texts may give the same name.
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
