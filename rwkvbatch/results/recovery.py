"""Reading of `results.jsonl`, and detection of torn and damaged lines."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from rwkvbatch.errors import RunDamagedError, RunDirectoryError
from rwkvbatch.files import BLOCK_BYTES, open_file
from rwkvbatch.results.row import Row, RowKey
from rwkvbatch.results.row_codec import MAX_LINE_BYTES, BadLineError, RowHead, WrongValuesError, decode_row, digest_of

_BUFFER_BYTES = 2**16
_KEPT_BYTES = 64
_TOO_LONG = f"it is longer than {MAX_LINE_BYTES:,} bytes"


class LineIndex:
    """The position of each row in the file, and whether it is an error row; 13 bytes per row.

    Attributes:
        num_rows: number of rows added.
    """

    def __init__(self, num_planned: int) -> None:
        self._offsets = array("q", [-1]) * num_planned
        self._lengths = array("i", [0]) * num_planned
        self._failed = bytearray(num_planned)
        self.num_rows = 0

    def add(self, row: int, offset: int, length: int, *, failed: bool) -> None:
        """Add row number `row`, which has `length` bytes from `offset` on."""
        self._offsets[row] = offset
        self._lengths[row] = length
        self._failed[row] = failed
        self.num_rows += 1

    def has(self, row: int) -> bool:
        return self._offsets[row] >= 0

    def failed(self, row: int) -> bool:
        return bool(self._failed[row])

    def span(self, row: int) -> tuple[int, int]:
        """The offsets of the row's first byte, and of the byte after its last."""
        return self._offsets[row], self._offsets[row] + self._lengths[row]

    def read(self, row: int, file: BinaryIO) -> bytes:
        """The row's line in `file`."""
        file.seek(self._offsets[row])
        return file.read(self._lengths[row])

    def line_number(self, row: int, file: BinaryIO) -> int:
        """The row's line number in `file`, from 1; for messages."""
        file.seek(0)
        remaining, line_number = self._offsets[row], 1
        while remaining > 0 and (block := file.read(min(remaining, _BUFFER_BYTES))):
            line_number += block.count(b"\n")
            remaining -= len(block)
        return line_number

    def rows(self) -> array[int]:
        """The added rows in the plan's order."""
        return array("q", (row for row in range(len(self._offsets)) if self._offsets[row] >= 0))

    def rows_in_file_order(self) -> array[int]:
        """The added rows in the file's order."""
        return array("q", sorted(self.rows(), key=self._offsets.__getitem__))

    def emptied(self) -> LineIndex:
        """An index without rows, for another file of the same run."""
        return LineIndex(len(self._offsets))


@dataclass(frozen=True)
class ScannedLine:
    """One line of a results file.

    Attributes:
        start, end: offsets of its first byte, and of the byte after its last.
        line: its line number, from 1.
        number: the row's number in the plan; -1 with a `problem`.
        failed: whether it is an error row.
        problem: why it is not a row of the plan; None if it is.
        whole: whether its checksum matches, so that it is not a torn write.
    """

    start: int
    end: int
    line: int
    number: int
    failed: bool
    problem: str | None
    whole: bool


def scan_lines(
    reader: BinaryIO,
    index_of: Callable[[RowKey], int | None],
    decode: Callable[[bytes], Row | RowHead] = decode_row,
    *,
    skip_long: bool = False,
) -> Iterator[ScannedLine]:
    """The lines of a results file.

    Args:
        index_of: maps a key to the row's number in the plan, or to None if the plan does not have the row.
        decode: `decode_head` checks less of a row than `decode_row`.
        skip_long: see `read_lines`; without it, a line that is too long counts as damaged, not as a torn write.
    """
    seen: set[int] = set()
    for line in read_lines(reader, skip_long=skip_long):
        number, failed, problem, whole = -1, False, None, True
        try:
            row = decode(line.data)
        except BadLineError as error:
            problem, whole = str(error), isinstance(error, WrongValuesError)
            if line.is_long:
                problem, whole = _TOO_LONG, not skip_long
        else:
            index = index_of(row.key)
            if index is None:
                problem = "its conversation, cell, repeat or turn is not in this run"
            elif index in seen:
                problem = "an earlier line has the same turn"
            else:
                number, failed = index, row.finish_reason == "error"
                seen.add(index)
        yield ScannedLine(line.start, line.end, line.number, number, failed, problem, whole)


class StoredLine(NamedTuple):
    """A line of a file.

    Attributes:
        number: its line number, from 1.
        start, end: offsets of its first byte, and of the byte after its last.
        data: the line with its line end; only its beginning if `is_long`, so that it is not a row.
        is_long: whether it is longer than `MAX_LINE_BYTES`.
    """

    number: int
    start: int
    end: int
    data: bytes
    is_long: bool = False


def read_lines(reader: BinaryIO, *, skip_long: bool = False) -> Iterator[StoredLine]:
    """The lines of an open file, with at most `MAX_LINE_BYTES` of a line in memory.

    Reading stops after a longer line, whose `end` is then not its true end: the file may be too large to read. With
    `skip_long`, the line is read to its end, and reading continues.
    """
    start = number = 0
    while True:
        number += 1
        data = reader.readline(MAX_LINE_BYTES)
        if not data:
            return
        end = start + len(data)
        is_long = len(data) == MAX_LINE_BYTES and not data.endswith(b"\n")
        if is_long:
            data = data[:_KEPT_BYTES]
            while skip_long and (continuation := reader.readline(BLOCK_BYTES)):
                end += len(continuation)
                if continuation.endswith(b"\n"):
                    break
        yield StoredLine(number, start, end, data, is_long)
        if is_long and not skip_long:
            return
        start = end


def read_results(path: Path) -> Iterator[Row]:
    """The rows of a results file in the file's order, without a torn tail, which the file of a running run may have.

    Raises:
        RunDirectoryError: the file cannot be read.
        RunDamagedError: a row before the last complete one is damaged.
    """
    damage: RunDamagedError | None = None
    try:
        with open_file(path) as reader:
            for line in read_lines(reader):
                try:
                    row = decode_row(line.data)
                except BadLineError as error:
                    hint = "continue the run with --repair to set damaged rows aside and run them again"
                    problem = f"the row is damaged: {_TOO_LONG if line.is_long else error}"
                    damage = damage or RunDamagedError(problem, path=path, line=line.number, hint=hint)
                    if line.is_long or isinstance(error, WrongValuesError):
                        raise damage from None
                    continue
                if damage is not None:
                    raise damage
                yield row
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror}", path=path) from None


DAMAGED_NAME = "results.damaged"
TORN_NAME = "results.torn"


@dataclass(frozen=True)
class Findings:
    """The result of scanning a results file.

    Attributes:
        damaged: lines before the last complete row that are not rows of the plan.
        end_of_rows: offset after the last complete row; what follows is a torn tail.
        end: size of the file.
    """

    damaged: tuple[ScannedLine, ...]
    end_of_rows: int
    end: int


def index_rows(
    reader: BinaryIO,
    index_of: Callable[[RowKey], int | None],
    index: LineIndex,
    vocab_size: Callable[[str], int | None] = lambda cell: None,
    *,
    needs_digest: bool = False,
    skip_long: bool = False,
) -> Findings:
    """Scan an open file and add its rows to `index`.

    Args:
        index_of, skip_long: see `scan_lines`.
        vocab_size: maps a cell to the vocabulary size of its model, or to None if it is unknown; a row with a larger
            token id counts as damaged.
        needs_digest: a row without digests counts as damaged.
    """

    def decode(line: bytes) -> Row:
        row = decode_row(line)
        if needs_digest:
            digest_of(line)
        size, largest = vocab_size(row.cell), max(row.reply_ids, default=0)
        if size is not None and largest >= size:
            raise WrongValuesError(f"its token id {largest} is not in the model's vocabulary, which ends at {size - 1}")
        return row

    invalid: list[ScannedLine] = []
    end_of_rows = end = 0
    for line in scan_lines(reader, index_of, decode, skip_long=skip_long):
        end = line.end
        if line.whole:
            end_of_rows = line.end
        if line.problem is None:
            index.add(line.number, line.start, line.end - line.start, failed=line.failed)
        else:
            invalid.append(line)
    return Findings(tuple(line for line in invalid if line.start < end_of_rows), end_of_rows, end)
