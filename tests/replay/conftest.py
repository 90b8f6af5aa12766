"""Fixtures for tests of replay: the bundled model, loaded once, and temporary directories in memory."""

from __future__ import annotations

import pytest

from rwkvbatch.model.base import Model
from rwkvbatch.model.load import load_model
from tests.memory import memory_directory

tmp_path = pytest.fixture(memory_directory)


@pytest.fixture(scope="session")
def model() -> Model:
    return load_model(None)
