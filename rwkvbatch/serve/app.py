"""The HTTP application: routes, access checks, limits, errors and streams."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rwkvbatch.engine.request import END_OF_TEXT
from rwkvbatch.errors import RwkvBatchError, in_words
from rwkvbatch.model.base import check_tokens
from rwkvbatch.prepared import PromptBuilder
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.serve.answers import END_OF_TEXT_NAME, TokenNames
from rwkvbatch.serve.batcher import (
    Batcher,
    ClientLeftError,
    EngineFailedError,
    Flight,
    QueueFullError,
    ShuttingDownError,
)
from rwkvbatch.serve.fields import SHOWN_NAME, ChatFields, CompletionFields, RequestError, decoded, unknown_field
from rwkvbatch.serve.metrics import ServerFigures
from rwkvbatch.serve.replies import Job, Served, prepare
from rwkvbatch.serve.streams import ReplyStream, event

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 10_000_000
BODY_SECONDS = 30.0
"""Time limit for the body of a request to arrive."""
_LARGE_BODY = 16_384
"""Number of bytes from which a body is parsed in another thread, so that other clients' streams continue."""
_CLOSE = {"connection": "close"}


@dataclass(frozen=True)
class Access:
    """Access rules.

    Attributes:
        key: bearer token that every request except /health must have; None for none.
        hosts: host names by which the server may be addressed; None for any. They keep web pages from reaching a server
            on a loopback address through a host name of their own.
        body_seconds: time limit for the body of a request to arrive.
    """

    key: str | None = None
    hosts: frozenset[str] | None = None
    body_seconds: float = BODY_SECONDS


class Service:
    """The handlers of all routes."""

    def __init__(self, served: Served, batcher: Batcher, access: Access) -> None:
        self.served = served
        self.batcher = batcher
        self.figures = ServerFigures(batcher)
        self._access = access
        self._builder = PromptBuilder(served.spec, served.tokenizer)
        self._names = TokenNames(served.tokenizer)

    def app(self) -> ASGIApp:
        """The ASGI application."""
        routes = [
            Route("/v1/chat/completions", _Replies(self, ChatFields), methods=["POST"]),
            Route("/v1/completions", _Replies(self, CompletionFields), methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._model, methods=["GET"]),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
            Route("/tokenizer_info", self._tokenizer_info, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]
        # A bare router, because each event of a stream would pass through all layers of a Starlette application.
        paths = {route.path for route in routes}
        return _Middleware(Router(routes, redirect_slashes=False), self._access, self.figures, paths)

    async def reply(self, request: Request, send: Send, kind: type[ChatFields | CompletionFields]) -> None:
        """Answer a request for replies. In every case, its unfinished engine requests are cancelled at the end."""
        body = await self._body(request)
        arguments = body, kind, self.served, self._builder, self._names
        is_slow = len(body) > _LARGE_BODY or b"no_penalty" in body
        job = await run_in_threadpool(prepare, *arguments) if is_slow else prepare(*arguments)
        flight = self.batcher.submit(job.works, streams=job.parsed.fields.stream)
        disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
        disconnect.add_done_callback(lambda _: flight.leave())
        try:
            if job.parsed.fields.stream:
                await _send_stream(job, flight, send)
            else:
                while not flight.is_done:
                    await flight.change()
                response = _json(job.body(flight.results), headers=job.headers)
                await response(request.scope, request.receive, send)
        finally:
            disconnect.cancel()
            self.batcher.cancel(flight)

    async def _body(self, request: Request) -> bytes:
        """The request's body.

        Raises:
            HTTPException: its content type is not JSON, or it is too large or too slow.
        """
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":  # a web page cannot send this type to another site without permission
            problem = f"content-type must be application/json, got {content_type[:80] or 'none'}"
            raise HTTPException(415, f"{problem}; with curl: -H 'content-type: application/json'", _CLOSE)
        too_large = HTTPException(413, f"the body may have at most {MAX_BODY_BYTES:,} bytes", _CLOSE)
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > MAX_BODY_BYTES:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._access.body_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > MAX_BODY_BYTES:
                        raise too_large
        except TimeoutError:
            problem = f"the body did not arrive within {self._access.body_seconds:g} s"
            raise HTTPException(408, problem, _CLOSE) from None
        return bytes(body)

    async def _models(self, request: Request) -> Response:
        del request
        return _json({"object": "list", "data": [self._model_object()]})

    async def _model(self, request: Request) -> Response:
        name = str(request.path_params["name"])
        if name != self.served.name:
            problem = f"model {name[:SHOWN_NAME]!r} is not served here, {self.served.name!r} is"
            raise RequestError(problem, status=404, code="model_not_found")
        return _json(self._model_object())

    def _model_object(self) -> dict[str, Any]:
        served = self.served
        names = ("generation", "num_parameters", "vocab_size", "dtype", "backend", "device", "weights_sha256")
        return {
            "id": served.name,
            "object": "model",
            "created": served.created,
            "owned_by": "rwkvbatch",
            "max_model_len": served.limits.max_model_len,
            "initial_states": list(served.roots),
            "tokenizer_sha256": served.tokenizer.sha256,
            "request_limits": served.limits.as_dict(),
            **{name: getattr(served.spec, name) for name in names},
        }

    async def _tokenize(self, request: Request) -> Response:
        fields = self._object(await self._body(request), {"model", "prompt", "add_special_tokens"})
        text = fields.get("prompt")
        if not isinstance(text, str):
            raise RequestError("prompt: must be text", param="prompt")
        if text == END_OF_TEXT_NAME:
            tokens = [END_OF_TEXT]
        else:
            tokens = await run_in_threadpool(self.served.tokenizer.encode, text)
        limit = self.served.limits.max_model_len
        return _json({"tokens": tokens, "count": len(tokens), "max_model_len": limit})

    async def _detokenize(self, request: Request) -> Response:
        fields = self._object(await self._body(request), {"model", "tokens"})
        tokens = fields.get("tokens")
        if not isinstance(tokens, list) or any(type(token) is not int for token in cast("list[object]", tokens)):
            raise RequestError("tokens: must be a list of token ids", param="tokens")
        ids = cast("list[int]", tokens)
        try:
            check_tokens(ids, self.served.spec.vocab_size)
        except ValueError as error:
            raise RequestError(f"tokens: {error}", param="tokens") from None
        return _json({"prompt": await run_in_threadpool(self.served.tokenizer.decode, ids)})

    async def _tokenizer_info(self, request: Request) -> Response:
        del request
        tokenizer = self.served.tokenizer
        info = {"eos_token": END_OF_TEXT_NAME, "bos_token": None, "pad_token": None, "chat_template": None}
        return _json({**info, "name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256})

    @staticmethod
    def _object(body: bytes, known: set[str]) -> dict[str, Any]:
        fields = decoded(body)
        if not isinstance(fields, dict):
            raise RequestError("the body must be a JSON object")
        values = cast("dict[str, Any]", fields)
        for name in values.keys() - known:
            raise unknown_field(name)
        return values

    async def _health(self, request: Request) -> Response:
        del request
        if not self.batcher.is_healthy:
            return _json({"status": "failed"}, status=503)
        return _json({"status": "ok", "unfinished": self.batcher.num_unfinished})

    async def _metrics(self, request: Request) -> Response:
        del request
        return Response(self.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class _Replies:
    """The ASGI application of one of the two interfaces."""

    def __init__(self, service: Service, kind: type[ChatFields | CompletionFields]) -> None:
        self._service = service
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._service.reply(Request(scope, receive), send, self._kind)


class _Middleware:
    """Counts responses, refuses requests without access, and turns exceptions of handlers into responses."""

    def __init__(self, app: ASGIApp, access: Access, figures: ServerFigures, paths: set[str]) -> None:
        self._app = app
        self._access = access
        self._figures = figures
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        has_begun = False

        async def send_and_count(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._figures.answered[path, message["status"]] += 1
            await send(message)

        scope["app"] = self  # makes Starlette's router raise for an unknown route, instead of answering with a text
        try:
            refusal = self._refusal(scope)
            await (self._app if refusal is None else refusal)(scope, receive, send_and_count)
        except (ClientDisconnect, ClientLeftError):
            pass
        except Exception as error:
            if has_begun:  # the connection is closed, so that the client sees that the response is incomplete
                _log.error("a response failed", exc_info=error)
                raise
            if isinstance(error, HTTPException) and error.status_code in (404, 405):
                error = self._unrouted(scope, error)
            await _error_response(error)(scope, receive, send_and_count)

    def _unrouted(self, scope: Scope, error: HTTPException) -> HTTPException:
        """The router's error with a message that lists the possible routes or methods."""
        requested = f"{scope['method']} {printable(scope['path'], keep_newlines=False)[:SHOWN_NAME]}"
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "").split(", ")
            problem = f"{requested}: this route takes {', '.join(sorted(allowed))}"
        else:
            # `{name:path}` is the router's notation for a name that may have slashes.
            paths = sorted(path.replace(":path}", "}") for path in self._paths)
            problem = f"{requested}: no such route; there are {', '.join(paths)}"
        return HTTPException(error.status_code, problem, error.headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """The response to a request without access; None if it has access."""
        headers = dict(cast("list[tuple[bytes, bytes]]", scope["headers"]))
        hosts, key = self._access.hosts, self._access.key
        host = headers.get(b"host", b"").decode("latin-1").lower()
        host = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if hosts is not None and host not in hosts:
            text = f"this server is addressed as {', '.join(sorted(hosts))}; got {host[:80]!r}"
            return _json(_content(text, 403), 403, _CLOSE)
        if key is not None and scope["path"] != "/health":
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), key.encode()):
                content = _content("a valid key is needed: Authorization: Bearer KEY", 401, "invalid_api_key")
                return _json(content, 401, {"www-authenticate": "Bearer", **_CLOSE})
        return None


async def _wait_for_disconnect(request: Request) -> None:
    """Wait for the end of the connection. The body of the request must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _send_stream(job: Job, flight: Flight, send: Send) -> None:
    """Send a response as server-sent events.

    Raises:
        RwkvBatchError: the requests failed before anything was sent. A later error is sent as the last event.
        ClientLeftError: the client has closed its connection.
    """
    stream, has_begun, is_last = ReplyStream(job, flight), False, False
    while not is_last:
        try:
            await flight.change()
            events, is_last = stream.take(), stream.is_over
        except RwkvBatchError as error:
            if not has_begun:
                raise
            events, is_last = event(_error_object(error)[1]), True
        if events and not has_begun:
            has_begun = True
            headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", **job.headers}
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
        if events:
            await send({"type": "http.response.body", "body": events, "more_body": not is_last})


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def _content(message: str, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The JSON object of an error in OpenAI's interfaces."""
    default = "server_error" if status >= 500 else "invalid_request_error"
    error_type = {401: "authentication_error", 429: "rate_limit_error"}.get(status, default)
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


def _error_response(error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _json(_content(error.detail, error.status_code), error.status_code, error.headers)
    status, content, headers = _error_object(error)
    return _json(content, status, headers)


def _error_object(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error."""
    if not isinstance(error, RwkvBatchError):
        _log.error("a request failed", exc_info=error)
        return 500, _content(f"internal error: {in_words(error)[:500]}", 500), {}
    text = str(error) + (f"; {error.hint}" if error.hint else "")
    match error:
        case RequestError():
            return error.status, _content(text, error.status, error.code, error.param), {}
        case QueueFullError():
            return 429, _content(text, 429, "queue_full"), {"retry-after": "1"}
        case ShuttingDownError():
            return 503, _content(text, 503, "shutting_down"), {"retry-after": "1"}
        case EngineFailedError():
            return 503, _content(text, 503, "engine_failed"), {"retry-after": "1"}
        case _:
            return 500, _content(text, 500), {}
