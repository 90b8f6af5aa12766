"""Conversations that a program gives as mappings are read as lines of a file are."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from rwkvbatch.config import ScriptLimits
from rwkvbatch.errors import ScriptError, UsageError
from rwkvbatch.script.reader import read_scripts

GREETING: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
LINES: list[dict[str, Any]] = [
    {"defaults": {"tags": ["smoke"], "params": {"max_tokens": 7}}},
    {
        "messages": [{"role": "user", "content": "Grüße\0\n🦆", "expect": {"contains": "a"}}],
        "params": {"top_p": 0.1 + 0.2},
    },
    {"id": "s", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"custom_id": "b", "body": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20, "seed": 2**63 - 1}},
    {"question_id": 81, "turns": ["One.", "Two."], "reference": None},
    {"prompt": "It is", "choices": {"A": " a", "B": " b"}},
    {"text": "A whole text."},
]


def refusal(*conversations: Mapping[str, Any], limits: ScriptLimits | None = None) -> str:
    with pytest.raises(ScriptError) as error:
        read_scripts(conversations, limits=limits)
    return error.value.message


def with_content(content: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": content}]}


def test_mappings_of_every_form_equal_the_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    from_file, from_python = read_scripts([str(path)]).conversations, read_scripts(LINES).conversations
    assert from_python == from_file
    assert [c.sha256 for c in from_python] == [c.sha256 for c in from_file]
    assert [c.id for c in from_python] == ["line-2", "s", "b", "81", "line-6", "line-7"]


def test_mappings_of_other_types_are_objects() -> None:
    message = OrderedDict(role="user", content="Hi")
    script = read_scripts([MappingProxyType({"messages": [MappingProxyType(message)]})])
    assert script.conversations == read_scripts([GREETING]).conversations


def test_mixed_with_files_ids_name_the_source(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GREETING))
    script = read_scripts([GREETING, GREETING, str(path), GREETING])
    assert [c.id for c in script.conversations] == ["python:1", "python:2", "a.jsonl:1", "python:4"]
    assert [str(c.source) for c in script.conversations] == ["scripts[0]", "scripts[1]", f"{path}:1", "scripts[3]"]


class Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"x", "b'x' (bytes)"),
        (("a",), "('a',) (tuple)"),
        ({"a"}, "{'a'} (set)"),
        (np.float64(0.5), "(numpy.float64)"),
        (np.int64(5), "(numpy.int64)"),
        (np.str_("a"), "(numpy.str_)"),
        (Colour.RED, "Colour)"),
        (Path("a"), "PosixPath)"),
    ],
)
def test_values_that_json_lacks_are_refused_by_key(value: object, shown: str) -> None:
    message = refusal(GREETING, with_content(value))
    assert message.startswith(
        "scripts[1]: messages[1].content: must be a dict, list, str, int, float, bool or None, got"
    )
    assert message.endswith(shown)
    assert shown in refusal({**GREETING, "params": {"stop": [value]}})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    conversation = {**GREETING, "params": {"temperature": number}}
    assert refusal(conversation) == f"scripts[0]: params.temperature: {number} is not a JSON number"


@pytest.mark.parametrize("number", [10**120, -(10**120), 10**5000], ids=["large", "small", "huge"])
def test_numbers_out_of_range_are_refused(number: int) -> None:
    assert "out of range" in refusal({**GREETING, "params": {"seed": number}})


@pytest.mark.parametrize("key", [3, None, True, 0.5, ("a", "b"), b"a"])
def test_keys_that_are_not_text_are_refused(key: object) -> None:
    message = refusal({"messages": [{"role": "user", "content": "Hi", "choices": {"A": "a", key: "b"}}]})
    assert message.startswith(f"scripts[0]: messages[0].choices: a key must be text (str), got {key!r}")


def test_errors_and_limits_are_those_of_lines() -> None:
    assert refusal(GREETING, {"mesages": []}).startswith("scripts[1]: ")
    assert refusal({**GREETING, "tags": [], "tgas": []}) == "scripts[0]: unknown key 'tgas'"
    assert refusal(with_content("\ud800")) == "scripts[0]: unpaired surrogate, \\ud800"
    assert refusal({**GREETING, "id": "a"}, {**GREETING, "id": "a"}).endswith("was already used at scripts[0]")
    assert refusal(with_content("é" * 50), limits=ScriptLimits(max_line_bytes=100)).endswith("longer than 100 bytes")
    assert "`defaults` may only be the first" in refusal(GREETING, {"defaults": {}})
    assert refusal({"defaults": {}}) == "scripts: contains no conversation"
    with pytest.raises(UsageError, match="more than 2 conversations"):
        read_scripts([GREETING] * 3, limits=ScriptLimits(max_conversations=2))


def test_a_list_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert refusal({"messages": endless}) == "scripts[0]: nested deeper than 64 levels"


def test_the_first_bad_conversation_is_named_with_the_number_of_others() -> None:
    with pytest.raises(ScriptError) as error:
        read_scripts([GREETING, with_content(math.nan), with_content(b"x"), GREETING])
    assert error.value.hint is not None
    assert "1 more conversation is bad in this list, 2 can be used\n  skip_bad=True" in error.value.hint


def test_bad_conversations_are_set_aside_with_skip_bad() -> None:
    script = read_scripts([with_content(math.nan), GREETING, {"a": 1}], skip_bad=True)
    assert [c.id for c in script.conversations] == ["line-2"]
    assert [str(line.source) for line in script.skipped] == ["scripts[0]", "scripts[2]"]
    assert script.skipped[0].raw == repr(with_content(math.nan)).encode()
    assert script.skipped[1].raw == b'{"a": 1}'
