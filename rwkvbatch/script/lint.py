"""Lint: finds contents of a script that can be replayed but are probably mistakes in RWKV's prompt format."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from rwkvbatch.config import HistoryMode, TurnEnd
from rwkvbatch.errors import listed
from rwkvbatch.script.checks import Combination
from rwkvbatch.script.checks.text import answer_of
from rwkvbatch.script.checks.tool_calls import ToolCall
from rwkvbatch.script.lines import SourceLine, shown
from rwkvbatch.script.records import Check, Conversation
from rwkvbatch.script.tools import calls_in


@dataclass(frozen=True)
class LintWarning:
    """A probable mistake.

    Attributes:
        code: stable name of the rule, see `docs/scripts.md`.
        source: file and line, or the option of a text on the command line.
        conversation: id of the conversation; empty for an option.
        place: the part of the conversation: `system`, `turn 2` or `turn 2 reference`.
        message: description of the mistake.
        hint: what to do.
    """

    code: str
    source: SourceLine | str
    conversation: str
    place: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.source}: {self.code}: {self.place}: {self.message} ({self.hint})"


@dataclass(frozen=True)
class _Rule:
    """A rule for the content of messages.

    Attributes:
        check: returns a description of the mistake in a content, None for none.
        kinds: the kinds of messages to which the rule applies.
    """

    code: str
    check: Callable[[str], str | None]
    hint: str
    kinds: tuple[str, ...] = ("system", "user", "reference")


_REFERENCE = re.compile(r"\breference\b", re.IGNORECASE)
_ROLE = r"(?:User|Assistant|System|Human|Bot|Question|Answer)"
_BLANK_LINE = re.compile(r"\n[ \t]*\r?\n")
_ROLE_LINE = re.compile(rf"(?:^|\n)\s*({_ROLE}\s?:)")
_ROLE_END = re.compile(rf"(?:^|\n)\s*{_ROLE}:[ \t]*$")


def lint(
    conversations: Iterable[Conversation],
    *,
    history: HistoryMode = "own",
    turn_end: TurnEnd = "auto",
    reply_prefix: str = "",
) -> tuple[LintWarning, ...]:
    """All warnings, in the order of the conversations and their messages. Raises no errors, which the reader reports.

    Args:
        history: setting of the run; with `gold`, turns without a reference are reported too.
        turn_end: setting of the run; with `blank-line`, references with a blank line inside are reported too.
        reply_prefix: setting of the run for turns without their own; references that begin otherwise are reported.
    """
    return tuple(
        warning
        for conversation in conversations
        for warning in _lint_one(conversation, history, turn_end, reply_prefix)
    )


def _lint_one(
    conversation: Conversation, history: HistoryMode, turn_end: TurnEnd, reply_prefix: str
) -> Iterator[LintWarning]:
    source, name = conversation.source, conversation.id
    contents = [("system", "system", conversation.system), ("reference", "first message", conversation.greeting)]
    if conversation.greeting is not None:
        message = "an assistant message comes before the first user message"
        hint = "it is read and not scored; models are rarely trained on that: begin with a user message"
        yield LintWarning("begins-with-reply", source, name, "first message", message, hint)
    rules = _RULES if turn_end == "blank-line" else _RULES_WITH_PARAGRAPHS
    for number, turn in enumerate(conversation.turns):
        if turn.plain:  # it is not formatted by a template
            continue
        contents.append(("user", f"turn {number}", turn.user))
        contents.append(("reference", f"turn {number} reference", turn.reference))
    for kind, place, content in contents:
        if content is not None:
            for rule, message in _violations(rules, kind, content):
                yield LintWarning(rule.code, source, name, place, message, rule.hint)
    for number, turn in enumerate(conversation.turns):
        reply_start = str(turn.params.get("reply_prefix", conversation.params.get("reply_prefix", reply_prefix)))
        prefix = reply_start.strip()
        # With a `continuation`, each choice is read together with the prompt before it.
        before, what = (turn.user, "prompt") if turn.plain else (reply_start, "reply prefix")
        if before[-1:] in (" ", "\t") and turn.continuation is None:
            message = f"the {what} ends with a space, so that the text after it begins without one"
            hint = "tokens of words contain the space before them: move it to the text, or leave it to the model"
            yield LintWarning("space-before-text", source, name, f"turn {number}", message, hint)
        if turn.reference is not None and not turn.plain and not turn.reference.strip().startswith(prefix):
            message = f"does not begin with the reply prefix {shown(prefix)}"
            hint = "it is scored without a prefix, as it stands; begin it with the prefix to score the rest of it"
            yield LintWarning("reference-without-prefix", source, name, f"turn {number} reference", message, hint)
        for rubric in (rubric for check in turn.checks for rubric in check.rubrics):
            if not rubric.reference and _REFERENCE.search(rubric.text):
                message, hint = "a rubric names the reference", 'the judge does not see it; add `"reference": true`'
                yield LintWarning("rubric-without-reference", source, name, f"turn {number}", message, hint)
        for check in _checks_of_texts(turn.checks):
            if any(map(_not_nfc, _texts(check.expected))):
                message = f"the check `{check.kind}` has a text that {_NOT_NFC}"
                hint = "it is compared with the reply character by character, and models usually write NFC"
                yield LintWarning("not-nfc", source, name, f"turn {number}", message, hint)
        for check in _flat(turn.checks):
            if check.kind == "min_tokens" and check.expected == 0:
                message, hint = "the check `min_tokens` is 0, which every reply has", "write 1, or remove it"
                yield LintWarning("always-passes", source, name, f"turn {number}", message, hint)
            for text in filter(_SPACE_IN_CHECK.get(check.kind, lambda _: None), _texts(check.expected)):
                message = f"the check `{check.kind}` has the text {shown(text)} with white space at an end"
                hint = "answers are stripped: it is not found at the beginning or end of one; remove the white space"
                yield LintWarning("space-in-check", source, name, f"turn {number}", message, hint)
    yield from _unknown_functions(conversation)
    dialogue = [turn for turn in conversation.turns if turn.probe is None]
    for number, turn in enumerate(dialogue[:-1]):
        if history == "gold" and turn.reference is None:
            hint = "with `--history gold` the next turn sees the model's own reply; add an assistant message"
            yield LintWarning("missing-reference", source, name, f"turn {number}", "has no reference reply", hint)


def lint_system(texts: Iterable[str], option: str = "--system") -> tuple[LintWarning, ...]:
    """All warnings about system messages that an option gives. One line end at the end, as in a file, is allowed."""
    distinct = list(dict.fromkeys(texts))
    return tuple(
        LintWarning(
            rule.code, option if len(distinct) == 1 else f"{option} {shown(text)}", "", "system", message, rule.hint
        )
        for text in distinct
        if text
        for rule, message in _violations(_RULES, "system", re.sub(r"(?<=\S)\r?\n\Z", "", text))
    )


_TEXT_CHECKS = {"equals", "contains", "not_contains", "starts_with", "one_of", "regex", "boxed"}


def _flat(checks: Iterable[Check]) -> Iterator[Check]:
    """The checks that are no combinations, those inside `all`, `any` and `not` included."""
    for check in checks:
        if isinstance(check.rule, Combination):
            yield from _flat(check.rule.checks)
        else:
            yield check


def _checks_of_texts(checks: Iterable[Check]) -> Iterator[Check]:
    """The checks that compare the reply with texts."""
    return (check for check in _flat(checks) if check.kind in _TEXT_CHECKS)


_SPACE_IN_CHECK: Mapping[str, Callable[[str], Any]] = {
    "starts_with": re.compile(r"\s").match,
    "contains": re.compile(r"^\s|\s\Z").search,
    "not_contains": re.compile(r"^\s|\s\Z").search,
}
"""By kind of check, what finds white space with which a text cannot be at the beginning or end of a stripped answer."""


def _texts(value: Any) -> Iterator[str]:
    """The texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        items = cast("Iterable[Any]", value.values() if isinstance(value, dict) else value)
        for item in items:
            yield from _texts(item)


def _violations(rules: Iterable[_Rule], kind: str, content: str) -> Iterator[tuple[_Rule, str]]:
    """The rules that the content of a message violates, and the descriptions of the mistakes."""
    for rule in rules:
        if kind in rule.kinds and (message := rule.check(content)) is not None:
            yield rule, message


def _unknown_functions(conversation: Conversation) -> Iterator[LintWarning]:
    """Warnings about calls, in references and checks, of functions that are not among the conversation's tools."""
    names = [str(tool["name"]) for tool in conversation.tools]
    if not names:
        return
    hint = f"the model cannot know it; the tools are {listed(names)}"
    for number, turn in enumerate(conversation.turns):
        calls = calls_in(answer_of(turn.reference or ""))
        for place, called_names in (
            (f"turn {number} reference", [] if isinstance(calls, str) else [call.name for call in calls]),
            (f"turn {number}", [n for c in turn.checks if isinstance(c.rule, ToolCall) for n in c.rule.names]),
        ):
            for name in dict.fromkeys(called_names):
                if name not in names:
                    message = f"calls {shown(name)}, which is not one of the tools"
                    yield LintWarning("unknown-function", conversation.source, conversation.id, place, message, hint)


def _empty(text: str) -> str | None:
    return None if text.strip() else "is empty"


def _blank_line(text: str) -> str | None:
    return "has a blank line inside" if _BLANK_LINE.search(text.strip()) else None


def _carriage_return(text: str) -> str | None:
    return f"has {text.count(chr(13))} carriage returns" if "\r" in text else None


def _outer_space(text: str) -> str | None:
    return "begins or ends with white space" if text.strip() and text != text.strip() else None


def _role_end(text: str) -> str | None:
    match = _ROLE_END.search(text)
    if match is None:
        return None
    return f"ends with {match[0].strip()!r}" + (" and a space" if text[-1:].isspace() else "")


def _role_line(text: str) -> str | None:
    match = _ROLE_LINE.search(text)
    return None if match is None or _ROLE_END.search(text) else f"has a line that begins with {match[1]!r}"


def _control_character(text: str) -> str | None:
    control = next((c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\r\t"), None)
    return None if control is None else f"has the control character U+{ord(control):04X}"


_NOT_NFC = "is not in Unicode's normalization form NFC"


def _not_nfc(text: str) -> str | None:
    return None if unicodedata.is_normalized("NFC", text) else _NOT_NFC


_RULES = (
    _Rule("empty-content", _empty, "write a text; an empty message is read as one", ("user", "system")),
    _Rule("empty-reference", _empty, "write a text, or remove the message", ("reference",)),
    _Rule("carriage-return", _carriage_return, r"write \n; \r\n is read as \n, other carriage returns stay"),
    _Rule("blank-line", _blank_line, "it ends a message for RWKV, so it is read as one line end", ("user", "system")),
    _Rule(
        "blank-line-in-reference",
        _blank_line,
        "with `--turn-end blank-line` no reply can have one: it ends there",
        ("reference",),
    ),
    _Rule("outer-space", _outer_space, "it is not read; remove it"),
    _Rule("role-space", _role_end, "the template adds the role; remove it"),
    _Rule("role-line", _role_line, "the model reads it as a new message; quote or rephrase it"),
    _Rule("control-character", _control_character, "remove it"),
    _Rule("not-nfc", _not_nfc, "models usually write NFC, in which a letter with its accent is one character"),
)
"""All rules for contents. `docs/scripts.md` lists them, and a test compares the two."""

_RULES_WITH_PARAGRAPHS = tuple(rule for rule in _RULES if rule.code != "blank-line-in-reference")
