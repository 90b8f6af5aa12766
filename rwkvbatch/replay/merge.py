"""The parts of a run (`--shard`) put together: the directory that an undivided run would have left, timings aside.

Needs no model and no script. Every part is read twice: once to see which rows are there and whole, once to copy their
lines in the order of the whole run. Memory holds the conversations' ids and twelve bytes a row.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, RunMismatchError
from rwkvbatch.files import OS_FILES, Files, in_blocks, save_file
from rwkvbatch.replay.logs import with_directory, without_options
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.row_index import SHARD_NAME, Member, Places, Shard, read_members
from rwkvbatch.results.directory import SKIPPED_NAME, RunDirectory
from rwkvbatch.results.manifest import read_manifest, refuse_other_run, write_manifest
from rwkvbatch.results.recovery import LineIndex, ScannedLine, scan_lines
from rwkvbatch.results.row import BadLineError, RowKey, decode_head, decode_row
from rwkvbatch.results.status import StatusFile
from rwkvbatch.results.store import RESULTS_NAME
from rwkvbatch.results.summary import Summary, Tallies, write_summary

_BUFFER_BYTES = 2**16


@dataclass(frozen=True)
class Part:
    """A directory that holds a part of a run."""

    path: Path
    shard: Shard
    manifest: Mapping[str, Any]

    @property
    def about(self) -> Mapping[str, Any]:
        about = self.manifest.get("about")
        return cast("Mapping[str, Any]", about) if isinstance(about, dict) else {}

    @property
    def command(self) -> str | None:
        """What it was started with, as far as the manifest says."""
        command = self.about.get("command")
        return command if isinstance(command, str) and command else None


def read_parts(paths: Sequence[Path]) -> list[Part]:
    """The parts at `paths`, in their order in the run.

    Raises:
        RunDirectoryError: a path holds no part of a run, or one part is there twice.
        RunMismatchError: two parts are of different runs, or of runs cut into different numbers of parts.
    """
    found: dict[int, Part] = {}
    first: Part | None = None
    for path in paths:
        part = _read_part(path)
        if first is None:
            first = part
        if part.shard.parts != first.shard.parts:
            raise RunMismatchError(
                f"is part {part.shard}, and {first.path} is part {first.shard}: those do not make up one run",
                path=path,
                hint="give parts with the same N of --shard I/N",
            )
        refuse_other_run(
            path,
            {"identity": part.manifest["identity"]},
            first.manifest["identity"],
            sides=("this part", str(first.path)),
            hint="only parts of one run can be merged",
        )
        if part.shard.part in found:
            raise RunDirectoryError(
                f"is part {part.shard}, and so is {found[part.shard.part].path}",
                path=path,
                hint="give each part once",
            )
        found[part.shard.part] = part
    return [found[number] for number in sorted(found)]


def _read_part(path: Path) -> Part:
    manifest = read_manifest(path)
    if manifest is None:
        raise RunDirectoryError(
            "holds no run" if path.is_dir() else "there is no such directory",
            path=path,
            hint="`rwkvbatch run SCRIPT --shard 1/2 --out DIR` makes the first of two parts",
        )
    match manifest.get("shard"):
        case {"part": int(part), "parts": int(parts), "rows_of_run": int(rows)} if 1 <= part <= parts and rows > 0:
            return Part(path, Shard(part, parts), manifest)
        case None:
            raise RunDirectoryError(
                "holds a whole run, not a part of one", path=path, hint="parts are made by --shard I/N"
            )
        case _:
            raise RunDirectoryError("its manifest does not say which part of a run it is", path=path)


class Layout:
    """The plan of a run as far as its parts know it; rows are numbered in the order of the whole.

    Args:
        parts: of one run, in their order; some may be missing.

    Raises:
        RunDirectoryError, RunDamagedError: the parts' lists of conversations cannot be read, or do not fit together.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        manifest = parts[0].manifest
        identity = manifest["identity"]
        try:
            self.cells = tuple(identity["cells"])
            repeats, num_conversations = int(identity["repeats"]), int(identity["script"]["conversations"])
        except (KeyError, TypeError, ValueError):
            raise RunDirectoryError("is not the manifest of a run", path=parts[0].path) from None
        self.rows_of_run = int(manifest["shard"]["rows_of_run"])
        members: list[tuple[Member, int]] = []
        for number, part in enumerate(parts):
            members += ((member, number) for member in read_members(part.path))
        members.sort(key=lambda pair: pair[0].number)
        self.places = Places((member.length for member, _ in members), self.cells, repeats)
        self._owners = [number for _, number in members]
        self._owner_of = {member.length.conversation: number for member, number in members}
        complete = len(parts) == parts[0].shard.parts
        if (
            len(self._owner_of) < len(members)
            or len({member.number for member, _ in members}) < len(members)
            or not all(0 <= member.number < num_conversations for member, _ in members)
            or (complete and len(members) != num_conversations)
            or self.places.num_rows > self.rows_of_run
            or (complete and self.places.num_rows != self.rows_of_run)
        ):
            raise RunDirectoryError(
                f"the parts' conversations ({SHARD_NAME}) do not make up the run",
                path=parts[0].path,
                hint="give every part's `rwkvbatch run` command again, with the same version of rwkvbatch",
            )

    def owner(self, row: int) -> int:
        """Which part has the row, by its number in the list."""
        return self._owners[self.places.conversation_of_row(row)]

    def place(self, key: RowKey, part: int | None = None) -> int | None:
        """The row's number, or None if it is not of this run (or not of part number `part` in the list)."""
        if part is not None and self._owner_of.get(key.conversation) != part:
            return None
        return self.places.place(key)


def add_rows(index: LineIndex, lines: Iterable[ScannedLine], path: Path, hint: str) -> None:
    """Take in the rows of one file. Broken lines at its end are what a crash left of a write: no rows.

    Raises:
        RunDamagedError: another line is damaged.
    """
    bad: ScannedLine | None = None
    for line in lines:
        if line.problem is not None:
            bad = bad or line
        if line.whole and bad is not None:
            raise RunDamagedError(f"the row is damaged: {bad.problem}", path=path, line=bad.line, hint=hint)
        if line.problem is None:
            index.add(line.number, line.start, line.end - line.start, failed=line.failed)


def open_results(directory: Path) -> BinaryIO | None:
    """The rows of a run directory, to be read; None where there are none yet.

    Raises:
        RunDirectoryError: they cannot be read.
    """
    path = directory / RESULTS_NAME
    try:
        return path.open("rb", buffering=_BUFFER_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror}", path=path) from None


def scan_part(file: BinaryIO, layout: Layout, part: int | None) -> Iterator[ScannedLine]:
    """The lines of part number `part` in the layout's list (of any part, if None)."""
    return scan_lines(file, lambda key: layout.place(key, part), decode_head)


_OF_A_PART = ("created", "command", "rwkvbatch", "code_sha256", "versions", "machine")


@dataclass(frozen=True)
class Missing:
    """A part that is not complete.

    Attributes:
        path, command: its directory and what it was started with; None for a part that was not given.
        rows: how many are missing. first: the first of them. None for a part that was not given.
    """

    shard: Shard
    path: Path | None = None
    command: str | None = None
    rows: int | None = None
    first: RowKey | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "part": str(self.shard),
            "directory": None if self.path is None else str(self.path),
            "rows": self.rows,
            "first": None if self.first is None else vars(self.first),
        }


@dataclass(frozen=True)
class Merged:
    """What came of a merge.

    Attributes:
        directory: where the rows are, if they were written. parts: how many there are, given or not.
        rows: found in the parts. planned: rows of the whole run. missing: parts that are not complete.
        summary: None when nothing was written, because rows are missing.
        rest_command: runs what is missing in `directory`, as far as the parts say how.
        notes: what to know about the parts.
    """

    directory: Path
    parts: int
    rows: int
    planned: int
    missing: tuple[Missing, ...]
    summary: Summary | None
    rest_command: str
    notes: tuple[str, ...] = ()


def merge(
    paths: Sequence[Path],
    out: Path,
    *,
    allow_missing: bool = False,
    command: str = "",
    files: Files = OS_FILES,
) -> Merged:
    """Write the run that the parts at `paths` make up to `out`.

    Args:
        out: a new directory, or one with nothing but rows that the parts have too: an earlier merge of them.
        allow_missing: write what is there, for an undivided run to go on with. Otherwise nothing is written then.

    Raises:
        RunMismatchError: the parts are not of one run, or `out` holds another one, or other rows.
        RunDamagedError: a row of a part is damaged.
        RunDirectoryError: a part or `out` cannot be used, or a part is given twice.
        StorageError: a write failed; `results.jsonl` is as it was.
    """
    parts = read_parts(paths)
    directory = RunDirectory(out, command, files)
    try:
        if directory.manifest is not None:
            refuse_other_run(out, directory.manifest, parts[0].manifest["identity"])
        with ExitStack() as open_files:
            return _Merge(parts, directory, command, files, open_files).run(allow_missing=allow_missing)
    finally:
        directory.close()


class _Merge:
    def __init__(
        self,
        parts: Sequence[Part],
        directory: RunDirectory,
        command: str,
        files: Files,
        open_files: ExitStack,
    ) -> None:
        self._parts = parts
        self._directory = directory
        self._command = command
        self._files = files
        self._open_files = open_files
        self._began_s = time.monotonic()
        self._layout = Layout(parts)
        self._index = LineIndex(self._layout.places.num_rows)
        self._readers = [self._open(part.path) for part in parts]
        for number, (part, reader) in enumerate(zip(parts, self._readers, strict=True)):
            if reader is not None:
                command = "" if part.command is None else f": {part.command} --repair"
                hint = f"continue the part with --repair{command}"
                add_rows(self._index, scan_part(reader, self._layout, number), part.path / RESULTS_NAME, hint)

    def run(self, *, allow_missing: bool) -> Merged:
        missing = self._missing()
        rows = self._index.num_there
        summary = None
        if allow_missing or not missing:
            self._refuse_to_lose_rows()
            summary = self._write()
        return Merged(
            directory=self._directory.path,
            parts=self._parts[0].shard.parts,
            rows=rows,
            planned=self._layout.rows_of_run,
            missing=missing,
            summary=summary,
            rest_command=_command_of_whole(self._parts[0].command, self._directory.path),
            notes=self._notes(),
        )

    def _open(self, path: Path) -> BinaryIO | None:
        reader = open_results(path)
        return None if reader is None else self._open_files.enter_context(reader)

    def _missing(self) -> tuple[Missing, ...]:
        places = self._layout.places
        counts = [0] * len(self._parts)
        firsts: list[int] = [-1] * len(self._parts)
        for row in range(places.num_rows):
            if not self._index.has(row):
                owner = self._layout.owner(row)
                counts[owner] += 1
                if firsts[owner] < 0:
                    firsts[owner] = row
        given = {part.shard.part: number for number, part in enumerate(self._parts)}
        num_parts = self._parts[0].shard.parts
        found: list[Missing] = []
        for number in range(1, num_parts + 1):
            at = given.get(number)
            if at is None:
                found.append(Missing(Shard(number, num_parts)))
            elif counts[at]:
                part = self._parts[at]
                found.append(Missing(part.shard, part.path, part.command, counts[at], places.key(firsts[at])))
        return tuple(found)

    def _refuse_to_lose_rows(self) -> None:
        """The directory's own rows must all be the parts': it may have been gone on with since an earlier merge."""
        path = self._directory.path
        scanned, reader = self._open(path), self._open(path)
        if scanned is None or reader is None:
            return
        for line in scan_part(scanned, self._layout, None):
            reader.seek(line.start)
            content = reader.read(line.end - line.start)
            if line.whole and (line.number < 0 or self._line(line.number) != content):
                raise RunMismatchError(
                    "the parts do not have this row, or have it otherwise",
                    path=path / RESULTS_NAME,
                    line=line.line,
                    hint="give another directory with --out",
                )

    def _write(self) -> Summary:
        path = self._directory.path
        identity, about = self._parts[0].manifest["identity"], self._about()
        self._directory.claim(identity, lambda: about)
        if self._directory.continued:
            write_manifest(path, identity, about, files=self._files)
        self._copy_skipped()
        tallies = Tallies(self._layout.cells)
        save_file(path / RESULTS_NAME, in_blocks(self._lines(tallies)), files=self._files)
        summary = tallies.summary(self._layout.rows_of_run)
        wall_s = time.monotonic() - self._began_s
        session = {"wall_s": round(wall_s, 3), "reply_tokens": 0, "tokens_per_s": 0.0}
        write_summary(path, summary, session, files=self._files)
        progress = Progress(summary.rows, summary.planned, 0, 0, 0, 0, wall_s, None)
        StatusFile(path, files=self._files).update(progress.as_dict(), "done" if summary.complete else "interrupted")
        return summary

    def _lines(self, tallies: Tallies) -> Iterator[bytes]:
        """The lines of the whole run in order."""
        for row in self._index.rows():
            line = self._line(row)
            if line is None:
                continue
            try:
                tallies.add(decode_row(line))
            except BadLineError as error:
                raise self._damaged(row, error) from None
            yield line

    def _line(self, row: int) -> bytes | None:
        if not self._index.has(row):
            return None
        reader = self._readers[self._layout.owner(row)]
        return None if reader is None else self._index.read(row, reader)

    def _damaged(self, row: int, error: BadLineError) -> RunDamagedError:
        owner = self._layout.owner(row)
        reader = self._readers[owner]
        return RunDamagedError(
            f"the row is damaged: {error}",
            path=self._parts[owner].path / RESULTS_NAME,
            line=None if reader is None else self._index.line_number(row, reader),
            hint="use the version of rwkvbatch that wrote it",
        )

    def _copy_skipped(self) -> None:
        """Every part has read the whole script, so each has all of its bad lines."""
        for part in self._parts:
            try:
                file = (part.path / SKIPPED_NAME).open("rb")
            except OSError:
                continue
            with file:
                self._directory.keep_skipped(line.removesuffix(b"\n") for line in file)
            return

    def _about(self) -> dict[str, Any]:
        return {
            **self._parts[0].about,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": self._command,
            "parts": {
                str(part.shard): {key: part.about[key] for key in _OF_A_PART if key in part.about}
                for part in self._parts
            },
        }

    def _notes(self) -> tuple[str, ...]:
        codes = {str(part.about.get("code_sha256")) for part in self._parts}
        if len(codes) == 1:
            return ()
        return ("the parts were not made by the very same code of rwkvbatch (`about` in their manifests says which)",)


def _command_of_whole(command: str | None, out: Path) -> str:
    """A part's command, for the whole run in `out`."""
    try:
        words = shlex.split(command or "")
    except ValueError:
        words = []
    if words[:2] != ["rwkvbatch", "run"]:
        words = ["rwkvbatch", "run", "SCRIPT..."]
    return with_directory(without_options(words, ("--shard", "--out", "-o")), out)
