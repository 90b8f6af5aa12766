"""Lint: each rule finds its mistakes with their place, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.script import lint as lint_module
from rwkvbatch.script.lint import lint, lint_system
from tests.script.writing import assistant, conversation, read, user

SYSTEM = {"role": "system", "content": "Be brief."}


def codes(tmp_path: Path, *messages: dict[str, Any]) -> list[tuple[str, str]]:
    found = lint(read(tmp_path, conversation(*messages)).conversations)
    return [(warning.code, warning.place) for warning in found]


CASES: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    (user("a\n\nb"), [("blank-line", "turn 0")]),
    (user("a\n \t\nb"), [("blank-line", "turn 0")]),
    (user("a\r\n\r\nb"), [("carriage-return", "turn 0"), ("blank-line", "turn 0")]),
    (user("a\rb"), [("carriage-return", "turn 0")]),
    (user(""), [("empty-content", "turn 0")]),
    (user(" \n"), [("empty-content", "turn 0")]),
    (user(" a"), [("outer-space", "turn 0")]),
    (user("a\n\n"), [("outer-space", "turn 0")]),
    (user("Assistant: "), [("outer-space", "turn 0"), ("role-space", "turn 0")]),
    (user("Hi\nAssistant:"), [("role-space", "turn 0")]),
    (user("a\nUser: b"), [("role-line", "turn 0")]),
    (user("User: b"), [("role-line", "turn 0")]),
    (user("a\x00b"), [("control-character", "turn 0")]),
    (user("a\x1b[0m"), [("control-character", "turn 0")]),
    (user("cafe\u0301"), [("not-nfc", "turn 0")]),
    (user("café, 한국"), []),
    (user("a", expect={"contains": "cafe\u0301"}), [("not-nfc", "turn 0")]),
    (user("a", expect={"starts_with": " Nice"}), [("space-in-check", "turn 0")]),
    (user("a", expect={"starts_with": "Nice "}), []),
    (user("a", expect={"contains": ["Eli.\n", "b"]}), [("space-in-check", "turn 0")]),
    (user("a", expect={"not": {"not_contains": " Nice"}}), [("space-in-check", "turn 0")]),
    (user("a", expect={"equals": " Nice"}), []),
    (user("a", expect=[{"min_tokens": 0}, {"min_tokens": 1}]), [("always-passes", "turn 0")]),
    (user("a", expect={"any": [{"equals": "b"}, {"one_of": ["c", "cafe\u0301"]}]}), [("not-nfc", "turn 0")]),
    (user("a", expect={"contains": "café"}), []),
    (user("a", expect={"judge": "Says cafe\u0301?"}), []),
    (user("a", choices={"cafe\u0301": "b", "c": "c"}, expect={"choice": "cafe\u0301"}), []),
    (user("The User: a column.\nWhat is it?\tTell me."), []),
    (user("My User:\nx"), []),
]


@pytest.mark.parametrize(("message", "expected"), CASES)
def test_mistakes_in_a_user_message_are_found(
    message: dict[str, Any], expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert codes(tmp_path, message) == expected


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ({"prompt": "It is ", "continuation": "blue"}, True),
        ({"prompt": "It is\t", "choices": ["blue", "red"]}, True),
        ({"prompt": "It is", "continuation": " blue"}, False),
        ({"prompt": "It is:\n", "choices": ["blue", "red"]}, False),
        ({"prompt": "", "choices": ["blue", "red"]}, False),
        ({"text": "It is "}, False),
        ({"prompt": "The ", "choices": ["sky", "sea"], "continuation": " is blue"}, False),
        (conversation(user(reply_prefix="It is ", choices=["blue", "red"])), True),
        (conversation(user(reply_prefix="It is "), params={"reply_prefix": "It"}), True),
        (conversation(user(), user(reply_prefix="It is"), id="x", params={"reply_prefix": ""}), False),
    ],
)
def test_a_space_before_the_text_that_follows_is_found(line: dict[str, Any], is_found: bool, tmp_path: Path) -> None:
    found = [warning.code for warning in lint(read(tmp_path, line).conversations)]
    assert found == ["space-before-text"] * is_found


def test_a_space_at_the_end_of_the_setting_reply_prefix_is_found(tmp_path: Path) -> None:
    script = read(tmp_path, conversation(user(), user(reply_prefix="It is")))
    assert [(w.code, w.place) for w in lint(script.conversations, reply_prefix="It is ")] == [
        ("space-before-text", "turn 0")
    ]


def test_system_messages_of_options_are_linted() -> None:
    assert [w.code for w in lint_system(["Be brief.\n\nBe kind.\nUser: x"])] == ["blank-line", "role-line"]
    assert [w.code for w in lint_system([" Be brief.", "a\rb"])] == ["outer-space", "carriage-return"]
    assert str(lint_system(["a\n\nb"])[0]).startswith("--system: blank-line: system: has a blank line inside")
    assert str(lint_system(["fine", "a\n\nb"])[0]).startswith(r"--system 'a\n\nb': blank-line: system:")
    assert lint_system(["", "Be brief.", "the end of a file\n", "also\r\n"]) == ()


def test_the_place_of_a_warning_is_system_turn_or_reference(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": " s"}, user(), assistant("a "), user("b ")]
    expected = [("outer-space", "system"), ("outer-space", "turn 0 reference"), ("outer-space", "turn 1")]
    assert codes(tmp_path, *messages) == expected


def test_a_blank_line_in_a_reference_has_its_own_warning(tmp_path: Path) -> None:
    script = read(tmp_path, conversation(user(), assistant("a\n\nb"))).conversations
    assert [(w.code, w.place) for w in lint(script, turn_end="blank-line")] == [
        ("blank-line-in-reference", "turn 0 reference")
    ]
    assert lint(script) == ()
    assert codes(tmp_path, user(), assistant(" ")) == [("empty-reference", "turn 0 reference")]


def test_a_reference_without_the_reply_prefix_is_found(tmp_path: Path) -> None:
    messages = user(), assistant("So it is."), {**user(), "reply_prefix": "Yes"}, assistant("No.")
    script = read(tmp_path, conversation(*messages)).conversations
    assert [w.place for w in lint(script)] == ["turn 1 reference"]
    assert [w.code for w in lint(script, reply_prefix=" So")] == ["reference-without-prefix"]


def test_a_clean_conversation_has_no_warnings(tmp_path: Path) -> None:
    assert codes(tmp_path, SYSTEM, user("My name is Ada."), assistant("Hi Ada!"), user("Who am I?\nSay it.")) == []


def test_missing_references_are_found_with_gold_history_only(tmp_path: Path) -> None:
    conversations = read(tmp_path, conversation(user("a"), user("b"), assistant("c"), user("d"))).conversations
    assert lint(conversations) == ()
    assert [(w.code, w.place) for w in lint(conversations, history="gold")] == [("missing-reference", "turn 0")]


def test_a_warning_has_file_line_and_conversation(tmp_path: Path) -> None:
    script = read(tmp_path, b"", conversation(user("a\n\nb"), id="x"))
    (warning,) = lint(script.conversations)
    assert (warning.source.line, warning.conversation) == (2, "x")
    assert str(warning).startswith(f"{tmp_path}/demo.jsonl:2: blank-line: turn 0: has a blank line inside (")


def test_every_code_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "scripts.md").read_text(encoding="utf-8")
    for code in [*(rule.code for rule in lint_module._RULES), "missing-reference", "rubric-without-reference"]:
        assert f"| `{code}` |" in text
