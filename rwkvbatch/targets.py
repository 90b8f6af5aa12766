"""Which files a command may write: no file of another kind is replaced, and no file of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rwkvbatch.errors import TargetExistsError, UsageError
from rwkvbatch.files import open_file

HEAD_BYTES = 4096
MANIFEST_NAME = "manifest.json"
RESULTS_NAME = "results.jsonl"
RUN_FILE_NAMES = frozenset(
    f"{MANIFEST_NAME} {RESULTS_NAME} results.damaged results.torn results.aside summary.json status.json skipped.jsonl "
    "kept.jsonl verify.json shard.jsonl script.jsonl script.jsonl.gz verdicts.jsonl preferences.jsonl .lock".split()
)
"""Files of a run directory, which no other output may replace."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file that a command writes.

    Attributes:
        name: the name in messages, with an article, such as `a saved session`.
        matches: returns whether the file at a path is of this kind; `OSError` and `ValueError` mean that it is not.
    """

    name: str
    matches: Callable[[Path], bool]


def file_head(path: Path) -> str:
    """At most `HEAD_BYTES` of a file, without a byte order mark; bytes that are not UTF-8 are replaced."""
    with open_file(path) as file:
        return file.read(HEAD_BYTES).decode("utf-8", "replace").lstrip("\ufeff")


def check_target(
    path: Path, kind: FileKind, *, option: str = "", replace: bool = False, append: bool = False, how: str | None = None
) -> None:
    """Raise unless a command may write a file of `kind` to `path`.

    New and empty files may be written. An existing file may be replaced if it is of the same kind and `replace` is set.
    Files of another kind, and files of a run, may not be changed.

    Args:
        option: the option or command that named the file, for messages.
        append: whether the command appends to an existing file of the same kind, a device or a pipe.
        how: the hint for an existing file of the same kind.

    Raises:
        UsageError: `path` is a directory, a file of another kind, or a file of a run.
        TargetExistsError: `path` is a file of the same kind, and `replace` is not set.
    """
    name = f"{option} {path}" if option else str(path)
    another = "choose another name, or move that file away first"
    if path.is_dir():
        raise UsageError(f"{name}: is a directory; expected a file name", hint="add a file name")
    target = path.resolve()
    directory = target.parent
    is_run = (directory / MANIFEST_NAME).exists() and (directory / RESULTS_NAME).exists()
    if is_run and target.name in RUN_FILE_NAMES:
        raise UsageError(
            f"{name}: is a file of the run in {directory}, which no other command writes to", hint="choose another name"
        )
    if not os.path.lexists(target):
        return
    if not target.is_file():
        if append:
            return
        raise UsageError(f"{name}: is not a regular file", hint=another)
    try:
        if target.stat().st_size == 0:
            return
        is_same_kind = kind.matches(target)
    except (OSError, ValueError):
        is_same_kind = False
    if not is_same_kind:
        verb = "added to" if append else "replaced"
        raise UsageError(f"{name}: already exists and is not {kind.name}, so it is not {verb}", hint=another)
    if not (replace or append):
        raise TargetExistsError(f"{name}: already exists ({kind.name})", hint=how or another)
