"""Where a row stands in a run: conversations x cells x repeats x turns as one row of numbers.

A plan counts its rows this way, and so does a merge, which has no plan but what its parts wrote down.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rwkvbatch.run.results.rows import RowKey


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
