"""An engine and a fake server over it, shared by the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rwkvbatch.engine.engine import Engine
from rwkvbatch.model.load import load_model
from tests.endpoint.server import FakeServer, serving


@pytest.fixture(scope="session")
def demo_engine() -> Engine:
    return Engine(load_model(None))


@pytest.fixture
def server(demo_engine: Engine) -> Iterator[FakeServer]:
    with serving(FakeServer(demo_engine)) as fake:
        yield fake
