"""Log files and log output of a command, and the command line as shown in messages."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from rwkvbatch.errors import UsageError
from rwkvbatch.files import FILE_MODE
from rwkvbatch.prompt.escaping import printable, printable_json
from rwkvbatch.targets import FileKind, check_target, file_head

ROOT_NAME = "rwkvbatch"
_PLAIN = frozenset(vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, extra fields, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _PLAIN},
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return printable_json(json.dumps(content, ensure_ascii=True, default=str), log=True)


class _TerminalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(f"rwkvbatch: {record.levelname.lower()}: {record.getMessage()}")


LOG = FileKind("a log of rwkvbatch", lambda path: file_head(path).startswith('{"time": "'))


class _LogFile(logging.FileHandler):
    """Appends to a file, a pipe or a device. The first write error is logged and ends the file log, not the run.

    Writes never block, so that a pipe cannot stop the run: a pipe without a reader cannot be opened, and a full pipe is
    a write error.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        return open(self.baseFilename, "w", encoding="utf-8", opener=lambda path, _: os.open(path, flags, FILE_MODE))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.setLevel(logging.CRITICAL + 1)
        message = "--log-file %s: write failed: %s; continuing without it"
        logging.getLogger(ROOT_NAME).warning(message, self.baseFilename, error.strerror)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextmanager
def logging_to(path: Path | None, *, verbose: bool = False, quiet: bool = False) -> Generator[None]:
    """Log this package's records to standard error, and to `path` as JSON lines, within the context.

    The lowest level in the file is `info` (`debug` with `verbose`). On standard error it is `warning` (`error` with
    `quiet`, `info` with `verbose`).

    Raises:
        UsageError: the file cannot be opened, or is not a log.
    """
    logger = logging.getLogger(ROOT_NAME)
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(_TerminalFormatter())
    terminal.setLevel(logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING)
    handlers: list[logging.Handler] = [terminal]
    if path is not None:
        check_target(path, LOG, option="--log-file", append=True)
        try:
            file = _LogFile(path)
        except OSError as error:
            reason = "nothing reads this pipe" if error.errno == errno.ENXIO else error.strerror
            raise UsageError(f"--log-file {path}: cannot be opened: {reason}") from None
        file.setFormatter(JsonFormatter())
        file.setLevel(logging.DEBUG if verbose else logging.INFO)
        handlers.append(file)
    former_level = logger.level
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(former_level)
        for handler in handlers:
            logger.removeHandler(handler)
            if handler is not terminal:
                handler.close()


def command_line() -> str:
    """This process's command, quoted for a shell."""
    return shlex.join(["rwkvbatch", *sys.argv[1:]])


def with_directory(words: Sequence[str], out: Path) -> str:
    """The command of `words`, which has no `--out`, with `--out` inserted before any `--`."""
    end = _end_of_options(words)
    return shlex.join([*words[:end], "--out", str(out), *words[end:]])


def without_options(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """`words` without the options `names` and their values, in all spellings: `--out DIR`, `--out=DIR`, `-oDIR`."""
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
