"""`Rows`: the rows of a run, in its directory or in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rwkvbatch.results.row import Row
from rwkvbatch.results.row_codec import EncodedRow, decode_row, encode_row
from rwkvbatch.results.store import RowStore


class MemoryRows:
    """The methods of `RowStore` for rows in memory, which count as durable when `append` returns."""

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
        return number in self._rows and self._rows[number].finish_reason == "error"

    def read(self, number: int) -> Row:
        return self._rows[number]

    def read_line(self, number: int) -> bytes:
        return encode_row(self._rows[number])

    def rows(self) -> Iterator[Row]:
        return (self._rows[number] for number in sorted(self._rows))

    def append(self, rows: Mapping[int, Row]) -> None:
        self._rows.update(rows)

    def append_encoded(self, rows: Sequence[EncodedRow]) -> None:
        for row in rows:
            self._rows[row.number] = decode_row(row.line)

    def tick(self) -> None: ...
    def flush(self) -> None: ...
    def finalize(self) -> None: ...
    def close(self) -> None: ...

    def discard(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            del self._rows[number]

    def renew(self, numbers: Iterable[int], row_of: Callable[[int], Row]) -> None:
        self._rows.update({number: row_of(number) for number in numbers})


Rows = RowStore | MemoryRows
