"""Records of benchmarks: a question, a style of its prompt, and the declaration of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rwkvbatch.script.lines import is_array, shown
from rwkvbatch.script.tables import NO_FORM, Record, TableForm

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NO_TEST_LABELS = "those of the test file are not published, so take the validation file"


@dataclass(frozen=True)
class Question:
    """A question of a benchmark.

    Attributes:
        name: id of the conversation.
        text: the question, or the beginning of a text.
        options: by name, the answers to choose from.
        answer: the right answer: an option's name, a number, or a text.
        group: the group from which few-shot examples are taken, such as a subject.
        tags: tags of the conversation.
        record: the values of the record, for styles that need more of them.
    """

    name: str
    text: str
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    answer: str = ""
    group: str = ""
    tags: Sequence[str] = ()
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])


Read = Callable[[Record], Question]
Write = Callable[[Question, Sequence[Question]], dict[str, Any]]


@dataclass(frozen=True)
class Style:
    """A form of the prompt.

    Attributes:
        write: makes the line of a script from a question and the examples before it.
        asks: what is asked, and the source of the prompt; for the documents.
        measured: the check or metrics that measure it.
        shots: whether the prompt can have examples.
    """

    write: Write
    asks: str
    measured: str
    shots: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark.

    Attributes:
        title: its name in prose.
        files: the published files that are read; for the documents.
        read: makes the question of a record; raises `BadRecordError`.
        styles: by name; the first one is the default.
        form: form of its files beyond their format.
    """

    title: str
    files: str
    read: Read
    styles: Mapping[str, Style]
    form: TableForm = NO_FORM


class BadRecordError(Exception):
    """A record does not have the form of its benchmark; the text describes the problem."""


def bad(problem: str) -> NoReturn:
    raise BadRecordError(problem)


def text_of(values: Mapping[str, Any], key: str) -> str:
    """The value of `key`, which must be a text that is not empty."""
    value = values.get(key)
    if not isinstance(value, str) or not value.strip():
        bad(f"{key} must be a text that is not empty, got {shown(value)}" if key in values else f"{key} is missing")
    return value


def texts_of(values: Mapping[str, Any], key: str) -> list[str]:
    """The value of `key`, which must be a list of texts, none empty."""
    value = values.get(key)
    if not is_array(value) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        bad(f"{key} must be a list of texts" if key in values else f"{key} is missing")
    return value


def label_of(values: Mapping[str, Any], key: str, names: Mapping[Any, str], if_missing: str) -> str:
    """The name of the right answer: `names[values[key]]`.

    Args:
        names: by value of `key`, also as a text, the answer's name. `True` is the same as 1.
        if_missing: what to do about a record without a label (`None`, -1 or empty), such as those of test files.
    """
    value = values.get(key)
    if value is None or value == "" or (value == -1 and -1 not in names):
        bad(f"it has no {key}; {if_missing}")
    by_text = {str(known): name for known, name in names.items()}
    name = by_text.get(str(int(value)) if isinstance(value, bool) else str(value))
    if name is None:
        bad(f"{key} must be one of {', '.join(by_text)}, got {shown(value)}")
    return name


def line_of(question: Question, **more: Any) -> dict[str, Any]:
    """A line of a script with the question's id, tags if it has any, and `more` keys."""
    tags = {"tags": list(question.tags)} if question.tags else {}
    return {"id": question.name, **tags, **more}


def chat_line(
    question: Question, content: str, expect: Any, max_tokens: int, *, stop: Sequence[str] = (), reference: str = ""
) -> dict[str, Any]:
    """A line with one message, whose reply is decoded greedily and judged by the check `expect`."""
    messages = [{"role": "user", "content": content, "expect": expect}]
    if reference:
        messages.append({"role": "assistant", "content": reference})
    return line_of(question, messages=messages, params=_greedy(max_tokens, stop))


def prompt_line(
    question: Question, prompt: str, expect: Any, *, stop: Sequence[str] = (), max_tokens: int = 256
) -> dict[str, Any]:
    """A line with a prompt of plain text, whose reply is decoded greedily and judged by the check `expect`.

    Args:
        max_tokens: as many as lm-evaluation-harness generates unless its task says otherwise.
    """
    return line_of(question, prompt=prompt, expect=expect, params=_greedy(max_tokens, stop))


def _greedy(max_tokens: int, stop: Sequence[str]) -> dict[str, Any]:
    return {"temperature": 0, "max_tokens": max_tokens, **({"stop": list(stop)} if stop else {})}
