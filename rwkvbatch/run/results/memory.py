"""Rows kept in memory, for runs that are not written anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rwkvbatch.run.results.lines import EncodedRow, decode_row
from rwkvbatch.run.results.rows import Row


class MemoryRows:
    """As `RowStore`, without a file: every row is as safe as it gets at once."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def num_durable(self) -> int:
        return len(self._rows)

    def has(self, number: int) -> bool:
        return number in self._rows

    def failed(self, number: int) -> bool:
        return number in self._rows and self._rows[number].finish == "error"

    def read(self, number: int) -> Row:
        return self._rows[number]

    def rows(self) -> Iterator[Row]:
        return (self._rows[number] for number in sorted(self._rows))

    def append(self, number: int, row: Row) -> None:
        self._rows[number] = row

    def append_all(self, rows: Sequence[EncodedRow]) -> None:
        for row in rows:
            self._rows[row.number] = decode_row(row.line)

    def tick(self) -> None: ...
    def flush(self) -> None: ...
    def finalize(self) -> None: ...
    def close(self) -> None: ...

    def discard(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            del self._rows[number]
