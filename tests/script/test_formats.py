"""Forms of scripts that other programs define, and how the form of a line is recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.errors import ScriptError
from rwkvbatch.script.records import Turn
from tests.script.writing import assistant, conversation, read, user


def texts_of(turns: Any) -> list[tuple[str, str | None]]:
    return [(turn.user, turn.reference) for turn in turns]


def test_one_conversation_has_the_same_turns_in_every_form(tmp_path: Path) -> None:
    messages = [user("a"), assistant("b"), user("c")]
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, *messages[1:]]
    share = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    lines: list[dict[str, Any]] = [
        {"id": "1", "messages": messages},
        {"messages": parts, "model": "x"},
        {"custom_id": "3", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": messages}},
        {"id": 4, "conversations": share},
        {"question_id": 5, "turns": ["a", "c"], "reference": ["b"]},
    ]
    found = read(tmp_path, *lines).conversations
    assert [conversation.id for conversation in found] == ["1", "line-2", "3", "4", "5"]
    assert [texts_of(conversation.turns) for conversation in found] == [[("a", "b"), ("c", None)]] * 5


def test_system_messages_are_read_in_every_form(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        conversation({"role": "system", "content": "s"}, user()),
        conversation({"role": "developer", "content": "s"}, user()),
        {"conversations": [{"from": "system", "value": "s"}, {"from": "user", "value": "Hi"}]},
        {"system": "s", "conversations": [{"from": "human", "value": "Hi"}]},
    ]
    assert [found.system for found in read(tmp_path, *lines).conversations] == ["s"] * 4


def test_sampling_fields_of_a_request_become_params(tmp_path: Path) -> None:
    body = {
        "model": "any",
        "messages": [user()],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_completion_tokens": 20,
        "seed": 3,
        "stop": "END",
        "presence_penalty": 0.25,
        "frequency_penalty": None,
        "stream": True,
        "n": 1,
        "tools": [],
    }
    expected = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 20,
        "seed": 3,
        "stop": ("END",),
        "presence_penalty": 0.25,
    }
    batch, chat = read(tmp_path, {"custom_id": "x", "body": body}, body).conversations
    assert batch.params == expected
    assert chat.params == expected


def test_sampling_fields_of_other_servers_become_params(tmp_path: Path) -> None:
    fields = {"top_k": 40, "min_p": 0.1, "penalty_decay": 0.9, "repetition_penalty": 1.0}
    prompting = {"think": "on", "turn_end": "next-role", "bos": True}
    batch = {"custom_id": "x", "body": {"messages": [user()], **fields, **prompting}}
    script = read(tmp_path, batch, {"messages": [user()], **fields, "think": "a column of a data set"})
    expected = {"top_k": 40, "min_p": 0.1, "penalty_decay": 0.9}
    assert [found.params for found in script.conversations] == [
        {**expected, "think": "on", "turn_end": "next-role", "bos": "on"},
        expected,
    ]
    assert script.ignored == {"think": 1}


@pytest.mark.parametrize(
    ("fields", "top_p"),
    [
        ({"temperature": 0.5}, 1.0),
        ({"temperature": 0.5, "top_p": None}, 1.0),
        ({"temperature": 0.5, "top_p": 0.2}, 0.2),
        ({}, None),
        ({"temperature": None}, None),
    ],
)
def test_a_batch_request_with_a_temperature_alone_has_top_p_1(
    fields: dict[str, Any], top_p: float | None, tmp_path: Path
) -> None:
    body = {"messages": [user()], **fields}
    batch, chat = read(tmp_path, {"custom_id": "x", "body": body}, {**body, "max_tokens": 5}).conversations
    assert (batch.params.get("top_p"), chat.params.get("top_p")) == (top_p, fields.get("top_p"))


@pytest.mark.parametrize(("top_k", "expected"), [(-1, 0), (0, 0), (1, 1), (None, None)])
def test_top_k_of_vllm_without_a_cut_is_0(top_k: int | None, expected: int | None, tmp_path: Path) -> None:
    body = {"messages": [user()], "top_k": top_k, "min_p": 0}
    for found in read(tmp_path, {"custom_id": "x", "body": body}, body).conversations:
        assert found.params.get("top_k") == expected


NEUTRAL_FIELDS = {
    "logit_bias": {}, "response_format": {"type": "text"}, "repetition_penalty": 1.0, "length_penalty": 1,
    "min_tokens": 0, "ignore_eos": False, "use_beam_search": False, "stop_token_ids": [], "bad_words": None,
    "skip_special_tokens": True, "spaces_between_special_tokens": True, "include_stop_str_in_output": False,
    "add_generation_prompt": True, "continue_final_message": False, "chat_template_kwargs": {},
    "modalities": ["text"],
}  # fmt: skip


def test_fields_of_requests_that_change_nothing_are_accepted_without_a_word(tmp_path: Path) -> None:
    body = {"messages": [user()], "temperature": 0.5, **NEUTRAL_FIELDS}
    script = read(tmp_path, {"custom_id": "x", "body": body}, body)
    assert [found.params["temperature"] for found in script.conversations] == [0.5] * 2
    assert script.ignored == {}
    changed = {"skip_special_tokens": False, "add_generation_prompt": 1, "modalities": ["audio"]}
    assert read(tmp_path, {"custom_id": "x", "body": body | changed}).ignored == dict.fromkeys(changed, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("logit_bias", value) for value in (True, 1, "none", {"type": "text"}, {"1": 2})),
        *(("response_format", value) for value in (1, True, "auto", [], {"type": "json_object"})),
        *(("repetition_penalty", value) for value in (True, 0, {}, "none", 1.1)),
        *(("min_tokens", value) for value in (1, False, [])),
        *(("ignore_eos", value) for value in (True, 0, 1)),
        ("stop_token_ids", [1]),
        ("length_penalty", 2),
        ("use_beam_search", True),
        ("bad_words", ["no"]),
    ],
)
def test_values_that_are_neutral_only_in_another_field_are_refused(name: str, value: Any, tmp_path: Path) -> None:
    body = {"messages": [user()], "temperature": 0.5, name: value}
    for line, where in ((body, name), ({"custom_id": "x", "body": body}, f"body.{name}")):
        with pytest.raises(ScriptError, match=f"{where}: has no counterpart here"):
            read(tmp_path, line)


@pytest.mark.parametrize("tools", [None, [], "", "[]", "null", " null\n"])
def test_a_line_without_tools_may_say_so(tools: Any, tmp_path: Path) -> None:
    lines = [{"conversations": [{"from": "human", "value": "x"}]}, {"conversation": [user()]}]
    script = read(tmp_path, *(line | {"tools": tools} for line in lines))
    assert [found.tools for found in script.conversations] == [(), ()]
    assert script.ignored == {}
    for named in ("nulls", '["null"]', ["null"]):
        with pytest.raises(ScriptError, match="tools: cannot be read"):
            read(tmp_path, lines[0] | {"tools": named})


def test_keys_of_another_form_are_ignored_keys(tmp_path: Path) -> None:
    """They are named as such, since nothing reads them in this form: settings, checks and tools would be missing."""
    sharegpt = [{"from": "human", "value": "a", "expect": {"equals": "b"}, "content": "c"}]
    lines: list[dict[str, Any]] = [
        {"conversations": sharegpt, "temperature": 0.5, "expect": [], "tools": "[]", "tag": "x"},
        {"conversation": [user(value="c", expect=[])], "top_p": 0.5, "turn": 1, "model": "m"},
        {"turns": ["a"], "system": "b", "temperature": 0},
        {"custom_id": "x", "method": "POST", "body": {"messages": [user(expect=[])], "id": 3, "conversations": []}},
    ]
    assert read(tmp_path, *lines).ignored == {
        "temperature": 2, "expect": 1, "tag": 1, "top_p": 1, "turn": 1, "system": 1, "conversations": 1,
        "messages[].expect": 3, "messages[].content": 1, "messages[].value": 1,
    }  # fmt: skip


def test_text_parts_are_joined_by_line_ends(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read(tmp_path, conversation({"role": "user", "content": parts})).conversations[0].turns[0].user == "a\nb"


def test_an_mt_bench_category_is_a_tag_and_empty_references_are_none(tmp_path: Path) -> None:
    line = {"question_id": 81, "category": "writing", "turns": ["a", "b", "c"], "reference": ["", None, "z"]}
    (found,) = read(tmp_path, line).conversations
    assert found.tags == ("writing",)
    assert texts_of(found.turns) == [("a", None), ("b", None), ("c", "z")]


def test_unused_keys_of_other_forms_are_ignored(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"id": "1", "conversations": [{"from": "human", "value": "a", "weight": 1}], "source": "web", "lang": "en"},
        {"question_id": 2, "turns": ["a"], "cluster": 3},
        {"custom_id": "3", "body": {"messages": [user(name="ada")], "metadata": {"a": 1}}},
    ]
    assert len(read(tmp_path, *lines).conversations) == 3


BAD: list[tuple[dict[str, Any], str]] = [
    ({"custom_id": "x"}, "body: is missing"),
    ({"custom_id": 3, "body": {}}, "custom_id: must be a string, got 3"),
    ({"custom_id": "x", "body": {"mesages": []}}, "body: unknown key 'mesages'"),
    ({"custom_id": "x", "url": "/v1/embeddings", "body": {"messages": []}}, "url: must be of chat completions"),
    ({"custom_id": "x", "body": {"messages": [user()], "temperture": 1}}, "body: unknown key 'temperture'"),
    ({"custom_id": "x", "body": {"messages": [user()], "temperature": "hot"}}, "body: temperature: .*got 'hot'"),
    ({"custom_id": "x", "body": {"messages": [user()], "n": 2}}, r"body\.n: must be 1, got 2"),
    (
        {"custom_id": "x", "body": {"messages": [user()], "tools": [{}]}},
        r"body\.tools\[0\]\.name: must be the function's name",
    ),
    ({"custom_id": "x", "body": {"messages": [user()], "logit_bias": {"1": 2}}}, r"body\.logit_bias: has no"),
    (
        {"custom_id": "x", "body": {"messages": [user()], "repetition_penalty": 1.2}},
        r"body\.repetition_penalty: has no",
    ),
    ({"custom_id": "x", "body": {"messages": [user()], "think": "hard"}}, r"body: think: "),
    ({"conversations": [{"from": "human", "value": "x"}], "tools": '[{"name": "f"}]'}, "tools: cannot be read"),
    ({"conversation": [user()], "tools": [{"type": "function"}]}, "tools: cannot be read"),
    (
        {"conversations": [{"from": "function_call", "value": "x"}]},
        r"conversations\[0\]\.from: must be one of [a-z, ]*, got 'function_call'",
    ),
    ({"custom_id": "\n", "body": {"messages": [user()]}}, "custom_id: cannot be an id"),
    (conversation({"role": "critic", "content": "x"}), r"messages\[0\]\.role: must be one of .*got 'critic'"),
    (
        conversation({"role": "user", "content": None}),
        r"messages\[0\]\.content: must be a string or an array.*got null",
    ),
    (
        conversation({"role": "user", "content": [{"type": "image_url"}]}),
        r"messages\[0\]\.content\[0\]: must be a text",
    ),
    ({"conversations": [{"from": "tool", "value": "x"}]}, r"conversations\[0\]\.from: must be one of"),
    ({"conversations": [{"from": "human"}]}, r"conversations\[0\]\.value: is missing"),
    ({"conversations": [{"fron": "human", "value": "x"}]}, r"conversations\[0\].*from"),
    ({"conversations": [{"from": "gpt", "value": "x"}]}, "has no user message"),
    ({"conversations": {}}, "conversations: must be an array"),
    ({"custom_id": "a", "body": {**conversation(), "tags": []}}, "body.tags: belongs to the native form"),
    ({"question_id": 1}, "turns: is missing"),
    ({"question_id": True, "turns": ["a"]}, "question_id: must be a string, got True"),
    ({"turns": []}, "turns: is empty"),
    ({"turns": [3]}, r"turns\[0\]: must be a string"),
    ({"turns": ["a"], "reference": ["a", "b"]}, "reference: has 2 texts for 1 turn"),
    ({"id": "x", "messages": [assistant(), assistant(), user()]}, r"messages\[1\]: two assistant messages in a row"),
    ({"id": "x", "messages": [{"role": "assistant", "content": " "}, user()]}, r"messages\[0\]: is empty"),
    ({"id": "x", "messages": [user(), assistant(), assistant()]}, r"messages\[2\]: two assistant messages in a row"),
    (
        {"id": "x", "messages": [user(), {"role": "system", "content": "s"}]},
        r"messages\[1\]: a system message may only",
    ),
    ({"id": "x", "messages": [{"role": "system", "content": "s"}]}, "has no user message"),
    ({"id": "x", "messages": [user(), assistant(expect=[])]}, r"messages\[1\]: `expect` must be in the user message"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_line_that_cannot_be_replayed_is_refused_with_the_path_in_it(
    line: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ScriptError, match=r"demo\.jsonl:1: " + message):
        read(tmp_path, line)


def test_the_form_is_recognised_line_by_line(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"turns": ["a"]},
        conversation(),
        {"conversations": [{"from": "human", "value": "x"}]},
    ]
    assert len(read(tmp_path, *lines).conversations) == 3


def test_a_native_line_with_a_field_of_a_request_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="unknown key 'temperature'"):
        read(tmp_path, conversation(id="x", temperature=1))


def test_a_line_without_an_id_is_native_when_a_message_has_native_keys(tmp_path: Path) -> None:
    lines = [conversation(user(params={"temperature": 0.5})), conversation(user(expect={"equals": "a"}))]
    first, second = read(tmp_path, *lines).conversations
    assert dict(first.turns[0].params) == {"temperature": 0.5}
    assert [check.kind for check in second.turns[0].checks] == ["equals"]


SHAREGPT_STARTING_WITH_A_REPLY: dict[str, Any] = {
    "id": "a",
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "gpt", "value": "As I said,"},
        {"from": "human", "value": "Who are you?"},
        {"from": "gpt", "value": "Nobody."},
    ],
}


@pytest.mark.parametrize("first", [0, 1])
def test_a_sharegpt_conversation_that_begins_with_a_reply_has_it_as_given(first: int, tmp_path: Path) -> None:
    messages = SHAREGPT_STARTING_WITH_A_REPLY["conversations"][1 - first :]
    (read_one,) = read(tmp_path, {**SHAREGPT_STARTING_WITH_A_REPLY, "conversations": messages}).conversations
    assert (read_one.system, read_one.greeting) == ("Be brief." if first else None, "As I said,")
    assert read_one.turns == (Turn("Who are you?", "Nobody."),)
