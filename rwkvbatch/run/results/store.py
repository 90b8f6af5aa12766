"""`results.jsonl`: rows that are never lost once they were reported as done.

The file is only ever appended to while rows come in, one whole line with a checksum in one write; it is
flushed to the disk in groups. A rewrite (repair, retry, final order) goes by a temporary file and a rename.
What is promised, and why this holds it: `docs/design/durability.md`.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, StorageError
from rwkvbatch.run.results.files import OS_FILES, Files, replace_file, write_all
from rwkvbatch.run.results.lines import BadLineError, EncodedRow, decode_row, encode_row
from rwkvbatch.run.results.rows import Row, RowKey
from rwkvbatch.run.results.scan import ScannedLine, scan_lines

RESULTS_NAME = "results.jsonl"
DAMAGED_NAME = "results.damaged"
FLUSH_ROWS = 64
FLUSH_SECONDS = 2.0
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Opening:
    """What was found when a store was opened: rows, bytes of a torn tail and their file, damaged lines set aside."""

    rows: int
    torn_bytes: int
    torn_name: str | None
    repaired_lines: int


class RowStore:
    """The rows of one run, by their place in its plan. The caller holds the directory's lock.

    Args:
        directory: the run directory.
        num_rows: rows in the plan.
        place: a row's number in the plan, or None for a row that is not in it.
        repair: set damaged lines aside in `results.damaged` instead of refusing them.
        flush_rows, flush_seconds: at most this much is at risk in a power cut (nothing in a killed process).
        clock: seconds that never jump.

    Raises:
        RunDamagedError: a line before the last whole one is damaged, and `repair` is off.
        RunDirectoryError: the file cannot be read or created.
        StorageError: a torn tail or damaged line could not be set aside.
    """

    def __init__(
        self,
        directory: Path,
        num_rows: int,
        place: Callable[[RowKey], int | None],
        *,
        repair: bool = False,
        files: Files = OS_FILES,
        flush_rows: int = FLUSH_ROWS,
        flush_seconds: float = FLUSH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._path = directory / RESULTS_NAME
        self._files = files
        self._place = place
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._clock = clock
        self._offsets = array("q", [-1]) * num_rows
        self._lengths = array("q", [0]) * num_rows
        self._failed = bytearray(num_rows)
        self._num_rows = 0
        self._num_durable = 0
        self._size = 0
        self._oldest_pending: float | None = None
        self._last_look = clock()
        self._longest_wait = 0.0
        self._broken: OSError | None = None
        self._reader: BinaryIO | None = None
        self._descriptor = -1
        try:
            self.opening = self._open(repair)
        except BaseException:
            self.close()
            raise

    # What is there.

    @property
    def num_rows(self) -> int:
        """Rows written, durable or not."""
        return self._num_rows

    @property
    def num_durable(self) -> int:
        """Rows that may be reported as done: a power cut cannot take them any more."""
        return self._num_durable

    def has(self, number: int) -> bool:
        """Whether the plan's row `number` was written."""
        return self._offsets[number] >= 0

    def failed(self, number: int) -> bool:
        """Whether row `number` was written and is an error row."""
        return bool(self._failed[number])

    def read(self, number: int) -> Row:
        """Row `number`.

        Raises:
            KeyError: it was not written.
            RunDamagedError: it changed on the disk since.
        """
        if not self.has(number):
            raise KeyError(number)
        try:
            return decode_row(self._line(number))
        except BadLineError as error:
            raise RunDamagedError(
                f"a row changed while the run was going on: {error}", path=self._path
            ) from None

    def rows(self) -> Iterator[Row]:
        """All rows, in the plan's order."""
        return (self.read(number) for number in range(len(self._offsets)) if self.has(number))

    # Writing.

    def append(self, number: int, row: Row) -> None:
        """Write row `number`; see `append_all`."""
        self.append_all([EncodedRow(number, encode_row(row), row.finish == "error")])

    def append_all(self, rows: Sequence[EncodedRow]) -> None:
        """Write rows, in one piece. They are at risk until `num_durable` has counted them.

        Raises:
            StorageError: the write failed, now or before. Nothing more can be written.
            ValueError: a row is there already, or twice among `rows`.
        """
        self._refuse_if_broken()
        if not rows:
            return
        if len({row.number for row in rows}) < len(rows):
            raise ValueError("a row is there twice")
        for row in rows:
            if self.has(row.number):
                raise ValueError(f"row {row.number} was written before")
        if self._num_rows - self._num_durable + len(rows) > self._flush_rows:
            self.flush()
        try:
            write_all(self._files, self._descriptor, b"".join([row.line for row in rows]))
        except OSError as error:
            # Half a line must not stay between rows; if even this fails, the next opening cuts the tail off.
            with contextlib.suppress(OSError):
                self._files.truncate(self._descriptor, self._size)
            with contextlib.suppress(StorageError):
                self.flush()
            raise self._break(error, "write") from error
        for row in rows:
            self._remember(row.number, self._size, len(row.line), failed=row.failed)
            self._size += len(row.line)
        if self._oldest_pending is None:
            self._oldest_pending = self._clock()
        if self._num_rows - self._num_durable >= self._flush_rows:
            self.flush()

    def tick(self) -> None:
        """Flush what would get too old before the next look; called between the engine's steps.

        Raises:
            StorageError: the flush failed.
        """
        now = self._clock()
        self._longest_wait = max(self._longest_wait, now - self._last_look)
        self._last_look = now
        if self._oldest_pending is None:
            return
        age = now - self._oldest_pending
        if age < 0 or age + min(self._longest_wait, self._flush_seconds) >= self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Wait until every written row is on the disk.

        Raises:
            StorageError: it could not be; the kernel may have dropped the data, so it is not tried again.
        """
        self._refuse_if_broken()
        if self._num_durable < self._num_rows:
            try:
                self._files.sync(self._descriptor)
            except OSError as error:
                raise self._break(error, "flush") from error
        self._num_durable = self._num_rows
        self._oldest_pending = None

    def discard(self, numbers: Iterable[int]) -> None:
        """Take rows out, to be run again.

        Raises:
            StorageError: the file could not be replaced; it is as it was.
        """
        gone = set(numbers)
        if gone:
            self._rewrite([n for n in self._in_file_order() if n not in gone])

    def finalize(self) -> None:
        """Bring the rows into the plan's order, which does not depend on how the run went.

        Raises:
            StorageError: the file could not be replaced; it is as it was.
        """
        self.flush()
        ordered = array("q", (number for number in range(len(self._offsets)) if self.has(number)))
        if ordered != self._in_file_order():
            self._rewrite(ordered)

    def close(self) -> None:
        """Flush, unless that failed before, and close the file."""
        try:
            if self._descriptor >= 0 and self._broken is None:
                self.flush()
        finally:
            if self._descriptor >= 0:
                self._files.close(self._descriptor)
                self._descriptor = -1
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    # Opening.

    def _open(self, repair: bool) -> Opening:
        try:
            self._descriptor = self._files.open_append(self._path)
            bad, end_of_rows, end = self._scan()
        except OSError as error:
            raise RunDirectoryError(
                f"cannot be opened for writing: {error.strerror or error}", path=self._path
            ) from None
        damaged = [line for line in bad if line.start < end_of_rows]
        if damaged and not repair:
            more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
            raise RunDamagedError(
                f"the row is damaged: {damaged[0].problem}{more}",
                path=self._path,
                line=damaged[0].line,
                hint=f"give --repair to set damaged rows aside in {DAMAGED_NAME} and run them again",
            )
        torn: Path | None = None
        try:
            if end > end_of_rows:
                torn = self._unused_name("results.torn")
                replace_file(self._files, torn, self._pieces([(end_of_rows, end)]))
                self._files.truncate(self._descriptor, end_of_rows)
            if damaged:
                self._set_aside(damaged)
            self._size = end_of_rows
            # An earlier process perhaps died before it flushed.
            self._files.sync(self._descriptor)
            self._files.sync_directory(self._directory)
        except OSError as error:
            raise self._break(error, "repair") from error
        if damaged:
            self._rewrite(self._in_file_order())
        self._num_durable = self._num_rows
        return Opening(self._num_rows, end - end_of_rows, torn.name if torn else None, len(damaged))

    def _scan(self) -> tuple[list[ScannedLine], int, int]:
        """Damaged lines, the end of the last whole row, the end of the file."""
        bad: list[ScannedLine] = []
        end_of_rows = end = 0
        with self._files.read(self._path) as reader:
            for line in scan_lines(reader, self._place):
                end = line.end
                if line.whole:
                    end_of_rows = line.end
                if line.problem is None:
                    self._remember(line.number, line.start, line.end - line.start, failed=line.failed)
                else:
                    bad.append(line)
        return bad, end_of_rows, end

    def _set_aside(self, damaged: Sequence[ScannedLine]) -> None:
        descriptor = self._files.open_append(self._directory / DAMAGED_NAME)
        try:
            for piece in self._pieces([(line.start, line.end) for line in damaged]):
                write_all(self._files, descriptor, piece)
            self._files.sync(descriptor)
        finally:
            self._files.close(descriptor)

    def _unused_name(self, stem: str) -> Path:
        taken = {path.name for path in self._directory.glob(f"{stem}-*")}
        count = 1
        while f"{stem}-{count}" in taken:
            count += 1
        return self._directory / f"{stem}-{count}"

    def _pieces(self, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        with self._files.read(self._path) as reader:
            for start, end in spans:
                reader.seek(start)
                yield reader.read(end - start)

    # Within.

    def _rewrite(self, numbers: Sequence[int]) -> None:
        """Replace the file by the lines of `numbers`, in that order."""
        self._refuse_if_broken()
        spans = ((self._offsets[n], self._offsets[n] + self._lengths[n]) for n in numbers)
        try:
            replace_file(self._files, self._path, _in_blocks(self._pieces(spans)))
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            self._files.close(self._descriptor)
            self._descriptor = -1
            self._descriptor = self._files.open_append(self._path)
        except OSError as error:
            raise self._break(error, "rewrite") from error
        failed, size = bytes(self._failed), len(self._offsets)
        self._offsets = array("q", [-1]) * size
        self._failed = bytearray(size)
        self._num_rows = 0
        self._size = 0
        for number in numbers:
            length = self._lengths[number]
            self._remember(number, self._size, length, failed=bool(failed[number]))
            self._size += length
        self._num_durable = self._num_rows
        self._oldest_pending = None

    def _in_file_order(self) -> array[int]:
        there = (number for number in range(len(self._offsets)) if self._offsets[number] >= 0)
        return array("q", sorted(there, key=self._offsets.__getitem__))

    def _remember(self, number: int, offset: int, length: int, *, failed: bool) -> None:
        self._offsets[number] = offset
        self._lengths[number] = length
        self._failed[number] = failed
        self._num_rows += 1

    def _line(self, number: int) -> bytes:
        if self._reader is None:
            self._reader = self._files.read(self._path)
        self._reader.seek(self._offsets[number])
        return self._reader.read(self._lengths[number])

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise self._break(self._broken, "earlier write")

    def _break(self, error: OSError, action: str) -> StorageError:
        self._broken = error
        return StorageError(
            f"{self._path}: {action} failed: {error.strerror or error}",
            hint=f"{self._num_durable} rows are safe; make room or mend the disk, then give the same command "
            "again to go on",
        )


def _in_blocks(pieces: Iterable[bytes], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The same bytes in fewer pieces: a write for each row would take longer than the rows."""
    waiting: list[bytes] = []
    waiting_bytes = 0
    for piece in pieces:
        waiting.append(piece)
        waiting_bytes += len(piece)
        if waiting_bytes >= size:
            yield b"".join(waiting)
            waiting, waiting_bytes = [], 0
    if waiting:
        yield b"".join(waiting)
