"""The `top_p` of a request: 1 beside a temperature, unless the server was started with one."""

from __future__ import annotations

from typing import Any

import pytest

from rwkvbatch.config import CellSettings, SamplingParams
from rwkvbatch.serve.fields import ChatFields, CompletionFields
from rwkvbatch.serve.protocol import Limits, ServerSettings, parse_request
from tests.serve.running import CHAT, MODEL, SETTINGS, Server, running

CHOSEN = CellSettings(top_p=0.6)


def params(settings: ServerSettings, kind: Any = ChatFields, **fields: Any) -> SamplingParams:
    body = CHAT if kind is ChatFields else {"model": MODEL, "prompt": "hi"}
    return parse_request({**body, **fields}, kind, settings, 0, Limits(100, 100)).params


@pytest.mark.parametrize("kind", [ChatFields, CompletionFields])
@pytest.mark.parametrize(
    ("fields", "unset", "given"),
    [
        ({}, 0.3, 0.6),
        ({"temperature": 1.0}, 1.0, 0.6),
        ({"temperature": 0.0}, 1.0, 0.6),
        ({"temperature": None}, 0.3, 0.6),
        ({"temperature": 2.0, "top_p": None}, 1.0, 0.6),
        ({"temperature": 2.0, "top_p": 0.9}, 0.9, 0.9),
        ({"top_p": 0.9}, 0.9, 0.9),
        ({"top_k": 5}, 0.3, 0.6),
    ],
)
def test_a_temperature_alone_has_top_p_1(kind: Any, fields: dict[str, Any], unset: float, given: float) -> None:
    assert params(ServerSettings(CellSettings()), kind, **fields).top_p == unset
    assert params(ServerSettings(CHOSEN, top_p_given=True), kind, **fields).top_p == given


def distinct(server: Server, **fields: Any) -> int:
    _, body, _ = server.chat("Tell me a story.", n=8, seed=1, max_tokens=12, **fields)
    return len({choice["message"]["content"] for choice in body["choices"]})


def test_the_replies_of_a_client_that_sends_a_temperature_vary() -> None:
    with running() as server:
        assert distinct(server, temperature=2.0) > 5
        same = server.chat("Hi", seed=1, temperature=1.0)[1]["choices"][0]["message"]
        assert same == server.chat("Hi", seed=1, temperature=1.0, top_p=1.0)[1]["choices"][0]["message"]
    with running(settings=SETTINGS.replace(top_p=0.1)) as server:
        # `replace` sets every field, as a command line with --top-p sets this one.
        assert distinct(server, temperature=2.0) < 5
