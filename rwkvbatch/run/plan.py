"""What a run consists of: conversations x cells x repeats, in an order that does not depend on how it goes.

Row numbers and dialogue numbers are places in that order. Dialogues of one conversation stand next to each
other, so that what they share is still at hand when the next one reads it.
"""

from __future__ import annotations

import difflib
import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rwkvbatch.errors import UsageError
from rwkvbatch.run.grid import Cell
from rwkvbatch.run.rows import RowKey
from rwkvbatch.run.settings import CellSettings, Layered, RunSettings
from rwkvbatch.script.records import Conversation


@dataclass(frozen=True)
class TurnSettings:
    """Settings and seed of one reply."""

    settings: CellSettings
    seed: int


@dataclass(frozen=True)
class Dialogue:
    """One conversation in one cell and repeat; its rows are `first_row` and the following ones.

    `turns` has the settings of turns that have params of their own.
    """

    number: int
    first_row: int
    conversation: Conversation
    cell: Cell
    repeat: int
    settings: CellSettings
    seed: int
    turns: Mapping[int, TurnSettings] = field(default_factory=dict["int", "TurnSettings"])

    def of_turn(self, turn: int) -> TurnSettings:
        """What turn `turn` is generated with."""
        return self.turns.get(turn) or TurnSettings(self.settings, self.seed)

    def key(self, turn: int) -> RowKey:
        return RowKey(self.conversation.id, self.cell.name, self.repeat, turn)


class Plan:
    """All dialogues of a run, made when they are asked for.

    A setting of a dialogue is its cell's, if the grid gives it; else the command line's, if given there; else
    the conversation's own (`params`); else that of the environment, the config file, or the default.

    Args:
        conversations: in the order in which they are replayed; ids are unique.
        cells: at least one.
        layered: the run's settings.

    Raises:
        UsageError: nothing to replay, or a conversation's params do not go with a cell.
    """

    def __init__(
        self, conversations: Sequence[Conversation], cells: Sequence[Cell], layered: Layered
    ) -> None:
        if not conversations:
            raise UsageError(
                "there is no conversation to replay", hint="look at the script, --only and --limit"
            )
        settings = layered.settings
        self.conversations = tuple(conversations)
        self.cells = tuple(cells)
        self.settings: RunSettings = settings
        self.repeats = settings.max_repeats if settings.max_repeats is not None else settings.repeats
        self.explicit = layered.explicit
        self.cell_settings = tuple(settings.replace(**cell.overrides) for cell in self.cells)
        self._cell_numbers = {cell.name: number for number, cell in enumerate(self.cells)}
        self._conversation_numbers = {c.id: number for number, c in enumerate(self.conversations)}
        if len(self._conversation_numbers) < len(self.conversations):
            raise UsageError(
                "two conversations have the same id", hint="ids must differ between all scripts of a run"
            )
        self._per_conversation = len(self.cells) * self.repeats
        first_row = 0
        self._first_rows = [first_row]
        for conversation in self.conversations:
            first_row += len(conversation.turns) * self._per_conversation
            self._first_rows.append(first_row)
        self._settings_of = lru_cache(maxsize=4096)(self._resolve)
        for number, conversation in enumerate(self.conversations):
            if conversation.params or any(turn.params for turn in conversation.turns):
                for cell_number in range(len(self.cells)):
                    self._settings_of(number, cell_number)

    @property
    def num_rows(self) -> int:
        return self._first_rows[-1]

    @property
    def num_dialogues(self) -> int:
        return len(self.conversations) * self._per_conversation

    def dialogue(self, number: int) -> Dialogue:
        """Dialogue `number` of `num_dialogues`."""
        conversation_number, rest = divmod(number, self._per_conversation)
        cell_number, repeat = divmod(rest, self.repeats)
        conversation = self.conversations[conversation_number]
        whole, turns = self._settings_of(conversation_number, cell_number)
        return Dialogue(
            number=number,
            first_row=self._first_rows[conversation_number] + rest * len(conversation.turns),
            conversation=conversation,
            cell=self.cells[cell_number],
            repeat=repeat,
            settings=whole.settings,
            seed=whole.seed,
            turns=turns,
        )

    def rows_of(self, number: int) -> tuple[int, int]:
        """The first row of dialogue `number`, and the one after its last."""
        conversation_number, rest = divmod(number, self._per_conversation)
        num_turns = len(self.conversations[conversation_number].turns)
        first = self._first_rows[conversation_number] + rest * num_turns
        return first, first + num_turns

    def number_of(self, conversation: int, cell: int, repeat: int) -> int:
        """The dialogue of these three numbers."""
        return (conversation * len(self.cells) + cell) * self.repeats + repeat

    def place(self, key: RowKey) -> int | None:
        """The row's number, or None if it is not of this run."""
        conversation_number = self._conversation_numbers.get(key.conversation)
        cell_number = self._cell_numbers.get(key.cell)
        if conversation_number is None or cell_number is None:
            return None
        num_turns = len(self.conversations[conversation_number].turns)
        if not (0 <= key.repeat < self.repeats and 0 <= key.turn < num_turns):
            return None
        rest = cell_number * self.repeats + key.repeat
        return self._first_rows[conversation_number] + rest * num_turns + key.turn

    def dialogue_of_row(self, row: int) -> tuple[int, int]:
        """The number of the row's dialogue, and its turn."""
        conversation_number = bisect_right(self._first_rows, row) - 1
        num_turns = len(self.conversations[conversation_number].turns)
        rest, turn = divmod(row - self._first_rows[conversation_number], num_turns)
        return conversation_number * self._per_conversation + rest, turn

    def _resolve(
        self, conversation_number: int, cell_number: int
    ) -> tuple[TurnSettings, dict[int, TurnSettings]]:
        """The settings of a whole dialogue, and those of its turns that have params of their own."""
        conversation, cell = self.conversations[conversation_number], self.cells[cell_number]
        default = TurnSettings(self.cell_settings[cell_number], self.settings.seed)
        whole = self._with_params(default, conversation.params, cell, f"{conversation.source}: params")
        turns = {
            number: self._with_params(
                whole, turn.params, cell, f"{conversation.source}: params of turn {number}"
            )
            for number, turn in enumerate(conversation.turns)
            if turn.params
        }
        return whole, turns

    def _with_params(
        self, given: TurnSettings, params: Mapping[str, Any], cell: Cell, where: str
    ) -> TurnSettings:
        own = {
            key: value
            for key, value in params.items()
            if key not in self.explicit and key not in cell.overrides
        }
        seed = own.pop("seed", given.seed)
        try:
            return TurnSettings(given.settings.replace(**own) if own else given.settings, seed)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def select(conversations: Sequence[Conversation], settings: RunSettings) -> tuple[Conversation, ...]:
    """Those that `--only` names, in the order of `--shuffle-seed`, at most `--limit`.

    Raises:
        UsageError: a name in `only` is no conversation's id or tag.
    """
    chosen = list(conversations)
    if settings.only:
        names = {name for c in conversations for name in (c.id, *c.tags)}
        for wanted in settings.only:
            if wanted not in names:
                close = difflib.get_close_matches(wanted, names, n=3)
                hint = f"close ones: {', '.join(close)}" if close else None
                raise UsageError(f"--only {wanted}: no conversation has this id or tag", hint=hint)
        wanted_names = set(settings.only)
        chosen = [c for c in chosen if wanted_names & {c.id, *c.tags}]
    if settings.shuffle_seed is not None:
        # By hash: the order of two conversations does not hang on the others, nor on Python's version.
        chosen.sort(
            key=lambda c: hashlib.blake2b(
                f"{settings.shuffle_seed}\x1f{c.id}".encode("utf-8", "surrogatepass")
            ).digest()
        )
    return tuple(chosen[: settings.limit])
