"""Escaping of untrusted text for terminals, logs of continuous integration, and file names.

Model output, scripts and file names can contain escape sequences that reprogram a terminal, bidirectional overrides
that reorder text, lone surrogates that cannot be encoded, and commands to the service that runs a workflow: GitHub
Actions and Azure Pipelines execute commands in a job's log (`::add-mask::x`, `##[error]x`, `##vso[task.setvariable]x`).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import unicodedata
from collections.abc import Generator, Iterable, Sequence
from typing import Any, cast

_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

CI_VARIABLES = ("GITHUB_ACTIONS", "TF_BUILD")
"""Environment variables that GitHub Actions and Azure Pipelines set."""
# The runners look for `::` at the beginning of a line (after white space) and for `##[` and `##vso[` anywhere. Wrapping
# can put any word at the beginning of a line, so `::` matches everywhere, but within a word only if the name of a
# command follows.
_WORKFLOW_COMMAND = re.compile(
    # Every alternative begins with its letters, so that `re` skips text without them at once.
    r"::(?:(?<!\w::)|(?=add-|debug|echo|endgroup|error|group|internal-|notice|remove-|save-|set-|stop-|warning))"
    r"|##(?:vso)?\[",
    re.IGNORECASE,
)
# The runners compare strings by culture, which ignores format characters and variation selectors.
_VARIANT_MARKS = frozenset("\u034f\u180b\u180c\u180d\u180f" + "".join(map(chr, range(0xFE00, 0xFE10))))
CONTEXT = 8
"""The number of characters before a piece of text that its escaping can depend on."""

_NOT_IN_FILE_NAMES = re.compile(r"[^\w.+=@~-]+")
_MAX_FILE_NAME = 100


def printable(text: str, *, keep_newlines: bool = True, before: str = "", log: bool | None = None) -> str:
    """`text` with every character that a terminal could interpret escaped as `\\xNN` or `\\uNNNN`.

    Tabs become spaces; newlines are kept or escaped. In a log, one character of each workflow command is escaped too.

    Args:
        before: if `text` is one of several pieces, at least the last `CONTEXT` characters of the text before it.
        log: whether the text may get into a workflow's log, as the text of files may; None for what `is_ci_log` says.
    """
    if is_ci_log() if log is None else log:
        text = _without_commands(text, before, "\\x{:02x}", "\\u{:04x}")
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character, keep_newlines) for character in text)


def finite(value: Any) -> Any:
    """A JSON value with null in place of the numbers that are not finite, which JSON does not have."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: finite(item) for key, item in cast("dict[Any, Any]", value).items()}
        case list() | tuple():
            return [finite(item) for item in cast("list[Any]", value)]
        case _:
            return value


def printable_json(text: str, *, log: bool | None = None) -> str:
    """JSON from `json.dumps` in an equivalent form that is safe for a terminal and a workflow's log.

    Characters that a terminal could interpret and workflow commands occur only in strings, where they can be escaped as
    `\\uNNNN`. `log` is as for `printable`.
    """
    if is_ci_log() if log is None else log:
        text = _without_commands(text, "", "\\u{:04x}", "\\u{:04x}")
    for character in set(text) - {"\n", "\t"}:
        if _is_control(character):
            text = text.replace(character, f"\\u{ord(character):04x}")
    return text


_LINE_SEPARATORS = re.compile("[\x85\u2028\u2029]")


def one_line(text: str) -> str:
    """A line of JSON in an equivalent form that every reader takes as one line.

    `str.splitlines` and others also split at U+0085, U+2028 and U+2029, which JSON strings may contain.
    """
    return _LINE_SEPARATORS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


_output_is_log = False


@contextlib.contextmanager
def output_as_log(is_log: bool) -> Generator[None]:
    """Make `is_ci_log` true within the context if `is_log` is, as for any output that is not a terminal."""
    global _output_is_log
    previous, _output_is_log = _output_is_log, is_log
    try:
        yield
    finally:
        _output_is_log = previous


def is_ci_log() -> bool:
    """Whether the output may get into a log in which a runner looks for workflow commands."""
    return _output_is_log or _in_workflow()


def _in_workflow() -> bool:
    return any(os.environ.get(name) for name in CI_VARIABLES)


def _is_ignored(character: str) -> bool:
    """Whether the runners may ignore the character when they look for commands."""
    return not character.isascii() and (unicodedata.category(character) == "Cf" or character in _VARIANT_MARKS)


def _without_commands(text: str, before: str, short: str, long: str) -> str:
    """`text` with the last character of the marker that begins a workflow command (`::`, `##[`, `##vso[`) escaped.

    Characters that the runners ignore are escaped too, except variation selectors after a non-ASCII character, which
    are ordinary text.

    Args:
        before: the text before `text`, which is not part of the result.
        short: the format of the escapes of characters below U+0100.
        long: the format of the escapes of other characters.
    """
    combined = before + text
    ignored = "" if combined.isascii() else "".join(filter(_is_ignored, set(combined)))
    # Many writing systems need joiners, so they are kept if no runner is known to read the text and it has no command.
    if not _in_workflow():
        without_ignored = combined
        for character in ignored:
            without_ignored = without_ignored.replace(character, "")
        if not _WORKFLOW_COMMAND.search(without_ignored):
            return text
    positions = {match.end() - 1 for match in _WORKFLOW_COMMAND.finditer(combined)}
    for match in re.finditer(f"[{re.escape(ignored)}]", combined) if ignored else ():
        is_mark = match[0] in _VARIANT_MARKS and unicodedata.category(match[0]) != "Cf"
        if not is_mark or combined[max(0, match.start() - 1) : match.start()].isascii():
            positions.add(match.start())
    parts: list[str] = []
    start = len(before)
    for position in sorted(position for position in positions if position >= start):
        code = ord(combined[position])
        parts += [combined[start:position], short.format(code) if code < 0x100 else _long_escape(code, long)]
        start = position + 1
    return "".join((*parts, combined[start:]))


def _long_escape(code: int, long: str) -> str:
    """The escape of a character beyond U+00FF; two escapes, of a surrogate pair, for one beyond U+FFFF."""
    if code < 0x10000:
        return long.format(code)
    return long.format(0xD800 + ((code - 0x10000) >> 10)) + long.format(0xDC00 + ((code - 0x10000) & 0x3FF))


def file_name(text: str) -> str:
    """`text` reduced to a safe part of a file name: letters, digits and a few signs, no leading dot, limited length.

    The name is never empty. Different texts may have the same name.
    """
    name = _NOT_IN_FILE_NAMES.sub("-", text)
    # File systems limit the number of bytes, not of characters.
    name = name.encode("utf-8")[:_MAX_FILE_NAME].decode("utf-8", "ignore")
    return name.lstrip(".-~") or "unnamed"


def _is_control(character: str) -> bool:
    # Cc: C0, DEL and C1 controls. Cs: lone surrogates. Zl, Zp: line and paragraph separators.
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI_CONTROLS


_HIDDEN = re.compile("[\x7f-\x9f" + "".join(sorted(_BIDI_CONTROLS)) + "]")


def without_hidden(text: str) -> str:
    """`text` with DEL, 8-bit and bidirectional controls escaped: they are invisible, and no text needs them."""
    return _HIDDEN.sub(lambda match: _shown(match[0], keep_newlines=True), text)


def _shown(character: str, keep_newlines: bool) -> str:
    if character == "\n":
        return "\n" if keep_newlines else "\\n"
    if character == "\t":
        return "    " if keep_newlines else "\\t"
    if _is_control(character):
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


def html_table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in HTML for notebooks, of texts that may have any characters."""

    from html import escape

    def row(tag: str, texts: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(printable(text))}</{tag}>" for text in texts) + "</tr>"

    body = "".join(row("td", texts) for texts in rows)
    head = f"<thead>{row('th', header)}</thead>"
    return f"<table><caption>{escape(printable(caption))}</caption>{head}<tbody>{body}</tbody></table>"
