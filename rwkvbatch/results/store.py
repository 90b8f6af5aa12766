"""`RowStore`: the rows of a run in its directory, durable and recovered after crashes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, RunReplacedError, StorageError, counted
from rwkvbatch.files import in_blocks, read_spans, write_all
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.recovery import DAMAGED_NAME, TORN_NAME, LineIndex, index_rows
from rwkvbatch.results.row import Row, RowKey
from rwkvbatch.results.row_codec import (
    BadLineError,
    EncodedRow,
    RowDigest,
    content_of_line,
    decode_row,
    encode_row,
    with_digest,
)
from rwkvbatch.targets import RESULTS_NAME

ASIDE_NAME = "results.aside"
FLUSH_ROWS = 64
FLUSH_SECONDS = 2.0

_log = logging.getLogger(__name__)


class RowStore:
    """The rows of one run in `results.jsonl`, by their numbers in the plan. The caller holds the directory's lock.

    If a write, a flush or the replacement of the file fails, the writing methods raise `StorageError`, and every later
    call raises it again: a failed flush is not repeated, because the kernel may have dropped the data. If the file at
    the path is no longer the opened one, or its size is not that of the bytes written, they raise `RunReplacedError`.
    The file at the path is then left as it is, and rows that no file of the directory has any more are copied to
    `results.aside-N`.

    Args:
        folder: the run directory.
        num_rows: number of rows in the plan.
        index_of: maps a key to the row's number in the plan, or to None if the plan does not have the row.
        digest: maps a row's number to the digests that are written with it; a row in the file that has none counts as
            damaged. None writes and reads rows without digests.
        repair: set damaged lines aside in `results.damaged` instead of refusing them.
        vocab_size: maps a cell to the vocabulary size of its model, or to None if it is unknown; a row with a larger
            token id counts as damaged.
        flush_rows, flush_seconds: rows are flushed after this many, or this long. A power cut loses at most the rows
            since the last flush; a killed process loses none.
        clock: monotonic seconds.

    Attributes:
        num_durable: number of rows that a power cut cannot lose, and that may be reported as done.

    Raises:
        RunDamagedError: a line before the last complete row is damaged, and `repair` is off.
        RunDirectoryError: the file cannot be read or created.
        StorageError: a torn tail or damaged line could not be set aside.
    """

    def __init__(
        self,
        folder: Folder,
        num_rows: int,
        index_of: Callable[[RowKey], int | None],
        *,
        digest: Callable[[int], RowDigest] | None = None,
        repair: bool = False,
        vocab_size: Callable[[str], int | None] = lambda cell: None,
        flush_rows: int = FLUSH_ROWS,
        flush_seconds: float = FLUSH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = folder.path / RESULTS_NAME
        self._folder = folder
        self._files = folder.files
        self._index_of = index_of
        self._digest = digest
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._clock = clock
        self._index = LineIndex(num_rows)
        self.num_durable = 0
        self._size = 0
        self._oldest_pending: float | None = None
        self._last_tick = clock()
        self._longest_tick_interval = 0.0
        self._first_error: OSError | None = None
        self._reader: BinaryIO | None = None  # of the same file as `_descriptor`
        self._descriptor = -1
        try:
            self._open(repair, vocab_size)
        except BaseException:  # KeyboardInterrupt too: no caller can close an object whose construction failed
            self._release()
            raise

    @property
    def num_rows(self) -> int:
        """Number of rows written, durable or not."""
        return self._index.num_rows

    def has(self, number: int) -> bool:
        """Whether row `number` was written."""
        return self._index.has(number)

    def failed(self, number: int) -> bool:
        """Whether row `number` was written and is an error row."""
        return self._index.failed(number)

    def read(self, number: int) -> Row:
        """Row `number`.

        Raises:
            KeyError: it was not written.
            RunDamagedError: it was changed on the disk after it was written.
        """
        try:
            return decode_row(self.read_line(number))
        except BadLineError as error:
            raise RunDamagedError(f"a row changed on the disk during the run: {error}", path=self._path) from None

    def read_line(self, number: int) -> bytes:
        """The line of row `number` as it is in the file; raises `KeyError` if it was not written."""
        if not self.has(number):
            raise KeyError(number)
        return self._index.read(number, self._open_reader)

    def rows(self) -> Iterator[Row]:
        """All rows in the plan's order."""
        return map(self.read, self._index.rows())

    def append(self, rows: Mapping[int, Row]) -> None:
        """Write rows by number; see `append_encoded`."""
        self.append_encoded([EncodedRow.of(number, row) for number, row in rows.items()])

    def append_encoded(self, rows: Sequence[EncodedRow]) -> None:
        """Write rows with one system call. A power cut can lose them until `num_durable` counts them.

        Raises:
            ValueError: a row exists already, or occurs twice in `rows`.
        """
        self._refuse_after_error()
        if not rows:
            return
        numbers: set[int] = set()
        for row in rows:
            if self.has(row.number) or row.number in numbers:
                raise ValueError(f"row {row.number} was written before")
            numbers.add(row.number)
        if self._digest is not None:
            rows = [replace(row, line=with_digest(row.line, self._digest(row.number))) for row in rows]
        if self.num_rows - self.num_durable + len(rows) > self._flush_rows:
            self.flush()
        self._check_file()
        try:
            write_all(self._files, self._descriptor, b"".join([row.line for row in rows]))
        except OSError as error:
            # No partial line may stay between rows. If truncating fails too, the next opening removes the torn tail.
            with contextlib.suppress(OSError):
                self._files.truncate(self._descriptor, self._size)
            with contextlib.suppress(StorageError):
                self.flush()
            raise self._fail(error, "write") from error
        for row in rows:
            self._index.add(row.number, self._size, len(row.line), failed=row.error is not None)
            self._size += len(row.line)
        if self._oldest_pending is None:
            self._oldest_pending = self._clock()
        if self.num_rows - self.num_durable >= self._flush_rows:
            self.flush()

    def tick(self) -> None:
        """Flush rows that would be older than `flush_seconds` at the next call; called between the engine's steps."""
        now = self._clock()
        self._longest_tick_interval = max(self._longest_tick_interval, now - self._last_tick)
        self._last_tick = now
        if self._oldest_pending is None:
            return
        age = now - self._oldest_pending
        if age < 0 or age + min(self._longest_tick_interval, self._flush_seconds) >= self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Wait until every written row is on the disk."""
        self._refuse_after_error()
        if self.num_durable < self.num_rows:
            try:
                self._files.sync(self._descriptor)
            except OSError as error:
                raise self._fail(error, "flush") from error
            self._check_file()  # rows are durable only in the file at the path
        self.num_durable = self.num_rows
        self._oldest_pending = None

    def discard(self, numbers: Iterable[int]) -> None:
        """Remove rows, which can then be written again."""
        discarded = set(numbers)
        if discarded:
            self._rewrite([number for number in self._index.rows_in_file_order() if number not in discarded])

    def renew(self, numbers: Iterable[int], row_of: Callable[[int], Row]) -> None:
        """Replace the rows `numbers` by those that `row_of` returns, in one atomic replacement of the file."""
        renewed = set(numbers)
        if renewed:
            self._rewrite(
                self._index.rows_in_file_order(), lambda number: row_of(number) if number in renewed else None
            )

    def finalize(self) -> None:
        """Sort the rows into the plan's order, so that the file does not depend on the order of their completion."""
        self.flush()
        in_plan_order = self._index.rows()
        if in_plan_order != self._index.rows_in_file_order():
            self._rewrite(in_plan_order)

    def close(self) -> None:
        """Flush, unless an earlier write failed, and release the file."""
        try:
            if self._descriptor >= 0 and self._first_error is None:
                self.flush()
        finally:
            self._release()

    def _release(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._descriptor >= 0:
            self._files.close(self._descriptor)
            self._descriptor = -1

    def _open_file(self) -> None:
        """Open the file at the path twice: to append, and to read at another position."""
        self._descriptor = self._folder.open_append(RESULTS_NAME)
        self._reader = self._folder.open(RESULTS_NAME)
        if not os.path.samestat(os.fstat(self._descriptor), os.fstat(self._reader.fileno())):
            raise OSError(errno.ESTALE, "it was replaced while it was being opened")

    @property
    def _open_reader(self) -> BinaryIO:
        assert self._reader is not None
        return self._reader

    def _open(self, repair: bool, vocab_size: Callable[[str], int | None]) -> None:
        """Open the file, index its rows, and set a torn tail and damaged lines aside."""
        try:
            self._open_file()
            findings = index_rows(
                self._open_reader,
                self._index_of,
                self._index,
                vocab_size,
                needs_digest=self._digest is not None,
                skip_long=repair,
            )
        except OSError as error:
            problem = f"cannot be opened for writing: {error.strerror or error}"
            raise RunDirectoryError(problem, path=self._path) from None
        if findings.damaged and not repair:
            first, *others = findings.damaged
            raise RunDamagedError(
                f"the row is damaged: {first.problem}" + (f" (and {len(others)} more)" if others else ""),
                path=self._path,
                line=first.line,
                hint=f"give --repair to set damaged rows aside in {DAMAGED_NAME} and run them again",
            )
        # A file with hard links is replaced, not changed: its other names may belong to a backup.
        has_links = os.fstat(self._descriptor).st_nlink > 1
        self._size = findings.end if has_links else findings.end_of_rows
        try:
            if findings.end > findings.end_of_rows:
                span = findings.end_of_rows, findings.end
                torn = self._folder.keep(TORN_NAME, self._open_reader, span)
                if not has_links:
                    self._files.truncate(self._descriptor, findings.end_of_rows)
                size = counted(findings.end - findings.end_of_rows, "byte")
                _log.warning("%s: the last write was cut off; %s set aside in %s", self._path, size, torn.name)
            if findings.damaged:
                spans = [(line.start, line.end) for line in findings.damaged]
                self._folder.append_lines(DAMAGED_NAME, read_spans(self._open_reader, spans))
            # An earlier process may have been killed before it flushed.
            self._files.sync(self._descriptor)
            self._folder.sync()
        except OSError as error:
            raise self._fail(error, "repair") from error
        if findings.damaged or has_links:
            self._rewrite(self._index.rows_in_file_order())
        if findings.damaged:
            lines = counted(len(findings.damaged), "damaged line")
            _log.warning("%s: %s set aside in %s, to be run again", self._path, lines, DAMAGED_NAME)
        self.num_durable = self.num_rows

    def _rewrite(self, numbers: Sequence[int], new_row: Callable[[int], Row | None] = lambda number: None) -> None:
        """Replace the file by one with the rows `numbers`, in that order.

        Args:
            new_row: returns a row that takes the place of row `number`; None keeps the line.
        """
        self._refuse_after_error()
        self._check_file()
        reader = self._open_reader
        index = self._index.emptied()
        size = 0

        def lines() -> Iterator[bytes]:
            nonlocal size
            for number in numbers:
                line, failed = self._checked_line(number, reader), self._index.failed(number)
                if (row := new_row(number)) is not None:
                    line, failed = encode_row(row), row.error is not None
                    if self._digest is not None:
                        line = with_digest(line, self._digest(number))
                index.add(number, size, len(line), failed=failed)
                size += len(line)
                yield line

        try:
            self._folder.replace(RESULTS_NAME, in_blocks(lines()), check=self._check_file)
            self._release()
            self._open_file()
        except OSError as error:
            raise self._fail(error, "rewrite") from error
        self._index, self._size = index, size
        self.num_durable = self.num_rows
        self._oldest_pending = None

    def _checked_line(self, number: int, reader: BinaryIO) -> bytes:
        line = self._index.read(number, reader)
        try:
            content_of_line(line)
        except BadLineError as error:
            line_number = self._index.line_number(number, reader)
            raise self._stop(f"line {line_number} was changed on the disk during the run: {error}") from None
        return line

    def _check_file(self) -> None:
        """Raise `RunReplacedError` if the file at the path is not the opened one, or has another size than written.

        Called before every write, and before rows count as durable.
        """
        problem = self._folder.lost()
        if problem is None:
            opened = os.fstat(self._descriptor)
            try:
                at_path = self._folder.stat(RESULTS_NAME)
            except OSError:
                problem = "was removed or moved away during the run"
            else:
                if not os.path.samestat(at_path, opened):
                    problem = "was replaced by another file during the run"
                elif opened.st_size != self._size:
                    sizes = f"it has {opened.st_size:,} bytes, {self._size:,} were written"
                    problem = f"was changed by another program during the run: {sizes}"
        if problem is not None:
            raise self._stop(problem)

    def _stop(self, problem: str) -> RunReplacedError:
        """The error for a file that no longer belongs to this run; prevents all further writes."""
        self._first_error = OSError(errno.ESTALE, problem)
        outcome = "the file is unchanged"
        if os.fstat(self._descriptor).st_nlink == 0:  # the open file has no name, so its rows would be lost
            outcome = self._keep_aside()
        return RunReplacedError(
            f"{self._path}: {problem}; nothing more is written, and {outcome}",
            hint="put the directory back as it was, or run the command again with another --out",
        )

    def _keep_aside(self) -> str:
        """Copy the open file to a new file in the directory, or next to the directory if that was removed.

        Returns:
            A clause on where the rows are.
        """
        span = 0, os.fstat(self._descriptor).st_size
        inside, beside = self._folder, Folder(self._folder.path.parent, self._files)
        for folder, name in ((inside, ASIDE_NAME), (beside, f"{inside.path.name}.{ASIDE_NAME}")):
            with contextlib.suppress(OSError):
                kept = folder.keep(name, self._open_reader, span)
                return f"its {counted(self.num_rows, 'row')} can be found in {kept}"
        return f"its {counted(self.num_rows, 'row')} cannot be kept"

    def _refuse_after_error(self) -> None:
        if self._first_error is not None:
            raise self._fail(self._first_error, "earlier write")

    def _fail(self, error: OSError, action: str) -> StorageError:
        """The error for a failed `action`; prevents all further writes."""
        self._first_error = error
        safe = f"{counted(self.num_durable, 'row')} {'is' if self.num_durable == 1 else 'are'}"
        return StorageError(
            f"{self._path}: {action} failed: {error.strerror or error}",
            hint=f"{safe} safe; make room or repair the disk, then run the same command again to continue",
        )
