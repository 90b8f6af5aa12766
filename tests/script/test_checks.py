"""Checks (`expect`): verdicts of each kind, and refused values."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rwkvbatch.errors import MissingExtraError, ScriptError
from rwkvbatch.script.checks import ReplyFacts, check_kinds, judge_all, parse_checks
from tests.script.writing import HERE, assistant, conversation, read, user


def judge(entry: dict[str, Any], text: str = "", **facts: Any) -> tuple[bool, float]:
    (check,) = parse_checks(entry, HERE)
    verdict = check.judge(ReplyFacts(**{"text": text, "finish_reason": "stop", "num_tokens": 5, **facts}))
    assert 0 <= verdict.score <= 1
    assert (verdict.detail is None) == verdict.passed
    return verdict.passed, verdict.score


PASSED: list[tuple[dict[str, Any], str]] = [
    ({"equals": "Ada"}, " Ada\n"),
    ({"equals": " Ada "}, "Ada"),
    ({"equals": ""}, "  "),
    ({"equals": "STRASSE", "ignore_case": True}, "straße"),
    ({"equals": "2"}, "<think>\nIs it 3?\n</think>\n2"),
    ({"equals": ""}, "<think>\nIs it 3?"),
    ({"contains": "da"}, "Ada."),
    ({"contains": ["Ada", "Bob"]}, "Bob and Ada"),
    ({"contains": "ADA", "ignore_case": True}, "ada"),
    ({"not_contains": "Bob"}, "Ada"),
    ({"not_contains": ["Bob", "Eve"]}, "<think>Bob?</think>Ada"),
    ({"starts_with": "Ada"}, " Ada is here"),
    ({"starts_with": ["yes", "no"], "ignore_case": True}, "No."),
    ({"one_of": ["Hello!", "Hi!"]}, "Hi!"),
    ({"one_of": ["Hello, Ada", "x"], "ignore_punctuation": True}, "Hello Ada!"),
    ({"equals": "well_known", "ignore_punctuation": True}, "well-known"),
    ({"equals": "The Beatles", "ignore_articles": True}, "Beatles"),
    ({"equals": "cat", "ignore_articles": True}, "a  cat"),
    ({"equals": "The The", "ignore_articles": True}, "The The"),
    ({"equals": "?", "ignore_punctuation": True}, "?"),
    ({"equals": "The U.S.", "ignore_case": True, "ignore_punctuation": True, "ignore_articles": True}, "u.s"),
    ({"regex": r"^\d{4}-\d\d$"}, "2024-05"),
    ({"regex": "ada", "ignore_case": True}, "I am ADA."),
    ({"number": 42}, "6 times 7 is 42."),
    ({"number": 42}, "It is 42.0, as 6*7=42"),
    ({"number": -5}, "The result is -5"),
    ({"number": 5}, "That is 3-5"),
    ({"number": -5}, "−5"),
    ({"number": 1234567.5}, "about $1,234,567.50"),
    ({"number": 0.5}, "It is .5"),
    ({"number": 3.14, "tolerance": 0.01}, "pi is 3.1416"),
    ({"number": 1e3}, "1e3"),
    ({"number": 9007199254740993}, "9007199254740993"),
    ({"number": 63}, "<think>36+27=64?</think> 63"),
    ({"json": True}, "3"),
    ({"json": "valid"}, '```json\n{"a": [1]}\n```'),
    ({"json": {"type": "object", "required": ["a"]}}, '{"a": 1}'),
    ({"json": {"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}}, "3"),
    ({"json": {"type": "string", "pattern": "^a+$"}}, '"aaa"'),
    ({"max_tokens": 5}, "x"),
    ({"min_tokens": 5}, "x"),
    ({"finish": "stop"}, "x"),
    ({"finish": ["eos", "stop"]}, "x"),
    ({"finish_reason": ["eos", "stop"]}, "x"),
    ({"similarity": 0.9, "to": "The cat sat."}, "The cat sat."),
    ({"similarity": 0}, "x"),
    ({"any": [{"equals": "a"}, {"equals": "b"}]}, "b"),
    ({"all": [{"contains": "a"}, {"contains": "b"}]}, "ab"),
    ({"not": {"contains": "a"}}, "b"),
    ({"not": [{"contains": "a"}, {"contains": "b"}]}, "a"),
    ({"any": [{"all": [{"contains": "a"}, {"not": {"contains": "b"}}]}, {"equals": "c"}]}, "xa"),
]
FAILED: list[tuple[dict[str, Any], str]] = [
    ({"equals": "well-known", "ignore_punctuation": True}, "wellknown"),
    ({"equals": "Hello, Ada"}, "Hello Ada"),
    ({"equals": "The Beatles", "ignore_punctuation": True}, "Beatles"),
    ({"equals": "cat", "ignore_articles": True}, "theatre"),
    ({"equals": "The The", "ignore_articles": True}, ""),
    ({"equals": "Cat", "ignore_articles": True}, "the cat"),
    ({"equals": "Ada"}, "Ada."),
    ({"equals": "ada"}, "Ada"),
    ({"contains": """ Ada"""}, "Ada"),
    ({"not_contains": ["Bob", "Ada"]}, "Ada"),
    ({"starts_with": "Ada"}, "I am Ada"),
    ({"one_of": ["Hello!", "Hi!"]}, "Hi! Hello!"),
    ({"regex": r"^\d{4}$"}, "12345"),
    ({"number": 42}, "42 or 43"),
    ({"number": 42}, "forty-two"),
    ({"number": 9007199254740993}, "9007199254740992"),
    ({"number": 3.14, "tolerance": 0.001}, "3.1416"),
    ({"number": 1}, "9" * 5000),
    ({"json": True}, "NaN"),
    ({"json": True}, 'Sure: {"a": 1}'),
    ({"json": True}, "[" * 100_000),
    ({"json": {"type": "object"}}, "[]"),
    ({"json": {"type": "string", "pattern": "^a+$"}}, '"b"'),
    ({"max_tokens": 4}, "x"),
    ({"min_tokens": 6}, "x"),
    ({"finish": ["eos", "length"]}, "x"),
    ({"finish_reason": ["eos", "length"]}, "x"),
    ({"similarity": 0.5, "to": "The cat sat."}, "Nobody knows"),
    ({"any": [{"equals": "a"}, {"equals": "b"}]}, "c"),
    ({"all": [{"contains": "a"}, {"contains": "b"}]}, "a"),
    ({"not": {"contains": "a"}}, "a"),
]


@pytest.mark.parametrize(("entry", "text"), PASSED)
def test_a_reply_passes(entry: dict[str, Any], text: str) -> None:
    assert judge(entry, text, reference="x")[0]


@pytest.mark.parametrize(("entry", "text"), FAILED)
def test_a_reply_fails_with_a_detail(entry: dict[str, Any], text: str) -> None:
    assert not judge(entry, text)[0]


NESTED: dict[str, Any] = {"equals": "a"}
for _ in range(9):
    NESTED = {"any": NESTED}
BAD: list[tuple[Any, str]] = [
    (3, "expect: a check must be an object, got a number"),
    ([[]], r"expect\[0\]: a check must be an object, got an array"),
    ({}, "expect: names no kind of check"),
    ({"weight": 2}, "expect: names no kind of check"),
    ({"contain": "a"}, "expect: unknown key 'contain'"),
    ({"equals": 3}, r"expect\.equals: must be a string, got 3"),
    ({"contains": ""}, r"expect\.contains: must be a string or an array of strings, none empty, got ''"),
    ({"contains": []}, r"expect\.contains: must be a string or an array"),
    ({"contains": ["a", 3]}, r"expect\.contains: must be a string or an array"),
    ({"one_of": "a"}, r"expect\.one_of: must be an array of strings, got 'a'"),
    ({"regex": "("}, r"expect\.regex: is not a regular expression \(.*\), got '\('"),
    ({"regex": 3}, r"expect\.regex: must be a string"),
    ({"regex": "(?R)"}, r"expect\.regex: is not a regular expression"),
    ({"regex": "(?:a{1000}){1000}"}, r"expect\.regex: is not a regular expression \(its counted repeats"),
    ({"regex": "(?x:a{1 000 000})"}, r"expect\.regex: is not a regular expression \(the flag x"),
    ({"regex": "a" * 3000}, r"expect\.regex: is not a regular expression \(longer than 2000"),
    ({"regex": "(" * 900 + ")" * 900}, r"expect\.regex: is not a regular expression \(too deep"),
    ({"number": "3"}, r"expect\.number: must be a number, got '3'"),
    ({"number": True}, r"expect\.number: must be a number, got True"),
    ({"number": 3, "tolerance": -1}, r"expect\.tolerance: must be a number that is not negative, got -1"),
    ({"number": 3, "ignore_case": True}, "expect: unknown key 'ignore_case'"),
    ({"equals": "a", "ignore_case": 1}, r"expect\.ignore_case: must be true or false, got 1"),
    ({"equals": "a", "weight": 0}, r"expect\.weight: must be a number above 0"),
    ({"equals": "a", "weight": True}, r"expect\.weight: must be a number above 0"),
    ({"max_tokens": 1.5}, r"expect\.max_tokens: must be a number of tokens"),
    ({"min_tokens": -1}, r"expect\.min_tokens: must be a number of tokens"),
    ({"finish": "done"}, r"expect\.finish: must be of stop, eos, length, time, got 'done'"),
    ({"similarity": 2}, r"expect\.similarity: must be a number in \[0, 1\], got 2"),
    ({"json": False}, r"expect\.json: must be true, "),
    ({"json": {"type": "integr"}}, r"expect\.json: is not a JSON Schema"),
    ({"json": {"pattern": "("}}, r"expect\.json: is (a|not a) JSON Schema"),
    ({"json": {"pattern": "(?:a{1000}){1000}"}}, r"expect\.json: is a JSON Schema with a wrong pattern"),
    ({"json": {"patternProperties": {}}}, r"expect\.json: is a JSON Schema with 'patternProperties'"),
    ({"json": {"$ref": "https://example.org/x"}}, r"expect\.json: is a JSON Schema that refers to 'https"),
    ({"json": {"$ref": "file:///etc/passwd"}}, r"expect\.json: is a JSON Schema that refers to 'file"),
    ({"any": []}, r"expect\.any: must contain at least one check"),
    ({"not": {"all": [{"equals": 3}]}}, r"expect\.not\.all\[0\]\.equals: must be a string"),
    (NESTED, "nested deeper than 8"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "message"), BAD)
def test_an_invalid_check_is_refused_with_file_line_and_path(raw: Any, message: str) -> None:
    with pytest.raises(ScriptError, match=r"^demo\.jsonl:3: .*" + message):
        parse_checks(raw, HERE)


def test_an_entry_with_several_kinds_is_several_checks() -> None:
    checks = parse_checks({"contains": "a", "not_contains": "b", "ignore_case": True, "weight": 2}, HERE)
    assert [(c.kind, c.weight, dict(c.options)) for c in checks] == [
        ("contains", 2.0, {"ignore_case": True}),
        ("not_contains", 2.0, {"ignore_case": True}),
    ]
    assert checks[0].as_dict() == {"contains": "a", "ignore_case": True, "weight": 2.0}


def test_one_entry_needs_no_array() -> None:
    assert parse_checks({"equals": "a"}, HERE) == parse_checks([{"equals": "a"}], HERE)


def test_contains_scores_the_share_of_texts_found() -> None:
    assert judge({"contains": ["a", "b", "c", "d"]}, "abc") == (False, 0.75)


def test_any_has_the_best_score_and_all_the_weighted_mean() -> None:
    entries = [{"contains": ["a", "b"], "weight": 3}, {"equals": "x"}]
    assert judge({"any": entries}, "a") == (False, 0.5)
    assert judge({"all": entries}, "a") == (False, 3 * 0.5 / 4)
    assert judge({"not": {"contains": ["a", "b"]}}, "a") == (True, 0.5)


def test_judge_all_has_the_weighted_mean_of_scores() -> None:
    checks = parse_checks([{"equals": "a", "weight": 3}, {"equals": "b"}], HERE)
    facts = ReplyFacts("a", "stop", 1)
    assert judge_all(checks, facts).score == 0.75
    assert not judge_all(checks, facts).passed
    assert judge_all((), facts).passed
    assert judge_all(checks[:1], facts).detail is None


def test_similarity_is_the_chrf_of_sacrebleu() -> None:
    from sacrebleu import sentence_chrf

    reply, reference = "The cat sat on a mat.", "A cat is on the mat."
    passed, score = judge({"similarity": 0.2}, reply, reference=reference)
    assert passed
    assert score == pytest.approx(sentence_chrf(reply, [reference]).score / 100)


def test_answers_are_compared_with_the_answer_of_the_reference() -> None:
    """A reference with a thinking part, such as one of a reasoning model, is judged as a reply is: by its answer."""
    reply = "<think>\nA cat.\n</think>\nThe cat sat."
    reference = "<think>\nThe user wants a sentence, and it has to be long.\n</think>\nThe cat sat."
    assert judge({"similarity": 1}, reply, reference=reference) == (True, 1)
    assert judge({"similarity": 1}, reply, reference="The cat sat.") == (True, 1)
    assert judge({"similarity": 0.1}, reply, reference="<think>\nThe cat sat.") == (False, 0)
    call = '{"name": "f", "arguments": {}}'
    assert judge({"tool_call": True}, call, reference=f"<think>\n[1]\n</think>\n{call}")[0]


def test_similarity_needs_a_reference_and_as_a_default_skips_turns_without_one(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="turn 0: the check 'any' needs a reference reply"):
        read(tmp_path, conversation(user(expect={"any": [{"similarity": 0.5}, {"equals": "a"}]})))
    assert read(tmp_path, conversation(user(expect={"similarity": 0.5}), assistant())).conversations
    (found,) = read(tmp_path, conversation(user(), assistant(), user(), expect={"similarity": 0.5})).conversations
    assert [len(turn.checks) for turn in found.turns] == [1, 0]


@pytest.mark.parametrize(
    ("entry", "module", "extra"),
    [({"similarity": 0.5}, "sacrebleu", "metrics"), ({"json": {"type": "object"}}, "jsonschema", "checks")],
)
def test_a_missing_extra_is_refused_with_the_line_and_how_to_install_it(
    entry: dict[str, Any], module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (kind,) = entry
    with pytest.raises(MissingExtraError, match=rf"^demo\.jsonl:3: expect\.{kind}: the check `{kind}`") as caught:
        parse_checks(entry, HERE)
    assert f"pip install 'rwkvbatch[{extra}]'" in str(caught.value.hint)
    assert f"pip install -e '.[{extra}]'" in str(caught.value.hint)


def test_valid_json_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    assert judge({"json": True}, "{}") == (True, 1.0)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(\w+\s?)*$", r"(.*a){20}$"])
def test_a_pattern_past_its_deadline_gives_up(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvbatch.script.checks.text.DEADLINE_S", 0.05)
    (check,) = parse_checks({"regex": pattern}, HERE)
    assert str(check.judge(ReplyFacts("a" * 3000 + "!", "stop", 1)).detail).startswith("gave up")


def test_a_pattern_in_a_schema_past_its_deadline_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvbatch.script.checks.text.DEADLINE_S", 0.05)
    assert not judge({"json": {"pattern": "(a|aa)+$"}}, json.dumps("a" * 3000 + "!"))[0]


def test_a_schema_past_its_deadline_fails() -> None:
    defs: dict[str, Any] = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**defs, "d60": {}}}
    assert not judge({"json": schema}, "1")[0]


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"$ref": "#/nowhere"}])
def test_a_schema_with_a_circular_or_missing_reference_fails_its_check(schema: dict[str, Any]) -> None:
    assert not judge({"json": schema}, "1")[0]


@given(text=st.text(st.sampled_from("0123456789.,-−eE+ ()x"), max_size=30), value=st.integers(-99, 99))
@example(text="1e+", value=1)
@example(text="--5", value=-5)
def test_any_text_can_be_searched_for_its_last_number(text: str, value: int) -> None:
    judge({"number": value}, text)


@given(value=st.integers(-(10**12), 10**12), before=st.sampled_from(["", "It is ", "7 + 8 = ", "(", "$"]))
def test_a_number_is_found_however_it_is_written(value: int, before: str) -> None:
    for written in (str(value), f"{value:,}", f"{value}.0"):
        assert judge({"number": value}, f"{before}{written}.")[0]


def test_every_kind_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "scripts.md").read_text(encoding="utf-8")
    for kind in check_kinds():
        assert f"| `{kind}` |" in text
