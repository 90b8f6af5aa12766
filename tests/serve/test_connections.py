"""Hostile connections: endless, slow, malformed and pipelined requests, clients that do not read or leave."""

from __future__ import annotations

import http.client
import socket
from contextlib import suppress

import pytest

from rwkvbatch.serve import connection as connection_module
from rwkvbatch.serve.app import Access, Service
from rwkvbatch.serve.server import LoadedServer
from tests.serve.running import CHAT, ENDLESS, MODEL, Server, eventually, raw_post, read_all, running, still_serves

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


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
    monkeypatch.setattr(connection_module, "HEAD_SECONDS", 0.2)

    def make_service(opened: LoadedServer) -> None:
        access = Access(body_seconds=0.2)
        service = Service(opened.served, opened.batcher, access)
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
    monkeypatch.setattr(connection_module, "WRITE_SECONDS", 0.2)
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
