"""Run directories: creation, locking, continuation, and refusal of directories with another run or other files."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, StorageError, UsageError
from rwkvbatch.files import OS_FILES, Files, in_blocks, make_directory, remove_empty
from rwkvbatch.prompt.escaping import file_name
from rwkvbatch.results.answers import VERDICTS_NAME
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.lock import LOCK_NAME, DirectoryLock
from rwkvbatch.results.manifest import (
    DAMAGED_MANIFEST_NAME,
    FORMER,
    MANIFEST_NAME,
    JsonObject,
    read_manifest,
    refuse_other_run,
    write_manifest,
)
from rwkvbatch.results.script_copy import COMPRESSED_NAME, SCRIPT_NAME
from rwkvbatch.results.status import STATUS_NAME
from rwkvbatch.results.summary import SUMMARY_NAME
from rwkvbatch.targets import RESULTS_NAME

SKIPPED_NAME = "skipped.jsonl"
KEPT_NAME = "kept.jsonl"
"""Rows of earlier commands that are not in the present command's plan; a later command that plans them reuses them."""

_log = logging.getLogger(__name__)


class RunDirectory:
    """A run directory, locked from construction to `close`.

    Args:
        path: created if it does not exist; must be empty or contain a run.
        command: shown to other processes that try to lock the directory.
        repair: accept a damaged manifest; the caller then calls `set_manifest_aside`.

    Attributes:
        manifest: manifest of the run that the directory already contains; None for a new run, or if it is damaged.
        damage: what is wrong with the manifest; None if nothing is.
        folder: the files of the directory.

    Raises:
        UsageError: the path, or a part of it, is not a directory.
        RunDirectoryError: the directory cannot be created or written, or contains other files, or contains results
            without a manifest.
        RunLockedError: another process holds the lock.
        RunDamagedError: the manifest is damaged.
    """

    def __init__(self, path: Path, command: str, files: Files = OS_FILES, *, repair: bool = False) -> None:
        self.path = path
        self.damage: RunDamagedError | None = None
        try:
            self._made = make_directory(path)
        except FileExistsError as error:
            raise UsageError(
                f"--out {path}: a run is a directory, and {error.filename} is not one",
                hint="give another directory with --out",
            ) from None
        except OSError as error:
            raise RunDirectoryError(
                f"cannot be made: {error.strerror}", path=path, hint="give another directory with --out"
            ) from None
        # Before the lock, whose file stays: nothing is written in a directory of other files.
        self._refuse_other_files(Folder(path))
        self._lock = DirectoryLock(path, command)
        self.folder = Folder(path, files, self._lock)
        try:
            try:
                self.manifest = read_manifest(path)
            except RunDamagedError as error:
                if not repair:
                    raise
                self.manifest, self.damage = None, error
            if self.manifest is None and self.damage is None:
                self._refuse_other_files(self.folder)
            self._remove_leftovers()
        except BaseException:  # KeyboardInterrupt too: no caller can close an object whose construction failed
            self._lock.release()
            raise

    @property
    def continued(self) -> bool:
        """Whether the directory already contained a run."""
        return self.manifest is not None

    def claim(
        self, identity: JsonObject, make_about: Callable[[], JsonObject], shard: JsonObject | None = None
    ) -> None:
        """Check that the manifest is that of this run (or of this part of it), or write it if there are no rows yet.

        Raises:
            RunMismatchError: it is the manifest of another run; the message lists the differences.
            StorageError: the manifest could not be written.
        """
        if self.manifest is not None and self.folder.size(RESULTS_NAME):
            refuse_other_run(self.path, self.manifest, identity, shard)
        else:
            write_manifest(self.folder, identity, make_about(), shard)
        self._made.clear()

    def set_manifest_aside(self) -> None:
        """Keep the damaged manifest under another name; raises `StorageError`."""
        path = self.path / MANIFEST_NAME
        try:
            with self.folder.open(MANIFEST_NAME) as file:
                kept = self.folder.keep(DAMAGED_MANIFEST_NAME, file, (0, os.fstat(file.fileno()).st_size))
        except OSError as error:
            raise StorageError(f"{path}: cannot be set aside: {error.strerror or error}") from error
        self.damage = None
        _log.warning("%s: is damaged; it is set aside in %s and rewritten", path, kept.name)

    @property
    def holds_rows(self) -> bool:
        """Whether the directory may have rows of an earlier command, including those in `kept.jsonl`."""
        if self.manifest is None:
            return False
        return FORMER in self.manifest or any(map(self.folder.size, (RESULTS_NAME, KEPT_NAME)))

    def begin_change(
        self, identity: JsonObject, about: JsonObject, shard: JsonObject | None = None, *, by: str = "run"
    ) -> None:
        """Write the manifest of another command before the rows are adapted to it; the caller then calls `end_change`.

        Until then, the manifest has a key `former` with the previous command's identity. A command that finds this key
        adapts the rows again, which does not change rows that are already adapted. `by` is the command that adapts the
        rows.

        Raises:
            StorageError: the manifest could not be written.
        """
        assert self.manifest is not None
        former = self.manifest.get(FORMER) or {key: self.manifest.get(key) for key in ("identity", "about")}
        former = {**former, "by": by}
        write_manifest(self.folder, identity, about, shard, former=former)

    def end_change(self, identity: JsonObject, about: JsonObject, shard: JsonObject | None = None) -> None:
        """Write the manifest of a command after its rows were adapted; raises `StorageError`."""
        write_manifest(self.folder, identity, about, shard)

    @contextlib.contextmanager
    def reading(self, name: str) -> Generator[BinaryIO]:
        """A context with an open file of the directory, empty if it does not exist; raises `RunDirectoryError`."""
        try:
            with self.folder.open(name) if self.folder.size(name) else io.BytesIO() as file:
                yield file
        except OSError as error:
            raise RunDirectoryError(f"cannot be read: {error.strerror or error}", path=self.path / name) from None

    def replace_rows(self, lines: Iterable[bytes]) -> None:
        """Replace `results.jsonl`; raises as `Folder.save`."""
        self.folder.save(RESULTS_NAME, in_blocks(lines))

    def set_aside(self, lines: Iterable[bytes]) -> None:
        """Append lines of rows to `kept.jsonl`, durably; raises `StorageError`."""
        try:
            self.folder.append_lines(KEPT_NAME, lines)
        except OSError as error:
            raise StorageError(f"{self.path / KEPT_NAME}: write failed: {error.strerror or error}") from error

    def keep_skipped(self, lines: Iterable[bytes]) -> None:
        """Write the script's skipped lines, unchanged, to `skipped.jsonl`; raises as `Folder.save`."""
        self.folder.save(SKIPPED_NAME, (line + b"\n" for line in lines))

    def close(self) -> None:
        """Release the lock; remove the directory, and parents, that were created and never claimed."""
        if self._made and self._lock.lost() is None:
            self.folder.remove(LOCK_NAME)
            remove_empty(self._made)
        self._lock.release()

    def _remove_leftovers(self) -> None:
        """Remove temporary files that a killed process left."""
        names = (MANIFEST_NAME, RESULTS_NAME, SCRIPT_NAME, COMPRESSED_NAME, SUMMARY_NAME, STATUS_NAME, VERDICTS_NAME)
        for name in names:
            self.folder.remove(f"{name}.tmp")

    def _refuse_other_files(self, folder: Folder) -> None:
        """Raise `RunDirectoryError` if the folder has no manifest but other files."""
        try:
            names = folder.names()
        except OSError:  # the lock reports it
            return
        if MANIFEST_NAME in names:
            return
        if RESULTS_NAME in names:
            raise RunDirectoryError(
                f"has {RESULTS_NAME} but no manifest, so it is unknown which run it belongs to",
                path=self.path,
                hint="give another directory with --out, or move the file away",
            )
        others = sorted(name for name in names if name != LOCK_NAME and not name.endswith(".tmp"))
        if others:
            raise RunDirectoryError(
                f"is not empty and contains no run (it has {others[0]!r})",
                path=self.path,
                hint="give a new directory with --out",
            )


def default_directory(scripts: Sequence[str], parent: Path = Path("runs"), *, part: str = "") -> Path:
    """A path `runs/NAME` that does not exist, named after the first script and the time.

    Args:
        part: which part of a run it is for, such as `2/8`; empty for a whole run.
    """
    stem = "stdin" if scripts[0] == "-" else file_name(Path(scripts[0]).stem)
    suffix = part and "-part-" + part.replace("/", "-of-")
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}{suffix}"
    paths = itertools.chain([parent / name], (parent / f"{name}-{count}" for count in itertools.count(2)))
    return next(path for path in paths if not path.exists())
