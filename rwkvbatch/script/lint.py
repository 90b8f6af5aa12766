"""Traps of RWKV prompts: things in a script that can be replayed, and that are probably not meant."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rwkvbatch.config import HistoryMode
from rwkvbatch.script.records import Conversation, SourceLine


@dataclass(frozen=True)
class LintWarning:
    """A trap, where it is, and the way out.

    Attributes:
        code: stable name, see `docs/scripts.md`.
        source: file and line. conversation: its id.
        place: the message in it: `system`, `turn 2` or `turn 2 reference`.
        message: what is there. hint: what to do.
    """

    code: str
    source: SourceLine
    conversation: str
    place: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.source}: {self.code}: {self.place}: {self.message} ({self.hint})"


@dataclass(frozen=True)
class _Trap:
    """`found` gives what is wrong with a content, or None. `only_in` limits it to kinds of message."""

    code: str
    found: Callable[[str], str | None]
    hint: str
    only_in: tuple[str, ...] = ("system", "user", "reference")


_ROLE = r"(?:User|Assistant|System|Human|Bot|Question|Answer)"
_BLANK_LINE = re.compile(r"\n[ \t]*\r?\n")
_ROLE_LINE = re.compile(rf"(?:^|\n)\s*({_ROLE}\s?:)")
_ROLE_END = re.compile(rf"(?:^|\n)\s*{_ROLE}:[ \t]*$")


def lint(conversations: Iterable[Conversation], *, history: HistoryMode = "own") -> tuple[LintWarning, ...]:
    """All traps, in the order of the conversations and their messages. Never raises: errors are the reader's.

    Args:
        history: the mode that the script is to be run in; with `gold`, turns without a reference are told too.
    """
    return tuple(warning for conversation in conversations for warning in _lint_one(conversation, history))


def _lint_one(conversation: Conversation, history: HistoryMode) -> Iterator[LintWarning]:
    def warn(code: str, place: str, message: str, hint: str) -> LintWarning:
        return LintWarning(code, conversation.source, conversation.id, place, message, hint)

    for kind, place, content in _contents(conversation):
        for trap in _TRAPS:
            if kind in trap.only_in and (message := trap.found(content)) is not None:
                yield warn(trap.code, place, message, trap.hint)
    for number, turn in enumerate(conversation.turns[:-1]):
        if history == "gold" and turn.reference is None:
            hint = "with `--history gold` the next turn sees the model's own reply; add an assistant message"
            yield warn("missing-reference", f"turn {number}", "has no reference reply", hint)


def _contents(conversation: Conversation) -> Iterator[tuple[str, str, str]]:
    if conversation.system is not None:
        yield "system", "system", conversation.system
    for number, turn in enumerate(conversation.turns):
        yield "user", f"turn {number}", turn.user
        if turn.reference is not None:
            yield "reference", f"turn {number} reference", turn.reference


def _empty(text: str) -> str | None:
    return None if text.strip() else "is empty"


def _blank_line(text: str) -> str | None:
    found = _BLANK_LINE.search(text.strip())
    return None if found is None else "has a blank line inside"


def _carriage_return(text: str) -> str | None:
    return f"has {text.count(chr(13))} carriage returns" if "\r" in text else None


def _outer_space(text: str) -> str | None:
    return "begins or ends with white space" if text.strip() and text != text.strip() else None


def _role_end(text: str) -> str | None:
    found = _ROLE_END.search(text)
    return (
        None if found is None else f"ends with {found[0].strip()!r}" + (" and a space" if text[-1:].isspace() else "")
    )


def _role_line(text: str) -> str | None:
    found = _ROLE_LINE.search(text)
    return None if found is None or _ROLE_END.search(text) else f"has a line that begins with {found[1]!r}"


def _control_character(text: str) -> str | None:
    found = next((c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\r\t"), None)
    return None if found is None else f"has the control character U+{ord(found):04X}"


_TRAPS = (
    _Trap("empty-content", _empty, "write a text; an empty message is read as one", ("user", "system")),
    _Trap("empty-reference", _empty, "write a text, or remove the message", ("reference",)),
    _Trap("carriage-return", _carriage_return, r"write \n; \r\n is read as \n, other carriage returns stay"),
    _Trap(
        "blank-line",
        _blank_line,
        "a blank line ends a message in RWKV's format; it is read as one line end",
        ("user", "system"),
    ),
    _Trap("blank-line-in-reference", _blank_line, "no reply can have one: it ends there", ("reference",)),
    _Trap("outer-space", _outer_space, "it is not read; remove it"),
    _Trap("role-space", _role_end, "the template writes the role itself; remove it"),
    _Trap("role-line", _role_line, "the model takes it for a new message; quote it or write it otherwise"),
    _Trap("control-character", _control_character, "remove it"),
)
"""The traps of contents. `docs/scripts.md` lists them; a test holds the two together."""
