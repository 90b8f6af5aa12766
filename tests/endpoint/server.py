"""A small OpenAI-compatible server over the bundled model, and servers that misbehave, each in a thread."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rwkvbatch.config import Sampling
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import NoiseKey, Reply, Request
from rwkvbatch.prompt.templates import OfficialTemplate


class FakeServer:
    """What the handler answers with.

    Attributes:
        bodies: of all requests so far. headers: theirs. most_at_once: the most that ran at a time.
        statuses: given to the next requests, one each, instead of an answer. delay_s: before each answer.
        style: of log-probabilities: `lists` (vLLM), `named` (OpenAI and `rwkvbatch serve`, which name parts of
            characters by their bytes), `content` (llama.cpp), `held` (llama.cpp, which does not say what stopped a
            reply, and names tokens of a stop text by the empty text sent with them), or none.
        echo: whether prompts are scored.
    """

    def __init__(self, engine: Engine, *, style: str | None = "lists", echo: bool = True) -> None:
        self.engine = engine
        self.style, self.echo = style, echo
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.statuses: list[int] = []
        self.refusal = "busy"
        self.models = ["demo"]
        self.delay_s = 0.0
        self.most_at_once = self._at_once = 0
        self.url = ""
        self._lock, self._engine_lock = threading.Lock(), threading.Lock()

    @contextmanager
    def counted(self) -> Generator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.delay_s)
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def reply(self, body: dict[str, Any]) -> Reply:
        encode, template = self.engine.tokenizer.encode, OfficialTemplate()
        if "messages" in body:
            said = {"system": "System: ", "user": "User: ", "assistant": "Assistant: "}
            text = "".join(f"{said[each['role']]}{each['content']}\n\n" for each in body["messages"]) + "Assistant:"
            tokens, stops = encode(text), ["\n\n"]
        else:
            prompt = body["prompt"]
            tokens, stops = (encode(prompt) if isinstance(prompt, str) else prompt), []
        names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "penalty_decay", "top_k", "min_p")
        sampling = Sampling(**{"top_p": 1.0, **{name: body[name] for name in names if name in body}})
        request = Request(
            tuple(tokens),
            sampling,
            NoiseKey(body.get("seed", 0)),
            max_tokens=body["max_tokens"],
            stop=(*stops, *body.get("stop", [])),
            closing=template.closing,
        )
        with self._engine_lock:
            return self.engine.generate([request])[0]

    def echoed(self, body: dict[str, Any]) -> dict[str, Any]:
        """The log-probabilities of a prompt and of one token more."""
        tokenizer, prompt = self.engine.tokenizer, body["prompt"]
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        with self._engine_lock:
            score = self.engine.score(ids[:1], ids[1:])
            logits = [self.engine.next_logits(ids[:n]).logits.log_softmax(0) for n in range(1, len(ids))]
        # A likeliest token has one log-probability, whose last bits depend on how it is computed.
        likeliest = zip(logits, ids[1:], score.logprobs, strict=True)
        tops = [own if int(each.argmax()) == token else float(each.max()) for each, token, own in likeliest]
        texts = list(map(self.name, ids))
        return {
            "tokens": [*texts, "!"],
            "token_logprobs": [None, *score.logprobs, -1.0],
            "top_logprobs": [None, *({"x": top} for top in tops), {"!": -1.0}],
        }

    def name(self, token: int) -> str:
        data = self.engine.tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            named = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
            return named if self.style == "named" else data.decode("utf-8", "replace")

    def logprobs(self, reply: Reply) -> dict[str, Any] | None:
        data = [self.engine.tokenizer.token_bytes(token) for token in reply.ids]
        texts = list(map(self.name, reply.ids))
        if self.style == "held":
            num_shown = len(self.engine.tokenizer.encode(reply.text))
            data = [*data[:num_shown], *[b""] * (len(data) - num_shown)]
            texts = [each.decode("utf-8", "replace") for each in data]
        if self.style in ("lists", "named"):
            return {"tokens": texts, "token_logprobs": list(reply.logprobs)}
        if self.style in ("content", "held"):
            each = zip(texts, reply.logprobs, reply.ids, data, strict=True)
            content = [{"token": t, "logprob": p, "id": i, "bytes": list(d)} for t, p, i, d in each]
            return {"content": content}
        return None


def send_json(handler: BaseHTTPRequestHandler, status: int, content: Any) -> None:
    data = json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            size = server.engine.model.spec.vocab_size
            send_json(self, 200, {"data": [{"id": name, "meta": {"n_vocab": size}} for name in server.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            with server.counted():
                if server.statuses and (status := server.statuses.pop(0)):
                    send_json(self, status, {"error": {"message": server.refusal}})
                    return
                if body.get("echo"):
                    found = server.echoed(body) if server.echo else None
                    text = "".join(found["tokens"]) if found else "!"
                    send_json(
                        self,
                        200,
                        {"choices": [{"index": 0, "text": text, "logprobs": found, "finish_reason": "length"}]},
                    )
                    return
                self._stream(body, server.reply(body))

        def _stream(self, body: dict[str, Any], reply: Reply) -> None:
            half = len(reply.text) // 2
            pieces = [reply.text[:half], reply.text[half:]]
            reason = "length" if reply.finish_reason == "length" else "stop"
            ending = {"finish_reason": reason, "stop_reason": reply.stopped_by, "logprobs": server.logprobs(reply)}
            if server.style == "held":
                del ending["stop_reason"]
            events = []
            for number, piece in enumerate(pieces):
                text = {"delta": {"content": piece}} if "messages" in body else {"text": piece}
                events.append({"choices": [{"index": 0, **text, **(ending if number else {"finish_reason": None})}]})
            events.append({"choices": [], "usage": {"prompt_tokens": reply.num_prompt, "completion_tokens": 1}})
            data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


@contextmanager
def serving(fake: FakeServer) -> Iterator[FakeServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake)) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        fake.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        try:
            yield fake
        finally:
            http.shutdown()


@contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a server that reads each request's head, and then does what `answer` does with the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)

        def one(connection: socket.socket) -> None:
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    head += piece
                try:
                    answer(connection)
                    connection.shutdown(socket.SHUT_WR)
                except OSError:
                    pass

        def accept() -> None:
            try:
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=one, args=(connection,), daemon=True).start()
            except OSError:
                pass

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
