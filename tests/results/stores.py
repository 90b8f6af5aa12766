"""Stores for a plan of the conversations `0` to `199`, one row each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rwkvbatch.files import OS_FILES, Files
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.row import RowKey
from rwkvbatch.results.store import RowStore
from tests.replay.fakes import make_row

NUM_ROWS = 200


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def row_number(key: RowKey) -> int | None:
    number = int(key.conversation) if key.conversation.isdigit() else -1
    return number if 0 <= number < NUM_ROWS else None


def open_store(directory: Path, *, files: Files = OS_FILES, **options: Any) -> RowStore:
    return RowStore(Folder(directory, files), NUM_ROWS, row_number, **options)


def fill(directory: Path, numbers: range | list[int], **options: Any) -> None:
    store = open_store(directory, **options)
    for number in numbers:
        store.append({number: make_row(str(number))})
    store.close()
