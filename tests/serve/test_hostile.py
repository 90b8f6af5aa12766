"""Hostile clients: invalid requests, huge and slow ones, disconnections; failing engines."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
from contextlib import suppress
from typing import Any

import pytest

from rwkvbatch.engine.engine import Engine
from rwkvbatch.serve import server as server_module
from rwkvbatch.serve.app import Access
from tests.serve.running import ENDLESS, MODEL, Server, eventually, raw_post, running

KEY = "s3cret"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
SHUTTING_DOWN = {
    "message": "the server is shutting down",
    "type": "server_error",
    "param": None,
    "code": "shutting_down",
}


def still_serves(server: Server) -> bool:
    status, body, _ = server.chat("hi", temperature=0)
    return status == 200 and bool(body["choices"][0]["message"]["content"])


def problem(answer: tuple[int, Any, Any]) -> tuple[int, str, str | None]:
    status, body, _ = answer
    return status, body["error"]["message"], body["error"]["param"]


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
        ({"tools": [{"type": "function"}]}, "tools: this server does not support it", "tools"),
        ({"logit_bias": {"1": 5}}, "logit_bias: this server does not support it", "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format: this server does not support it", None),
        ({"temprature": 1}, "temprature: unknown field", "temprature"),
        ({"x" * 10**6: 1}, "x" * 80 + ": unknown field", "x" * 80),
        ({"\x9b31m\u202e": 1}, "\\x9b31m\\u202e: unknown field", "\\x9b31m\\u202e"),
        ({"no_penalty": ["a"] * 9}, "no_penalty: must be at most 8 texts", "no_penalty"),
        ({"reply_prefix": "a" * 10_001}, "reply_prefix: must be at most 10000 characters, got 10001", "reply_prefix"),
        ({"template": "/etc/passwd"}, "template: unknown field", "template"),
        ({"state": "/etc/passwd"}, "state: unknown field", "state"),
        ({"initial_state": "poet"}, "initial_state: must be one of none; got 'poet'", "initial_state"),
        ({"top_logprobs": 2}, "top_logprobs: needs logprobs to be true", "top_logprobs"),
        ({"think": "on", "reply_prefix": "x"}, "reply_prefix begins the answer, and with think on", "reply_prefix"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens and max_completion_tokens differ", None),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "content: must be text, or a list of text parts; got 3",
            "messages",
        ),
        ({"messages": [{"role": "user"}]}, "messages.0.content: must be text, or a list", "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "list of text parts; got null", "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "list of text parts; got []", "messages"),
        ({"messages": []}, "messages: must have at least 1 item, got []", "messages"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "assistant messages must take turns", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: must be system, developer", "messages"),
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
        (b"\xff", "the body is not JSON: str is not valid UTF-8"),
    ],
)
def test_a_body_that_cannot_be_read_is_named_by_its_problem(server: Server, body: bytes, message: str) -> None:
    for path in ("/v1/chat/completions", "/tokenize"):
        assert problem(server.send(path, body, method="POST"))[1].startswith(message)


def test_the_error_of_a_chat_does_not_mention_echo(server: Server) -> None:
    status, text, _ = problem(server.send("/v1/chat/completions", {**CHAT, "max_tokens": 0}))
    assert (status, text) == (400, "max_tokens: must be a whole number in [1, 4096], got 0")


def test_an_unknown_field_of_tokenize_and_detokenize_is_named(server: Server) -> None:
    for path, fields in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [65]})):
        assert problem(server.send(path, {**fields, "speed": 1}))[:2] == (400, "speed: unknown field")


def test_an_unexpected_exception_is_status_500_and_logged(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("rwkvbatch.serve.app.check_tokens", broken)
    status, text, _ = problem(server.send("/detokenize", {"tokens": [65]}))
    assert (status, text) == (500, "internal error: ZeroDivisionError: a bug")
    assert "a request failed" in caplog.text
    assert still_serves(server)


def test_a_number_for_bos_is_refused_after_true_was_accepted(server: Server) -> None:
    for bos, status in ((True, 200), (1, 400), (1.0, 400), (True, 200)):
        assert server.chat("hi", max_tokens=1, bos=bos)[0] == status


def test_bodies_that_are_too_large_are_refused_before_they_are_read(server: Server) -> None:
    with socket.create_connection(server.address, 10) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 10000000000\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(server.address, 10) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        with suppress(OSError):
            for _ in range(100):
                connection.sendall(chunk)
            pytest.fail("100 MB were accepted")
    assert still_serves(server)


def test_requests_of_pages_of_other_sites_are_refused(server: Server) -> None:
    body = json.dumps(CHAT).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert server.send("/v1/chat/completions", body, {"content-type": kind})[0] == 415
    status, text, _ = problem(server.send("/v1/models", headers={"host": "attacker.example:8000"}))
    assert status == 403
    assert "attacker.example" in text
    assert server.send("/v1/models", headers={"host": "[::1]:8000"})[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat/completions/", "/v1/models/../health", "/docs", "/%00", "/%ff", "//health"]
)
def test_unknown_paths_and_methods_are_refused_with_a_json_error(server: Server, path: str) -> None:
    status, text, _ = problem(server.send(path, method="GET"))
    assert status == 404
    assert "no such route; there are /detokenize, /health" in text or path.startswith("/v1/models/")
    assert "/v1/models/{name}" in text or path.startswith("/v1/models/")
    status, text, _ = problem(server.send("/health", CHAT))
    assert status == 405
    assert "POST /health: this route takes GET, HEAD" in text


def read_all(connection: socket.socket) -> bytes:
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "endless"),
    {
        "a path": (b"GET /", b"a"),
        "a field": (GET + b"X-Long: ", b"a"),
        "fields": (GET, b"X: y\r\n"),
        "empty lines": (b"", b"\r\n"),
        "no protocol": (b"", b"\x16\x03\x01"),
        "an extension of a chunk": (CHUNKED + b"1;", b"a"),
        "a field after the body": (CHUNKED + b"2\r\n{}\r\n0\r\nX-Long: ", b"a"),
        "fields after the body": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: y\r\n"),
    }.values(),
    ids=lambda value: value[:12],
)
def test_the_connection_of_an_endless_head_is_closed(server: Server, start: bytes, endless: bytes) -> None:
    part = endless * (65536 // len(endless))
    with socket.create_connection(server.address, 10) as connection:
        with suppress(OSError):
            connection.sendall(start)
            for _ in range(1000):
                connection.sendall(part)
            pytest.fail("64 MB were accepted")
        data = read_all(connection)
    assert data == b"" or data.startswith(b"HTTP/1.1 400 ")
    assert still_serves(server)


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    get = GET + b"\r\n"
    models = get.replace(b"/health", b"/v1/models")
    with socket.create_connection(server.address, 10) as connection:
        connection.sendall((get + models) * 20 + get.replace(b"Host", b"Connection: close\r\nHost"))
        kinds = [b'"object":"list"' in part for part in read_all(connection).split(b"HTTP/1.1 200 OK")[1:]]
    assert kinds == [False, True] * 20 + [False]


def test_too_many_pipelined_requests_are_refused(server: Server) -> None:
    with socket.create_connection(server.address, 10) as connection:
        connection.sendall((GET + b"\r\n") * 10_000)
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_data_after_a_request_ends_the_connection_and_cancels_its_stream(server: Server) -> None:
    with socket.create_connection(server.address, 10) as connection:
        connection.sendall(raw_post("/v1/chat/completions", {**CHAT, **ENDLESS, "stream": True}))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"\x16\x03\x01")
        assert b"HTTP/1.1" not in read_all(connection)
    assert eventually(lambda: server.batcher.num_unfinished == 0)
    assert still_serves(server)


@pytest.mark.parametrize(
    "data",
    [
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"GET http://[:: HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"x y z\r\n\r\n",
    ],
    ids=range(4),
)
def test_malformed_requests_are_refused(server: Server, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    for before in (b"", GET + b"\r\n"):
        with socket.create_connection(server.address, 10) as connection:
            connection.sendall(before)
            if before:
                answer = b""
                while not answer.endswith(b"}"):  # head and body may arrive separately
                    answer += connection.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200 ")
            connection.sendall(data)
            assert read_all(connection).startswith(b"HTTP/1.1 400 ")
    assert not caplog.records


def test_slow_heads_and_bodies_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.2)

    def make_service(opened: server_module.LoadedServer) -> None:
        access = Access(body_seconds=0.2)
        service = server_module.Service(opened.served, opened.batcher, access)
        opened.service = lambda: service  # type: ignore[method-assign]

    with running(make_service) as server:
        for data in (b"", b"GET /health HT"):
            with socket.create_connection(server.address, 10) as connection:
                connection.sendall(data)
                assert read_all(connection) == b""
        with socket.create_connection(server.address, 10) as connection:
            connection.sendall(POST + b"Content-Length: 100\r\n\r\n{")
            assert read_all(connection).startswith(b"HTTP/1.1 408 ")
        # An unfinished second request of the same connection.
        with socket.create_connection(server.address, 10) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.read().startswith(b'{"status":"ok"')
            connection.sendall(b"GET /hea")
            assert read_all(connection) == b""
        # An unfinished second request while the first is answered: the response is completed.
        with socket.create_connection(server.address, 10) as connection:
            fields = {**CHAT, **ENDLESS, "max_tokens": 400, "stream": True}
            connection.sendall(raw_post("/v1/chat/completions", fields))
            connection.sendall(b"GET /hea")
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.read().endswith(b"data: [DONE]\n\n")
        assert still_serves(server)


def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "WRITE_SECONDS", 0.2)
    with running() as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(server.address)
        # Longer than the buffers of the two sockets.
        fields = {"model": MODEL, "prompt": "x" * 60_000, "echo": True, "stream": True, "n": 128}
        connection.sendall(raw_post("/v1/completions", fields))
        assert eventually(lambda: server.batcher.num_unfinished == 128)
        assert eventually(lambda: server.batcher.num_cancelled == 1 and server.batcher.num_unfinished == 0)


def test_a_disconnection_before_the_reply_cancels_its_request(server: Server) -> None:
    cancelled = server.batcher.num_cancelled
    with socket.create_connection(server.address, 10) as connection:
        connection.sendall(raw_post("/v1/chat/completions", {**CHAT, **ENDLESS, "n": 4}))
        assert eventually(lambda: server.batcher.num_unfinished == 4)
    assert eventually(lambda: server.batcher.num_cancelled == cancelled + 1 and server.batcher.num_unfinished == 0)


def test_a_request_beyond_the_queue_is_refused_with_429() -> None:
    settings = server_module.RunSettings(threads=1, batch_size=1)
    with running(settings=settings, max_queue=2) as server:
        answer = server.chat("hi", n=4)
        assert problem(answer)[0] == 429
        assert answer[2]["retry-after"] == "1"
        assert "the server takes 3" in problem(answer)[1]
        assert server.chat("hi", n=3)[0] == 200


def test_every_route_but_health_needs_the_key() -> None:
    with running(key=KEY) as server:
        assert server.send("/health")[0] == 200
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
        ):
            for path in ("/v1/models", "/metrics", "/nowhere"):
                status, text, _ = problem(server.send(path, headers=headers))
                assert status == 401
                assert KEY not in text
        assert server.send("/v1/models", headers={"authorization": f"bearer {KEY}"})[0] == 200


def test_a_failing_engine_ends_its_replies_and_is_replaced(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    before = server.batcher.stats.num_generated
    step, remaining_failures = Engine.step, [True]

    def fail_once(engine: Engine) -> Any:
        if remaining_failures and remaining_failures.pop():
            raise RuntimeError("device lost")
        return step(engine)

    monkeypatch.setattr(Engine, "step", fail_once)
    status, text, _ = problem(server.chat("hi"))
    assert status == 503
    assert "device lost" in text
    assert still_serves(server)
    assert server.batcher.stats.num_generated > before


def test_a_server_whose_engine_cannot_be_replaced_is_unhealthy(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    caplog.set_level(logging.CRITICAL)
    with running() as server:
        server.batcher._make_engine = lambda: (_ for _ in ()).throw(MemoryError("none left"))
        server.batcher._command(fail)
        assert eventually(lambda: server.send("/health")[0] == 503)
        status, text, _ = problem(server.chat("hi"))
        assert status == 503
        assert "none left" in text


def test_errors_before_the_first_text_of_a_stream_have_a_status(server: Server) -> None:
    banned = list(range(server.loaded.model.spec.vocab_size))
    for stream in (True, False):
        status, text, _ = problem(server.chat("hi", stream=stream, banned_token_ids=banned))
        assert status == 500
        assert "every token is banned" in text


def test_an_error_within_a_stream_is_its_last_event(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    step, num_steps = Engine.step, 0

    def fail_later(engine: Engine) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 30:
            raise RuntimeError("device lost")
        return step(engine)

    monkeypatch.setattr(Engine, "step", fail_later)
    status, body, _ = server.chat("hi", stream=True, **ENDLESS)
    assert status == 200
    first, *_, last, end = body.split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
    assert "device lost" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert end == ""


def test_the_server_stops_while_a_stream_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "GRACE_SECONDS", 0)
    with running() as server, socket.create_connection(server.address, 10) as connection:
        connection.sendall(raw_post("/v1/chat/completions", {**CHAT, **ENDLESS, "stream": True}))
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        server.serving.stop()
        rest = read_all(connection)
    assert b"[DONE]" not in rest
    assert json.loads(rest.rpartition(b"data: ")[2].partition(b"\n")[0])["error"] == SHUTTING_DOWN
    assert rest.endswith(b"\r\n0\r\n\r\n")


def test_replies_that_outlast_the_grace_period_end_with_status_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "GRACE_SECONDS", 0.2)
    messages: list[str] = []
    with running(notify=messages.append) as server, socket.create_connection(server.address, 10) as connection:
        connection.sendall(raw_post("/v1/chat/completions", {**CHAT, **ENDLESS}))
        assert eventually(lambda: server.batcher.num_unfinished == 1)
        server.serving.stop()
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == SHUTTING_DOWN
    assert messages == [
        "stopping after the unfinished replies (1), which have 0.2 s; the server ends after at most 2.2 s, and at once "
        "after a second signal",
        "ended the unfinished replies (1) with an error, because 0.2 s are over",
    ]


def test_metrics_count_responses_and_tokens(server: Server) -> None:
    def metrics() -> dict[str, float]:
        lines = [line for line in server.send("/metrics")[1].splitlines() if not line.startswith("#")]
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    before = metrics()
    reply = server.chat("hi", max_tokens=3)[1]
    after = metrics()
    name = 'rwkvbatch_http_responses_total{path="/v1/chat/completions",status="200"}'
    assert after[name] - before.get(name, 0) == 1
    assert after["rwkvbatch_generated_tokens_total"] - before["rwkvbatch_generated_tokens_total"] == 3
    prompt = ("rwkvbatch_prompt_tokens_read_total", "rwkvbatch_prompt_tokens_cached_total")
    assert sum(after[each] - before[each] for each in prompt) == reply["usage"]["prompt_tokens"]
    assert after["rwkvbatch_unfinished_replies"] == 0


def test_tokenize_and_detokenize_are_inverse(server: Server) -> None:
    text = "Grüße, 世界"
    tokenized = server.send("/tokenize", {"prompt": text, "add_special_tokens": False})[1]
    assert server.send("/detokenize", {"tokens": tokenized["tokens"]})[1] == {"prompt": text}
    (model,) = server.send("/v1/models")[1]["data"]
    assert tokenized["max_model_len"] == model["max_model_len"] > len(tokenized["tokens"])
    info = server.send("/tokenizer_info")[1]
    assert server.send("/tokenize", {"prompt": info["eos_token"]})[1]["tokens"] == [0]
    assert server.send("/detokenize", {"tokens": [True]})[0] == 400
    assert server.send("/detokenize", {"tokens": [10**9]})[0] == 400
