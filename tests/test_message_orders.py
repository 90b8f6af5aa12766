"""Messages in any order: what the model reads, and replies that an assistant message at the end begins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rwkvbatch import LLM, SamplingParams
from rwkvbatch.errors import UsageError
from tests.serve.running import CHAT, SETTINGS, Server, running

GREEDY = SamplingParams(temperature=0, max_tokens=24)
PREFIX = "Nice to"


def dialogue(*messages: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


ADA = dialogue(("user", "My name is Ada."))
PREFILLED = [*ADA, *dialogue(("assistant", PREFIX))]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM() as bundled:
        yield bundled


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        (
            [("user", "a"), ("assistant", "b"), ("system", "s"), ("user", "c")],
            "User: a\n\nAssistant: b\n\nSystem: s\n\nUser: c\n\nAssistant:",
        ),
        ([("user", "a"), ("system", "s")], "System: s\n\nUser: a\n\nAssistant:"),
        (
            [("user", "a"), ("assistant", "b"), ("user", "c"), ("system", "s"), ("user", "d")],
            "User: a\n\nAssistant: b\n\nSystem: s\n\nUser: c\nd\n\nAssistant:",
        ),
        ([("system", "s"), ("system", "t"), ("user", "a")], "System: s\nt\n\nUser: a\n\nAssistant:"),
        (
            [("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d")],
            "User: a\n\nAssistant: b\nc\n\nUser: d\n\nAssistant:",
        ),
        (
            [("system", "s"), ("assistant", "Hi!"), ("user", "a")],
            "System: s\n\nAssistant: Hi!\n\nUser: a\n\nAssistant:",
        ),
        (
            [("user", "a"), ("assistant", "b"), ("system", "s"), ("assistant", "c"), ("user", "d")],
            "User: a\n\nAssistant: b\n\nSystem: s\n\nAssistant: c\n\nUser: d\n\nAssistant:",
        ),
        ([("user", "a"), ("assistant", "b")], "User: a\n\nAssistant: b"),
        ([("user", "a"), ("assistant", "b"), ("assistant", "c")], "User: a\n\nAssistant: b\nc"),
        ([("user", "a"), ("assistant", "")], "User: a\n\nAssistant:"),
        ([("user", "a"), ("assistant", "\n{")], "User: a\n\nAssistant:\n{"),
    ],
)
def test_messages_in_any_order_have_one_prompt(llm: LLM, messages: list[tuple[str, str]], prompt: str) -> None:
    assert llm.chat(dialogue(*messages), GREEDY.replace(max_tokens=1)).prompt == prompt


@pytest.mark.parametrize("messages", [[("assistant", "a")], [("system", "s")], [("user", "a"), ("tool", "b")]])
def test_conversations_without_a_message_to_reply_to_are_refused(llm: LLM, messages: list[tuple[str, str]]) -> None:
    with pytest.raises(UsageError, match=r"must have a user message|must be a role \(system, user, assistant\)"):
        llm.chat(dialogue(*messages))


def test_a_reply_continues_an_assistant_message_at_the_end(llm: LLM) -> None:
    whole = llm.chat(ADA, GREEDY, reply_prefix=PREFIX)
    continued = llm.chat(PREFILLED, GREEDY)
    assert continued.outputs[0].token_ids == whole.outputs[0].token_ids
    assert PREFIX + continued.text == whole.text == "Nice to meet you, Ada."
    assert "".join(llm.stream(PREFILLED, GREEDY)) == continued.text
    batch = llm.chat([PREFILLED, ADA], GREEDY)
    assert [output.text for output in batch] == [continued.text, llm.chat(ADA, GREEDY).text]


def test_a_template_file_has_later_system_messages_and_continued_replies(llm: LLM) -> None:
    messages = dialogue(("user", "a"), ("assistant", "b"), ("system", "s"), ("user", "c"), ("assistant", "d"))
    prompt = llm.chat(messages, GREEDY.replace(max_tokens=1), template="bot").prompt
    assert prompt == "User✿a✿\nBot✿b✿\nSystem✿s✿\nUser✿c✿\nBot✿d"


@pytest.mark.parametrize("options", [{"reply_prefix": "x"}, {"think": "on"}])
def test_a_reply_has_one_beginning(llm: LLM, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="an assistant message at the end"):
        llm.chat(PREFILLED, GREEDY, **options)


@pytest.mark.parametrize("fields", [{}, {"continue_final_message": True, "add_generation_prompt": False}])
def test_the_server_continues_an_assistant_message_in_streams_too(
    server: Server, llm: LLM, fields: dict[str, Any]
) -> None:
    body = {**CHAT, "messages": PREFILLED, "temperature": 0, **fields}
    status, answer, _ = server.send("/v1/chat/completions", body)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, llm.chat(PREFILLED, GREEDY).text)
    _, events, _ = server.send("/v1/chat/completions", {**body, "stream": True})
    chunks = [json.loads(line[6:]) for line in events.split("\n") if line.startswith("data: {")]
    streamed = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert streamed == answer["choices"][0]["message"]["content"] == " meet you, Ada."


def test_a_prefix_of_the_servers_settings_gives_way_to_a_message_that_begins_the_reply(llm: LLM) -> None:
    replies: list[str] = []
    with running(settings=SETTINGS.replace(reply_prefix="Well")) as prefixed:
        for messages in (PREFILLED, [*ADA, {"role": "assistant", "content": ""}]):
            status, answer, _ = prefixed.send("/v1/chat/completions", {**CHAT, "messages": messages, "temperature": 0})
            assert status == 200
            replies.append(answer["choices"][0]["message"]["content"])
    assert replies == [" meet you, Ada.", llm.chat(ADA, GREEDY, reply_prefix="Well").text]
