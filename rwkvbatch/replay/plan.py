"""What a run consists of: conversations x cells x repeats, in an order that does not depend on how it goes.

Row numbers and dialogue numbers are places in that order. Dialogues of one conversation stand next to each
other, so that what they share is still at hand when the next one reads it.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rwkvbatch.config import CellSettings, RunSettings
from rwkvbatch.errors import UsageError
from rwkvbatch.replay.grid import Cell
from rwkvbatch.replay.layers import Layered, Origin
from rwkvbatch.replay.row_index import Length, Member, Places, Shard
from rwkvbatch.results.row import RowKey
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
        shard: run only this part; numbers of rows and dialogues stay those of the whole.

    Attributes:
        chosen: numbers of the conversations that are run: all, or those of the part.

    Raises:
        UsageError: nothing to replay, or a conversation's params do not go with a cell.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        cells: Sequence[Cell],
        layered: Layered,
        shard: Shard | None = None,
    ) -> None:
        if not conversations:
            raise UsageError("there is no conversation to replay", hint="look at the script, --only and --limit")
        settings = layered.settings
        self._layered = layered
        self.conversations = tuple(conversations)
        self.cells = tuple(cells)
        self.settings: RunSettings = settings
        self.repeats = settings.max_repeats if settings.max_repeats is not None else settings.repeats
        self.explicit = layered.explicit
        self.cell_settings = tuple(settings.replace(**cell.overrides) for cell in self.cells)
        if len({conversation.id for conversation in self.conversations}) < len(self.conversations):
            raise UsageError("two conversations have the same id", hint="ids must differ between all scripts of a run")
        lengths = [Length(conversation.id, len(conversation.turns)) for conversation in self.conversations]
        self._places = Places(lengths, [cell.name for cell in self.cells], self.repeats)
        self.shard = shard
        self.chosen: Sequence[int] = range(len(lengths))
        self._chosen_ids: frozenset[str] | None = None
        if shard is not None:
            self.chosen = shard.share([length.turns for length in lengths])
            self._chosen_ids = frozenset(self.conversations[number].id for number in self.chosen)
        self._settings_of = lru_cache(maxsize=4096)(self._resolve)
        for number, conversation in enumerate(self.conversations):
            if conversation.params or any(turn.params for turn in conversation.turns):
                for cell_number in range(len(self.cells)):
                    self._settings_of(number, cell_number)

    def __repr__(self) -> str:
        return (
            f"<Plan: rows {self.num_rows}, conversations {len(self.conversations)}, cells {len(self.cells)}, "
            f"repeats {self.repeats}>"
        )

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Where the settings came from that nobody typed."""
        return self._layered.origins

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.conversations, self.cells, self._layered, self.shard)

    @property
    def num_rows(self) -> int:
        return self._places.num_rows

    @property
    def num_dialogues(self) -> int:
        return self._places.num_dialogues

    def members(self) -> Iterator[Member]:
        """The conversations that are run, as a part writes them down."""
        for number in self.chosen:
            conversation = self.conversations[number]
            yield Member(number, Length(conversation.id, len(conversation.turns)))

    def dialogue(self, number: int) -> Dialogue:
        """Dialogue `number` of `num_dialogues`."""
        conversation_number, rest = divmod(number, self._places.dialogues_each)
        cell_number, repeat = divmod(rest, self.repeats)
        whole, turns = self._settings_of(conversation_number, cell_number)
        return Dialogue(
            number=number,
            first_row=self.rows_of(number)[0],
            conversation=self.conversations[conversation_number],
            cell=self.cells[cell_number],
            repeat=repeat,
            settings=whole.settings,
            seed=whole.seed,
            turns=turns,
        )

    def greedy_cells(self) -> tuple[Cell, ...]:
        """The cells in which no reply that is run depends on chance, so that repeats are all the same."""
        own = [
            number
            for number in self.chosen
            if (conversation := self.conversations[number]).params or any(turn.params for turn in conversation.turns)
        ]
        return tuple(
            cell
            for number, cell in enumerate(self.cells)
            if (len(own) == len(self.chosen) or self.cell_settings[number].sampling.greedy)
            and all(self._is_greedy(self.dialogue(self.number_of(one, number, 0))) for one in own)
        )

    @staticmethod
    def _is_greedy(dialogue: Dialogue) -> bool:
        turns = range(len(dialogue.conversation.turns))
        return all(dialogue.of_turn(turn).settings.sampling.greedy for turn in turns)

    def rows_of(self, number: int) -> tuple[int, int]:
        """The first row of dialogue `number`, and the one after its last."""
        return self._places.rows_of(number)

    def number_of(self, conversation: int, cell: int, repeat: int) -> int:
        """The dialogue of these three numbers."""
        return self._places.number_of(conversation, cell, repeat)

    def conversation_of(self, dialogue: int) -> int:
        """The number of the dialogue's conversation."""
        return dialogue // self._places.dialogues_each

    def place(self, key: RowKey) -> int | None:
        """The row's number, or None if it is not of this run (or of this part of it)."""
        if self._chosen_ids is not None and key.conversation not in self._chosen_ids:
            return None
        return self._places.place(key)

    def dialogue_of_row(self, row: int) -> tuple[int, int]:
        """The number of the row's dialogue, and its turn."""
        return self._places.dialogue_of_row(row)

    def _resolve(self, conversation_number: int, cell_number: int) -> tuple[TurnSettings, dict[int, TurnSettings]]:
        """The settings of a whole dialogue, and those of its turns that have params of their own."""
        conversation, cell = self.conversations[conversation_number], self.cells[cell_number]
        default = TurnSettings(self.cell_settings[cell_number], self.settings.seed)
        whole = self._with_params(default, conversation.params, cell, f"{conversation.source}: params")
        turns = {
            number: self._with_params(whole, turn.params, cell, f"{conversation.source}: params of turn {number}")
            for number, turn in enumerate(conversation.turns)
            if turn.params
        }
        return whole, turns

    def _with_params(self, given: TurnSettings, params: Mapping[str, Any], cell: Cell, where: str) -> TurnSettings:
        own = {key: value for key, value in params.items() if key not in self.explicit and key not in cell.overrides}
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
