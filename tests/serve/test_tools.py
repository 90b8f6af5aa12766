"""Tools: the prompt is that of a script with the same tools, and a reply that makes calls has `tool_calls`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rwkvbatch.serve.fields import ChatFields
from rwkvbatch.serve.messages import ToolUse, call_start, conversation_of, text_around_calls
from tests.serve.running import MODEL, Server

TOOL = {"type": "function", "function": {"name": "slots", "parameters": {"properties": {"date": {"type": "string"}}}}}
CALLS = [{"id": "call_1", "type": "function", "function": {"name": "slots", "arguments": '{"date": "today"}'}}]
ASKED = [{"role": "user", "content": "Find a slot."}]
SYSTEM = 'Tools:\n[\n{"name":"slots","arguments":{"date":{"type":"string"}}}\n]\nReturn only a JSON function call.'


def fields(messages: Any = ASKED, **more: Any) -> ChatFields:
    return ChatFields(model="m", messages=messages, tools=[TOOL], **more)


def test_tools_calls_and_results_are_texts_of_the_templates() -> None:
    dialogue = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"free":[]}'},
    ]
    messages, use = conversation_of(fields(dialogue))
    assert messages == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Find a slot."},
        {"role": "assistant", "content": '```json\n{"name":"slots","arguments":{"date":"today"}}\n```'},
        {"role": "user", "content": 'Function output:\n{"free":[]}'},
    ]
    assert (use.names, use.reply_prefix) == ({"slots"}, None)


@pytest.mark.parametrize(
    ("choice", "names", "prefix"),
    [
        ("none", set(), None),
        ("auto", {"slots"}, None),
        ("required", {"slots"}, "```json"),
        ({"type": "function", "function": {"name": "slots"}}, {"slots"}, '```json\n{"name":"slots","arguments":'),
    ],
)
def test_tool_choice_sets_the_beginning_of_the_reply(choice: Any, names: set[str], prefix: str | None) -> None:
    messages, use = conversation_of(fields(tool_choice=choice))
    assert (use.names, use.reply_prefix) == (names, prefix)
    assert (messages[0]["role"] == "system") == bool(names)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('```json\n{"name":"slots","arguments":{"a":1}}\n```', ["slots"]),
        ('Sure.\n```json\n[{"name":"slots"},\n{"name":"slots"}]\n```', ["slots", "slots"]),
        ('{"name":"slots","arguments":{}}', ["slots"]),
        ('{"name":"other","arguments":{}}', []),
        ('```json\n{"name":"slots","argum', []),
        ("No call.", []),
        ('```json\n{"name":"slots"}\n```\nDone.', ["slots"]),
        ('<think>As ```json\n{"name":"slots"}\n```</think>\nNo.', []),
        ('<think>As ```x```</think>\n{"name":"slots"}', ["slots"]),
        ('<think>As ```x\n```</think>\nSo:\n```json\n{"name":"slots"}\n```', ["slots"]),
        ('<think>Unclosed\n```json\n{"name":"slots"}\n```', []),
    ],
)
def test_calls_are_read_from_the_reply(text: str, names: list[str]) -> None:
    calls = ToolUse(frozenset({"slots"})).calls(text)
    assert [call["function"]["name"] for call in calls] == names
    assert all(isinstance(json.loads(call["function"]["arguments"]), dict) for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    assert len(ToolUse(frozenset({"slots"}), is_parallel=False).calls(text)) == min(len(names), 1)
    assert ToolUse().calls(text) == []


def test_text_before_a_call_is_told_apart() -> None:
    assert [call_start(text) for text in ("ab", "ab``", "ab\n```json", '{"', "", "`a")] == [2, 2, 3, 0, 0, 2]
    assert [call_start(text) for text in ("<think>``", "<think>a</think>\n\n{", "<think>`a`</think>b```")] == [
        9,
        18,
        19,
    ]


@pytest.mark.parametrize(
    ("text", "around"),
    [
        ('{"name":"slots"}', ("", "")),
        ('Well,\n```json\n{"name":"slots"}\n```', ("Well,", "")),
        ('```json\n{"name":"slots"}\n```\n\nDone.\n', ("", "Done.")),
        ('Well,\n```json\n{"name":"slots"}\n```\nDone.', ("Well,", "\nDone.")),
        ('<think>`a`</think>\n{"name":"slots"}', ("<think>`a`</think>", "")),
        ('```json\n{"name":"slots"}', ("", "")),
    ],
)
def test_text_around_calls_is_kept(text: str, around: tuple[str, str]) -> None:
    assert text_around_calls(text) == around


REPLY = 'Well,\n```json\n{"name":"slots","arguments":{"date":"x"}}\n```'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "content"),
    [(REPLY, "Well,"), (REPLY[6:], None), (f"{REPLY}\nSo.", "Well,\nSo."), ("Well, ```x", "Well, ```x")],
)
def test_replies_with_calls_have_them_in_openais_form(
    server: Server, stream: bool, text: str, content: str | None
) -> None:
    # The prefix is a part of the reply; the model, which knows no tools, adds only token 0.
    body = {
        "model": MODEL, "messages": ASKED, "tools": [TOOL], "reply_prefix": text, "temperature": 0, "stream": stream,
        "logit_bias": {"0": 100}, "max_tokens": 4,
    }  # fmt: skip
    status, answer, _ = server.send("/v1/chat/completions", body)
    assert status == 200
    if stream:
        events = [json.loads(line[6:]) for line in answer.split("\n") if line.startswith("data: {")]
        deltas = [event["choices"][0]["delta"] for event in events]
        found = "".join(delta.get("content") or "" for delta in deltas) or None
        calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
        assert [call.pop("index") for call in calls] == list(range(len(calls)))
        reason = events[-1]["choices"][0]["finish_reason"]
    else:
        message = answer["choices"][0]["message"]
        found, calls = message["content"], message.get("tool_calls", [])
        reason = answer["choices"][0]["finish_reason"]
    has_call = text != content
    assert (found, reason) == (content, "tool_calls" if has_call else "stop")
    assert [call["function"] for call in calls] == [{"name": "slots", "arguments": '{"date":"x"}'}] * has_call


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": TOOL["function"]["name"]}}])
@pytest.mark.parametrize(
    ("other", "param", "words"),
    [
        ({"reply_prefix": "Well,"}, "reply_prefix", ("tool_choice", "reply_prefix")),
        ({"reasoning_effort": "high"}, "tool_choice", ("tool_choice", "reasoning_effort: none")),
        ({"think": "short"}, "tool_choice", ("tool_choice", "reasoning_effort: none")),
    ],
)
def test_a_reply_that_must_be_a_call_has_no_other_beginning(
    server: Server, choice: Any, other: dict[str, Any], param: str, words: tuple[str, ...]
) -> None:
    body = {"model": MODEL, "messages": ASKED, "tools": [TOOL], "max_tokens": 4}
    status, answer, _ = server.send("/v1/chat/completions", {**body, "tool_choice": choice, **other})
    assert (status, answer["error"]["param"]) == (400, param)
    assert all(word in answer["error"]["message"] for word in words)
    assert server.send("/v1/chat/completions", {**body, "tool_choice": choice, "reasoning_effort": "none"})[0] == 200
    assert server.send("/v1/chat/completions", {**body, "tool_choice": "auto", **other})[0] == 200


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("```json", ""),
        ("```json\nI cannot.", "I cannot."),
        ("<think>\n</think>\n```json\nNo.", "<think>\n</think>\nNo."),
        ("<think>\n</think>\n```json", "<think>\n</think>"),
    ],
)
def test_a_reply_that_had_to_be_a_call_and_is_none_lacks_its_given_beginning(text: str, content: str) -> None:
    assert ToolUse(frozenset({"slots"}), "```json").without_call(text) == content
    assert ToolUse(frozenset({"slots"})).without_call(text) == text


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "slots"}}])
@pytest.mark.parametrize("ends_at_once", [False, True])
def test_the_content_of_a_missing_call_is_what_the_model_wrote(server: Server, choice: Any, ends_at_once: bool) -> None:
    body = {"model": MODEL, "messages": ASKED, "tools": [TOOL], "tool_choice": choice, "temperature": 0}
    body |= {"max_tokens": 6, "logit_bias": {"0" if ends_at_once else str(1 + ord("a")): 100}}
    status, answer, _ = server.send("/v1/chat/completions", body)
    assert status == 200
    message = answer["choices"][0]["message"]
    assert "tool_calls" not in message
    assert message["content"] == ("" if ends_at_once else "aaaaaa")
    _, events, _ = server.send("/v1/chat/completions", {**body, "stream": True})
    chunks = [json.loads(line[6:]) for line in events.split("\n") if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == message["content"]
