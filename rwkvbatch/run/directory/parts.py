"""The parts of a run (`--shard`), as directories: whether they belong together, and where their rows stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, RunMismatchError
from rwkvbatch.run.directory.manifest import read_manifest, refuse_other_run
from rwkvbatch.run.planning.places import Places
from rwkvbatch.run.planning.shard import SHARD_NAME, Member, Shard, read_members
from rwkvbatch.run.results.line_index import LineIndex
from rwkvbatch.run.results.lines import decode_head
from rwkvbatch.run.results.rows import RowKey
from rwkvbatch.run.results.scan import ScannedLine, scan_lines
from rwkvbatch.run.results.store import RESULTS_NAME

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
            hint=f'"now" is what {first.path} holds; only parts of one run can be merged',
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
        case {"part": int(part), "parts": int(parts), "rows_of_run": int(rows)} if (
            1 <= part <= parts and rows > 0
        ):
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
