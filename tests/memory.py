"""Temporary directories in memory, where flushing a file costs nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
MIN_FREE_BYTES = 2**30


def memory_folder() -> Path | None:
    """A file system in memory with enough room for a test, or None."""
    if os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free >= MIN_FREE_BYTES:
        return SHARED_MEMORY
    return None


def memory_directory() -> Iterator[Path]:
    """A fixture in place of `tmp_path` for tests that write runs, which flush after each row."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        yield Path(name)
