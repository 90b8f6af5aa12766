"""Row numbers of a run, and its shards (`--shard 2/8`).

All tasks of a conversation are in one shard, so that their shared prefixes are computed once. Conversations are
assigned longest first, each to the shard with the fewest turns so far. Therefore the turns of two shards differ by at
most those of the longest conversation. Among equal shards the assignment rotates, which spreads adjacent conversations:
these are often similar. The lengths of replies are not known beforehand and are not considered.
"""

from __future__ import annotations

import heapq
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, UsageError
from rwkvbatch.files import open_file
from rwkvbatch.results.folder import Folder
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
        members: the conversations, with unique ids.
        cells: the names of the cells.
        repeats: repetitions of each conversation in each cell.
    """

    def __init__(self, members: Iterable[Member], cells: Sequence[str], repeats: int) -> None:
        self.repeats = repeats
        self.members = tuple(members)
        self._cells = tuple(cells)
        self._cell_numbers = {name: number for number, name in enumerate(self._cells)}
        self._conversations = {member.conversation: n for n, member in enumerate(self.members)}
        self._tasks_per_conversation = len(self._cells) * repeats
        num_rows = (member.turns * self._tasks_per_conversation for member in self.members)
        self._first_rows = list(accumulate(num_rows, initial=0))
        self.num_rows = self._first_rows[-1]
        self.num_tasks = len(self.members) * self._tasks_per_conversation

    def conversation_of(self, task: int) -> int:
        return task // self._tasks_per_conversation

    def cell_of(self, task: int) -> int:
        return task // self.repeats % len(self._cells)

    def conversation_of_row(self, row: int) -> int:
        """The number of a row's conversation."""
        return bisect_right(self._first_rows, row) - 1

    def rows_of(self, task: int) -> tuple[int, int]:
        """The first row of a task, and the one after its last."""
        conversation, task_in_conversation = divmod(task, self._tasks_per_conversation)
        num_turns = self.members[conversation].turns
        first = self._first_rows[conversation] + task_in_conversation * num_turns
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
        num_turns = self.members[conversation].turns
        if not (0 <= key.repeat < self.repeats and 0 <= key.turn < num_turns):
            return None
        return self._first_rows[conversation] + (cell * self.repeats + key.repeat) * num_turns + key.turn

    def task_of_row(self, row: int) -> tuple[int, int]:
        """The number of a row's task, and the row's turn."""
        conversation = self.conversation_of_row(row)
        row_in_conversation = row - self._first_rows[conversation]
        task_in_conversation, turn = divmod(row_in_conversation, self.members[conversation].turns)
        return conversation * self._tasks_per_conversation + task_in_conversation, turn

    def key(self, row: int) -> RowKey:
        task, turn = self.task_of_row(row)
        conversation = self.members[self.conversation_of(task)].conversation
        return RowKey(conversation, self._cells[self.cell_of(task)], task % self.repeats, turn)


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
        """Parse `2/8`; raises `UsageError` for another form or a part that does not exist."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]) <= MAX_PARTS:
            allowed = f"I/N with 1 <= I <= N <= {MAX_PARTS}"
            hint = "--shard 2/8 is the second of eight parts"
            raise UsageError(f"--shard must be {allowed}, got {text!r}", hint=hint)
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.part}/{self.parts}"

    def share(self, turns: Sequence[int]) -> tuple[int, ...]:
        """The numbers of this part's conversations, ascending; `turns[n]` is the number of turns of conversation n."""
        loads = [(0, part) for part in range(1, self.parts + 1)]
        share: list[int] = []
        for number in sorted(range(len(turns)), key=lambda number: -turns[number]):
            load, part = loads[0]
            heapq.heapreplace(loads, (load + turns[number], part))
            if part == self.part:
                share.append(number)
        return tuple(sorted(share))


def write_members(folder: Folder, members: Iterable[Member]) -> None:
    """Write `shard.jsonl`, one conversation a line; raises as `Folder.save`."""
    lines = (json.dumps({"number": m.number, "id": m.conversation, "turns": m.turns}).encode() + b"\n" for m in members)
    folder.save(SHARD_NAME, lines)


def read_members(directory: Path) -> Iterator[Member]:
    """The conversations of a shard, in order.

    Raises:
        RunDirectoryError: `shard.jsonl` cannot be read.
        RunDamagedError: a line of it is not a conversation, or not in order.
    """
    path = directory / SHARD_NAME
    hint = "run the part's `rwkvbatch run` command again: it rewrites this file"
    last_number = -1
    try:
        with open_file(path) as file:
            for line, data in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), start=1):
                member = _member(data)
                if member is None or member.number <= last_number:
                    problem = "is not a conversation of a part, or not in order"
                    raise RunDamagedError(problem, path=path, line=line, hint=hint)
                last_number = member.number
                yield member
    except OSError as error:
        raise RunDirectoryError(f"cannot be read: {error.strerror}", path=path, hint=hint) from None


def _member(data: bytes) -> Member | None:
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    match content:
        case {"number": int(number), "id": str(name), "turns": int(turns)} if 0 < turns <= _MAX_TURNS:
            return Member(number, name, turns)
        case _:
            return None
