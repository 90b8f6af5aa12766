"""JSON in answers: fenced blocks, exact arithmetic, formats, deadlines."""

# ruff: noqa: E501 (tables of cases)

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvbatch.errors import ScriptError
from rwkvbatch.script.checks import json_schema as module
from rwkvbatch.script.checks import judge_all, parse_checks
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.records import ReplyFacts, Verdict


def judge(entry: dict[str, Any], text: str) -> Verdict:
    return judge_all(parse_checks(entry, SourceLine("demo.jsonl", 3)), ReplyFacts(text, "stop", 1))


FENCED = [
    '```\n{"a": 1}\n```', '```json\n{"a": 1}\n```', '```JSON\n{"a": 1}\n```', '``` json\n{"a": 1}\n```', '~~~\n{"a": 1}\n~~~',
    '~~~json\n{"a": 1}\n~~~', '```json\r\n{"a": 1}\r\n```', '````json\n{"a": 1}\n````', '```json\n{"a": "```"}\n```',
    '```json\n{"a":\n 1}\n\n```', '```json\n{"a": 1}\n`````', '```application/json\n{"a": 1}\n```',
]  # fmt: skip


@pytest.mark.parametrize("text", FENCED)
def test_a_fenced_block_is_read_in_all_notations(text: str) -> None:
    assert judge({"json": True}, text).passed
    assert not judge({"json": True}, f"Here it is:\n{text}").passed
    assert judge({"json": True, "prose": True}, f"Here it is:\n\n{text}\n\nI hope that helps!").passed
    assert not judge({"json": True, "prose": True}, f"{text}\nor\n{text}").passed
    assert judge({"json": True, "prose": True}, f"```python\nprint(1)\n```\nprints\n{text}").passed


@pytest.mark.parametrize(
    "text", ['```python\n{"a": 1}\n```', '```json\n{"a": 1}\n~~~', '```json\n{"a": 1}', "```json\n```", "```"]
)
def test_a_text_without_a_fenced_block_of_json_fails(text: str) -> None:
    assert not judge({"json": True}, text).passed
    assert not judge({"json": True, "prose": True}, text).passed


def test_prose_must_be_a_boolean() -> None:
    with pytest.raises(ScriptError, match=r"expect\.prose: must be true or false"):
        judge({"json": True, "prose": 1}, "1")


@given(st.text(st.sampled_from("`~\n {}[]1jsonJ\r"), max_size=60))
def test_any_text_can_be_searched_for_fences(text: str) -> None:
    verdict = judge({"json": True, "prose": True}, text)
    assert verdict.passed == (verdict.score == 1.0) == (verdict.detail is None)


def test_many_opening_fences_are_read_in_linear_time() -> None:
    assert not judge({"json": True, "prose": True}, "```json\n" * 100_000).passed


@pytest.mark.parametrize(
    ("step", "value", "valid"),
    [
        (0.01, 19.99, True),
        (0.1, 0.3, True),
        (0.01, 19.995, False),
        (3, 9, True),
        (0.5, 1e300, True),
        (1e-9, 0.1, True),
        (2, 3, False),
    ],
)
def test_multiples_are_computed_exactly(step: float, value: float, valid: bool) -> None:
    assert judge({"json": {"multipleOf": step}}, json.dumps(value)).passed == valid


@pytest.mark.parametrize(
    ("items", "valid"),
    [("[1, true]", True), ("[1, 1.0]", False), ("[0, false]", True), ('[{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}]', False),
     ('["1", 1]', True), ("[[], {}]", True), ("[null, null]", False)],
)  # fmt: skip
def test_items_are_compared_as_json_schema_defines(items: str, valid: bool) -> None:
    assert judge({"json": {"uniqueItems": True}}, items).passed == valid


GOOD = {
    "date": "2024-02-29", "time": "23:59:60Z", "date-time": "2024-02-29T12:00:00.5+01:00", "email": "a.b@example.org",
    "hostname": "example.org", "ipv4": "127.0.0.1", "ipv6": "::1", "uri": "https://example.org/a?b#c",
    "uuid": "123e4567-e89b-12d3-a456-426614174000", "regex": "^a+$",
}  # fmt: skip
BAD = {
    "date": "2023-02-29", "time": "24:00:00Z", "date-time": "2024-02-30T12:00:00Z", "email": "a b@example.org",
    "hostname": "-a.org", "ipv4": "256.0.0.1", "ipv6": "1:2", "uri": "no scheme", "uuid": "123", "regex": "(",
}  # fmt: skip


@pytest.mark.parametrize("name", module.FORMATS)
def test_a_format_is_checked(name: str) -> None:
    assert judge({"json": {"format": name}}, json.dumps(GOOD[name])).passed
    assert not judge({"json": {"format": name}}, json.dumps(BAD[name])).passed
    assert judge({"json": {"format": name}}, "1").passed


def test_an_unknown_format_is_refused_and_a_property_named_format_is_not() -> None:
    with pytest.raises(ScriptError, match="the format 'int32', which is not checked; known: date, time"):
        judge({"json": {"properties": {"a": {"format": "int32"}}}}, "1")
    named = {"properties": {"format": {"type": "string"}, "patternProperties": {}}, "const": {"format": "int32"}}
    assert judge({"json": named}, '{"format": "int32"}').passed


@pytest.mark.parametrize("reply", ["7" * 5000, "[" * 20_000 + "]" * 20_000])
def test_json_beyond_the_limits_of_the_parser_is_undecided(reply: str) -> None:
    for raw in ({"json": "valid"}, {"not": {"json": "valid"}}):
        found = judge(raw, reply)
        assert (found.passed, found.undecided) == (False, True)
        assert "gave up reading JSON: it " in str(found.detail)


def test_unique_items_of_many_objects_are_judged_within_the_deadline() -> None:
    items = [{"id": number, "tags": [number, str(number)]} for number in range(6000)]
    assert judge({"json": {"uniqueItems": True}}, json.dumps(items)).passed
    assert not judge({"json": {"uniqueItems": True}}, json.dumps([*items, items[0]])).passed


def test_a_schema_past_its_deadline_fails_in_any_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {f"d{number}": {"allOf": [{"$ref": f"#/$defs/d{number + 1}"}]} for number in range(100)}
    names["d100"] = {"type": "integer"}
    schema = {"$defs": names, "items": {"$ref": "#/$defs/d50"}}
    checks = parse_checks([{"json": schema}, {"not": {"json": schema}}], SourceLine("a", 1))
    monkeypatch.setattr(module, "DEADLINE_S", 0.1)
    for check in checks:
        found = check.judge(ReplyFacts(json.dumps([1] * 1000), "stop", 1))
        assert not found.passed
        assert str(found.detail).removeprefix("json: ").startswith("gave up validating by")


@pytest.mark.parametrize(
    ("entry", "detail", "undecided"),
    [
        ({"similarity": 0.5}, "similarity: the turn has no reference reply", True),
        ({"choice": "A"}, "choice: the turn has no choices", False),
    ],
)
def test_a_check_without_a_reference_or_choices_fails(entry: dict[str, Any], detail: str, undecided: bool) -> None:
    found = judge(entry, "A")
    assert (found.passed, found.detail, found.undecided) == (False, detail, undecided)


AMBIGUOUS = [
    ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is repeated in one object"),
    ('[{"x": {"a": 1, "\\u0061": 1}}]', "the key 'a' is repeated in one object"),
    ("NaN", "NaN is not a JSON number"),
    ("[Infinity]", "Infinity is not a JSON number"),
    ('{"a": -Infinity}', "-Infinity is not a JSON number"),
    ("[1e400]", "the number 1e400 is out of range"),
    ("-1E+999", "the number -1E+999 is out of range"),
    ('{"a": -1' + "0" * 309 + "}", f"the number -1{'0' * 56}… is out of range"),
    ("9" * 400, f"the number {'9' * 58}… is out of range"),
    (r'["\ud800"]', "unpaired surrogate"),
    (r'{"\uDC00": 1}', "unpaired surrogate"),
]


@pytest.mark.parametrize(("text", "problem"), AMBIGUOUS)
@pytest.mark.parametrize("expected", [True, {"multipleOf": 0.5}, {"type": ["object", "array", "number"]}])
def test_json_that_programs_read_differently_fails_and_says_so(text: str, problem: str, expected: Any) -> None:
    verdict = judge({"json": expected}, f"```json\n{text}\n```")
    assert not verdict.passed
    assert not verdict.undecided
    assert f"not JSON ({problem})" in (verdict.detail or "")
    called = judge({"tool_call": "f"}, f'{{"name": "f", "arguments": {{"x": {text}}}}}')
    assert problem in (called.detail or "")


@pytest.mark.parametrize(
    "text",
    [r'"\ud83d\ude00"', '{"a": {"a": 1}, "b": {"a": 1}}', "1e308", "1e-400", "9" * 308, '"\\\\ud800"', '{"a": null}'],
)
def test_other_json_passes(text: str) -> None:
    assert judge({"json": True}, text).passed
