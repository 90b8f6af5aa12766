"""Reads scripts: the conversations of files and of standard input, line by line, within limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rwkvbatch.config import MAX_COUNT, ScriptLimits
from rwkvbatch.errors import ScriptError, UsageError
from rwkvbatch.script.checks.functions import using_functions
from rwkvbatch.script.forms import ignored_keys, read_conversation
from rwkvbatch.script.lines import STDIN, SourceLine, parse_line, refuse, shown_path
from rwkvbatch.script.mappings import ARGUMENT, mapping_lines
from rwkvbatch.script.native import Additions, is_plain_text, read_defaults, read_plain_text, text_conversation
from rwkvbatch.script.raw_lines import (
    NAME_ONE_FILE,
    RawLine,
    has_end,
    opened,
    read_lines,
    read_lines_or_items,
    read_text,
)
from rwkvbatch.script.records import Conversation
from rwkvbatch.script.shape import MAX_ID_LENGTH

KEPT_BYTES = 2**16
"""Number of bytes that are kept of a line that is too long and set aside."""

_WIDEST_LIMITS = ScriptLimits(max_line_bytes=2**31 - 4, max_turns=MAX_COUNT, max_conversations=MAX_COUNT)
"""Limits of a script that a run has read already, with its own limits."""

COUNTED_BYTES = 2**24
"""Number of bytes that are read after the first bad line to count further bad lines."""


@dataclass(frozen=True)
class SkippedLine:
    """A bad line that was set aside.

    Attributes:
        raw: the line's bytes without the line end; only the first `KEPT_BYTES` if it is not `whole`.
        error: the reason why the line cannot be used.
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
        skipped: lines that were set aside; only with `skip_bad`.
        ignored: keys that do not belong to the forms of the lines and were not read, with the number of lines.
    """

    conversations: tuple[Conversation, ...]
    skipped: tuple[SkippedLine, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict[str, int])


def read_scripts(
    sources: Sequence[str | Mapping[str, Any]], *, limits: ScriptLimits | None = None, skip_bad: bool = False
) -> Script:
    """Read all files and conversations.

    A line without an id gets `line-N`, or `FILE:N` when there are several files.

    Args:
        sources: paths of files, of which `-` is standard input; and conversations in any form that a line may have, of
            which adjacent ones are read as the lines of one file.
        skip_bad: set bad lines aside instead of raising.

    Raises:
        ScriptError: a file cannot be read or contains no conversation, or a line is bad and `skip_bad` is not set.
        UsageError: no path, an empty path, or a path or standard input twice.
        MissingExtraError: a check needs an optional dependency that is not installed.
    """
    paths = [source for source in sources if isinstance(source, str)]
    if not sources or "" in paths:
        raise UsageError("the name of a script is empty" if sources else "no script is given", hint=NAME_ONE_FILE)
    refuse_repeated(paths)
    parts = _parts(sources)
    reader = ScriptReader(limits or ScriptLimits(), skip_bad, has_several_files=len(parts) > 1)
    for part in parts:
        if isinstance(part, str):
            reader.read_file(part)
        else:
            reader.read_mappings(part)
    return reader.script()


def _parts(sources: Sequence[str | Mapping[str, Any]]) -> list[str | list[tuple[int, Mapping[str, Any]]]]:
    """The paths, and the adjacent conversations as lists, with the index of each."""
    parts: list[str | list[tuple[int, Mapping[str, Any]]]] = []
    for index, source in enumerate(sources):
        if isinstance(source, str):
            parts.append(source)
        elif parts and isinstance(parts[-1], list):
            parts[-1].append((index, source))
        else:
            parts.append([(index, source)])
    return parts


def refuse_repeated(paths: Sequence[str]) -> None:
    """Raise `UsageError` if a path or standard input is given twice."""
    if list(paths).count(STDIN) > 1:
        raise UsageError("standard input (-) can be read only once", hint="give - once")
    seen: set[Path] = set()
    for path in paths:
        full_path = Path(path).absolute()
        if path != STDIN and full_path in seen:
            raise UsageError(f"{path} is given twice", hint="name each file once")
        seen.add(full_path)


def read_copy(file: BinaryIO, path: str) -> tuple[Conversation, ...]:
    """The conversations of a script's copy, which this program wrote in the native form; their size is not limited.

    Checks that are functions have an `AbsentRule`, since the functions are not in the copy.

    Raises:
        ScriptError: the copy is damaged.
        MissingExtraError: a check needs an optional dependency that is not installed.
    """
    reader = ScriptReader(_WIDEST_LIMITS, skip_bad=False, has_several_files=False)
    with using_functions(None):
        for line in read_lines(file, path, _WIDEST_LIMITS.max_line_bytes):
            reader.read_line(line, Additions(), is_first=False)
    return tuple(reader.conversations)


@dataclass
class ScriptReader:
    """Reads files of a script one after the other and collects their conversations.

    Attributes:
        has_several_files: whether there are several files, so that ids made from line numbers have the file's name.
        documents: whether lines of plain text may have further keys, as in `rwkvbatch score`.
        conversations, skipped, ignored: see `Script`.
        sources: by id, the line of each conversation.
    """

    limits: ScriptLimits
    skip_bad: bool
    has_several_files: bool
    documents: bool = False
    conversations: list[Conversation] = field(default_factory=list[Conversation])
    skipped: list[SkippedLine] = field(default_factory=list[SkippedLine])
    sources: dict[str, SourceLine] = field(default_factory=dict[str, SourceLine])
    ignored: Counter[str] = field(default_factory=Counter[str])

    def script(self) -> Script:
        """All that has been read."""
        return Script(tuple(self.conversations), tuple(self.skipped), dict(self.ignored))

    def read_file(self, path: str) -> None:
        """Add the conversations of a file; raises as `read_scripts`."""
        with opened(path) as file:
            lines = read_lines_or_items(file, path, self.limits.max_line_bytes)
            self._read_lines(lines, path, lambda line: line.whole and has_end(file))

    def read_mappings(self, mappings: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Add conversations of a program, as the lines of one file; raises as `read_scripts`.

        Args:
            mappings: with the index of each in the argument.
        """
        self._read_lines(mapping_lines(mappings, self.limits.max_line_bytes), ARGUMENT, lambda _: True)

    def _read_lines(self, lines: Iterator[RawLine], path: str, can_count: Callable[[RawLine], bool]) -> None:
        """Add the conversations of a file's lines.

        Args:
            can_count: whether the lines after a bad one can be read without waiting.
        """
        num_before, skipped_before = len(self.conversations), len(self.skipped)
        defaults, is_first = Additions(), True
        for line in lines:
            if not line.data.strip():
                continue
            try:
                defaults = self.read_line(line, defaults, is_first=is_first)
            except ScriptError as error:
                if not self.skip_bad:
                    self._add_hint(error, lines if can_count(line) else None, defaults, num_before)
                    raise
                self._set_aside(line, error)
            is_first = False
        if len(self.conversations) == num_before:
            message = "contains no conversation"
            if len(self.skipped) > skipped_before:
                message += f" that can be used; its first bad line: {self.skipped[skipped_before].error}"
            raise ScriptError(message, path=shown_path(path), hint="write one JSON object a line; see docs/scripts.md")

    def add_text(self, path: str, name: str) -> None:
        """Add a text file as one conversation with the id `name`. Its length limit is that of a line of a script."""
        line = read_text(path, self.limits.max_line_bytes)
        try:
            text = self._text(line)
            if not text:
                refuse(line.source, "is empty, so there is nothing to score", "leave it out")
            self._add(text_conversation(name, text, line.source))
        except ScriptError as error:
            if not self.skip_bad:
                raise
            self._set_aside(line, error)

    def read_line(self, line: RawLine, defaults: Additions, *, is_first: bool) -> Additions:
        """Add the line's conversation. Returns the defaults of the lines after it."""
        value = parse_line(self._text(line), line.source)
        if "defaults" not in value:
            self._read_conversation(value, line.source, defaults)
            return defaults
        if not is_first:
            refuse(line.source, "`defaults` may only be the first line of a file", "move it to the top")
        return read_defaults(value, line.source)

    def _add_hint(
        self, error: ScriptError, lines: Iterator[RawLine] | None, defaults: Additions, num_before: int
    ) -> None:
        """Add to the hint of a file's first `error` how many further lines are bad, and how to skip them.

        Args:
            lines: the lines after the bad one; None if they cannot be read without waiting.
            num_before: number of conversations before the file.
        """
        num_bad, is_complete = (0, False) if lines is None else self._count_bad(lines, defaults)
        num_good = len(self.conversations) - num_before
        hints = [error.hint] if error.hint else []
        if num_bad:
            count = f"{num_bad:,}" if is_complete else f"at least {num_bad:,}"
            line, place = ("line", "file") if error.line is not None else ("conversation", "list")
            more_lines = f"{count} more {line}{'s are' if num_bad > 1 else ' is'} bad in this {place}"
            hints.append(more_lines + (f", {num_good:,} can be used" if is_complete else ""))
        if num_good or not is_complete:
            switch = "--skip-bad of `run`, `score` and `script convert`" if error.line is not None else "skip_bad=True"
            hints.append(f"{switch} sets bad lines aside and takes the others")
        error.hint = "\n  ".join(hints) or None

    def _count_bad(self, lines: Iterator[RawLine], defaults: Additions) -> tuple[int, bool]:
        """The number of bad lines in the next `COUNTED_BYTES`, and whether these are all lines of the file.

        Adds the conversations of the good lines.
        """
        num_bad = num_bytes = 0
        try:
            for line in lines:
                num_bytes += len(line.data) + 1
                if num_bytes > COUNTED_BYTES or not line.whole:
                    return num_bad, False
                try:
                    if line.data.strip():
                        self.read_line(line, defaults, is_first=False)
                except ScriptError:
                    num_bad += 1
        except (ScriptError, UsageError):  # a limit is exceeded, or an extra is missing
            return num_bad, False
        return num_bad, True

    def _text(self, line: RawLine) -> str:
        """The decoded line; refuses a line that is too long, not UTF-8, or has NUL bytes."""
        if line.error is not None:
            raise line.error
        if not line.whole:
            hint = f"split it, or {_raise_limit('max_line_bytes')}"
            refuse(line.source, f"the line is longer than {self.limits.max_line_bytes:,} bytes", hint)
        try:
            text = line.data.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"not UTF-8: byte 0x{line.data[error.start]:02x}"
            hint = next(
                (hint for magic, hint in _MAGIC.items() if line.data.startswith(magic)), "save the file as UTF-8"
            )
            refuse(line.source, problem, hint, _column(line.data, error.start))
        if "\0" in text:  # UTF-16 of ASCII characters is valid UTF-8
            refuse(line.source, "a NUL byte: is it UTF-16?", _FROM_UTF_16, text.index("\0") + 1)
        return text

    def _set_aside(self, line: RawLine, error: ScriptError) -> None:
        if len(self.skipped) >= self.limits.max_conversations:
            raise UsageError(
                f"{line.source}: more than {self.limits.max_conversations:,} bad lines; the last one: {error}",
                hint=f"is this a script? If it is, {_raise_limit('max_conversations')}",
            )
        raw = line.data if line.whole else line.data[:KEPT_BYTES]
        self.skipped.append(SkippedLine(line.source, raw, line.whole, error))

    def _read_conversation(self, value: Mapping[str, Any], source: SourceLine, defaults: Additions) -> None:
        default_id = self._default_id(source)
        if self.documents and is_plain_text(value):
            conversation = read_plain_text(value, source, default_id, lenient=True)
        else:
            conversation = read_conversation(value, source, default_id)
            if self.documents and not conversation.turns[0].plain:
                hint = (
                    'a line is {"text": ...} or {"prompt": ..., "continuation": ...}; `rwkvbatch run` replays scripts'
                )
                refuse(source, "is not a text to score", hint)
        self._add(defaults.apply(conversation))
        if not self.documents:
            self.ignored.update(ignored_keys(value))

    def _add(self, conversation: Conversation) -> None:
        """Add a conversation; refuses one that exceeds the limits or has an id that was used before."""
        source = conversation.source
        if len(self.conversations) >= self.limits.max_conversations:
            hint = f"use fewer, or {_raise_limit('max_conversations')}"
            raise UsageError(f"{source}: more than {self.limits.max_conversations:,} conversations", hint=hint)
        if len(conversation.turns) > self.limits.max_turns:
            message = f"has {len(conversation.turns):,} turns, more than {self.limits.max_turns:,}"
            refuse(source, message, f"split it, or {_raise_limit('max_turns')}")
        if conversation.id in self.sources:
            hint = "give one of the two another id, or leave ids out: they must be unique in a run"
            refuse(source, f"the id {conversation.id!r} was already used at {self.sources[conversation.id]}", hint)
        self.sources[conversation.id] = source
        self.conversations.append(conversation)

    def _default_id(self, source: SourceLine) -> str:
        """The id of a conversation without one."""
        if not self.has_several_files:
            return f"line-{source.line}" if source.item is None else f"item-{source.item}"
        number = source.line if source.item is None else source.item
        file = "python" if source.index is not None else "stdin" if source.path == STDIN else Path(source.path).name
        name = f"{file}:{number}"
        return name if name.isprintable() and len(name) <= MAX_ID_LENGTH else f"line-{source.line}"


_FROM_UTF_16 = "save the file as UTF-8, without NUL bytes (UTF-16: `iconv -f UTF-16 -t UTF-8 FILE`)"

_MAGIC = {
    b"\xff\xfe": _FROM_UTF_16,
    b"\xfe\xff": _FROM_UTF_16,
    b"\x28\xb5\x2f\xfd": "decompress the file (`zstd -d FILE`); only gzip is read as it is",
    b"\xfd7zXZ": "decompress the file (`xz -d FILE`); only gzip is read as it is",
}
"""Hints about files that are not text in UTF-8, by the bytes with which their first line begins."""


def _column(data: bytes, index: int) -> int:
    """The number of the character at the byte `index` of a line, from 1."""
    return len(data[:index].decode("utf-8", "replace")) + 1


def _raise_limit(name: str) -> str:
    """The end of a hint: how to raise a limit."""
    return f"raise the setting `{name}` (RWKVBATCH_{name.upper()}, or in a --config file of `run` and `score`)"
