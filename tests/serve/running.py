"""A server in this process on a free port, over the bundled model, and raw HTTP requests."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from rwkvbatch.config import RunSettings
from rwkvbatch.serve.server import LoadedServer, ServeArguments, Serving

MODEL = "rwkvbatch-demo"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
SETTINGS = RunSettings(threads=1, max_tokens=24)
ENDLESS = {"banned_token_ids": [0], "turn_end": "end-of-text", "max_tokens": 4096}
"""Fields of a request whose reply does not end by itself soon."""


class Server:
    """A running server and a plain client of it."""

    def __init__(self, serving: Serving, loaded: LoadedServer) -> None:
        self.serving = serving
        self.loaded = loaded
        self.url = serving.url
        self.batcher = loaded.batcher
        self.address = (str(urlsplit(self.url).hostname), int(urlsplit(self.url).port or 0))

    def send(
        self, path: str, body: object = None, headers: Mapping[str, str] | None = None, method: str | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, decoded JSON body and headers; `body` is an object for JSON, or bytes."""
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        all_headers = {"content-type": "application/json", **(headers or {})}
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, data, all_headers)
            response = connection.getresponse()
            content = response.read()
            kind = response.headers.get("content-type", "")
            return response.status, json.loads(content) if "json" in kind else content.decode(), response.headers
        finally:
            connection.close()

    def chat(self, text: str, **fields: Any) -> tuple[int, Any, Mapping[str, str]]:
        messages = [{"role": "user", "content": text}]
        return self.send("/v1/chat/completions", {"model": MODEL, "messages": messages, **fields})

    def complete(self, prompt: object, **fields: Any) -> tuple[int, Any, Mapping[str, str]]:
        return self.send("/v1/completions", {"model": MODEL, "prompt": prompt, **fields})


def raw_post(path: str, fields: object) -> bytes:
    """A POST request with a JSON body, as bytes for a socket."""
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def running(
    change: Callable[[LoadedServer], None] = lambda _: None,
    notify: Callable[[str], None] = lambda _: None,
    **arguments: Any,
) -> Generator[Server]:
    loaded = LoadedServer(replace(ServeArguments(SETTINGS, port=0), **arguments))
    change(loaded)
    serving = Serving(loaded, notify)
    ready = threading.Event()
    thread = threading.Thread(target=serving.run, args=(ready.set,))
    thread.start()
    try:
        assert ready.wait(20)
        yield Server(serving, loaded)
    finally:
        serving.stop()
        thread.join(20)
        assert not thread.is_alive()


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def still_serves(server: Server) -> bool:
    status, body, _ = server.chat("hi", temperature=0)
    return status == 200 and bool(body["choices"][0]["message"]["content"])


def problem(answer: tuple[int, Any, Any]) -> tuple[int, str, str | None]:
    status, body, _ = answer
    return status, body["error"]["message"], body["error"]["param"]


def read_all(connection: socket.socket) -> bytes:
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data
