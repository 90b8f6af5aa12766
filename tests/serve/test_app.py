"""The gate before the routes, without a server."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rwkvbatch.serve.app import Access, _Gate, _wait_for_disconnect

SCOPE = {"type": "http", "method": "GET", "path": "/x", "headers": []}


def through(app: Any, scope: dict[str, Any]) -> tuple[list[Any], Counter[Any]]:
    """What a client is sent, and the responses that are counted."""
    sent: list[Any] = []
    answered: Counter[Any] = Counter()

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    gate = _Gate(app, Access(hosts=None, key=None), cast("Any", SimpleNamespace(answered=answered)), {"/x"})
    asyncio.run(gate(scope, receive, send))
    return sent, answered


def test_what_is_no_request_is_left_alone() -> None:
    async def app(*_: Any) -> None:
        raise AssertionError

    assert through(app, {"type": "lifespan"}) == ([], Counter())


@pytest.mark.parametrize("begun", [False, True])
def test_a_response_that_fails_is_an_error_before_its_head_and_a_broken_connection_after_it(
    begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError("a bug")

    if begun:
        with pytest.raises(ZeroDivisionError):
            through(app, dict(SCOPE))
        assert "a response failed" in caplog.text
    else:
        sent, answered = through(app, dict(SCOPE))
        assert sent[0]["status"] == 500
        assert answered == {("/x", 500): 1}
        assert "a request failed" in caplog.text


def test_the_end_of_a_connection_is_waited_for() -> None:
    messages = iter([{"type": "http.request"}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    asyncio.run(_wait_for_disconnect(cast("Any", SimpleNamespace(receive=receive))))
    assert next(messages, None) is None
