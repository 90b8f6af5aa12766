"""Temporary directories in memory for the tests of stores, which flush after each row."""

from __future__ import annotations

import pytest

from tests.memory import memory_directory

tmp_path = pytest.fixture(memory_directory)
