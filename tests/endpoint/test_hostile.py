"""Misbehaving servers: a clear error per request, in bounded time and memory."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from rwkvbatch.config import Sampling
from rwkvbatch.endpoint.client import Budget, Client, ClientOptions, check_url
from rwkvbatch.endpoint.engine import EndpointEngine
from rwkvbatch.endpoint.served import ServedSpec
from rwkvbatch.engine.request import Reply, Request
from rwkvbatch.errors import RequestsSpentError, UsageError
from rwkvbatch.prompt.tokenizer import world_tokenizer
from tests.endpoint.server import raw_server

OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\n\r\n"
JSON = OK + b"Content-Type: application/json\r\n\r\n"


def client(url: str, **options: Any) -> Client:
    return Client(url, ClientOptions(**{"retries": 0, "timeout_s": 5.0, **options}), key="", jitter=lambda: 0.0)


def ask(url: str, **options: Any) -> Reply:
    spec = ServedSpec(url, "m", "completions", "0" * 64, vocab_size=257)
    engine = EndpointEngine(client(url, **options), spec, world_tokenizer(257))
    tokens = tuple(world_tokenizer(257).encode("User: hi\n\nAssistant:"))
    return engine.generate([Request(tokens, Sampling(temperature=0.0), max_tokens=4, stop=("\n\n",))])[0]


def answering(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


def event(**values: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **values}]}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (JSON + b'{"choices": [{"text": "a', "not JSON"),
        (JSON, "the answer is empty"),
        (JSON + b"[1, 2]", "must be a JSON object, found list"),
        (JSON + b'{"choices": "x"}', "`choices` of the answer must be a list"),
        (JSON + b'{"choices": [7]}', "must contain objects"),
        (JSON + b'{"choices": [{"text": 7, "finish_reason": "stop"}]}', "must be a string, found int"),
        (JSON + b'{"choices": [{"text": "\xff\xfe", "finish_reason": "stop"}]}', "not JSON"),
        (JSON + b'{"choices": [{"text": "\\ud800", "finish_reason": "stop"}]}', "not JSON"),
        (JSON + b"[" * 100_000, "not JSON"),
        (JSON + b'{"choices": [{"text": "a", "finish_reason": "content_filter"}]}', "finish_reason 'content_filter'"),
        (JSON + b'{"choices": [], "error": {"message": "out of \\u001b[2J memory"}}', r"out of \\x1b\[2J memory"),
        (STREAM + event(text="half"), "ended before the reply did"),
        (STREAM + b"data: {\n\n", "not JSON"),
        (STREAM + b'data: {"choices": [{"text": "\xff"}]}\n\n', "not JSON"),
        (JSON.replace(b"\r\n\r\n", b"\r\nContent-Length: 10000000000\r\n\r\n") + b"{}", "connection failed"),
        (STREAM + b": nothing\n\n", "ended before the reply did"),
        (OK + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b", "compressed its answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "connection failed"),
        (b"\x00\x01garbage\r\n\r\n", "connection failed"),
        (b"", "connection failed"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200_000, "connection failed"),
    ],
)
def test_nonsense_is_the_error_of_one_reply(data: bytes, message: str) -> None:
    with raw_server(answering(data)) as url:
        reply = ask(url)
    assert reply.finish_reason == "error"
    assert reply.error is not None
    assert re.search(message, reply.error)
    assert reply.error.isprintable()


def test_endless_body_is_cut_off() -> None:
    sent = 0

    def endless(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(JSON)
        while True:
            connection.sendall(b" " * 65536)
            sent += 65536

    with raw_server(endless) as url:
        reply = ask(url)
    assert "longer than" in (reply.error or "")
    assert sent < 2**25


def test_endless_stream_of_events_is_cut_off() -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(STREAM)
        while True:
            connection.sendall(event(text="word " * 50) * 50)

    with raw_server(endless) as url:
        reply = ask(url)
    assert "longer than" in (reply.error or "")


def test_stream_that_drips_has_an_end() -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(STREAM)
        while True:
            connection.sendall(b": still here\n\n")
            time.sleep(0.02)

    with raw_server(drip) as url:
        reply = ask(url, timeout_s=0.2)
    assert "within 0.2 s" in (reply.error or "")


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "endless"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"a"),
        (CHUNKED + b"0\r\n", b"X: y\r\n"),
    ],
    ids=["interim responses", "a field", "fields after the body"],
)
def test_head_and_trailer_that_drip_have_an_end(begin: bytes, endless: bytes) -> None:
    gives_up_s = time.monotonic() + 8

    def drip(connection: socket.socket) -> None:
        connection.sendall(begin)
        while time.monotonic() < gives_up_s:
            connection.sendall(endless)
            time.sleep(0.01)

    with raw_server(drip) as url:
        reply = ask(url, timeout_s=0.2)
    assert "no answer within 0.2 s" in (reply.error or "")


def test_server_that_never_answers_has_an_end() -> None:
    with raw_server(lambda connection: time.sleep(1)) as url:
        reply = ask(url, timeout_s=0.1)
    assert "no answer within 0.1 s" in (reply.error or "")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_is_refused_and_not_followed(status: int) -> None:
    asked: list[str] = []
    with raw_server(lambda connection: asked.append("other")) as other:
        head = f"HTTP/1.1 {status} Moved\r\nLocation: {other}/completions\r\nContent-Length: 0\r\n\r\n"
        with raw_server(answering(head.encode())) as url, pytest.raises(UsageError, match="redirects to http://127"):
            ask(url)
    assert asked == []


def test_broken_connection_is_tried_again() -> None:
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", STREAM + event(text="a"), b""]
    answers.append(JSON + b'{"choices": [{"text": "fine", "finish_reason": "stop"}]}')
    with raw_server(lambda connection: connection.sendall(answers.pop(0))) as url:
        reply = ask(url, retries=3)
    assert (reply.text, reply.finish_reason, reply.error) == ("fine", "stop", None)


def test_waits_grow_and_follow_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Never:
        def is_set(self) -> bool:
            return False

        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            return False

    busy = b"HTTP/1.1 429 Busy\r\nRetry-After: 7\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with raw_server(answering(busy)) as url:
        caller = Client(url, ClientOptions(retries=4), key="", jitter=lambda: 0.5)
        cancelled: Any = Never()
        with pytest.raises(Exception, match=r"status 429: Busy \(5 attempts\)"):
            caller.call("POST", "completions", {}, list, cancelled=cancelled)
    assert waits == [7 + 0.25, 7 + 0.5, 7 + 1.0, 7 + 2.0]


def test_budget_counts_retries() -> None:
    budget = Budget(3)
    with raw_server(answering(b"HTTP/1.1 500 Oops\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")) as url:
        caller = Client(url, ClientOptions(retries=9), key="", budget=budget, jitter=lambda: 0.0)
        with pytest.raises(RequestsSpentError):
            caller.call("POST", "completions", {}, list)
    assert budget.num_sent == 3


def test_stop_text_and_other_choices_of_an_answer() -> None:
    body = {
        "choices": [
            {"index": 1, "text": "no", "finish_reason": "length"},
            {"index": 0, "text": "yes", "finish_reason": "stop", "stop_reason": "\n\n"},
        ],
        "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 5}},
    }
    with raw_server(answering(JSON + json.dumps(body).encode())) as url:
        reply = ask(url)
    assert (reply.text, reply.finish_reason, reply.stopped_by) == ("yes", "stop", "\n\n")
    assert reply.ids == tuple(world_tokenizer(257).encode("yes\n\n"))
    assert (reply.num_prompt, reply.num_cached, reply.logprobs) == (9, 5, ())


@pytest.mark.parametrize("split", [1, 7, 20, 45])
def test_events_may_be_cut_anywhere_and_end_their_lines_as_they_like(split: int) -> None:
    data = (event(text="caf\u00e9") + event(text=" x", finish_reason="length")).replace(b"\n", b"\r\n")

    def send(connection: socket.socket) -> None:
        connection.sendall(STREAM)
        for start in range(0, len(data), split):
            connection.sendall(data[start : start + split])
            if split > 1:
                time.sleep(0.001)

    with raw_server(send) as url:
        reply = ask(url)
    assert (reply.text, reply.finish_reason) == ("caf\u00e9 x", "length")


def test_key_that_no_header_can_have_is_refused() -> None:
    with pytest.raises(UsageError, match="RWKVBATCH_ENDPOINT_KEY must be printable ASCII"):
        Client("http://127.0.0.1:1", key="a\nb")


@pytest.mark.parametrize("url", ["ftp://x/v1", "http://", "http://[::1", "http://h:99999/", "http://a b/", "file:///x"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--endpoint"):
        check_url(url)
