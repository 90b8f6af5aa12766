"""Finds the files of a data set in folders: of one split, without the metadata that libraries store beside them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from rwkvbatch.errors import ScriptError, counted
from rwkvbatch.script.tables import COMPRESSED, ENDINGS

MAX_DEPTH = 8
MAX_FILES = 100_000
"""Number of files in a folder, of any kind, among which the data set's are looked for."""

_METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files of Hugging Face's `datasets` library that describe a data set."""

_SPLIT = re.compile(r"(?:^|[-_.])(train|test|validation|valid|val|dev)(?=[-_.]|$)", re.IGNORECASE)


def data_files(paths: Sequence[str]) -> list[str]:
    """The files among `paths`, and those in folders and their subfolders with one of `tables.ENDINGS`, by name.

    Raises:
        ScriptError: a folder has no such file, files of several splits, or too many files.
    """
    files: list[str] = []
    for path in paths:
        files += _files_of_folder(path) if Path(path).is_dir() else [path]
    return files


def _files_of_folder(folder: str) -> list[str]:
    present = sorted(_walk(folder))
    files = [name for name in present if Path(name).suffix.lower() in ENDINGS and Path(name).name not in _METADATA]
    if not files:
        compressed = [name for name in present if Path(name).suffix.lower() in COMPRESSED]
        hint = f"{compressed[0]} is compressed or an archive: unpack it first" if compressed else None
        raise ScriptError(f"holds no file that ends in {', '.join(ENDINGS)}", path=folder, hint=hint)
    by_split: dict[str, list[str]] = defaultdict(list)
    for name in files:
        if split := split_of(os.path.relpath(name, folder)):
            by_split[split].append(name)
    if len(by_split) > 1:
        listed = ", ".join(f"{split} ({counted(len(names), 'file')})" for split, names in sorted(by_split.items()))
        wanted = next((split for split in ("test", "validation", "val", "dev") if split in by_split), min(by_split))
        hint = f"name the files of one, such as {by_split[wanted][0]}"
        raise ScriptError(f"holds files of several splits: {listed}", path=folder, hint=hint)
    return files


def split_of(path: str) -> str | None:
    """The split that the name of a file or of the nearest folder around it names, such as `test`; None for none."""
    for part in reversed(Path(path).parts):
        if matches := _SPLIT.findall(part):
            return matches[-1].lower()
    return None


def _walk(folder: str) -> Iterator[str]:
    """The paths of all files in `folder` and its subfolders, except hidden ones."""

    def refuse(error: OSError) -> NoReturn:
        raise ScriptError(f"cannot be read: {error.strerror}", path=str(error.filename or folder)) from None

    num_files = 0
    for current, subfolders, names in os.walk(folder, onerror=refuse):
        depth = len(Path(current).relative_to(folder).parts)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if depth == MAX_DEPTH and subfolders:
            problem = f"has folders deeper than {MAX_DEPTH} levels, such as {Path(current, subfolders[0])}"
            raise ScriptError(problem, path=folder, hint="name the folder or the files of the data set")
        if links := [str(Path(current, name)) for name in subfolders if Path(current, name).is_symlink()]:
            problem = f"has a link to a folder, {links[0]}, which is not followed"
            raise ScriptError(problem, path=folder, hint="name the folder or the files of the data set")
        num_files += len(names)
        if num_files > MAX_FILES:
            raise ScriptError(
                f"holds more than {MAX_FILES:,} files", path=folder, hint="name the folder or the files of the data set"
            )
        yield from (str(Path(current, name)) for name in names if not name.startswith("."))
