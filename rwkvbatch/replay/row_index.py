"""Row numbers of a run, and its shards (`--shard 2/8`).

All tasks of a conversation are in one shard, so that their shared prefixes are computed once. Conversations are
assigned longest first, each to the shard with the fewest turns so far: two shards differ by at most as many turns as
the longest conversation has. Among equal shards the assignment rotates, which spreads neighbouring, often similar,
conversations. The length of replies is not known beforehand and not considered.
"""

from __future__ import annotations

import heapq
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, StorageError, UsageError
from rwkvbatch.files import Files, replace_file
from rwkvbatch.results.row import RowKey


@dataclass(frozen=True)
class Member:
    """A conversation of a run: its number in the whole plan, its id, and its number of turns."""

    number: int
    conversation: str
    turns: int


class RowIndex:
    """Numbers rows and tasks: conversation by conversation, cell by cell, repetition by repetition, turn by turn.

    Args:
        members: the conversations in order; ids are unique.
        cells: names of the cells in order.
        repeats: of every conversation in every cell.
    """

    def __init__(self, members: Iterable[Member], cells: Sequence[str], repeats: int) -> None:
        self.repeats = repeats
        self._cells = tuple(cells)
        self._cell_numbers = {name: number for number, name in enumerate(self._cells)}
        self._members = tuple(members)
        self._conversations = {member.conversation: n for n, member in enumerate(self._members)}
        self.tasks_per_conversation = len(self._cells) * repeats
        self._first_rows = [0]
        for member in self._members:
            self._first_rows.append(self._first_rows[-1] + member.turns * self.tasks_per_conversation)

    @property
    def num_rows(self) -> int:
        return self._first_rows[-1]

    @property
    def num_tasks(self) -> int:
        return len(self._members) * self.tasks_per_conversation

    def conversation_of_row(self, row: int) -> int:
        """The number of a row's conversation."""
        return bisect_right(self._first_rows, row) - 1

    def rows_of(self, task: int) -> tuple[int, int]:
        """The first row of a task, and the one after its last."""
        conversation, rest = divmod(task, self.tasks_per_conversation)
        num_turns = self._members[conversation].turns
        first = self._first_rows[conversation] + rest * num_turns
        return first, first + num_turns

    def number_of(self, conversation: int, cell: int, repeat: int) -> int:
        """The task of a conversation, cell and repetition."""
        return (conversation * len(self._cells) + cell) * self.repeats + repeat

    def row_number(self, key: RowKey) -> int | None:
        """The number of a row, None if the run has no such row."""
        conversation = self._conversations.get(key.conversation)
        cell = self._cell_numbers.get(key.cell)
        if conversation is None or cell is None:
            return None
        num_turns = self._members[conversation].turns
        if not (0 <= key.repeat < self.repeats and 0 <= key.turn < num_turns):
            return None
        return self._first_rows[conversation] + (cell * self.repeats + key.repeat) * num_turns + key.turn

    def task_of_row(self, row: int) -> tuple[int, int]:
        """The number of a row's task, and the row's turn."""
        conversation = self.conversation_of_row(row)
        rest, turn = divmod(row - self._first_rows[conversation], self._members[conversation].turns)
        return conversation * self.tasks_per_conversation + rest, turn

    def key(self, row: int) -> RowKey:
        """The key of row number `row`."""
        task, turn = self.task_of_row(row)
        conversation, rest = divmod(task, self.tasks_per_conversation)
        cell, repeat = divmod(rest, self.repeats)
        return RowKey(self._members[conversation].conversation, self._cells[cell], repeat, turn)


SHARD_NAME = "shard.jsonl"
MAX_PARTS = 100_000
_MAX_LINE_BYTES = 16384
_MAX_TURNS = 10**6


@dataclass(frozen=True, order=True)
class Shard:
    """Part `part` (from 1) of `parts`."""

    part: int
    parts: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `2/8`.

        Raises:
            UsageError: it has another form, or there is no such part.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
        shard = None if found is None else cls(int(found[1]), int(found[2]))
        if shard is None or not 1 <= shard.part <= shard.parts <= MAX_PARTS:
            raise UsageError(
                f"--shard must be I/N with 1 <= I <= N <= {MAX_PARTS}, got {text!r}",
                hint="--shard 2/8 is the second of eight parts",
            )
        return shard

    def __str__(self) -> str:
        return f"{self.part}/{self.parts}"

    def share(self, turns: Sequence[int]) -> tuple[int, ...]:
        """The numbers of this part's conversations, ascending.

        Args:
            turns: number of turns of each conversation of the plan.
        """
        loads = [(0, part) for part in range(1, self.parts + 1)]
        chosen: list[int] = []
        for number in sorted(range(len(turns)), key=lambda number: -turns[number]):
            load, part = loads[0]
            heapq.heapreplace(loads, (load + turns[number], part))
            if part == self.part:
                chosen.append(number)
        return tuple(sorted(chosen))


def write_members(files: Files, directory: Path, members: Iterable[Member]) -> None:
    """Write `shard.jsonl`, one conversation a line, atomically.

    Raises:
        StorageError: it could not be written.
    """
    lines = (json.dumps({"number": m.number, "id": m.conversation, "turns": m.turns}).encode() + b"\n" for m in members)
    path = directory / SHARD_NAME
    try:
        replace_file(files, path, lines)
    except OSError as error:
        raise StorageError(f"{path}: write failed: {error.strerror or error}") from error


def read_members(directory: Path) -> Iterator[Member]:
    """The conversations of a shard, in order.

    Raises:
        RunDirectoryError: the file is missing or cannot be read.
        RunDamagedError: a line is not what `write_members` wrote.
    """
    path = directory / SHARD_NAME
    hint = "run the part's `rwkvbatch run` command again: it rewrites this file"
    last = -1
    try:
        with path.open("rb") as file:
            for line, data in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), start=1):
                member = _member(data)
                if member is None or member.number <= last:
                    raise RunDamagedError(
                        "is not a conversation of a part, or not in order", path=path, line=line, hint=hint
                    )
                last = member.number
                yield member
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror}", path=path, hint=hint) from None


def _member(data: bytes) -> Member | None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    values = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    match values:
        case {"number": int(number), "id": str(name), "turns": int(turns)} if 0 < turns <= _MAX_TURNS:
            return Member(number, name, turns)
        case _:
            return None
