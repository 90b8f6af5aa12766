"""A run in parts (`--shard 2/8`): which conversations are in which part, and what a part writes down for `merge`.

All dialogues of a conversation are in the same part, so that each part reads what they share once. The longest
conversations are dealt out first, each to the part with the fewest turns so far: no two parts differ by more turns than
the longest conversation has. Among equals the parts take turns, so that neighbours in the script, which tend to be
alike, are spread over the parts. Only the number of turns is looked at: how long replies get is not known before.
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

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, UsageError
from rwkvbatch.files import Files, save_file
from rwkvbatch.results.row import RowKey


@dataclass(frozen=True)
class Length:
    """A conversation, and how many turns it has."""

    conversation: str
    turns: int


class Places:
    """Numbers of rows and dialogues; a dialogue's rows stand together, and so do a conversation's dialogues.

    Args:
        lengths: the conversations in their order; ids are unique.
        cells: the names of the cells, in their order.
        repeats: of every conversation in every cell.
    """

    def __init__(self, lengths: Iterable[Length], cells: Sequence[str], repeats: int) -> None:
        self.repeats = repeats
        self._cells = tuple(cells)
        self._cell_numbers = {name: number for number, name in enumerate(self._cells)}
        self._lengths = tuple(lengths)
        self._conversations = {length.conversation: n for n, length in enumerate(self._lengths)}
        self.dialogues_each = len(self._cells) * repeats
        self._first_rows = [0]
        for length in self._lengths:
            self._first_rows.append(self._first_rows[-1] + length.turns * self.dialogues_each)

    @property
    def num_rows(self) -> int:
        return self._first_rows[-1]

    @property
    def num_dialogues(self) -> int:
        return len(self._lengths) * self.dialogues_each

    def conversation_of_row(self, row: int) -> int:
        """The number of the row's conversation."""
        return bisect_right(self._first_rows, row) - 1

    def rows_of(self, dialogue: int) -> tuple[int, int]:
        """The first row of a dialogue, and the one after its last."""
        conversation, rest = divmod(dialogue, self.dialogues_each)
        num_turns = self._lengths[conversation].turns
        first = self._first_rows[conversation] + rest * num_turns
        return first, first + num_turns

    def number_of(self, conversation: int, cell: int, repeat: int) -> int:
        """The dialogue of these three numbers."""
        return (conversation * len(self._cells) + cell) * self.repeats + repeat

    def place(self, key: RowKey) -> int | None:
        """The row's number, or None if there is no such row."""
        conversation = self._conversations.get(key.conversation)
        cell = self._cell_numbers.get(key.cell)
        if conversation is None or cell is None:
            return None
        num_turns = self._lengths[conversation].turns
        if not (0 <= key.repeat < self.repeats and 0 <= key.turn < num_turns):
            return None
        return self._first_rows[conversation] + (cell * self.repeats + key.repeat) * num_turns + key.turn

    def dialogue_of_row(self, row: int) -> tuple[int, int]:
        """The number of the row's dialogue, and its turn."""
        conversation = self.conversation_of_row(row)
        rest, turn = divmod(row - self._first_rows[conversation], self._lengths[conversation].turns)
        return conversation * self.dialogues_each + rest, turn

    def key(self, row: int) -> RowKey:
        """What `place` finds at `row`."""
        dialogue, turn = self.dialogue_of_row(row)
        conversation, rest = divmod(dialogue, self.dialogues_each)
        cell, repeat = divmod(rest, self.repeats)
        return RowKey(self._lengths[conversation].conversation, self._cells[cell], repeat, turn)


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
        """Read `2/8`.

        Raises:
            UsageError: it is not that, or there is no such part.
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
        """The numbers of this part's conversations, rising.

        Args:
            turns: how many turns each conversation of the plan has.
        """
        loads = [(0, part) for part in range(1, self.parts + 1)]
        chosen: list[int] = []
        for number in sorted(range(len(turns)), key=lambda number: -turns[number]):
            load, part = loads[0]
            heapq.heapreplace(loads, (load + turns[number], part))
            if part == self.part:
                chosen.append(number)
        return tuple(sorted(chosen))


@dataclass(frozen=True)
class Member:
    """A conversation of a part: its number in the whole plan, and its length."""

    number: int
    length: Length


def write_members(files: Files, directory: Path, members: Iterable[Member]) -> None:
    """Write `shard.jsonl`, one conversation a line, so that it is there in full or not at all.

    Raises:
        StorageError: it could not be written.
    """
    lines = (
        json.dumps({"number": m.number, "id": m.length.conversation, "turns": m.length.turns}).encode() + b"\n"
        for m in members
    )
    save_file(directory / SHARD_NAME, lines, files=files)


def read_members(directory: Path) -> Iterator[Member]:
    """The conversations of a part, in their order.

    Raises:
        RunDirectoryError: the file is not there or cannot be read.
        RunDamagedError: a line is not what `write_members` wrote.
    """
    path = directory / SHARD_NAME
    hint = "give the part's `rwkvbatch run` command again: it writes this file anew"
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
            return Member(number, Length(name, turns))
        case _:
            return None
