"""A server for each file of tests."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.serve.running import Server, running


@pytest.fixture(scope="module")
def server() -> Generator[Server]:
    with running() as started:
        yield started
