"""The `openai` package as a client: replies, logprobs and streams equal those of the library."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from rwkvbatch import LLM, SamplingParams
from tests.serve.running import MODEL, Server, eventually

if TYPE_CHECKING:
    import openai  # takes a second, and every test process imports this file

SAMPLED = {"temperature": 1.5, "top_p": 0.9}
MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "My name is Ada."},
    {"role": "assistant", "content": "Hi Ada!"},
    {"role": "user", "content": "What is my name?"},
]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(threads=1)


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    import openai

    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def params(seed: int, **more: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 24, **SAMPLED, **more}, seed=seed)


def test_a_chat_reply_equals_that_of_the_library(client: openai.OpenAI, llm: LLM) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, seed=7, n=3, **SAMPLED)
    expected = llm.chat(MESSAGES, params(7), n=3)
    assert [choice.message.content for choice in reply.choices] == [output.text for output in expected.outputs]
    reasons = {"eos": "stop", "stop": "stop", "length": "length"}
    assert [choice.finish_reason for choice in reply.choices] == [reasons[o.finish_reason] for o in expected.outputs]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == expected.num_prompt_tokens
    assert reply.usage.completion_tokens == sum(len(output.token_ids) for output in expected.outputs)


def test_the_pieces_of_a_stream_join_to_the_reply(client: openai.OpenAI, llm: LLM) -> None:
    extra = {"think": "fake", "top_k": 30}
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        seed=9,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=extra,
        **SAMPLED,
    )
    texts, ends, usage = ["", ""], dict[int, str](), None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    expected = llm.chat(MESSAGES, params(9, top_k=30), n=2, think="fake")
    assert texts == [output.text for output in expected.outputs]
    assert sorted(ends) == [0, 1]
    assert usage is not None
    assert usage.completion_tokens == sum(len(output.token_ids) for output in expected.outputs)


@pytest.mark.parametrize("bos", [False, True])
def test_a_completion_equals_that_of_the_library(client: openai.OpenAI, llm: LLM, bos: bool) -> None:
    reply = client.completions.create(
        model=MODEL,
        prompt=["Once", "The sky is"],
        seed=3,
        n=2,
        max_tokens=9,
        stop="e",
        extra_body={"bos": "on" if bos else "auto"},
        **SAMPLED,
    )
    expected = llm.generate(["Once", "The sky is"], params(3, max_tokens=9, stop=("e",)), n=2, bos=bos)
    assert [choice.text for choice in reply.choices] == [o.text for output in expected for o in output.outputs]
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]


def test_a_prompt_of_token_ids_is_read_unchanged(client: openai.OpenAI, llm: LLM) -> None:
    ids = llm.tokenizer.encode("User: hi\n\nAssistant:")
    reply = client.completions.create(model=MODEL, prompt=ids, seed=3, max_tokens=5, echo=True, **SAMPLED)
    expected = llm.generate(ids, params(3, max_tokens=5))
    assert reply.choices[0].text == "User: hi\n\nAssistant:" + expected.text


def test_a_streamed_completion_with_echo_starts_with_the_prompt(client: openai.OpenAI, llm: LLM) -> None:
    chunks = client.completions.create(model=MODEL, prompt="Once", seed=3, stream=True, echo=True, **SAMPLED)
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == "Once" + llm.generate("Once", params(3)).text


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echoed_logprobs_equal_scores_of_the_library(client: openai.OpenAI, llm: LLM, max_tokens: int) -> None:
    text = "User: Grüße\n\nAssistant: Hi"
    reply = client.completions.create(
        model=MODEL, prompt=text, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0, extra_body={"bos": "on"}
    )
    score = llm.score("", text, bos=True)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.text_offset is not None
    size = len(score.token_ids)
    assert tuple(logprobs.token_logprobs[:size]) == tuple(score.logprobs)
    assert len(logprobs.token_logprobs) == size + max_tokens
    tops = [max(top.values()) for top in logprobs.top_logprobs[:size] if top is not None]
    greedy = [own == top for own, top in zip(score.logprobs, tops, strict=True)]
    assert sum(greedy) == score.num_matched
    assert logprobs.text_offset[-1 - max_tokens] == len(text) - 1
    assert reply.choices[0].text.startswith(text)
    if not max_tokens:
        assert reply.choices[0].text == text


def test_the_first_token_of_a_prompt_of_ids_has_no_logprob(client: openai.OpenAI, llm: LLM) -> None:
    reply = client.completions.create(model=MODEL, prompt=[0, 10, 20], echo=True, logprobs=0, max_tokens=0)
    with_bos = client.completions.create(
        model=MODEL, prompt=[10, 20], echo=True, logprobs=0, max_tokens=0, extra_body={"bos": "on"}
    )
    assert with_bos.choices[0].logprobs is not None
    assert with_bos.choices[0].logprobs.token_logprobs == list(llm.score([0], [10, 20]).logprobs)
    assert with_bos.choices[0].text == reply.choices[0].text
    assert reply.choices[0].logprobs is not None
    found = reply.choices[0].logprobs.token_logprobs
    assert found is not None
    assert found[0] is None
    assert found[1:] == list(llm.score([0], [10, 20]).logprobs)
    assert reply.choices[0].logprobs.tokens is not None
    assert reply.choices[0].logprobs.tokens[0] == "<|endoftext|>"


def test_bos_adds_no_second_token_0_to_a_prompt_of_ids(client: openai.OpenAI) -> None:
    with_bos, without_bos = (
        client.completions.create(
            model=MODEL, prompt=[0, 10, 20], echo=True, logprobs=0, max_tokens=1, temperature=0, extra_body={"bos": bos}
        )
        for bos in ("on", "off")
    )
    assert with_bos.choices == without_bos.choices
    assert with_bos.usage == without_bos.usage


def test_an_empty_reply_has_the_logprob_of_its_end_token(client: openai.OpenAI) -> None:
    """lm-evaluation-harness drops the last listed token as the generated one."""
    banned = {"banned_token_ids": list(range(1, 512))}
    reply = client.completions.create(
        model=MODEL, prompt="ab", echo=True, logprobs=1, max_tokens=1, temperature=0, extra_body={**banned, "bos": "on"}
    )
    assert reply.choices[0].text == "ab"
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.tokens == ["a", "b", "<|endoftext|>"]


def test_chat_logprobs_have_tokens_and_their_bytes(client: openai.OpenAI, llm: LLM) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, seed=7, logprobs=True, top_logprobs=2, **SAMPLED
    )
    expected = llm.chat(MESSAGES, params(7)).outputs[0]
    assert reply.choices[0].logprobs is not None
    content = reply.choices[0].logprobs.content
    assert content is not None
    assert [each.logprob for each in content][: len(expected.token_ids)] == list(expected.logprobs)
    data = b"".join(bytes(each.bytes or []) for each in content)
    assert data == llm.tokenizer.decode_bytes(expected.token_ids)
    assert {len(each.top_logprobs) for each in content} == {2}


def test_each_chunk_of_a_chat_has_the_logprobs_of_its_tokens(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "seed": 7, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**fields, **SAMPLED).choices[0]
    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    texts, chunks = list[str](), list[list[Any]]()
    for chunk in client.chat.completions.create(**fields, **SAMPLED, stream=True):
        (choice,) = chunk.choices
        logprobs = choice.logprobs
        texts.append(choice.delta.content or "")
        chunks.append([] if logprobs is None else logprobs.content or [])
    assert [each for chunk in chunks for each in chunk] == whole.logprobs.content
    assert any(texts[:-1])  # otherwise all logprobs could come with the last chunk
    for at in range(len(chunks)):
        data = b"".join(bytes(each.bytes) for chunk in chunks[: at + 1] for each in chunk)
        assert data.decode(errors="ignore").lstrip().startswith("".join(texts[: at + 1]))


@pytest.mark.parametrize("echo", [False, True])
def test_logprobs_of_a_streamed_completion_join_to_those_of_the_whole(client: openai.OpenAI, echo: bool) -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": "Grüße, 世界", "echo": echo, "logprobs": 1, "seed": 4, "n": 2}
    whole = client.completions.create(**fields, **SAMPLED)
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    found: list[dict[str, list[Any]]] = [{name: [] for name in names} for _ in whole.choices]
    texts = ["" for _ in whole.choices]
    for chunk in client.completions.create(**fields, **SAMPLED, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.logprobs is not None:
                for name in names:
                    found[choice.index][name] += getattr(choice.logprobs, name)
    assert texts == [choice.text for choice in whole.choices]
    for choice in whole.choices:
        assert choice.logprobs is not None
        assert found[choice.index] == {name: getattr(choice.logprobs, name) for name in names}


@pytest.mark.parametrize(
    ("stop", "max_tokens", "expected"),
    [(["zzz", "e"], 64, "e"), (None, 4, None), (None, 400, None), (["zzz", "\n\n"], 400, "\n\n")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_stop_reason_is_the_stop_string_that_ended_the_reply(
    client: openai.OpenAI, stop: list[str] | None, max_tokens: int, expected: str | None, stream: bool
) -> None:
    fields: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "stop": stop}
    answer: Any = client.chat.completions.create(**fields, max_tokens=max_tokens, stream=stream)
    choice = (list(answer)[-1] if stream else answer).choices[0]
    assert choice.finish_reason == ("length" if max_tokens == 4 else "stop")
    assert choice.model_extra["stop_reason"] == expected


def test_replies_do_not_depend_on_concurrent_requests(server: Server, llm: LLM) -> None:
    import openai

    texts = [f"Question {number}: what is {number} plus {number}?" for number in range(24)]

    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def ask(text: str) -> str | None:
                messages: list[Any] = [{"role": "user", "content": text}]
                reply = await client.chat.completions.create(
                    model=MODEL, messages=messages, seed=len(text), max_tokens=len(text), **SAMPLED
                )
                return reply.choices[0].message.content

            return await asyncio.gather(*map(ask, texts))

    replies = asyncio.run(ask_all())
    for text, reply in zip(texts, replies, strict=True):
        messages = [{"role": "user", "content": text}]
        assert reply == llm.chat(messages, params(len(text), max_tokens=len(text))).text


def test_headers_have_the_seed_and_whether_the_reply_is_reproducible(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, **SAMPLED)
    assert raw.headers["x-rwkvbatch-reproducible"] == "bitwise"
    seed = int(raw.headers["x-rwkvbatch-seed"])
    repeated = client.chat.completions.create(model=MODEL, messages=MESSAGES, seed=seed, **SAMPLED)
    first = raw.parse()
    assert repeated.choices[0].message.content == first.choices[0].message.content
    assert repeated.system_fingerprint == first.system_fingerprint
    timed = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=MESSAGES, extra_body={"max_seconds": 60}
    )
    assert timed.headers["x-rwkvbatch-reproducible"] == "no; max_seconds"


def test_closing_a_stream_cancels_its_request(server: Server, client: openai.OpenAI) -> None:
    cancelled = server.batcher.num_cancelled
    extra = {"banned_token_ids": [0], "turn_end": "end-of-text"}
    with client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, max_tokens=4096, extra_body=extra
    ) as stream:
        next(iter(stream))
    assert eventually(lambda: server.batcher.num_cancelled == cancelled + 1 and server.batcher.num_unfinished == 0)


def test_models_are_listed(server: Server, client: openai.OpenAI) -> None:
    import openai

    (model,) = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here"):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here"):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_without_a_reply_is_the_prompt(client: openai.OpenAI, stream: bool) -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": ["one", "two"], "echo": True, "max_tokens": 0}
    if stream:
        texts = ["", ""]
        for chunk in client.completions.create(**fields, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    else:
        texts = [choice.text for choice in client.completions.create(**fields).choices]
    assert texts == ["one", "two"]


def test_fields_without_effect_are_accepted(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model=MODEL, messages=MESSAGES, seed=7, max_tokens=8, temperature=0)
    parts = [{**message, "content": [{"type": "text", "text": part} for part in _halves(message["content"])]}
             for message in MESSAGES]  # fmt: skip
    without_effect = {"user": "me", "max_completion_tokens": 8, "logit_bias": {}, "metadata": {"a": "b"}}
    reply = client.chat.completions.create(
        model=MODEL, messages=parts, seed=7, max_tokens=8, temperature=0, extra_body=without_effect
    )
    assert reply.choices[0].message.content == plain.choices[0].message.content


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]
