"""What a crash or a bad disk left in `results.jsonl`: found, and set aside byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rwkvbatch.run.results.files import Files, read_spans, replace_file, write_all
from rwkvbatch.run.results.line_index import LineIndex
from rwkvbatch.run.results.rows import RowKey
from rwkvbatch.run.results.scan import ScannedLine, scan_lines

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


def look_through(
    files: Files, path: Path, place: Callable[[RowKey], int | None], index: LineIndex
) -> Findings:
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
