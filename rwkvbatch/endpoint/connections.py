"""HTTP connections with a deadline for all reads of a response, including its head and trailers.

urllib3 and Python's HTTP client limit the time of one read and the length of one line. A server can exceed any total
time within these limits, by endless interim responses or by endless fields after a chunked body.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_request = threading.local()


class _Reader(io.RawIOBase):
    def __init__(self, source: io.RawIOBase, deadline_s: float) -> None:
        self._source = source
        self._deadline_s = deadline_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._deadline_s:
            raise TimeoutError("the answer did not end within the time limit")
        return self._source.readinto(buffer)

    def close(self) -> None:
        self._source.close()
        super().close()


_plain_response: Callable[..., Any] = HTTPConnection.response_class


def _response(*arguments: Any, **named: Any) -> Any:
    response = _plain_response(*arguments, **named)
    response.fp = io.BufferedReader(_Reader(response.fp.detach(), _request.deadline_s))
    return response


class _Connection(HTTPConnection):
    response_class: Any = staticmethod(_response)


class _SecureConnection(HTTPSConnection):
    response_class: Any = staticmethod(_response)


class _Pool(HTTPConnectionPool):
    ConnectionCls: Any = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls: Any = _SecureConnection


class DeadlinePoolManager(urllib3.PoolManager):
    """A pool manager with deadlines. All requests must be made by `request_until`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def request_until(self, deadline_s: float, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        """Make a request as `request` does. All reads of its response must end at the time `deadline_s` (monotonic)."""
        _request.deadline_s = deadline_s
        return self.request(method, url, **options)
