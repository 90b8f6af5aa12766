"""Escaping of untrusted text for terminals, logs of continuous integration, and file names.

Model output, scripts and file names can contain escape sequences that reprogram a terminal, bidirectional overrides
that reorder text, lone surrogates that cannot be encoded, and commands to the service that runs a workflow: GitHub
Actions and Azure Pipelines act upon lines of a job's log (`::add-mask::x`, `##[error]x`, `##vso[task.setvariable]x`).
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Generator

_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

CI_VARIABLES = ("GITHUB_ACTIONS", "TF_BUILD")
"""Environment variables that are set where the log is read for workflow commands."""
# The runners look for `::` at the beginning of a line (after white space) and for `##[` and `##vso[` anywhere. Wrapping
# can put any word at the beginning of a line, so `::` is also cut inside a word if the name of a command follows.
_WORKFLOW_COMMAND = re.compile(
    # Every alternative begins with its letters, so that `re` skips text without them at once.
    r"::(?:(?<!\w::)|(?=add-|debug|echo|endgroup|error|group|internal-|notice|remove-|save-|set-|stop-|warning))"
    r"|##(?:vso)?\[",
    re.IGNORECASE,
)
# The runners compare by culture, which ignores format characters and the marks that choose a variant of a character.
_VARIANT_MARKS = frozenset("\u034f\u180b\u180c\u180d\u180f" + "".join(map(chr, range(0xFE00, 0xFE10))))
CONTEXT = 8
"""How many characters before a piece of text decide how it is escaped."""

_NOT_IN_FILE_NAMES = re.compile(r"[^\w.+=@~-]+")
_MAX_FILE_NAME = 100


def printable(text: str, *, keep_newlines: bool = True, before: str = "", log: bool | None = None) -> str:
    """`text` with every character that a terminal could act upon escaped as `\\xNN` or `\\uNNNN`.

    Tabs become spaces; newlines are kept or escaped. In a log, workflow commands lose a character to an escape as well.

    Args:
        before: for text that is given in pieces, at least the last `CONTEXT` characters of the pieces before this one.
        log: whether the text may get into the log of a workflow, as files do; None where `is_ci_log` says so.
    """
    if is_ci_log() if log is None else log:
        text = _without_commands(text, before, "\\x{:02x}", "\\u{:04x}")
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character, keep_newlines) for character in text)


def printable_json(text: str, *, log: bool | None = None) -> str:
    """A JSON text written by `json.dumps`, with the same meaning, that is safe for a terminal and a workflow's log.

    Characters that a terminal could act upon, and workflow commands, occur only in strings; they become `\\uNNNN`.
    `log` is as for `printable`.
    """
    if is_ci_log() if log is None else log:
        text = _without_commands(text, "", "\\u{:04x}", "\\u{:04x}")
    for character in set(text) - {"\n", "\t"}:
        if _acts(character):
            text = text.replace(character, f"\\u{ord(character):04x}")
    return text


_LINE_SEPARATORS = re.compile("[\x85\u2028\u2029]")


def one_line(text: str) -> str:
    """A JSON text of one line, with the same meaning, that is one line for every reader.

    `str.splitlines` and others also split at U+0085, U+2028 and U+2029, which JSON strings may contain.
    """
    return _LINE_SEPARATORS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_output_is_log = False


@contextlib.contextmanager
def output_as_log(is_log: bool) -> Generator[None]:
    """Whether text that is printed inside may get into the log of a workflow: anything but a terminal may."""
    global _output_is_log
    before, _output_is_log = _output_is_log, is_log
    try:
        yield
    finally:
        _output_is_log = before


def is_ci_log() -> bool:
    """Whether the output may be a log that is read for workflow commands."""
    return _output_is_log or _in_workflow()


def _in_workflow() -> bool:
    return any(os.environ.get(name) for name in CI_VARIABLES)


def _is_ignored(character: str) -> bool:
    """Whether the runners may ignore the character when they look for commands."""
    return not character.isascii() and (unicodedata.category(character) == "Cf" or character in _VARIANT_MARKS)


def _without_commands(text: str, before: str, short: str, long: str) -> str:
    """`text` with the last character of each beginning of a workflow command escaped.

    Args:
        short, long: formats of the escapes of characters below U+0100 and of others.
    """
    whole = before + text
    ignored = "" if whole.isascii() else "".join(filter(_is_ignored, set(whole)))
    # Joiners are a part of many scripts: where no runner is known to read the text they stay, if there is no command.
    if not _in_workflow():
        read = whole
        for character in ignored:
            read = read.replace(character, "")
        if not _WORKFLOW_COMMAND.search(read):
            return text
    cut = {found.end() - 1 for found in _WORKFLOW_COMMAND.finditer(whole)}
    for found in re.finditer(f"[{re.escape(ignored)}]", whole) if ignored else ():
        is_mark = found[0] in _VARIANT_MARKS and unicodedata.category(found[0]) != "Cf"
        if not is_mark or whole[max(0, found.start() - 1) : found.start()].isascii():
            cut.add(found.start())
    parts: list[str] = []
    start = len(before)
    for place in sorted(place for place in cut if place >= start):
        code = ord(whole[place])
        parts += [whole[start:place], short.format(code) if code < 0x100 else _long_escape(code, long)]
        start = place + 1
    return "".join((*parts, whole[start:]))


def _long_escape(code: int, long: str) -> str:
    """The escape of a character beyond U+00FF, as a pair of surrogates where it is beyond U+FFFF."""
    if code < 0x10000:
        return long.format(code)
    return long.format(0xD800 + ((code - 0x10000) >> 10)) + long.format(0xDC00 + ((code - 0x10000) & 0x3FF))


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


_HIDDEN = re.compile("[\x7f-\x9f" + "".join(sorted(_BIDI_CONTROLS)) + "]")


def without_hidden(text: str) -> str:
    """`text` with DEL, 8-bit and bidirectional controls escaped, which no text needs and no reader sees."""
    return _HIDDEN.sub(lambda found: _shown(found[0], keep_newlines=True), text)


def _shown(character: str, keep_newlines: bool) -> str:
    if character == "\n":
        return "\n" if keep_newlines else "\\n"
    if character == "\t":
        return "    " if keep_newlines else "\\t"
    if _acts(character):
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character
