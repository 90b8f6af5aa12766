"""The exceptions of rwkvbatch.

    RwkvBatchError
    ├── UsageError              an invalid option or setting (exit code 2)
    │   ├── ArgumentError       an argument of a function of the library; also a ValueError
    │   ├── MissingExtraError   the setting needs an optional dependency
    │   ├── MissingDeviceError  the setting needs a device that this machine lacks
    │   └── TargetExistsError   a file to write exists, and no option allows its replacement
    ├── InputError              a file that cannot be used (exit code 3)
    │   ├── ScriptError         a conversation script: file, line, column
    │   ├── CheckpointError     weights or a state file: file, tensor
    │   ├── TemplateError       a prompt template
    │   └── RunDirectoryError   results, manifest or summary of a run
    │       ├── RunLockedError      another process is writing there
    │       ├── RunMismatchError    the directory contains another run
    │       └── RunDamagedError     a row in the middle of the file is damaged
    ├── RowError                one reply could not be made; the run goes on
    │   ├── PromptTooLongError
    │   ├── NonFiniteLogitsError
    │   └── EndpointError       a served model's answer is missing or cannot be used
    │                           (NoClusterError and UnreachableError, below, are each a UsageError and a WorkerError)
    ├── WorkerError             no worker can be started or reached (exit code 4)
    ├── RequestsSpentError      the requests of `--max-requests` are used up (exit code 4)
    └── StorageError            a write or flush failed (exit code 4)
        └── RunReplacedError        the run's directory or rows are no longer those that this process writes

The library raises these errors. One place in the command line turns them into a message and an exit code. Every
message states what was expected and what was found; `hint` states what to do.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self


class RwkvBatchError(Exception):
    """Base of all errors that rwkvbatch raises on purpose.

    Args:
        message: what failed, what was expected and what was found, in one sentence.
        hint: what the user can do.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def add_origin(self, origin: str) -> None:
        """Append the origin of the wrong value to the message."""
        self.message = f"{self.message} ({origin})"
        self.args = (self.message,)

    def add_place(self, place: str) -> Self:
        """Prepend the place of the error to the message."""
        self.message = f"{place}: {self.message}"
        self.args = (self.message,)
        return self


class UsageError(RwkvBatchError):
    """An option or a setting has an invalid value."""


class MissingDeviceError(UsageError):
    """A setting names a device that this machine lacks."""


class ArgumentError(UsageError, ValueError):
    """An argument of a function of the library has a wrong type or value."""


class MissingExtraError(UsageError):
    """A setting needs an optional dependency that is not installed.

    Args:
        extra: the extra that installs the dependency; adds a hint for an installed package and for a clone.
    """

    def __init__(self, message: str, *, extra: str | None = None, hint: str | None = None) -> None:
        if extra is not None:
            hint = f"pip install 'rwkvbatch[{extra}]', or in a clone: pip install -e '.[{extra}]'"
        super().__init__(message, hint=hint)


class TargetExistsError(UsageError):
    """A file to write already exists. It is of the same kind, so an option may allow its replacement."""


class InputError(RwkvBatchError):
    """A file that was given cannot be used.

    Args:
        path: the file, or None for standard input and in-memory data.
        line: 1-based line number, where known.
        column: 1-based column (in characters), where known.
    """

    def __init__(
        self,
        message: str,
        *,
        path: Path | str | None = None,
        line: int | None = None,
        column: int | None = None,
        hint: str | None = None,
    ) -> None:
        location = "" if path is None else str(path)
        if line is not None:
            location = f"{location or '<input>'}:{line}" + (f":{column}" if column is not None else "")
        super().__init__(f"{location}: {message}" if location else message, hint=hint)
        self.path = path
        self.line = line
        self.column = column


class ScriptError(InputError):
    """A conversation script, or one of its lines, cannot be replayed."""


class CheckpointError(InputError):
    """A weights or state file is missing, damaged or of another architecture."""


class TemplateError(InputError):
    """A prompt template cannot be read or rendered."""


class RunDirectoryError(InputError):
    """A run directory cannot be read or written."""


class RunLockedError(RunDirectoryError):
    """Another process holds the run directory."""


class RunMismatchError(RunDirectoryError):
    """The run directory holds a run with other weights, another script or other settings."""


class RunDamagedError(RunDirectoryError):
    """A committed row does not match its checksum."""


class RowError(RwkvBatchError):
    """One reply could not be made. The run records it and goes on."""


class PromptTooLongError(RowError):
    """A prompt has more tokens than `--max-prompt-tokens` allows."""


class NonFiniteLogitsError(RowError):
    """The model's logits contain NaN or infinity, so no token can be chosen."""


class EndpointError(RowError):
    """A server's answer is missing or cannot be used. `status` is the HTTP status, if the server refused."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RequestsSpentError(RwkvBatchError):
    """All requests that `--max-requests` allows were sent. Finished rows are kept."""


class WorkerError(RwkvBatchError):
    """No worker can be started, or none is left. Finished rows are kept."""


class NoClusterError(UsageError, WorkerError):
    """The cluster of `--ray` cannot be reached (exit code 2)."""


class UnreachableError(UsageError, WorkerError):
    """The server of `--endpoint` cannot be reached or does not answer (exit code 2)."""


class StorageError(RwkvBatchError):
    """A write or a flush failed. Rows reported as done before it are safe; none are reported after it."""


class RunReplacedError(StorageError):
    """A run's directory or rows were moved, replaced or edited by another program while the run wrote to them."""


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural unless the number is 1: `1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shown_name(name: str, limit: int = 80) -> str:
    """The first `limit` characters of a name from a file, for messages; those that do not print are escapes."""
    name = name[:limit]
    return name if name.isprintable() else repr(name)[1:-1][:limit]


MAX_SHOWN_VALUE = 60
"""The most characters of a value in a message."""


def shown_value(value: object, limit: int = MAX_SHOWN_VALUE) -> str:
    """The `repr` of a value, cut to `limit` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python limits the digits of a number that it converts to text
        text = f"a number of more than {sys.get_int_max_str_digits():,} digits"
    return shortened(text, limit)


def shown_json(value: object, limit: int = MAX_SHOWN_VALUE) -> str:
    """A value as JSON, cut to `limit` characters."""
    return shortened(json.dumps(value, ensure_ascii=False, default=str), limit)


def shortened(text: str, limit: int = MAX_SHOWN_VALUE) -> str:
    """A text cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listed(names: Sequence[object], most: int = 8, separator: str = ", ") -> str:
    """Names for a message: the first `most`, and the number of the others."""
    shown = separator.join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def in_words(error: BaseException) -> str:
    """The type and text of an exception, which may come from foreign code with a failing `__str__`."""
    try:
        text = str(error)
    except Exception:  # any exception: `__str__` is foreign code as well
        text = "(without a text)"
    return f"{type(error).__name__}: {text}"


def error_text(error: BaseException, limit: int | None = 200) -> str:
    """The text of a library's exception in one line, cut to `limit` characters."""
    return " ".join(str(error).split())[:limit]


def parsing_problem(error: ValueError | RecursionError) -> str:
    """Describes the problem of text that Python's JSON or TOML parser refused, in terms of the text."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "set_int_max_str_digits" not in str(error):
        return str(error)
    # https://docs.python.org/3/library/stdtypes.html#integer-string-conversion-length-limitation
    return f"it has an integer of more than {sys.get_int_max_str_digits():,} digits"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's own error, the system's, or torch's for a GPU or the CPU.

    torch's errors are recognised by name and text, so that this module does not import torch.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    texts = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
