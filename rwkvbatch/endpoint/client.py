"""An HTTP client for OpenAI-compatible servers: bounded answers, retries with backoff and jitter, a request budget.

The server is not trusted. An answer is limited in bytes and seconds; redirects are not followed, because they would get
the key; compressed bodies are refused; the server's text is shown with control characters escaped and without the key.
Proxies of the environment and `.netrc` are not used. The key comes from one environment variable, so that the server of
a judge (`config.JUDGE_KEY_VARIABLE`) does not get the key of an endpoint (`config.ENDPOINT_KEY_VARIABLE`).

Server-sent events are parsed as in the HTML standard (section 9.2.6, "Interpreting an event stream"), as far as
OpenAI's API uses them: `data` fields, each with one JSON value, up to `[DONE]`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

from rwkvbatch.config import ENDPOINT_KEY_VARIABLE, JUDGE_KEY_VARIABLE
from rwkvbatch.errors import EndpointError, MissingExtraError, RequestsSpentError, UsageError, WorkerError
from rwkvbatch.prompt.escaping import printable

if TYPE_CHECKING:
    import urllib3

CONNECT_S = 10.0
MAX_BODY_BYTES = 64 * 2**20
"""Size limit of one answer, whatever length it declares."""
MAX_SHOWN = 300
"""Largest number of characters of a server's text in a message."""
FIRST_BACKOFF_S, MAX_BACKOFF_S, MAX_RETRY_AFTER_S = 0.5, 30.0, 60.0
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same request may succeed."""

Json = Mapping[str, Any]
_T = TypeVar("_T")


class _TransientError(Exception):
    """An attempt failed, and another one may succeed.

    Attributes:
        after_s: seconds that the server asks to wait, if it does.
        unreachable: whether no connection was made.
    """

    def __init__(self, reason: str, after_s: float | None = None, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.after_s = after_s
        self.unreachable = unreachable


class Budget:
    """Counts the requests of all clients of a run, including retries, up to `max_requests` (None for no limit)."""

    def __init__(self, max_requests: int | None = None) -> None:
        self._limit = max_requests
        self._lock = threading.Lock()
        self.num_sent = 0

    def spend(self) -> None:
        """Count one request; raises `RequestsSpentError` if the limit is reached."""
        with self._lock:
            if self._limit is not None and self.num_sent >= self._limit:
                raise RequestsSpentError(
                    f"--max-requests allows {self._limit:,} requests, and all were sent",
                    hint="the same command continues the run, with as many requests again",
                )
            self.num_sent += 1


@dataclass(frozen=True)
class OptionNames:
    """The names of a server's options, for messages, and of the environment variable that has its key."""

    url: str = "--endpoint"
    key: str = ENDPOINT_KEY_VARIABLE
    models: str = "--endpoint-model names the model, --endpoint-api the interface"
    model: str = "--endpoint-model"


JUDGE_OPTIONS = OptionNames("--judge-url", JUDGE_KEY_VARIABLE, "--judge-model names the model", "--judge-model")


@dataclass(frozen=True)
class ClientOptions:
    """Limits of a client: concurrent requests, and time and retries of each request."""

    concurrency: int = 8
    timeout_s: float = 600.0
    retries: int = 5
    names: OptionNames = OptionNames()


def check_url(url: str, names: OptionNames | None = None) -> str:
    """The base URL without a trailing slash; raises `UsageError` for an invalid URL or one that may have a secret."""
    names = names or OptionNames()
    option = names.url
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{option}: not a URL: {error}") from None
    example = "give the URL that clients call their base URL, such as http://127.0.0.1:8080/v1"
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"{option} must not contain a user name or a key", hint=f"set the key in ${names.key}")
    if parts.query or parts.fragment:
        raise UsageError(f"{option} must have no query and no fragment", hint=example)
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise UsageError(f"{option} must be an http or https URL, got {printable(url)[:80]!r}", hint=example)
    return url.rstrip("/")


class Client:
    """Sends requests to one server, from any thread.

    Args:
        url: base URL, as returned by `check_url`.
        key: bearer token of the requests; None for that of the environment, empty for none.
        budget: counts the requests.
        jitter: gives a random number in [0, 1) for each wait.

    Raises:
        MissingExtraError: urllib3 is not installed.
        UsageError: the key has characters that a header cannot have.
    """

    def __init__(
        self,
        url: str,
        options: ClientOptions | None = None,
        *,
        key: str | None = None,
        budget: Budget | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if importlib.util.find_spec("urllib3") is None:
            option = (options or ClientOptions()).names.url
            raise MissingExtraError(f"{option} needs the package urllib3, which is not installed", extra="endpoint")
        import urllib3

        from rwkvbatch.endpoint.connections import DeadlinePoolManager

        self.url = url
        self.options = options or ClientOptions()
        self._names = self.options.names
        self._key = os.environ.get(self._names.key, "") if key is None else key
        if not self._key.isascii() or not self._key.isprintable():
            raise UsageError(f"${self._names.key} must be printable ASCII", hint="is there a line end at its end?")
        self._budget = budget or Budget()
        self._jitter = jitter
        timeout = urllib3.Timeout(
            connect=min(CONNECT_S, self.options.timeout_s), read=min(self.options.timeout_s, 2.0**20)
        )
        self._http = DeadlinePoolManager(
            num_pools=1, maxsize=self.options.concurrency, retries=False, timeout=timeout, block=False
        )

    def trying_once(self, timeout_s: float) -> Client:
        """A client of the same server that sends each request once, with at most `timeout_s`, and without a budget."""
        options = replace(self.options, retries=0, timeout_s=min(timeout_s, self.options.timeout_s))
        return Client(self.url, options, key=self._key)

    def get(self, path: str) -> Json | None:
        """The JSON object at `path`; None for status 404. Raises as `call`."""
        return self.call("GET", path, None, lambda events: next(events, None), optional=True)

    def call(
        self,
        method: str,
        path: str,
        body: Json | None,
        read: Callable[[Iterator[Json]], _T],
        *,
        max_bytes: int = MAX_BODY_BYTES,
        cancelled: threading.Event | None = None,
        optional: bool = False,
    ) -> _T | None:
        """Send a request, and pass the JSON objects of its answer to `read`: one, or those of a stream of events.

        After a transient failure, the request is sent again, and `read` is called again.

        Args:
            max_bytes: size limit of the answer's body.
            cancelled: when set, waiting and reading end early with the result None.
            optional: whether the result is None for status 404, instead of an error.

        Raises:
            EndpointError: the server refused the request, or gave no usable answer in all attempts.
            UsageError: the server refuses the key, or does not know the path or the model.
            WorkerError: the server could not be reached in any attempt.
            RequestsSpentError: the budget is spent.
        """
        cancelled = cancelled or threading.Event()
        content = None if body is None else json.dumps(body, ensure_ascii=True, allow_nan=False).encode("ascii")
        attempt = 0
        while True:
            self._budget.spend()
            try:
                return self._attempt(method, path, content, read, max_bytes, cancelled, optional=optional)
            except _TransientError as error:
                if attempt == self.options.retries:
                    attempts = f" ({attempt + 1} attempts)" if attempt else ""
                    if error.unreachable:
                        hint = "is the server up, and is this its address?"
                        raise WorkerError(f"{self.url}: {error}{attempts}", hint=hint) from None
                    raise EndpointError(f"{error}{attempts}") from None
                wait_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0**attempt) * self._jitter()
                wait_s += min(MAX_RETRY_AFTER_S, error.after_s or 0.0)
                if cancelled.wait(wait_s):
                    return None
                attempt += 1

    def _attempt(
        self,
        method: str,
        path: str,
        content: bytes | None,
        read: Callable[[Iterator[Json]], _T],
        max_bytes: int,
        cancelled: threading.Event,
        *,
        optional: bool,
    ) -> _T | None:
        import urllib3

        headers = {"Accept": "application/json, text/event-stream", "Accept-Encoding": "identity"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        deadline_s = time.monotonic() + self.options.timeout_s
        response: urllib3.BaseHTTPResponse | None = None
        try:
            options = {"body": content, "headers": headers, "redirect": False, "preload_content": False}
            response = self._http.request_until(deadline_s, method, f"{self.url}/{path}", **options)
            if response.status == 404 and optional:
                return None
            self._check(response, deadline_s)
            encoding = response.headers.get("Content-Encoding", "").strip().lower()
            if encoding not in ("", "identity"):
                encoding = self.words(encoding)
                raise EndpointError(
                    f"the server compressed its answer ({encoding}), although no compression was requested"
                )
            chunks = self._chunks(response, max_bytes, deadline_s, cancelled)
            content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            is_stream = content_type == "text/event-stream"
            return read(_events(chunks) if is_stream else iter([_object(b"".join(chunks))]))
        except _CancelledError:
            return None
        except urllib3.exceptions.HTTPError as error:
            # Errors of making a connection, unlike those of an existing one.
            connection_errors = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
            reason = _reason(error, self.options.timeout_s)
            raise _TransientError(reason, unreachable=isinstance(error, connection_errors)) from None
        finally:
            if response is not None:
                # The unread part is dropped with the connection, because it may be endless.
                response.close()

    def _check(self, response: urllib3.BaseHTTPResponse, deadline_s: float) -> None:
        """Raise the error of a response without success, see `call`."""
        status = response.status
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            location = self.words(response.headers.get("Location", "nowhere"))
            raise UsageError(
                f"{self.url} redirects to {location} (status {status}), and redirects are not followed",
                hint=f"if that is the server you mean, give its URL with {self._names.url}",
            )
        body = b""
        try:
            for chunk in self._chunks(response, 2**20, deadline_s, threading.Event()):
                body += chunk
        except (EndpointError, _TransientError):
            pass  # the message then has the status and what was read
        text = self.words(_error_text(body) or response.reason or "no text")
        if status in RETRIED:
            raise _TransientError(f"status {status}: {text}", _retry_after(response.headers.get("Retry-After")))
        if status in (401, 403):
            key = "the key in" if self._key else "no key in"
            raise UsageError(f"{self.url} refuses access (status {status}, {key} ${self._names.key}): {text}")
        if status == 404:
            raise UsageError(
                f"{self.url} has no such address or model (status 404): {text}",
                hint=f"the URL ends as clients call their base URL (.../v1); {self._names.models}",
            )
        raise EndpointError(f"the server refuses the request (status {status}): {text}", status=status)

    def words(self, text: str) -> str:
        """A server's text for a message: on one line, without the key and control characters, and shortened."""
        if self._key:
            text = text.replace(self._key, "[key]")
        text = " ".join(printable(text, keep_newlines=False).split())
        return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"

    def _chunks(
        self, response: urllib3.BaseHTTPResponse, max_bytes: int, deadline_s: float, cancelled: threading.Event
    ) -> Generator[bytes]:
        """The body in chunks, up to the limits of size and time."""
        size = 0
        while chunk := response.read1(2**16, decode_content=False):
            size += len(chunk)
            if cancelled.is_set():
                raise _CancelledError
            if size > max_bytes:
                raise EndpointError(f"the answer is longer than {max_bytes:,} bytes")
            if time.monotonic() > deadline_s:
                raise _TransientError(
                    f"the answer did not end within {self.options.timeout_s:g} s (--endpoint-timeout)"
                )
            yield chunk


class _CancelledError(Exception):
    """The caller has cancelled the request."""


def _reason(error: Exception, timeout_s: float) -> str:
    """The message about an exception of urllib3."""
    import urllib3

    if isinstance(error, urllib3.exceptions.NewConnectionError):  # a subclass of ConnectTimeoutError
        return f"cannot be reached: {printable(str(error).rpartition(':')[2].strip())[:MAX_SHOWN]}"
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return "cannot be reached: no connection within the time limit"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return f"no answer within {timeout_s:g} s (--endpoint-timeout)"
    return f"the connection failed: {printable(str(error), keep_newlines=False)[:MAX_SHOWN]}"


def _retry_after(value: str | None) -> float | None:
    import urllib3

    if value is None:
        return None
    try:
        return urllib3.Retry().parse_retry_after(value)
    except (urllib3.exceptions.HTTPError, ValueError, OverflowError):
        return None


def _error_text(body: bytes) -> str:
    """The message in the body of an error response: OpenAI's `{"error": {"message": ...}}`, another form, or text."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return body[:4096].decode("utf-8", "replace")
    for _ in range(2):
        if isinstance(content, dict):
            fields = cast("dict[str, Any]", content)
            content = next((fields[key] for key in ("error", "message", "detail") if fields.get(key)), fields)
    return content if isinstance(content, str) else json.dumps(content)[:4096]


def _object(data: bytes) -> Json:
    """The JSON object in `data`, parsed strictly (UTF-8, numbers)."""
    import orjson

    try:
        value = orjson.loads(data)
    except ValueError as error:
        if not data:
            raise _TransientError("the answer is empty") from None
        # The answer may be cut, so that another attempt may succeed.
        raise _TransientError(
            f"the answer is not JSON: {printable(str(error), keep_newlines=False)[:MAX_SHOWN]}"
        ) from None
    if not isinstance(value, dict):
        raise EndpointError(f"the answer must be a JSON object, found {type(value).__name__}")
    return cast("Json", value)


def _events(chunks: Iterator[bytes]) -> Generator[Json]:
    """The objects of a stream of server-sent events, up to `[DONE]` or the end of the stream."""
    unsplit, data = list[bytes](), list[bytes]()
    for chunk in chunks:
        unsplit.append(chunk)
        if b"\n" not in chunk and b"\r" not in chunk:
            continue
        text = b"".join(unsplit)
        # A carriage return at the end may be the first half of a line end.
        *lines, last = re.split(rb"\r\n|\n|\r(?!\Z)", text)
        unsplit = [last]
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                content = b"\n".join(data)
                data.clear()
                if content.strip() == b"[DONE]":
                    return
                yield _object(content)
    if (last := b"".join(unsplit).rstrip(b"\r")).startswith(b"data:"):
        data.append(last[5:].removeprefix(b" "))
    if data:  # the last event, without its blank line
        content = b"\n".join(data)
        if content.strip() != b"[DONE]":
            yield _object(content)


def incomplete(reason: str) -> Exception:
    """The exception that `read` raises for an incomplete answer, after which `Client.call` repeats the request."""
    return _TransientError(reason)
