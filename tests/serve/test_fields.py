"""Invalid requests: each is refused with a message that names the field and what it must be."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.serve.running import CHAT, MODEL, SETTINGS, Server, problem, running, still_serves

PREFILLED = [{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": "Nice to"}]


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"temperature": 101}, "temperature: must be a number in [0, 100], got 101", "temperature"),
        ({"temperature": True}, "temperature: must be a number in [0, 100], got True", "temperature"),
        ({"top_k": "5"}, "top_k: must be a whole number in [0, 2147483647], got '5'", "top_k"),
        ({"top_k": -1}, "top_k: must be a whole number in [0, 2147483647], got -1", "top_k"),
        ({"order": "none"}, "order: must be 'top-p-first'", "order"),
        ({"banned_token_ids": [10**6]}, "token ids, 0 to ", "banned_token_ids"),
        ({"max_tokens": 0}, "max_tokens: must be a whole number in [1, 4096], got 0", "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens: must be a whole number in [1, 4096], got 1000000000", "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens and max_completion_tokens differ", None),
        ({"n": 129}, "n: must be a whole number in [1, 128], got 129", "n"),
        ({"seed": -1}, "seed: must be a whole number in [0, 9223372036854775808), got -1", "seed"),
        ({"seed": 1.5}, "seed: must be a whole number in [0, 9223372036854775808), got 1.5", "seed"),
        # The JSON reader converts whole numbers beyond 64 bits to floats.
        (
            {"seed": 2**64},
            "seed: must be a whole number in [0, 9223372036854775808), got 1.8446744073709552e+19",
            "seed",
        ),
        ({"n": 2**64}, "n: must be a whole number in [1, 128], got 1.84", "n"),
        ({"n": 0}, "n: must be a whole number in [1, 128], got 0", "n"),
        ({"top_logprobs": -1, "logprobs": True}, "top_logprobs: must be a whole number in [0, 20], got -1", None),
        ({"max_tokens": 2**64}, "max_tokens: must be a whole number in [1, 4096], got 1.84", "max_tokens"),
        ({"max_completion_tokens": 2.5}, "max_completion_tokens: must be a whole number in [1, 4096], got 2.5", None),
        ({"top_k": 2**64}, "top_k: must be a whole number in [0, 2147483647], got 1.84", "top_k"),
        ({"banned_token_ids": [2**64]}, "must be token ids, whole numbers in [0, 2147483647], got 1.84", None),
        ({"stop": ["x"] * 1000}, "stop: must be at most 32 texts, got 1000", "stop"),
        ({"stop": "x" * 257}, "stop: must be texts of 1 to 256 characters, got one of 257", "stop"),
        ({"stop": ""}, "stop: must be texts of 1 to 256 characters, got one of 0", "stop"),
        ({"tools": [{"type": "function"}]}, "tools[0].name: must be the function's name", "tools"),
        ({"logit_bias": {"1": 101}}, "the bias of token 1 must be a number in [-100, 100], got 101", "logit_bias"),
        ({"logit_bias": {"1": -100.5}}, "the bias of token 1 must be a number in [-100, 100]", "logit_bias"),
        ({"logit_bias": {"1": True}}, "the bias of token 1 must be a number in [-100, 100], got True", "logit_bias"),
        ({"logit_bias": {"1": None}}, "the bias of token 1 must be a number in [-100, 100], got None", "logit_bias"),
        ({"logit_bias": {"x": 5}}, "logit_bias: its keys must be token ids, got 'x'", "logit_bias"),
        ({"logit_bias": {"-1": 5}}, "logit_bias: its keys must be token ids, got '-1'", "logit_bias"),
        ({"logit_bias": {"01": 5}}, "logit_bias: its keys must be token ids, got '01'", "logit_bias"),
        ({"logit_bias": {"1000000": 5}}, "logit_bias: the model's vocabulary has 512 token ids", "logit_bias"),
        ({"logit_bias": {"1000000": -100}}, "logit_bias: the model's vocabulary has 512 token ids", "logit_bias"),
        ({"logit_bias": [[1, 5]]}, "logit_bias: ", "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format: this server does not support it", None),
        ({"temprature": 1}, "temprature: unknown field", "temprature"),
        ({"reasoning_effort": "huge"}, "must be one of none, minimal, low, medium, high, xhigh; got 'huge'", None),
        ({"reasoning_effort": ["low"]}, "reasoning_effort: must be one of none", "reasoning_effort"),
        ({"reasoning_effort": "low", "think": "on"}, "give one of reasoning_effort, think", "reasoning_effort"),
        ({"chat_template_kwargs": {"enable_thinking": 1}}, "; the field think of chats", "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": True, "x": 1}}, "; the field think of chats", None),
        ({"repeat_penalty": 1.1}, "repeat_penalty: this server does not support it, got 1.1", "repeat_penalty"),
        ({"stop_token_ids": [5]}, "stop_token_ids: this server does not support it", "stop_token_ids"),
        ({"min_tokens": 3}, "min_tokens: this server does not support it, got 3", "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos: this server does not support it, got True", "ignore_eos"),
        ({"x" * 10**6: 1}, "x" * 80 + ": unknown field", "x" * 80),
        ({"\x9b31m\u202e": 1}, "\\x9b31m\\u202e: unknown field", "\\x9b31m\\u202e"),
        ({"no_penalty": ["a"] * 9}, "no_penalty: must be at most 8 texts", "no_penalty"),
        ({"reply_prefix": "a" * 10_001}, "reply_prefix: must be at most 10000 characters, got 10001", "reply_prefix"),
        ({"template": "/etc/passwd"}, "template: unknown field", "template"),
        ({"state": "/etc/passwd"}, "state: unknown field", "state"),
        ({"initial_state": "poet"}, "initial_state: must be one of none; got 'poet'", "initial_state"),
        ({"top_logprobs": 2}, "top_logprobs: needs logprobs to be true", "top_logprobs"),
        ({"think": "on", "reply_prefix": "x"}, "reply_prefix begins the answer, and with think on", "reply_prefix"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "content: must be text, or a list of text parts; got 3",
            "messages",
        ),
        ({"messages": [{"role": "user"}]}, "messages.0.content: must be text, or a list", "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "list of text parts; got null", "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "list of text parts; got []", "messages"),
        ({"messages": []}, "messages: must have at least 1 item, got []", "messages"),
        ({"messages": [{"role": "assistant", "content": "a"}] * 2}, "must have a user message to reply to", "messages"),
        ({"continue_final_message": True}, "the last message must be an assistant message", "continue_final_message"),
        ({"add_generation_prompt": False}, "must be true unless the last message", "add_generation_prompt"),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            "add_generation_prompt and continue_final_message: give one of them",
            "continue_final_message",
        ),
        (
            {"messages": PREFILLED, "continue_final_message": False},
            "continue_final_message: the last message is an assistant message, which the reply continues",
            "continue_final_message",
        ),
        ({"messages": PREFILLED, "add_generation_prompt": True}, "a second reply is not", "add_generation_prompt"),
        ({"messages": PREFILLED, "reply_prefix": "x"}, "both begin the reply", "reply_prefix"),
        (
            {
                "messages": PREFILLED,
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            },
            "tool_choice: the assistant message at the end begins the reply already",
            "tool_choice",
        ),
        ({"messages": PREFILLED, "think": "on"}, "with think on the reply begins with thinking", "think"),
        (
            {
                "messages": [
                    *PREFILLED[:1],
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                    },
                ]
            },
            "messages.1.tool_calls: calls at the end need their results after them",
            "messages",
        ),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role: must be system, developer", None),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a tool message is the result of a call", "messages"),
        ({"tool_choice": "required"}, "tool_choice: needs `tools`, and there are none", "tool_choice"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text parts", "messages"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name: this server", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 200_000}]}, "this server reads at most 65,536", "messages"),
    ],
)
def test_invalid_fields_of_a_chat_are_refused_by_name(
    server: Server, fields: dict[str, Any], message: str, param: str | None
) -> None:
    status, text, found = problem(server.send("/v1/chat/completions", {**CHAT, **fields}))
    assert status == 400
    assert message in text
    assert param in (None, found)
    # Clients know neither command line options nor arguments of the library.
    assert not re.search(r"--[a-z]|[a-z]=(?!=)", text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": []}, "prompts times n must be 1 to 128, got 0 times 1"),
        ({"prompt": ["x"] * 65, "n": 2}, "prompts times n must be 1 to 128, got 65 times 2"),
        ({"prompt": [-1]}, "token"),
        ({"prompt": [10**9]}, "token"),
        ({"prompt": [[1], ["x"]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens: must be a whole number in [1, 4096], got 0; echo allows 0"),
        ({"prompt": "x", "best_of": 2}, "best_of: must be n, which is 1; got 2"),
        ({"prompt": "x", "suffix": "y"}, "suffix: this server does not support it"),
        ({"prompt": "x", "think": "on"}, "think: unknown field"),
        ({"prompt": "x", "logprobs": 21}, "logprobs: must be a whole number in [0, 20], got 21"),
        ({}, "prompt"),
    ],
)
def test_invalid_fields_of_a_completion_are_refused(server: Server, fields: dict[str, Any], message: str) -> None:
    status, text, _ = problem(server.send("/v1/completions", {"model": MODEL, **fields}))
    assert status == 400
    assert message in text


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{}", b"[" * 100_000, b'{"model": NaN}'),
        *(b'{"messages": [{"role": "user", "content": "\\ud800"}], "model": "rwkvbatch-demo"}', b'{"model": 1e999}'),
        b'{"model": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    ],
    ids=range(11),
)
def test_bodies_that_are_no_requests_are_refused(server: Server, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        assert server.send(path, body, method="POST")[0] == 400
    assert still_serves(server)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model": 1e400}', "the body cannot be read: the number 1e400 is out of range; write a number below 1e308"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "the body cannot be read: the number 99"),
        (b'{"model": NaN}', "the body cannot be read: NaN is not a JSON number; write a finite number, or null"),
        (b'{"model": "\\ud800"}', "the body cannot be read: no low surrogate in string"),
        (b'{"model": ', "the body is not JSON: unexpected end of data"),
        (b'{"model": {"x": 1, "x": 2}, "a": }', "the body is not JSON: "),
        (b'{"model": [Infinity], }', "the body is not JSON: "),
        (b"\xff", "the body is not JSON: str is not valid UTF-8"),
    ],
)
def test_a_body_that_cannot_be_read_is_named_by_its_problem(server: Server, body: bytes, message: str) -> None:
    for path in ("/v1/chat/completions", "/tokenize"):
        assert problem(server.send(path, body, method="POST"))[1].startswith(message)


def test_fields_of_other_servers_are_accepted_where_they_change_nothing(server: Server) -> None:
    neutral = {
        "parallel_tool_calls": False, "repetition_penalty": 1, "length_penalty": 1.0, "min_tokens": 0,
        "ignore_eos": False, "use_beam_search": False, "skip_special_tokens": True, "chat_template_kwargs": {},
        "add_generation_prompt": True, "continue_final_message": False, "tools": [], "logit_bias": None,
        "stop_token_ids": [], "echo": False, "best_of": 1, "cache_prompt": True, "repeat_penalty": 1.0, "mirostat": 0,
        "top_n_sigma": -1, "typical_p": 1.0, "grammar": "", "priority": 3, "response_format": {"type": "text"},
        "suffix": None, "reasoning_effort": "none",
    }  # fmt: skip
    plain, given = ({**CHAT, "max_tokens": 4, "seed": 1, **more} for more in ({}, neutral))
    first, second = (server.send("/v1/chat/completions", body) for body in (plain, given))
    assert (first[0], second[0]) == (200, 200)
    texts = [answer[1]["choices"][0]["message"] for answer in (first, second)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("fields", "think"),
    [
        ({"reasoning_effort": "none"}, "off"),
        ({"reasoning_effort": "low"}, "short"),
        ({"reasoning_effort": "medium"}, "on"),
        ({"reasoning_effort": "high"}, "long"),
        ({"reasoning_effort": None}, "off"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "on"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "off"),
    ],
)
def test_the_fields_of_other_servers_about_thinking_set_the_mode(
    server: Server, fields: dict[str, Any], think: str
) -> None:
    given, own = (server.chat("hi", temperature=0, max_tokens=8, **each)[1] for each in (fields, {"think": think}))
    assert given["choices"][0]["message"] == own["choices"][0]["message"]
    assert given["usage"]["prompt_tokens"] == own["usage"]["prompt_tokens"]


def test_a_mode_without_thinking_of_the_server_is_kept() -> None:
    with running(settings=SETTINGS.replace(think="fake")) as server:
        for fields in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
            given, own = (server.chat("hi", temperature=0, max_tokens=8, **each)[1] for each in (fields, {}))
            assert given["choices"][0]["message"] == own["choices"][0]["message"]


def test_user_messages_in_a_row_are_one_message(server: Server) -> None:
    def reply(*messages: tuple[str, str]) -> Any:
        sent = [{"role": role, "content": content} for role, content in messages]
        status, body, _ = server.send("/v1/chat/completions", {**CHAT, "messages": sent, "temperature": 0})
        assert status == 200
        return body["choices"][0]["message"], body["usage"]["prompt_tokens"]

    before = [("user", "hi"), ("assistant", "Hello.")]
    assert reply(*before, ("user", "My name is Ada."), ("user", "Who am I?")) == reply(
        *before, ("user", "My name is Ada.\nWho am I?")
    )


def test_the_error_of_a_chat_does_not_mention_echo(server: Server) -> None:
    status, text, _ = problem(server.send("/v1/chat/completions", {**CHAT, "max_tokens": 0}))
    assert (status, text) == (400, "max_tokens: must be a whole number in [1, 4096], got 0")


def test_an_unknown_field_of_tokenize_and_detokenize_is_named(server: Server) -> None:
    for path, fields in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [65]})):
        assert problem(server.send(path, {**fields, "speed": 1}))[:2] == (400, "speed: unknown field")


def test_a_number_for_bos_is_refused_after_true_was_accepted(server: Server) -> None:
    for bos, status in ((True, 200), (1, 400), (1.0, 400), (True, 200)):
        assert server.chat("hi", max_tokens=1, bos=bos)[0] == status


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b'{"model": "rwkvbatch-demo", "prompt": "hi", "max_tokens": 1, "max_tokens": 2}', "max_tokens"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "hi", "content": "ho"}]}', "content"),
    ],
)
def test_a_key_that_comes_twice_is_refused(server: Server, body: bytes, key: str) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        status, message, _ = problem(server.send(path, body, method="POST"))
        assert (status, message) == (
            400, f"the body cannot be read: the key '{key}' is repeated in one object; keep one of the two",
        )  # fmt: skip
