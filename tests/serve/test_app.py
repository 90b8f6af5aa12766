"""The middleware before the routes: responses that fail, counted responses, disconnections; without a server."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rwkvbatch.serve.app import Access, _Middleware, _wait_for_disconnect

SCOPE = {"type": "http", "method": "GET", "path": "/x", "headers": []}


def call_middleware(app: Any, scope: dict[str, Any]) -> tuple[list[Any], Counter[Any]]:
    """The messages sent to the client, and the counted responses."""
    sent: list[Any] = []
    answered: Counter[Any] = Counter()

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    middleware = _Middleware(app, Access(hosts=None, key=None), cast("Any", SimpleNamespace(answered=answered)), {"/x"})
    asyncio.run(middleware(scope, receive, send))
    return sent, answered


def test_a_scope_that_is_no_request_is_ignored() -> None:
    async def app(*_: Any) -> None:
        raise AssertionError

    assert call_middleware(app, {"type": "lifespan"}) == ([], Counter())


@pytest.mark.parametrize("has_started", [False, True])
def test_a_failing_response_is_status_500_or_a_broken_connection_once_it_has_started(
    has_started: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if has_started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError("a bug")

    if has_started:
        with pytest.raises(ZeroDivisionError):
            call_middleware(app, dict(SCOPE))
        assert "a response failed" in caplog.text
    else:
        sent, answered = call_middleware(app, dict(SCOPE))
        assert sent[0]["status"] == 500
        assert answered == {("/x", 500): 1}
        assert "a request failed" in caplog.text


def test_wait_for_disconnect_returns_at_the_disconnection() -> None:
    messages = iter([{"type": "http.request"}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    asyncio.run(_wait_for_disconnect(cast("Any", SimpleNamespace(receive=receive))))
    assert next(messages, None) is None
