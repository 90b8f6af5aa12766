"""Reading `results.jsonl` as it was left: which lines are rows of the plan, and which are damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from rwkvbatch.errors import RunDamagedError, RunDirectoryError
from rwkvbatch.run.results.lines import MAX_LINE_BYTES, BadLineError, decode_row
from rwkvbatch.run.results.rows import Row, RowKey


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
    def finish(self) -> str: ...


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
                number, failed = found, row.finish == "error"
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
