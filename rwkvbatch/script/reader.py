"""Reads scripts from files and standard input, line by line, within limits."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rwkvbatch.config import MAX_COUNT, ScriptLimits
from rwkvbatch.errors import ScriptError, UsageError, parsing_problem
from rwkvbatch.script.forms import ignored_keys, read_conversation
from rwkvbatch.script.lines import STDIN, SourceLine, parse_line, refuse, shown_path
from rwkvbatch.script.native import Additions, is_plain_text, read_defaults, read_plain_text, text_conversation
from rwkvbatch.script.records import Conversation
from rwkvbatch.script.shape import MAX_ID_LENGTH

_BOM = b"\xef\xbb\xbf"
PAST_LIMITS = 100
MIN_PAST_BYTES = 2**26
"""A bad line may be set aside up to this multiple of `ScriptLimits.max_line_bytes`, or this size if that is more."""

_CHUNK_BYTES = 1 << 20
_NAME_ONE = "name a .jsonl file, or - for standard input"


@dataclass(frozen=True)
class _RawLine:
    """A line without its line end; `data` is only its beginning if it is not `whole`."""

    source: SourceLine
    data: bytes
    whole: bool


@contextmanager
def _opened(path: str) -> Generator[BinaryIO]:
    """The file, or standard input for `-`, which is not closed."""
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 (closed below; only the opening is guarded here)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ScriptError(f"cannot be read: {reason}", path=path, hint=_NAME_ONE) from None
    with file:
        yield file


def _has_end(file: BinaryIO) -> bool:
    """Whether it is a regular file, which can be read to its end without waiting."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def _raw_lines(file: BinaryIO, path: str, max_bytes: int) -> Iterator[_RawLine]:
    """Lines without their line ends, with at most `max_bytes` of a line in memory.

    The rest of a longer line is skipped only when the next line is requested, so that refusing it need not wait.
    """
    most = max(PAST_LIMITS * max_bytes, MIN_PAST_BYTES)
    number = 1
    try:
        while data := file.readline(max_bytes + 2):
            ended = data.endswith(b"\n") or len(data) < max_bytes + 2
            if number == 1:
                data = data.removeprefix(_BOM)
            data = data.removesuffix(b"\n").removesuffix(b"\r")
            yield _RawLine(SourceLine(path, number), data[:max_bytes], len(data) <= max_bytes)
            num_read = len(data)
            while not ended:
                rest = file.readline(_CHUNK_BYTES)
                ended = rest.endswith(b"\n") or not rest
                num_read += len(rest)
                if num_read > most:
                    raise ScriptError(
                        f"the line has no end within {most:,} bytes, so it cannot be set aside",
                        path=shown_path(path),
                        line=number,
                        hint="is this a script? It must have one JSON object a line",
                    )
            number += 1
    except OSError as error:
        raise ScriptError(f"cannot be read: {error.strerror}", path=shown_path(path), line=number) from None


MAX_ARRAY_BYTES = 2**29
"""The most bytes of a `.json` file that holds an array."""


def _lines_of(file: BinaryIO, path: str, max_bytes: int) -> Iterator[_RawLine]:
    """The lines of a file, or the items of the array in a `.json` file, which may also be one object, or lines."""
    if not path.lower().endswith(".json"):
        return _raw_lines(file, path, max_bytes)
    try:
        data = file.read(MAX_ARRAY_BYTES + 1)
    except OSError as error:
        raise ScriptError(f"cannot be read: {error.strerror}", path=path) from None
    begin = data[:_CHUNK_BYTES].removeprefix(_BOM).lstrip()
    if not begin.startswith((b"[", b"{")):
        return _raw_lines(io.BytesIO(data), path, max_bytes)
    if len(data) > MAX_ARRAY_BYTES:
        hint = "write one object a line into a .jsonl file (`jq -c '.[]' FILE`)"
        raise ScriptError(f"is larger than {MAX_ARRAY_BYTES:,} bytes, the most for a .json file", path=path, hint=hint)
    text = data.removeprefix(_BOM).decode("utf-8", "surrogateescape")
    if begin.startswith(b"["):
        return _items(text, path, max_bytes)
    with contextlib.suppress(ValueError, RecursionError):
        whole = text.strip()
        if "\n" in whole and json.JSONDecoder().raw_decode(whole)[1] == len(whole):
            raw = whole.encode("utf-8", "surrogateescape")
            return iter((_RawLine(SourceLine(path, 1), raw[:max_bytes], len(raw) <= max_bytes),))
    return _raw_lines(io.BytesIO(data), path, max_bytes)


_SPACE = re.compile(r"[ \t\r\n]*")


def _items(text: str, path: str, max_bytes: int) -> Iterator[_RawLine]:
    """The items of a JSON array. Each is a line of its own for the reader, at the line where it begins."""
    decoder = json.JSONDecoder()
    line, counted, number = 1, 0, 0

    def place(at: int) -> int:
        nonlocal line, counted
        line += text.count("\n", counted, at)
        counted = at
        return line

    def skip(at: int) -> int:
        found = _SPACE.match(text, at)
        return at if found is None else found.end()

    at = skip(skip(0) + 1)
    while text[at : at + 1] != "]" or number:
        number += 1
        source = SourceLine(path, place(at), number)
        try:
            _, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            refuse(
                SourceLine(path, error.lineno), f"not JSON: {error.msg}", "the file must be one JSON array", error.colno
            )
        except (ValueError, RecursionError) as error:
            refuse(source, f"cannot be read: {parsing_problem(error)}", "remove the item")
        raw = text[at:end].encode("utf-8", "surrogateescape")
        yield _RawLine(source, raw[:max_bytes], len(raw) <= max_bytes)
        at = skip(end)
        if text[at : at + 1] != ",":
            break
        at = skip(at + 1)
    if text[at : at + 1] != "]" or skip(at + 1) != len(text):
        problem = "the array has no end" if at == len(text) else f"expected a comma or `]`, got {text[at : at + 1]!r}"
        refuse(SourceLine(path, place(at)), f"not JSON: {problem}", "the file must be one JSON array and nothing else")


def _whole_text(path: str, max_bytes: int) -> tuple[bytes, bool]:
    """The content of a text file, of which at most `max_bytes` are read, and whether that is all of it."""
    with _opened(path) as file:
        try:
            data = file.read(max_bytes + 1)
        except OSError as error:
            raise ScriptError(f"cannot be read: {error.strerror}", path=path, hint="name a text file") from None
    return data[:max_bytes].removeprefix(_BOM), len(data) <= max_bytes


KEPT_BYTES = 2**16
"""The stored part of a line that is too long and set aside."""

MAX_COPY_LINE_BYTES = 2**31 - 4
"""The longest line of a script's copy in a run directory."""

COUNTED_BYTES = 2**24
"""The most bytes that are read after a bad line, to count further bad lines."""


@dataclass(frozen=True)
class SkippedLine:
    """A bad line that was set aside.

    Attributes:
        raw: its bytes without the line end; only the first `KEPT_BYTES` if it is not `whole`.
        error: why it cannot be used.
    """

    source: SourceLine
    raw: bytes
    whole: bool
    error: ScriptError


@dataclass(frozen=True)
class Script:
    """The conversations of all files.

    Attributes:
        conversations: in the order of the files and their lines.
        ignored: keys that the forms of the lines do not have and that were not read, with the number of lines.
        sha256: hex digest of the conversations' own digests, in order.
        skipped: lines set aside, with `skip_bad` only.
    """

    conversations: tuple[Conversation, ...]
    sha256: str
    skipped: tuple[SkippedLine, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict[str, int])


def read_scripts(paths: Sequence[str], *, limits: ScriptLimits | None = None, skip_bad: bool = False) -> Script:
    """Read all files; `-` is standard input.

    A line without an id gets `line-N`, or `FILE:N` when there are several files.

    Args:
        skip_bad: set bad lines aside instead of raising.

    Raises:
        ScriptError: a file that cannot be read or holds no conversation, and without `skip_bad` the first bad line.
        UsageError: no path, an empty one, or standard input twice.
        MissingExtraError: a check needs an optional dependency that is not installed.
    """
    if not paths or "" in paths:
        raise UsageError("the name of a script is empty" if paths else "no script is given", hint=_NAME_ONE)
    if list(paths).count(STDIN) > 1:
        raise UsageError("standard input (-) can be read only once", hint="give - once")
    reading = Reading(limits or ScriptLimits(), skip_bad, several=len(paths) > 1)
    for path in paths:
        reading.read_file(path)
    digest = hashlib.sha256("".join(found.sha256 for found in reading.conversations).encode("ascii")).hexdigest()
    return Script(tuple(reading.conversations), digest, tuple(reading.skipped), dict(reading.ignored))


def read_copy(file: BinaryIO, path: str) -> tuple[Conversation, ...]:
    """The conversations of a script in the native form that this program wrote, whatever their size.

    Raises:
        ScriptError: it is damaged.
        MissingExtraError: a check needs an optional dependency that is not installed.
    """
    limits = ScriptLimits(max_line_bytes=MAX_COPY_LINE_BYTES, max_turns=MAX_COUNT, max_conversations=MAX_COUNT)
    reading = Reading(limits, skip_bad=False, several=False)
    try:
        for line in _raw_lines(file, path, limits.max_line_bytes):
            reading.read_line(line, Additions(), is_first=False)
    except EOFError as error:
        raise ScriptError(f"is cut short: {error}", path=path) from None
    return tuple(reading.conversations)


@dataclass
class Reading:
    """What has been read so far.

    Attributes:
        several: whether there are several files, so that their names are part of ids.
        documents: read lines as `rwkvbatch score` does: lines of plain text may have further keys.
    """

    limits: ScriptLimits
    skip_bad: bool
    several: bool
    documents: bool = False
    conversations: list[Conversation] = field(default_factory=list[Conversation])
    skipped: list[SkippedLine] = field(default_factory=list[SkippedLine])
    sources: dict[str, SourceLine] = field(default_factory=dict[str, SourceLine])
    ignored: Counter[str] = field(default_factory=Counter[str])

    def read_file(self, path: str) -> None:
        num_before, skipped_before = len(self.conversations), len(self.skipped)
        defaults, is_first = Additions(), True
        with _opened(path) as file:
            lines = _lines_of(file, path, self.limits.max_line_bytes)
            for line in lines:
                if not line.data.strip():
                    continue
                try:
                    defaults = self.read_line(line, defaults, is_first=is_first)
                except ScriptError as error:
                    if not self.skip_bad:
                        others = lines if line.whole and _has_end(file) else None
                        self._hint_at_others(error, others, defaults, num_before)
                        raise
                    self._set_aside(line, error)
                is_first = False
        if len(self.conversations) == num_before:
            message = "holds no conversation"
            if len(self.skipped) > skipped_before:
                message += f" that can be used; its first bad line: {self.skipped[skipped_before].error}"
            raise ScriptError(message, path=shown_path(path), hint="write one JSON object a line; see docs/scripts.md")

    def add_text(self, path: str, name: str) -> None:
        """Add a text file as one conversation with the id `name`; it may be as long as a line of a script."""
        line = _RawLine(SourceLine(path, 1), *_whole_text(path, self.limits.max_line_bytes))
        try:
            text = self._text(line)
            if not text:
                refuse(line.source, "is empty, so there is nothing to score", "leave it out")
            self._keep(text_conversation(name, text, line.source))
        except ScriptError as error:
            if not self.skip_bad:
                raise
            self._set_aside(line, error)

    def read_line(self, line: _RawLine, defaults: Additions, *, is_first: bool) -> Additions:
        """Add the line's conversation; returns the defaults of the lines after it."""
        value = self._parse(line)
        if "defaults" not in value:
            self._add(value, line.source, defaults)
            return defaults
        if not is_first:
            refuse(line.source, "`defaults` may only be the first line of a file", "move it to the top")
        return read_defaults(value, line.source)

    def _hint_at_others(
        self, error: ScriptError, lines: Iterator[_RawLine] | None, defaults: Additions, num_before: int
    ) -> None:
        """Add to the hint of a file's first `error` how many other lines are bad, and how to skip them.

        Args:
            lines: the lines after it, which are read within limits; None if they cannot be read without waiting.
            num_before: the number of conversations before the file.
        """
        bad, is_all = (0, False) if lines is None else self._count_bad(lines, defaults)
        good = len(self.conversations) - num_before
        hints = [error.hint] if error.hint else []
        if bad:
            bad_lines = f"{'' if is_all else 'at least '}{bad:,} more line{'s are' if bad > 1 else ' is'} bad"
            hints.append(f"{bad_lines} in this file" + (f", {good:,} can be used" if is_all else ""))
        if good or not is_all:
            hints.append("--skip-bad sets bad lines aside and runs the others")
        error.hint = "\n  ".join(hints) or None

    def _count_bad(self, lines: Iterator[_RawLine], defaults: Additions) -> tuple[int, bool]:
        """The number of bad `lines`, and whether all were read. Conversations of good lines are added."""
        bad = num_bytes = 0
        try:
            for line in lines:
                num_bytes += len(line.data) + 1
                if num_bytes > COUNTED_BYTES or not line.whole:
                    return bad, False
                try:
                    if line.data.strip():
                        self.read_line(line, defaults, is_first=False)
                except ScriptError:
                    bad += 1
        except (ScriptError, UsageError):  # past a limit, or a missing extra
            return bad, False
        return bad, True

    def _parse(self, line: _RawLine) -> Mapping[str, Any]:
        return parse_line(self._text(line), line.source)

    def _text(self, line: _RawLine) -> str:
        if not line.whole:
            hint = f"split it, or {_raise_limit('max_line_bytes')}"
            refuse(line.source, f"the line is longer than {self.limits.max_line_bytes:,} bytes", hint)
        try:
            return line.data.decode("utf-8")
        except UnicodeDecodeError as error:
            column = len(line.data[: error.start].decode("utf-8", "replace")) + 1
            byte = line.data[error.start]
            refuse(line.source, f"not UTF-8: byte 0x{byte:02x}", "save the file as UTF-8", column)

    def _set_aside(self, line: _RawLine, error: ScriptError) -> None:
        if len(self.skipped) >= self.limits.max_conversations:
            raise UsageError(
                f"{line.source}: more than {self.limits.max_conversations:,} bad lines; the last one: {error}",
                hint=f"is this a script? If it is, {_raise_limit('max_conversations')}",
            )
        raw = line.data if line.whole else line.data[:KEPT_BYTES]
        self.skipped.append(SkippedLine(line.source, raw, line.whole, error))

    def _add(self, value: Mapping[str, Any], source: SourceLine, defaults: Additions) -> None:
        default_id = self._default_id(source)
        if self.documents and is_plain_text(value):
            found = read_plain_text(value, source, default_id, lenient=True)
        else:
            found = read_conversation(value, source, default_id)
            if self.documents and not found.turns[0].plain:
                hint = (
                    'a line is {"text": ...} or {"prompt": ..., "continuation": ...}; `rwkvbatch run` replays scripts'
                )
                refuse(source, "is no text to score", hint)
        self._keep(defaults.apply(found))
        self.ignored.update(ignored_keys(value))

    def _keep(self, found: Conversation) -> None:
        source = found.source
        if len(self.conversations) >= self.limits.max_conversations:
            hint = f"use fewer, or {_raise_limit('max_conversations')}"
            raise UsageError(f"{source}: more than {self.limits.max_conversations:,} conversations", hint=hint)
        if len(found.turns) > self.limits.max_turns:
            message = f"has {len(found.turns):,} turns, more than {self.limits.max_turns:,}"
            refuse(source, message, f"split it, or {_raise_limit('max_turns')}")
        if found.id in self.sources:
            hint = "give one of the two another id, or leave ids out: they must be unique in a run"
            refuse(source, f"the id {found.id!r} was already used at {self.sources[found.id]}", hint)
        self.sources[found.id] = source
        self.conversations.append(found)

    def _default_id(self, source: SourceLine) -> str:
        if not self.several:
            return f"line-{source.line}" if source.item is None else f"item-{source.item}"
        number = source.line if source.item is None else source.item
        named = f"{'stdin' if source.path == STDIN else Path(source.path).name}:{number}"
        return named if named.isprintable() and len(named) <= MAX_ID_LENGTH else f"line-{source.line}"


def _raise_limit(name: str) -> str:
    return f"raise the setting `{name}` (in a --config file, or as RWKVBATCH_{name.upper()})"
