"""`logit_bias`: OpenAI's field, on every token of a reply, and on no other reply of the batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.serve.running import Server

SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": 5, "max_tokens": 24, "turn_end": "end-of-text"}


def reply(server: Server, **fields: Any) -> tuple[str, list[str], list[float]]:
    """Text, tokens and log-probabilities of a reply."""
    status, body, _ = server.chat("My name is Ada.", **{**SAMPLED, "logprobs": True, **fields})
    assert status == 200, body
    choice = body["choices"][0]
    tokens = choice["logprobs"]["content"]
    return choice["message"]["content"], [t["token"] for t in tokens], [t["logprob"] for t in tokens]


def ids(server: Server, text: str) -> list[int]:
    return server.send("/tokenize", {"prompt": text})[1]["tokens"]


@pytest.mark.parametrize("fields", [{}, {"presence_penalty": 0.5, "frequency_penalty": 0.5}, {"temperature": 0}])
def test_minus_100_is_a_ban(server: Server, fields: dict[str, Any]) -> None:
    banned = [0, *ids(server, "e"), *ids(server, "a")]
    plain = reply(server, **fields)
    assert {"e", "a"} & set(plain[0])
    biased = reply(server, logit_bias={str(token): -100 for token in banned}, **fields)
    assert biased == reply(server, banned_token_ids=banned, **fields)
    assert not {"e", "a"} & set(biased[0])
    both = reply(server, logit_bias={str(banned[1]): -100}, banned_token_ids=[0, banned[2]], **fields)
    assert both == biased


def test_100_allows_no_other_token(server: Server) -> None:
    (token,) = ids(server, "z")
    for fields in ({}, {"temperature": 0}, {"top_p": 1.0, "temperature": 2.0}):
        text, tokens, logprobs = reply(server, logit_bias={str(token): 100}, **fields)
        assert (text, tokens) == ("z" * 24, ["z"] * 24)
        assert max(logprobs) < -0.1  # log-probabilities are the model's own


def test_a_bias_on_all_tokens_but_one_is_the_opposite_bias_on_that_one(server: Server) -> None:
    (token,) = ids(server, "e")
    vocab_size = server.send("/v1/models")[1]["data"][0]["vocab_size"]
    lifted = reply(server, logit_bias={str(token): 12.5})
    lowered = reply(server, logit_bias={str(other): -12.5 for other in range(vocab_size) if other != token})
    assert lifted == lowered != reply(server)


def test_a_bias_of_zero_changes_nothing(server: Server) -> None:
    assert reply(server, logit_bias={"5": 0, "6": 0.0}) == reply(server) == reply(server, logit_bias={})


def test_the_other_replies_of_a_batch_are_unchanged(server: Server) -> None:
    fields = [{"logit_bias": {str(3 * number + 100): number - 8.0}} if number % 2 else {} for number in range(16)]
    alone = [reply(server, **each, seed=number) for number, each in enumerate(fields)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda item: reply(server, **item[1], seed=item[0]), enumerate(fields)))
    assert together == alone


def test_completions_take_it_too(server: Server) -> None:
    (token,) = ids(server, "z")
    status, body, _ = server.complete("User: hi", logit_bias={str(token): 100}, max_tokens=3)
    assert (status, body["choices"][0]["text"]) == (200, "zzz")


@pytest.mark.parametrize("token", [10**6, 2**31 - 1, 2**31, 2**32, 9_999_999_999])
@pytest.mark.parametrize("bias", [-100, -1])
def test_an_id_outside_the_vocabulary_is_refused(server: Server, token: int, bias: float) -> None:
    for send in (server.chat, server.complete):
        status, body, _ = send("hi", logit_bias={str(token): bias}, max_tokens=1)
        assert (status, body["error"]["param"]) == (400, "logit_bias")
        assert str(token) in body["error"]["message"].replace(",", "")
