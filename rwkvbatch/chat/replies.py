"""Replies from an engine, made together and streamed, that can be ended where they stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rwkvbatch.engine.core import Engine
from rwkvbatch.engine.request import Reply, Request
from rwkvbatch.errors import NonFiniteLogitsError

GoOn = Callable[[], bool]
"""Asked after every step; false ends the replies under way where they stand."""


def make_replies(
    engine: Engine, requests: Sequence[Request], on_text: Callable[[str], None] | None, go_on: GoOn
) -> list[Reply]:
    """Replies to `requests`, in their order; nothing of them is left in the engine, whatever is raised.

    Args:
        on_text: is told the pieces of all of them. What it raises ends the replies, and is raised here.

    Raises:
        NonFiniteLogitsError: a reply could not be made.
    """
    failed: list[Exception] = []

    def guarded(text: str) -> None:
        # The engine is in the middle of a step: it must not be left there.
        if on_text is not None and not failed:
            try:
                on_text(text)
            except Exception as error:
                failed.append(error)

    replies = _run(engine, [replace(r, on_text=guarded) for r in requests], lambda: not failed and go_on())
    if failed:
        raise failed[0]
    return replies


def _run(engine: Engine, requests: Sequence[Request], go_on: GoOn) -> list[Reply]:
    ids = [engine.submit(request) for request in requests]
    replies: dict[int, Reply] = {}
    try:
        while len(replies) < len(ids):
            replies |= _step(engine)
            if not go_on():
                break
    finally:
        # Also when something was raised: a request left behind would go on with the next message.
        for request_id in ids:
            if request_id not in replies:
                engine.cancel(request_id)
    if len(replies) < len(ids):
        replies |= _step(engine)
    ordered = [replies[request_id] for request_id in ids]
    for reply in ordered:
        if reply.finish == "error":
            raise NonFiniteLogitsError(
                reply.error or "the model has no reply", hint="/params shows what is set"
            )
    return ordered


def _step(engine: Engine) -> dict[int, Reply]:
    return {number: result for number, result in engine.step() if isinstance(result, Reply)}
