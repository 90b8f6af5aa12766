"""`LimitedConnection`: uvicorn's HTTP connection with limits for slow and large requests."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536
MAX_PIPELINED = 64
"""Largest number of requests of a connection that wait for the response to an earlier one."""
HEAD_SECONDS = 30.0
"""Time limit for the head of a request to arrive."""
WRITE_SECONDS = 60.0
"""Time within which a client must read some of the pending data."""


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection, with limits for the size of a request's head and for slow clients."""

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _awaits_head = True
    _has_answered = True
    _head_bytes = 0
    """Bytes of the path and the header fields of the request, including fields after its body."""
    _unparsed_bytes = 0
    """Bytes received since the parser last recognized a part of a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer = _stopped(self._head_timer)
        self._write_timer = _stopped(self._write_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._unparsed_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"The head of a request may have at most {MAX_HEAD_BYTES} bytes.")
        elif not (self._awaits_head and self._has_answered):
            self._head_timer = _stopped(self._head_timer)
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        if self._has_answered or not self.cycle.response_started:
            super().send_400_response(msg)
        else:  # the text would become part of the response under way
            self.transport.abort()

    # The parser calls these methods; if one raises, the request is refused.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests before the first is answered")
        super().on_headers_complete()
        self._awaits_head = self._has_answered = False

    def on_chunk_header(self) -> None:
        self._unparsed_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed_bytes, self._awaits_head = 0, True
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._unparsed_bytes = 0
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head is too long")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._has_answered = self.cycle.response_complete  # `cycle` belongs to the latest request
        if self._has_answered and self.cycle.more_body:  # the remainder of the body will not be read
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._write_timer = _stopped(self._write_timer)
        super().resume_writing()


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
