"""Access, routes, failing engines, and the end of the server."""

from __future__ import annotations

import json
import logging
import socket
from typing import Any

import pytest

from rwkvbatch.engine.engine import Engine
from rwkvbatch.serve import server as server_module
from tests.serve.running import CHAT, ENDLESS, Server, eventually, problem, raw_post, read_all, running, still_serves

KEY = "s3cret"
SHUTTING_DOWN = {
    "message": "the server is shutting down",
    "type": "server_error",
    "param": None,
    "code": "shutting_down",
}


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
