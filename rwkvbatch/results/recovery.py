"""What a crash or a bad disk left in `results.jsonl`: found, and set aside byte for byte."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from rwkvbatch.errors import RunDamagedError, RunDirectoryError
from rwkvbatch.files import Files, read_spans, replace_file, write_all
from rwkvbatch.results.row import MAX_LINE_BYTES, BadLineError, Row, RowKey, decode_row

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


@dataclass(frozen=True)
class ScannedLine:
    """One line: bytes `start` to `end` of the file, 1-based number `line`.

    It is either row `number` of the plan, with `failed` for an error row, or has a `problem`. `whole` tells a
    row with the right checksum, which cannot be what a crash left of a write.
    """

    start: int
    end: int
    line: int
    number: int
    failed: bool
    problem: str | None
    whole: bool


class Keyed(Protocol):
    """What a scan needs of a row."""

    @property
    def key(self) -> RowKey: ...
    @property
    def finish_reason(self) -> str: ...


def scan_lines(
    reader: BinaryIO,
    place: Callable[[RowKey], int | None],
    decode: Callable[[bytes], Keyed] = decode_row,
) -> Iterator[ScannedLine]:
    """The lines of a results file from its beginning.

    Args:
        place: gives a row's number in the plan.
        decode: `decode_head` where it is enough that lines are whole.
    """
    seen: set[int] = set()
    start = 0
    line_number = 0
    while data := reader.readline(MAX_LINE_BYTES):
        line_number += 1
        number, failed, problem, whole = -1, False, None, True
        try:
            row = decode(data)
        except BadLineError as error:
            problem, whole = str(error), False
        else:
            found = place(row.key)
            if found is None:
                problem = "it is of no conversation, cell, repeat and turn of this run"
            elif found in seen:
                problem = "the same turn was there before"
            else:
                number, failed = found, row.finish_reason == "error"
                seen.add(found)
        yield ScannedLine(start, start + len(data), line_number, number, failed, problem, whole)
        start += len(data)


def read_results(path: Path) -> Iterator[Row]:
    """The rows of a results file, in the order of the file; a torn tail (a run under way) is passed over.

    Raises:
        RunDirectoryError: the file cannot be read.
        RunDamagedError: a row before the last whole one is damaged.
    """
    try:
        with path.open("rb") as reader:
            problem: tuple[int, str] | None = None
            for number, data in enumerate(iter(lambda: reader.readline(MAX_LINE_BYTES), b""), start=1):
                try:
                    row = decode_row(data)
                except BadLineError as error:
                    problem = problem or (number, str(error))
                    continue
                if problem is not None:
                    raise RunDamagedError(
                        f"the row is damaged: {problem[1]}",
                        path=path,
                        line=problem[0],
                        hint="continue the run with --repair to set damaged rows aside and run them again",
                    )
                yield row
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror}", path=path) from None


DAMAGED_NAME = "results.damaged"
TORN_NAME = "results.torn"


@dataclass(frozen=True)
class Findings:
    """What is in a results file.

    Attributes:
        damaged: lines before the last whole row that are no rows of the plan.
        end_of_rows: the byte after the last whole row. end: the size of the file; what is between was torn off.
    """

    damaged: tuple[ScannedLine, ...]
    end_of_rows: int
    end: int


def look_through(files: Files, path: Path, place: Callable[[RowKey], int | None], index: LineIndex) -> Findings:
    """Read the whole file and add its rows to `index`.

    Raises:
        OSError: it cannot be read.
    """
    bad: list[ScannedLine] = []
    end_of_rows = end = 0
    with files.read(path) as reader:
        for line in scan_lines(reader, place):
            end = line.end
            if line.whole:
                end_of_rows = line.end
            if line.problem is None:
                index.add(line.number, line.start, line.end - line.start, failed=line.failed)
            else:
                bad.append(line)
    return Findings(tuple(line for line in bad if line.start < end_of_rows), end_of_rows, end)


def keep_torn_tail(files: Files, path: Path, found: Findings) -> Path | None:
    """Copy what follows the last whole row into a file of its own, `results.torn-N`; None when nothing does.

    Raises:
        OSError: it could not be written.
    """
    if found.end == found.end_of_rows:
        return None
    taken = {other.name for other in path.parent.glob(f"{TORN_NAME}-*")}
    count = 1
    while f"{TORN_NAME}-{count}" in taken:
        count += 1
    torn = path.with_name(f"{TORN_NAME}-{count}")
    replace_file(files, torn, read_spans(files, path, [(found.end_of_rows, found.end)]))
    return torn


def keep_damaged_lines(files: Files, path: Path, damaged: Sequence[ScannedLine]) -> None:
    """Add the lines to `results.damaged`.

    Raises:
        OSError: it could not be written.
    """
    descriptor = files.open_append(path.with_name(DAMAGED_NAME))
    try:
        for piece in read_spans(files, path, [(line.start, line.end) for line in damaged]):
            write_all(files, descriptor, piece)
        files.sync(descriptor)
    finally:
        files.close(descriptor)
