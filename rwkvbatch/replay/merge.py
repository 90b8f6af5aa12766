"""Merges the parts of a run (`--shard`) into one directory, the same as that of an undivided run except for timings.

Needs no model and no script. Every part is read twice: once to index and check its rows, once to copy their lines in
the order of the whole run. Memory use: the conversations' ids and 13 bytes a row, and the script while it is copied.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, RunMismatchError, RwkvBatchError
from rwkvbatch.files import OS_FILES, Files, in_blocks, open_file, read_spans
from rwkvbatch.replay.logs import with_directory, without_options
from rwkvbatch.replay.planning.row_index import SHARD_NAME, RowIndex, Shard, read_members
from rwkvbatch.replay.progress import Progress
from rwkvbatch.results.answers import VERDICTS_NAME, read_lines_of
from rwkvbatch.results.directory import SKIPPED_NAME, RunDirectory
from rwkvbatch.results.manifest import FORMER, read_manifest, refuse_other_run, write_manifest
from rwkvbatch.results.recovery import LineIndex, ScannedLine, scan_lines
from rwkvbatch.results.row import RowKey
from rwkvbatch.results.row_codec import BadLineError, decode_head, decode_row
from rwkvbatch.results.script_copy import COMPRESSED_NAME, SCRIPT_NAME, has_script, read_script, write_script
from rwkvbatch.results.status import StatusFile
from rwkvbatch.results.summary import Summary, Tallies, write_summary
from rwkvbatch.targets import RESULTS_NAME

_ABOUT_OF_PART = ("created", "command", "rwkvbatch", "code_sha256", "versions", "machine")
"""Keys of a part's `about` that the merged manifest keeps for each part."""


@dataclass(frozen=True)
class Part:
    """A run directory with a part of a run."""

    path: Path
    shard: Shard
    manifest: Mapping[str, Any]

    @property
    def about(self) -> Mapping[str, Any]:
        about = self.manifest.get("about")
        return cast("Mapping[str, Any]", about) if isinstance(about, dict) else {}

    @property
    def command(self) -> str | None:
        command = self.about.get("command")
        return command if isinstance(command, str) and command else None


def read_parts(paths: Sequence[Path]) -> list[Part]:
    """The parts at `paths`, in the order of the run; raises as `merge`."""
    by_number: dict[int, Part] = {}
    parts = [_read_part(path) for path in paths]
    for part in parts:
        first = parts[0]
        if part.shard.parts != first.shard.parts:
            problem = f"is part {part.shard}, and {first.path} is part {first.shard}: not parts of one run"
            raise RunMismatchError(problem, path=part.path, hint="give parts with the same N of --shard I/N")
        refuse_other_run(
            part.path,
            {"identity": part.manifest["identity"]},
            first.manifest["identity"],
            sides=("this part", str(first.path)),
            hint="only parts of one run can be merged",
        )
        if (other := by_number.setdefault(part.shard.part, part)) is not part:
            problem = f"is part {part.shard}, and so is {other.path}"
            raise RunDirectoryError(problem, path=part.path, hint="give each part once")
    return sorted(parts, key=lambda part: part.shard.part)


def _read_part(path: Path) -> Part:
    manifest = read_manifest(path)
    if manifest is None:
        problem = "contains no run" if path.is_dir() else "there is no such directory"
        hint = "`rwkvbatch run SCRIPT --shard 1/2 --out DIR` makes the first of two parts"
        raise RunDirectoryError(problem, path=path, hint=hint)
    if FORMER in manifest:
        problem = "a command was interrupted while it adapted the rows of this part"
        raise RunDirectoryError(problem, path=path, hint="run the part's command again")
    match manifest.get("shard"):
        case {"part": int(part), "parts": int(parts), "rows_of_run": int(rows)} if 1 <= part <= parts and rows > 0:
            return Part(path, Shard(part, parts), manifest)
        case None:
            hint = "parts are made by --shard I/N"
            raise RunDirectoryError("contains a whole run, not a part of one", path=path, hint=hint)
        case _:
            raise RunDirectoryError("its manifest does not say which part of a run it is", path=path)


@dataclass(frozen=True)
class Missing:
    """An incomplete part of a run.

    Attributes:
        path, command: directory and command of the part; None if the part was not given.
        rows: number of missing rows; None if the part was not given.
        first: the first missing row; None if the part was not given.
    """

    shard: Shard
    path: Path | None = None
    command: str | None = None
    rows: int | None = None
    first: RowKey | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "part": str(self.shard),
            "directory": None if self.path is None else str(self.path),
            "rows": self.rows,
            "first": None if self.first is None else vars(self.first),
        }


@dataclass(frozen=True)
class Merged:
    """Result of a merge.

    Attributes:
        parts: number of parts of the run, given or not.
        rows: rows in the given parts.
        planned: rows of the whole run.
        missing: the incomplete parts.
        summary: None when nothing was written because rows are missing.
        rest_command: command that runs the missing rows in `directory`.
        notes: remarks about the parts, for display.
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
    paths: Sequence[Path], out: Path, *, allow_missing: bool = False, command: str = "", files: Files = OS_FILES
) -> Merged:
    """Merge the parts at `paths` into `out`.

    Args:
        out: a new directory, or one whose rows are all in the parts, such as that of an earlier merge.
        allow_missing: if rows are missing, write the existing ones instead of nothing; `out` can then be continued as
            an undivided run.

    Raises:
        RunMismatchError: the parts are not of one run, or `out` contains another run or other rows.
        RunDamagedError: a row of a part is damaged.
        RunDirectoryError: a part or `out` cannot be used, or a part is given twice.
        StorageError: a write failed; `results.jsonl` is unchanged.
    """
    parts = read_parts(paths)
    directory = RunDirectory(out, command, files)
    try:
        if directory.manifest is not None:
            refuse_other_run(out, directory.manifest, parts[0].manifest["identity"])
        with ExitStack() as open_files:
            return _Merge(parts, directory, command, open_files).run(allow_missing=allow_missing)
    finally:
        directory.close()


class _Merge:
    """Rows of the parts, indexed by their number in the whole run."""

    def __init__(self, parts: Sequence[Part], directory: RunDirectory, command: str, open_files: ExitStack) -> None:
        self._parts = parts
        self._directory = directory
        self._command = command
        self._open_files = open_files
        self._started_s = time.monotonic()
        self._read_members()
        self._index = LineIndex(self._rows.num_rows)
        self._readers = [self._open(part.path) for part in parts]
        for number, (part, reader) in enumerate(zip(parts, self._readers, strict=True)):
            if reader is not None:
                self._scan_part(number, part, reader)

    def _read_members(self) -> None:
        """Read the parts' conversations; check that each conversation of the run is in exactly one part."""
        first = self._parts[0]
        try:
            identity, self._num_planned = first.manifest["identity"], int(first.manifest["shard"]["rows_of_run"])
            self._cells = tuple(identity["cells"])
            repeats, num_conversations = int(identity["repeats"]), int(identity["script"]["conversations"])
        except (KeyError, TypeError, ValueError):
            raise RunDirectoryError("is not the manifest of a run", path=first.path) from None
        members = [(member, owner) for owner, part in enumerate(self._parts) for member in read_members(part.path)]
        members.sort(key=lambda pair: pair[0].number)
        self._rows = RowIndex((member for member, _ in members), self._cells, repeats)
        self._owners = [owner for _, owner in members]
        self._owner_of = {member.conversation: owner for member, owner in members}
        numbers = {member.number for member, _ in members if 0 <= member.number < num_conversations}
        are_unique = len(self._owner_of) == len(numbers) == len(members)
        are_complete = (len(members), self._rows.num_rows) == (num_conversations, self._num_planned)
        all_parts_given = len(self._parts) == first.shard.parts
        if not are_unique or self._rows.num_rows > self._num_planned or (all_parts_given and not are_complete):
            problem = f"the parts' conversations ({SHARD_NAME}) do not make up the run"
            hint = "run every part's `rwkvbatch run` command again, with the same version of rwkvbatch"
            raise RunDirectoryError(problem, path=first.path, hint=hint)

    def _open(self, directory: Path) -> BinaryIO | None:
        """The file of rows of a run directory; None if it does not exist yet."""
        path = directory / RESULTS_NAME
        try:
            return self._open_files.enter_context(open_file(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunDirectoryError(f"cannot be read: {error.strerror}", path=path) from None

    def _scan_part(self, number: int, part: Part, reader: BinaryIO) -> None:
        """Index a part's rows. Damaged lines at the end of the file come from an unfinished write and are ignored.

        Raises:
            RunDamagedError: a damaged line precedes an undamaged one.
        """

        def row_number(key: RowKey) -> int | None:
            return self._rows.row_number(key) if self._owner_of.get(key.conversation) == number else None

        first_bad: ScannedLine | None = None
        for line in scan_lines(reader, row_number, decode_head):
            if line.problem is not None:
                first_bad = first_bad or line
            if line.whole and first_bad is not None:
                hint = "continue the part with --repair" + (f": {part.command} --repair" if part.command else "")
                problem, path = f"the row is damaged: {first_bad.problem}", part.path / RESULTS_NAME
                raise RunDamagedError(problem, path=path, line=first_bad.line, hint=hint)
            if line.problem is None:
                self._index.add(line.number, line.start, line.end - line.start, failed=line.failed)

    def run(self, *, allow_missing: bool) -> Merged:
        missing = self._missing()
        summary = None
        if allow_missing or not missing:
            self._refuse_to_lose_rows()
            summary = self._write()
        notes = ("the parts were made by different code of rwkvbatch (see `about` in their manifests)",)
        return Merged(
            directory=self._directory.path,
            parts=self._parts[0].shard.parts,
            rows=self._index.num_rows,
            planned=self._num_planned,
            missing=missing,
            summary=summary,
            rest_command=_command_of_whole(self._parts[0].command, self._directory.path),
            notes=notes if len({str(part.about.get("code_sha256")) for part in self._parts}) > 1 else (),
        )

    def _owner(self, row: int) -> int:
        """The index in `self._parts` of the part that has the row."""
        return self._owners[self._rows.conversation_of_row(row)]

    def _missing(self) -> tuple[Missing, ...]:
        num_missing: Counter[int] = Counter()
        first_missing: dict[int, int] = {}
        for row in range(self._rows.num_rows):
            if not self._index.has(row):
                owner = self._owner(row)
                num_missing[owner] += 1
                first_missing.setdefault(owner, row)
        index_of = {part.shard.part: index for index, part in enumerate(self._parts)}
        num_parts = self._parts[0].shard.parts
        missing: list[Missing] = []
        for number in range(1, num_parts + 1):
            index = index_of.get(number)
            if index is None:
                missing.append(Missing(Shard(number, num_parts)))
            elif index in first_missing:
                part, first = self._parts[index], self._rows.key(first_missing[index])
                missing.append(Missing(part.shard, part.path, part.command, num_missing[index], first))
        return tuple(missing)

    def _refuse_to_lose_rows(self) -> None:
        """Check that the parts have all rows of `out`, which may have been continued since an earlier merge.

        Raises:
            RunMismatchError: a row of `out` is missing in the parts or differs there.
        """
        path = self._directory.path
        scanned, reader = self._open(path), self._open(path)
        if scanned is None or reader is None:
            return
        for line in scan_lines(scanned, self._rows.row_number, decode_head):
            reader.seek(line.start)
            content = reader.read(line.end - line.start)
            if line.whole and (line.number < 0 or self._line(line.number) != content):
                problem = "the parts lack this row, or have another one in its place"
                hint = "give another directory with --out"
                raise RunMismatchError(problem, path=path / RESULTS_NAME, line=line.line, hint=hint)

    def _write(self) -> Summary:
        folder, first = self._directory.folder, self._parts[0]
        identity = first.manifest["identity"]
        about = {
            **first.about,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": self._command,
            "parts": {
                str(part.shard): {key: part.about[key] for key in _ABOUT_OF_PART if key in part.about}
                for part in self._parts
            },
        }
        self._directory.claim(identity, lambda: about)
        if self._directory.continued:
            write_manifest(folder, identity, about)
        self._copy_script()
        self._copy_skipped()
        self._copy_verdicts()
        tallies = Tallies(self._cells)
        self._directory.replace_rows(self._lines(tallies))
        summary = tallies.summary(self._num_planned)
        wall_s = time.monotonic() - self._started_s
        progress = Progress(summary.rows, summary.planned, 0, 0, 0, 0, wall_s, None)
        write_summary(folder, summary, progress.session())
        StatusFile(folder).update(progress.as_dict(), "done" if summary.complete else "interrupted")
        return summary

    def _lines(self, tallies: Tallies) -> Iterator[bytes]:
        """The lines of the whole run in order; adds their rows to `tallies`."""
        for row in self._index.rows():
            line = self._line(row)
            assert line is not None
            try:
                tallies.add(decode_row(line))
            except BadLineError as error:
                owner = self._owner(row)
                reader = self._readers[owner]
                line_number = None if reader is None else self._index.line_number(row, reader)
                problem, path = f"the row is damaged: {error}", self._parts[owner].path / RESULTS_NAME
                hint = "use the version of rwkvbatch that wrote it"
                raise RunDamagedError(problem, path=path, line=line_number, hint=hint) from None
            yield line

    def _line(self, row: int) -> bytes | None:
        reader = self._readers[self._owner(row)]
        return self._index.read(row, reader) if reader is not None and self._index.has(row) else None

    def _copy_script(self) -> None:
        """Write the script of the first part whose copy is intact. It has all conversations of the run.

        A copy that cannot be checked here, for example because a check's plug-in is not installed, is copied unchecked
        if there is no other.
        """
        for part in self._parts:
            conversations = None
            with suppress(RwkvBatchError):
                conversations = read_script(part.path, part.manifest)
            if conversations is not None:
                write_script(self._directory.folder, conversations)
                return
        if has_script(self._directory.path):
            return
        for part in self._parts:
            for name in (SCRIPT_NAME, COMPRESSED_NAME):
                with suppress(OSError), open_file(part.path / name) as file:
                    self._directory.folder.save(name, read_spans(file, [(0, file.seek(0, 2))]))
                    return

    def _copy_verdicts(self) -> None:
        """Copy the judge's answers of all parts."""
        lines = chain.from_iterable(read_lines_of(part.path) for part in self._parts)
        if (first := next(lines, None)) is not None:
            self._directory.folder.save(VERDICTS_NAME, in_blocks(chain([first], lines)))

    def _copy_skipped(self) -> None:
        """Copy the script's bad lines from one part, since every part reads the whole script."""
        for part in self._parts:
            with suppress(OSError), open_file(part.path / SKIPPED_NAME) as file:
                self._directory.keep_skipped(line.removesuffix(b"\n") for line in file)
                return


def _command_of_whole(command: str | None, out: Path) -> str:
    """The command of the whole run in `out`, made from a part's command."""
    try:
        words = shlex.split(command or "")
    except ValueError:
        words = []
    if words[:2] != ["rwkvbatch", "run"]:
        words = ["rwkvbatch", "run", "SCRIPT..."]
    return with_directory(without_options(words, ("--shard", "--out", "-o")), out)
