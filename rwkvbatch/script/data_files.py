"""Finds the files of a data set in folders: of one split, without the metadata that libraries store with them."""

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

_NAME_THEM = "name the folder or the files of the data set"

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
    files = list(filter(_is_data_file, present))
    if not files:
        compressed = [name for name in present if Path(name).suffix.lower() in COMPRESSED]
        hint = f"{compressed[0]} is compressed or an archive: unpack it first" if compressed else None
        raise ScriptError(f"contains no file that ends in {', '.join(ENDINGS)}", path=folder, hint=hint)
    by_split: dict[str, list[str]] = defaultdict(list)
    for name in files:
        if split := split_of(os.path.relpath(name, folder)):
            by_split[split].append(name)
    if len(by_split) > 1:
        listed = ", ".join(f"{split} ({counted(len(names), 'file')})" for split, names in sorted(by_split.items()))
        wanted = next((split for split in ("test", "validation", "val", "dev") if split in by_split), min(by_split))
        hint = f"name the files of one, such as {by_split[wanted][0]}"
        raise ScriptError(f"contains files of several splits: {listed}", path=folder, hint=hint)
    return files


def split_of(path: str) -> str | None:
    """The split in the name of a file or of its nearest parent folder, such as `test`; None without one."""
    for part in reversed(Path(path).parts):
        if matches := _SPLIT.findall(part):
            return matches[-1].lower()
    return None


def _walk(folder: str) -> Iterator[str]:
    """The paths of all files in `folder` and its subfolders, except hidden ones.

    Links to folders are not followed: what they lead to is found at its own place, or the link is refused.
    """

    def refuse(error: OSError) -> NoReturn:
        raise ScriptError(f"cannot be read: {error.strerror}", path=str(error.filename or folder)) from None

    num_files, root = 0, Path(folder).resolve()
    for current, subfolders, names in os.walk(folder, onerror=refuse):
        depth = len(Path(current).relative_to(folder).parts)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for link in (Path(current, name) for name in subfolders):
            if link.is_symlink() and not _is_searched(link.resolve(), root):
                raise ScriptError(
                    f"has a link to a folder that is not searched: {link} leads to {link.resolve()}",
                    path=folder, hint=_NAME_THEM,
                )  # fmt: skip
        num_files += len(names)
        if num_files > MAX_FILES:
            raise ScriptError(f"contains more than {MAX_FILES:,} files", path=folder, hint=_NAME_THEM)
        paths = [str(Path(current, name)) for name in names if not name.startswith(".")]
        if depth > MAX_DEPTH and (deep := next(filter(_is_data_file, paths), None)):
            problem = f"has files in folders deeper than {MAX_DEPTH} levels, such as {deep}"
            raise ScriptError(problem, path=folder, hint=_NAME_THEM)
        yield from paths


def _is_data_file(path: str) -> bool:
    return Path(path).suffix.lower() in ENDINGS and Path(path).name not in _METADATA


def _is_searched(target: Path, root: Path) -> bool:
    """Whether `_walk` comes to the folder `target` when it begins with `root`; both are without links."""
    return target.is_relative_to(root) and not any(part.startswith(".") for part in target.relative_to(root).parts)
