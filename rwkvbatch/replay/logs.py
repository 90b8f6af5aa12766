"""Commands that are shown so that they can be given again."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import shlex
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rwkvbatch.errors import UsageError
from rwkvbatch.files import FILE_MODE
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.replay.progress import Progress

ROOT_NAME = "rwkvbatch"
_PLAIN = frozenset(vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"})


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, whatever the record has besides, and an error's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        content.update({key: value for key, value in vars(record).items() if key not in _PLAIN})
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=True, default=str)


class _TerminalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(f"rwkvbatch: {record.levelname.lower()}: {record.getMessage()}")


class _LogFile(logging.FileHandler):
    """Appends to a file. A log stops no run: when it cannot be written, that is said once, and nothing more is."""

    def __init__(self, path: Path) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE))
        super().__init__(path, encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.setLevel(logging.CRITICAL + 1)
        logging.getLogger(ROOT_NAME).warning(
            "--log-file %s: write failed: %s; going on without it", self.baseFilename, error.strerror
        )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextmanager
def logging_to(path: Path | None, *, verbose: bool = False, quiet: bool = False) -> Generator[None]:
    """Send this package's log to `path` and to standard error, inside.

    Args:
        path: appended to, JSON lines, everything from `info` up (`debug` with `verbose`); None for no file.
        verbose: `info` on standard error too. quiet: only errors there.

    Raises:
        UsageError: the file cannot be opened.
    """
    logger = logging.getLogger(ROOT_NAME)
    handlers: list[logging.Handler] = []
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(_TerminalFormatter())
    terminal.setLevel(logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING)
    handlers.append(terminal)
    if path is not None:
        try:
            file = _LogFile(path)
        except OSError as error:
            raise UsageError(f"--log-file {path}: cannot be opened: {error.strerror}") from None
        file.setFormatter(JsonFormatter())
        file.setLevel(logging.DEBUG if verbose else logging.INFO)
        handlers.append(file)
    before = logger.level
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before)
        for handler in handlers:
            logger.removeHandler(handler)
            if handler is not terminal:
                handler.close()


EVERY_S = 10.0

_log = logging.getLogger(__name__)


class StepLog:
    """Counts the engine's steps.

    Args:
        clock: seconds that never jump.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since_s = clock()
        self._last_s = self._since_s
        self._steps = 0
        self._longest_s = 0.0

    def count(self, progress: Progress) -> None:
        """A step ended."""
        now = self._clock()
        self._longest_s = max(self._longest_s, now - self._last_s)
        self._last_s = now
        self._steps += 1
        if now - self._since_s >= EVERY_S:
            self._write("the run goes on", progress)
            self._since_s, self._steps, self._longest_s = now, 0, 0.0

    def end(self, progress: Progress, *, interrupted: bool) -> None:
        """The run ended."""
        self._last_s = self._clock()
        self._write("the run was interrupted" if interrupted else "the run ended", progress)

    def _write(self, message: str, progress: Progress) -> None:
        lasted_s = self._last_s - self._since_s
        figures = {
            "steps": self._steps,
            "step_mean_s": round(lasted_s / self._steps, 6) if self._steps else None,
            "step_longest_s": round(self._longest_s, 6),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        _log.info(
            message,
            extra={
                **vars(progress),
                "workers": [vars(worker) for worker in progress.workers],
                "tokens_per_s": round(progress.tokens_per_s, 3),
                **figures,
            },
        )


def peak_memory_bytes() -> int:
    """The most memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def command_line() -> str:
    """This process's command, as a shell would read it."""
    return shlex.join(["rwkvbatch", *sys.argv[1:]])


def with_directory(words: Sequence[str], out: Path) -> str:
    """The command of `words`, which have no `--out`, with one. Behind a `--` all words are scripts."""
    end = _end_of_options(words)
    return shlex.join([*words[:end], "--out", str(out), *words[end:]])


def without_options(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """`words` without these options (`--out`, `-o`) and their values: `--out DIR`, `--out=DIR`, `-o DIR`, `-oDIR`."""
    joined = tuple(f"{name}=" if name.startswith("--") else name for name in names)
    end = _end_of_options(words)
    kept: list[str] = []
    options = iter(words[:end])
    for word in options:
        if word in names:
            next(options, None)
        elif not word.startswith(joined):
            kept.append(word)
    return [*kept, *words[end:]]


def _end_of_options(words: Sequence[str]) -> int:
    return words.index("--") if "--" in words else len(words)
