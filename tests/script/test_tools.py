"""Tools, tool calls and results in the text form of RWKV-LM's templates file, and the check `tool_call`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvbatch.errors import ScriptError
from rwkvbatch.prompt.templates import OfficialTemplate
from rwkvbatch.script.checks import parse_checks
from rwkvbatch.script.lint import lint
from rwkvbatch.script.native import native_record
from rwkvbatch.script.records import Conversation, ReplyFacts
from rwkvbatch.script.tools import calls_in, with_tools
from tests.script.writing import HERE, assistant, conversation, read, user

SLOTS = {
    "name": "find_free_slots",
    "description": "Find free calendar slots",
    "parameters": {
        "type": "object",
        "properties": {
            "date": {"type": "string"},
            "duration_minutes": {"type": "integer"},
            "time_window": {"type": "string"},
        },
        "required": ["date", "duration_minutes", "time_window"],
    },
}
EVENT = {
    "name": "create_calendar_event",
    "description": "Create a calendar event",
    "parameters": {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "start_time": {"type": "string"},
            "end_time": {"type": "string"},
            "attendees": {"type": "array", "items": {"type": "string"}},
        },
    },
}
TOOLS = [{"type": "function", "function": SLOTS}, {"type": "function", "function": EVENT}]
ASKED = user("Schedule a 30-minute sync with Bob on 2026-05-08 afternoon.")
ARGUMENTS = {"date": "2026-05-08", "duration_minutes": 30, "time_window": "afternoon"}
CALL = {"id": "c1", "type": "function", "function": {"name": "find_free_slots", "arguments": json.dumps(ARGUMENTS)}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {
    "role": "tool",
    "tool_call_id": "c1",
    "content": '{"free_slots":[{"start":"2026-05-08T15:00:00+09:00","end":"2026-05-08T15:30:00+09:00"}],'
    '"bob_email":"bob@example.com"}',
}
EXAMPLE = json.loads(
    r'''"System: Tools:\n[\n{\"name\":\"find_free_slots\",\"description\":\"Find free calendar slots\",\"arguments\":{\"date\":{\"type\":\"string\"},\"duration_minutes\":{\"type\":\"integer\"},\"time_window\":{\"type\":\"string\"}}},\n{\"name\":\"create_calendar_event\",\"description\":\"Create a calendar event\",\"arguments\":{\"title\":{\"type\":\"string\"},\"start_time\":{\"type\":\"string\"},\"end_time\":{\"type\":\"string\"},\"attendees\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}}}}\n]\nReturn only a JSON function call.\n\nUser: Schedule a 30-minute sync with Bob on 2026-05-08 afternoon.\n\nAssistant: ```json\n{\"name\":\"find_free_slots\",\"arguments\":{\"date\":\"2026-05-08\",\"duration_minutes\":30,\"time_window\":\"afternoon\"}}\n```\n\nUser: Function output:\n{\"free_slots\":[{\"start\":\"2026-05-08T15:00:00+09:00\",\"end\":\"2026-05-08T15:30:00+09:00\"}],\"bob_email\":\"bob@example.com\"}\n\nAssistant: ```json"'''  # noqa: E501
)
"""The second example of function calls in RWKV-LM's `RWKV-v7/RWKV7-G1x-templates.txt` (2026-07-18), verbatim."""


def prompt(conversation: Conversation) -> str:
    """The text before the last reply, with the script's references as history."""
    *past, last = conversation.turns
    form = OfficialTemplate()
    parts = [form.opening(with_tools(conversation.system, conversation.tools), None)]
    parts += [form.past_turn(turn.user) + form.reply(turn.reference or "") for turn in past]
    prefix = last.params.get("reply_prefix", "")
    return "".join(parts) + form.turn(last.user) + (f" {prefix}" if prefix else "")


def read_one(tmp_path: Path, line: dict[str, Any]) -> Conversation:
    return read(tmp_path, line).conversations[0]


@pytest.mark.parametrize(
    "line",
    [
        conversation(ASKED, CALLS, RESULT, tools=TOOLS),
        conversation(ASKED, CALLS, RESULT, tools=TOOLS, tags=["native"]),
        conversation(ASKED, CALLS, RESULT, tools=[SLOTS, EVENT], tool_choice="required", id="x", tags=[]),
        {"custom_id": "a", "body": conversation(ASKED, CALLS, RESULT, tools=TOOLS)},
        conversation(
            ASKED,
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "function", "name": "find_free_slots", "content": RESULT["content"]},
            functions=[SLOTS, EVENT],
        ),
    ],
    ids=["openai", "native", "bare functions", "batch", "former names"],
)
def test_every_form_of_tools_gives_the_prompt_of_the_templates_file(line: dict[str, Any], tmp_path: Path) -> None:
    found = read_one(tmp_path, line)
    assert prompt(found) == EXAMPLE
    assert read_one(tmp_path, native_record(found)) == found


def test_tools_are_listed_after_the_system_message_of_the_script(tmp_path: Path) -> None:
    found = read_one(tmp_path, conversation({"role": "system", "content": "Be brief."}, ASKED, tools=TOOLS))
    assert found.system == "Be brief."
    assert prompt(found).startswith("System: Be brief.\nTools:\n[\n{")


def test_required_arguments_are_listed_when_some_are_optional(tmp_path: Path) -> None:
    with_optional = {**SLOTS, "parameters": {**SLOTS["parameters"], "required": ["date"]}}  # type: ignore[dict-item]
    assert '}},"required":["date"]}' in prompt(read_one(tmp_path, conversation(ASKED, tools=[with_optional])))


def test_a_schema_that_the_short_form_cannot_express_is_shown_whole(tmp_path: Path) -> None:
    schema = {"$defs": {"d": {"type": "string"}}, "properties": {"date": {"$ref": "#/$defs/d"}}}
    text = prompt(read_one(tmp_path, conversation(ASKED, tools=[{"name": "f", "parameters": schema}])))
    assert '{"name":"f","parameters":{"$defs":{"d":{"type":"string"}},"properties":' in text


def test_a_turn_whose_reference_is_no_call_has_no_reply_prefix(tmp_path: Path) -> None:
    found = read_one(tmp_path, conversation(ASKED, CALLS, RESULT, assistant("At 15:00."), user("Thanks"), tools=TOOLS))
    assert [turn.params["reply_prefix"] for turn in found.turns] == ["```json", "", "```json"]


def test_tool_choice_starts_the_call_of_a_named_function_or_removes_the_tools(tmp_path: Path) -> None:
    chosen = {"type": "function", "function": {"name": "find_free_slots"}}
    found = read_one(tmp_path, conversation(ASKED, CALLS, tools=TOOLS, tool_choice=chosen))
    reply_prefix = found.turns[0].params["reply_prefix"]
    assert reply_prefix == '```json\n{"name":"find_free_slots","arguments":'
    assert (found.turns[0].reference or "").startswith(reply_prefix)
    without = read_one(tmp_path, conversation(ASKED, tools=TOOLS, tool_choice="none"))
    assert (without.tools, without.turns[0].params) == ((), {})


def test_an_explicit_reply_prefix_is_kept(tmp_path: Path) -> None:
    found = read_one(tmp_path, conversation({**ASKED, "reply_prefix": "Well,"}, tools=TOOLS))
    assert found.turns[0].params["reply_prefix"] == "Well,"
    found = read_one(tmp_path, conversation(ASKED, tools=TOOLS, params={"reply_prefix": "Well,"}))
    assert (found.params["reply_prefix"], found.turns[0].params) == ("Well,", {})


def test_several_calls_and_results_are_in_the_order_of_the_calls(tmp_path: Path) -> None:
    calls = {**CALLS, "tool_calls": [CALL, {**CALL, "id": "c2"}]}
    results = [{"role": "tool", "tool_call_id": name, "content": name.upper()} for name in ("c2", "c1")]
    found = read_one(tmp_path, conversation(ASKED, calls, *results, tools=TOOLS))
    text = CALL["function"]["name"]  # type: ignore[index]
    assert len(found.turns) == 2
    assert (found.turns[0].reference or "").startswith(f'```json\n[\n{{"name":"{text}",')
    assert found.turns[1].user == "Function output:\nC1\nC2"
    assert len(calls_in(found.turns[0].reference or "")) == 2


def test_a_result_without_a_call_before_it_may_have_checks(tmp_path: Path) -> None:
    result = {"role": "tool", "content": "{}", "expect": {"contains": "x"}}
    found = read_one(tmp_path, conversation({**ASKED, "expect": {"tool_call": "find_free_slots"}}, result, tools=TOOLS))
    assert [len(turn.checks) for turn in found.turns] == [1, 1]
    assert found.turns[1].user == "Function output:\n{}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (conversation(ASKED, tools={}), "tools: must be an array of tools, got an object"),
        (conversation(ASKED, tools=[SLOTS, SLOTS]), r"tools\[1\]: a second tool is called"),
        (conversation(ASKED, tools=[{"type": "web_search"}]), r'tools\[0\].type: must be "function"'),
        (conversation(ASKED, tools=[{"name": "f", "parameters": []}]), "parameters: must be a JSON Schema"),
        (conversation(ASKED, tools=[{"name": "f", "parameters": {"properties": []}}]), "properties: must be an object"),
        (conversation(ASKED, tools=[{"name": "f", "parameters": {"required": [1]}}]), "required: must be names"),
        (conversation(ASKED, tool_choice="required", tags=[]), "tool_choice: needs `tools`"),
        (conversation(ASKED, tools=TOOLS, tool_choice={"function": {"name": "g"}}), "names no tool: 'g'"),
        (conversation(ASKED, tools=TOOLS, tool_choice="always"), "is not a choice of a tool"),
        (conversation({**ASKED, "tool_calls": [CALL]}, tools=TOOLS), "must be in an assistant message"),
        (conversation(ASKED, {**CALLS, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}), "not JSON"),
        (conversation(ASKED, {**CALLS, "tool_calls": [{"function": {"name": "f", "arguments": "1"}}]}), "an object"),
        (conversation(ASKED, CALLS, {**RESULT, "tool_call_id": "c9"}), "'c9' does not match an earlier call"),
        (conversation(ASKED, {"role": "tool", "content": "", "expect": []}, RESULT), "another tool message follows"),
        (conversation({**ASKED, "name": "Bob"}, tags=[]), r"messages\[0\].name: belongs to tool messages"),
        (conversation(ASKED, tools=[SLOTS] * 1001), "tools: must be at most 1,000 tools, got 1,001"),
        (conversation(ASKED, tools=["f"]), r"tools\[0\]: must be an object, got a string"),
        (conversation(ASKED, tools=[{"function": "f"}]), r"tools\[0\].function: must be an object, got a string"),
        (conversation(ASKED, tools=[{"name": "f", "description": 3}]), r"description: must be a string, got a number"),
        (
            conversation(ASKED, {**CALLS, "tool_calls": {}}, tags=[]),
            "tool_calls: must be an array of calls, got an obj",
        ),
        (conversation(ASKED, {**CALLS, "tool_calls": []}, tags=[]), "tool_calls: must be an array of calls, got none"),
        (conversation(ASKED, {**CALLS, "tool_calls": ["f"]}), r"tool_calls\[0\]: must be an object with a `function`"),
        (
            conversation(ASKED, {**CALLS, "tool_calls": [{**CALL, "type": "x"}]}),
            r'\[0\].type: must be "function", got \'x',
        ),
        (conversation(ASKED, {**CALLS, "tool_calls": [{"name": ""}]}), "name: must be the function's name, got ''"),
        (conversation(ASKED, {**CALLS, "function_call": CALL["function"]}), "is the former name of tool_calls"),
        (conversation(ASKED, {**RESULT, "tool_call_id": 3}, tools=TOOLS), "tool_call_id: must be a string, got a num"),
        (conversation(ASKED, tools=TOOLS, functions=[SLOTS]), "functions: is the former name of tools"),
    ],
)
def test_invalid_tools_and_calls_are_refused_with_their_path(
    line: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ScriptError, match=message):
        read(tmp_path, line)


def fenced(name: str = "f", arguments: Any = None) -> str:
    return "```json\n" + json.dumps({"name": name, "arguments": arguments or {}}) + "\n```"


CHECKED: list[tuple[Any, str, bool]] = [
    ("f", fenced(), True),
    ("f", fenced("g"), False),
    ("f", '{"name": "f"}', True),
    ("f", '```json\n{"name": "f", "arguments": {"a": 1}}', True),
    ("f", '```json\n{"name": "f", "arguments": {"a": 1}', False),
    ("f", "I would call f.", False),
    ("f", f"Let me see.\n{fenced()}\nDone.", True),
    ("f", f"{fenced()}\n{fenced()}", False),
    ("f", f"<think>{fenced('g')}</think>{fenced()}", True),
    ("f", '{"name": "f", "name": "g"}', False),
    ("f", '{"name": "f", "arguments": "{}"}', False),
    ("f", '{"name": "f", "arguments": {}, "id": 1}', False),
    ("f", '{"arguments": {}}', False),
    ("f", "[1]", False),
    ({"name": "f", "arguments": {"n": 1}}, fenced("f", {"n": 1.0}), True),
    ({"name": "f", "arguments": {"n": 1}}, fenced("f", {"n": True}), False),
    ({"name": "f", "arguments": {"n": 1}}, fenced("f", {"n": "1"}), False),
    ({"name": "f", "arguments": {"n": 1}}, fenced("f", {"n": 1, "m": 2}), False),
    ({"name": "f", "arguments": {"a": {"x": 1, "y": [1, 2]}}}, fenced("f", {"a": {"y": [1, 2], "x": 1}}), True),
    ({"name": "f", "arguments": {"a": [1, 2]}}, fenced("f", {"a": [2, 1]}), False),
    (["f", "g"], '```json\n[{"name": "g"}, {"name": "f"}]\n```', True),
    (["f", "f"], fenced(), False),
    (["f", {"name": "f", "arguments": {"a": 1}}], '[{"name": "f", "arguments": {"a": 1}}, {"name": "f"}]', True),
    ([], "In words.", True),
    ([], fenced(), False),
    ([], "Run this:\n```python\nf()\n```", True),
]


@pytest.mark.parametrize(("expected", "reply", "passes"), CHECKED)
def test_calls_are_compared_by_name_and_by_arguments_as_json_values(expected: Any, reply: str, passes: bool) -> None:
    (check,) = parse_checks({"tool_call": expected}, HERE)
    verdict = check.judge(ReplyFacts(reply, "stop", 5))
    assert (verdict.passed, verdict.detail is None) == (passes, passes)


@pytest.mark.parametrize(("reply", "passes"), [(fenced("f", {"a": 1}), True), (fenced("f"), False), ("No.", False)])
def test_tool_call_true_expects_the_calls_of_the_reference(reply: str, passes: bool) -> None:
    (check,) = parse_checks({"tool_call": True}, HERE)
    assert check.needs_reference
    assert check.judge(ReplyFacts(reply, "stop", 5, fenced("f", {"a": 1}))).passed == passes
    assert check.judge(ReplyFacts(reply, "stop", 5, "In words.")).passed == (reply == "No.")
    assert check.judge(ReplyFacts(reply, "stop", 5)).undecided
    wrong = check.judge(ReplyFacts(reply, "stop", 5, "[1]"))
    assert wrong.undecided
    assert str(wrong.detail).startswith("the reference is not a call")


def test_arguments_of_a_call_may_be_an_object(tmp_path: Path) -> None:
    """OpenAI's API has a string of JSON; other programs write the object."""
    call = {"function": {"name": "find_free_slots", "arguments": ARGUMENTS}}
    found = read_one(
        tmp_path, conversation(ASKED, {**CALLS, "tool_calls": [call]}, RESULT | {"tool_call_id": None}, tools=TOOLS)
    )
    assert prompt(found) == EXAMPLE


def called(*arguments: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"name": "f", "arguments": dict(each)} for each in arguments]


def test_calls_are_assigned_to_the_expected_ones_if_that_is_possible() -> None:
    (check,) = parse_checks({"tool_call": called({"a": 1}, {"b": 2}), "allow_extra": True}, HERE)
    for calls in itertools.permutations(called({"a": 1, "b": 2}, {"a": 1})):
        assert check.judge(ReplyFacts(json.dumps(calls), "stop", 5)).passed


ARGUMENT_LISTS = st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 1)), max_size=4)


@given(ARGUMENT_LISTS, ARGUMENT_LISTS)
def test_an_assignment_of_calls_is_found_where_one_of_all_orders_is(
    expected: list[dict[str, int]], made: list[dict[str, int]]
) -> None:
    (check,) = parse_checks({"tool_call": called(*expected), "allow_extra": True}, HERE)
    possible = len(expected) == len(made) and any(
        all(wanted.items() <= got.items() for wanted, got in zip(expected, order, strict=True))
        for order in itertools.permutations(made)
    )
    assert check.judge(ReplyFacts(json.dumps(called(*made)), "stop", 5)).passed == possible


def test_allow_extra_allows_further_arguments() -> None:
    (check,) = parse_checks({"tool_call": {"name": "f", "arguments": {"a": 1}}, "allow_extra": True}, HERE)
    assert check.judge(ReplyFacts(fenced("f", {"a": 1, "b": 2}), "stop", 5)).passed
    assert not check.judge(ReplyFacts(fenced("f", {"b": 2}), "stop", 5)).passed


@pytest.mark.parametrize("wrong", [False, 1, "", {}, {"name": "f", "args": {}}, {"name": "f", "arguments": "{}"}, [1]])
def test_an_invalid_expectation_is_refused(wrong: Any) -> None:
    with pytest.raises(ScriptError, match="tool_call"):
        parse_checks({"tool_call": wrong}, HERE)


def test_calls_of_unknown_functions_are_found_by_lint(tmp_path: Path) -> None:
    other = {**CALLS, "tool_calls": [{"function": {"name": "g", "arguments": "{}"}}]}
    found = lint([read_one(tmp_path, conversation({**ASKED, "expect": {"tool_call": "h"}}, other, tools=TOOLS))])
    assert [(warning.code, warning.place) for warning in found] == [
        ("unknown-function", "turn 0 reference"),
        ("unknown-function", "turn 0"),
    ]
    assert not lint([read_one(tmp_path, conversation(ASKED, CALLS, RESULT, tools=TOOLS))])


def test_the_digest_depends_on_the_order_of_keys_in_the_prompt(tmp_path: Path) -> None:
    other = {**SLOTS, "parameters": {"properties": dict(reversed(SLOTS["parameters"]["properties"].items()))}}  # type: ignore[index]
    first, second = (
        read_one(tmp_path, conversation(ASKED, tools=[tool], id="x", tags=[]))
        for tool in ({**SLOTS, "parameters": {"properties": SLOTS["parameters"]["properties"]}}, other)  # type: ignore[index]
    )
    assert prompt(first) != prompt(second)
    assert first.sha256 != second.sha256
    assert first.row_context != second.row_context
