"""Where rows stand in results files."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import BinaryIO

_BUFFER_BYTES = 2**16


class LineIndex:
    """Where each row of a run stands in its file, and whether it is an error row: 13 bytes a row, none of its text.

    Args:
        num_rows: of the run, as far as it is known.
    """

    def __init__(self, num_rows: int) -> None:
        self._offsets = array("q", [-1]) * num_rows
        self._lengths = array("i", [0]) * num_rows
        self._failed = bytearray(num_rows)
        self._num_there = 0

    @property
    def num_there(self) -> int:
        """How many rows stand somewhere."""
        return self._num_there

    def add(self, row: int, offset: int, length: int, *, failed: bool) -> None:
        """Row `row`, which was not there, has `length` bytes from `offset` on."""
        self._offsets[row] = offset
        self._lengths[row] = length
        self._failed[row] = failed
        self._num_there += 1

    def has(self, row: int) -> bool:
        """Whether the row stands anywhere."""
        return self._offsets[row] >= 0

    def failed(self, row: int) -> bool:
        """Whether the row is there and is an error row."""
        return bool(self._failed[row])

    def span(self, row: int) -> tuple[int, int]:
        """First byte of a row that is there, and the one after its last."""
        return self._offsets[row], self._offsets[row] + self._lengths[row]

    def read(self, row: int, file: BinaryIO) -> bytes:
        """The row's line; `file` is the one that it stands in."""
        file.seek(self._offsets[row])
        return file.read(self._lengths[row])

    def line_number(self, row: int, file: BinaryIO) -> int:
        """Which line of `file` the row is, from 1; for messages."""
        file.seek(0)
        left, count = self._offsets[row], 1
        while left > 0 and (block := file.read(min(left, _BUFFER_BYTES))):
            count += block.count(b"\n")
            left -= len(block)
        return count

    def rows(self) -> array[int]:
        """The rows that are there, in the run's order."""
        return array("q", (row for row in range(len(self._offsets)) if self._offsets[row] >= 0))

    def rows_in_file_order(self) -> array[int]:
        """The rows that are there, as they follow each other in one file."""
        return array("q", sorted(self.rows(), key=self._offsets.__getitem__))

    def rewritten(self, rows: Iterable[int]) -> LineIndex:
        """The index of a file that holds the lines of `rows` of this one, in that order, and nothing else."""
        index = LineIndex(len(self._offsets))
        offset = 0
        for row in rows:
            index.add(row, offset, self._lengths[row], failed=self.failed(row))
            offset += self._lengths[row]
        return index
