"""Files of a judge's answers, so that no question is asked twice: `verdicts.jsonl`, and `preferences.jsonl` for pairs.

A line is JSON with a checksum as its last key, as in `results.jsonl`. There are three kinds of lines:

    {"judge": DIGEST, "name": ..., "identity": {...}}       a judge; the last such line is the present judge
    {"by": DIGEST, "key": KEY, "probability": 0.93}         its probability that the answer is the first word
    {"by": DIGEST, "key": KEY, "seed": 7, "vote": true}     its answer under a seed, if it gives no probability

Lines are appended and flushed like rows. A damaged or torn line is ignored, and its question is asked again. Unused
lines, such as those of other judges, are kept; when there are more than twice `MAX_UNUSED`, the oldest are dropped.
"""

from __future__ import annotations

import fcntl
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from rwkvbatch.errors import RunDirectoryError, StorageError
from rwkvbatch.files import in_blocks, open_file, write_all
from rwkvbatch.judges.answers import Judge, JudgeAnswer, MemoryRecord, digest_of
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.recovery import read_lines
from rwkvbatch.results.row_codec import BadLineError, content_of_line, with_checksum

VERDICTS_NAME = "verdicts.jsonl"
PREFERENCES_NAME = "preferences.jsonl"
MAX_FILE_BYTES = 2**30
MAX_LINE_BYTES = 2**16
MAX_NAME = 200
"""The most characters of a judge's name."""
MAX_UNUSED = 20_000
"""The number of lines of other judges, and of questions that are no longer asked, that remain after dropping some."""
FLUSH_LINES, FLUSH_SECONDS = 64, 2.0

_DIGEST, _KEY = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{32}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgeLine:
    """A judge that answered questions in a file."""

    digest: str
    name: str


class AnswerStore(MemoryRecord):
    """The answers of one judge in a file of a run directory.

    Args:
        folder: the run directory.
        name: the file's name.
        alone: lock the file; for a directory that this process has not locked.

    Attributes:
        judge: the judge that answered last, None for a new file; after `use`, the judge in use.

    Raises:
        RunDirectoryError: the file cannot be read or written, is not a regular file, or is locked.
    """

    def __init__(
        self,
        folder: Folder,
        name: str = VERDICTS_NAME,
        *,
        alone: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._folder, self._name, self._clock = folder, name, clock
        self._path, self._files = folder.path / name, folder.files
        self._descriptor = -1
        self._num_pending, self._pending_since = 0, 0.0
        self.judge: JudgeLine | None = None
        try:
            if alone:
                self._open()
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for values in self._read():
                if (judge := _judge_of(values)) is not None:
                    self.judge = judge
        except BlockingIOError:
            self.close()
            raise RunDirectoryError("another process is writing it", path=self._path) from None
        except OSError as error:
            self.close()
            raise RunDirectoryError(f"cannot be used: {error.strerror or error}", path=self._path) from None

    def use(self, judge: Judge | None) -> str | None:
        """Load the answers of a judge, or of the judge that answered last for None; returns its digest.

        Raises:
            StorageError: the judge could not be recorded.
        """
        if judge is not None:
            digest, name = digest_of(judge.identity), judge.name[:MAX_NAME]
            if self.judge is None or self.judge.digest != digest:
                self._append({"judge": digest, "name": name, "identity": dict(judge.identity)})
            self.judge = JudgeLine(digest, name)
        if self.judge is None:
            return None
        for values in self._read():
            if values.get("by") == self.judge.digest:
                self._remember(values)
        return self.judge.digest

    def add(self, key: str, answer: JudgeAnswer) -> None:
        """Append an answer; raises `StorageError`. It is durable when `flush` returns."""
        assert self.judge is not None
        question: dict[str, Any] = {"by": self.judge.digest, "key": key}
        lines = [{**question, "seed": seed, "vote": vote} for seed, vote in answer.votes.items()]
        if answer.probability is not None:
            lines.append({**question, "probability": answer.probability})
        super().add(key, answer)
        for values in lines:
            self._append(values)

    def flush(self) -> None:
        """Wait until all answers are on the disk; raises `StorageError`."""
        if self._num_pending:
            try:
                self._files.sync(self._descriptor)
            except OSError as error:
                raise self._failed(error) from error
            self._num_pending = 0

    def drop_unused(self, used: Collection[str], most: int = MAX_UNUSED) -> None:
        """Drop the oldest unused answers if there are more than `2 * most`, so that `most` remain.

        Answers by other judges, and to questions whose keys are not in `used`, are unused. The file is replaced
        atomically.

        Raises:
            StorageError: the file could not be written.
        """
        self.flush()
        digest = None if self.judge is None else self.judge.digest

        def is_used(values: Mapping[str, Any]) -> bool:
            return "judge" not in values and values.get("by") == digest and values.get("key") in used

        try:
            num_unused = sum("judge" not in values and not is_used(values) for values in self._read())
            if num_unused <= 2 * most:
                return
            self._folder.save(self._name, in_blocks(self._kept_lines(num_unused - most, is_used)))
        except OSError as error:
            raise self._failed(error) from error
        self.close()

    def _kept_lines(self, num_dropped: int, is_used: Callable[[Mapping[str, Any]], bool]) -> Iterator[bytes]:
        """The lines without the first `num_dropped` unused ones, and without judges of which no answer is kept."""

        def with_decision() -> Iterator[tuple[Mapping[str, Any], bool]]:
            """The lines, and whether each is kept, which is False for judges."""
            num_unused = 0
            for values in self._read():
                is_answer = "judge" not in values
                num_unused += is_answer and not is_used(values)
                yield values, is_answer and (is_used(values) or num_unused > num_dropped)

        kept_judges = {values["by"] for values, is_kept in with_decision() if is_kept}
        if self.judge is not None:
            kept_judges.add(self.judge.digest)
        for values, is_kept in with_decision():
            if is_kept or values.get("judge") in kept_judges:
                yield _line(values)

    def close(self) -> None:
        """Flush and release the file."""
        if self._descriptor >= 0:
            try:
                self.flush()
            finally:
                self._files.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(StorageError):
            self.close()

    def _remember(self, values: Mapping[str, Any]) -> None:
        if "probability" in values:
            self._probabilities[values["key"]] = float(values["probability"])
        else:
            self._votes[values["key"], values["seed"]] = values["vote"]

    def _open(self) -> None:
        self._descriptor = self._folder.open_lines(self._name)
        self._folder.sync()

    def _append(self, values: Mapping[str, Any]) -> None:
        try:
            self._folder.check()
            if self._descriptor < 0:
                self._open()
            write_all(self._files, self._descriptor, _line(values))
        except OSError as error:
            raise self._failed(error) from error
        now = self._clock()
        if not self._num_pending:
            self._pending_since = now
        self._num_pending += 1
        if self._num_pending >= FLUSH_LINES or now - self._pending_since >= FLUSH_SECONDS:
            self.flush()

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(f"{self._path}: write failed: {error.strerror or error}")

    def _read(self) -> Iterator[Mapping[str, Any]]:
        """The valid lines; raises `OSError`."""
        if not self._folder.size(self._name):
            return
        num_invalid = 0
        with self._folder.open(self._name, MAX_FILE_BYTES) as file:
            for line in read_lines(file):
                values = None if line.is_long or len(line.data) > MAX_LINE_BYTES else _parsed(line.data)
                if values is None:
                    num_invalid += bool(line.data.strip())
                else:
                    yield values
        if num_invalid:
            _log.info("%s: %d damaged lines are not used", self._path, num_invalid)


def read_lines_of(directory: Path, name: str = VERDICTS_NAME) -> Iterator[bytes]:
    """The valid lines of a file of answers; none if the file does not exist or cannot be read."""
    with suppress(OSError), open_file(directory / name, MAX_FILE_BYTES) as file:
        for line in read_lines(file):
            if len(line.data) <= MAX_LINE_BYTES and _parsed(line.data) is not None:
                yield line.data


def _line(values: Mapping[str, Any]) -> bytes:
    return with_checksum(json.dumps(values, separators=(",", ":"), allow_nan=False).encode("ascii"))


def _parsed(data: bytes) -> Mapping[str, Any] | None:
    """The values of a line; None if it is invalid or of an unknown kind."""
    try:
        # The content ends in a brace, so it is an object.
        values = cast("dict[str, Any]", json.loads(content_of_line(data)))
    except (BadLineError, ValueError, RecursionError):
        return None
    if _judge_of(values) is not None:
        return values
    by, key = values.get("by"), values.get("key")
    if not (isinstance(by, str) and _DIGEST.fullmatch(by) and isinstance(key, str) and _KEY.fullmatch(key)):
        return None
    match values:
        case {"probability": int() | float() as share, **others} if not isinstance(share, bool) and 0 <= share <= 1:
            return None if others.keys() & {"seed", "vote"} else values
        case {"seed": int() | None as seed, "vote": bool()} if seed is None or 0 <= seed < 2**31:
            return None if isinstance(seed, bool) else values
        case _:
            return None


def _judge_of(values: Mapping[str, Any]) -> JudgeLine | None:
    """The judge of a line, if its digest is that of its identity; None for another line."""
    match values:
        case {"judge": str(digest), "name": str(name), "identity": {**identity}} if len(name) <= MAX_NAME:
            return JudgeLine(digest, name) if digest == digest_of(identity) else None
        case _:
            return None
