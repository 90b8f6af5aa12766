"""The plan of a run: all tasks (conversations x cells x repetitions) in a fixed order, with their settings.

Row numbers and task numbers are positions in that order. Tasks of one conversation are adjacent, so that their shared
prefixes are still cached when the next one needs them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from rwkvbatch.config import OPEN_THINKING, CellSettings, RunSettings
from rwkvbatch.config.sources import ResolvedSettings
from rwkvbatch.errors import UsageError
from rwkvbatch.replay.planning.grid import Cell
from rwkvbatch.replay.planning.race import FIRST_LOOK, Draws
from rwkvbatch.replay.planning.row_index import Member, RowIndex, Shard
from rwkvbatch.results.row import RowKey
from rwkvbatch.script.records import Conversation, selected_ids
from rwkvbatch.script.tools import CALL_PREFIX, with_tools


@dataclass(frozen=True)
class TurnSettings:
    """Settings and seed of one reply."""

    settings: CellSettings
    seed: int


@dataclass(frozen=True)
class Task:
    """One conversation in one cell and repetition.

    Attributes:
        first_row: number of its first row; the rows of its turns are consecutive.
        turns: by turn, the settings of the turns that have their own `params`.
    """

    number: int
    first_row: int
    conversation: Conversation
    cell: Cell
    repeat: int
    settings: CellSettings
    seed: int
    turns: Mapping[int, TurnSettings] = field(default_factory=dict["int", "TurnSettings"])

    @property
    def system(self) -> str | None:
        """The system message of the settings, or else of the conversation; with the list of its tools."""
        system = self.conversation.system if self.settings.system is None else self.settings.system
        return with_tools(system, self.conversation.tools)

    def of_turn(self, turn: int) -> TurnSettings:
        """The settings and seed of a turn."""
        return self.turns.get(turn) or TurnSettings(self.settings, self.seed)

    @property
    def greedy(self) -> bool:
        """Whether no reply is sampled."""
        turns = enumerate(self.conversation.turns)
        return all(not turn.generate or self.of_turn(number).settings.sampling.greedy for number, turn in turns)

    def key(self, turn: int) -> RowKey:
        return RowKey(self.conversation.id, self.cell.name, self.repeat, turn)


class Plan(RowIndex):
    """All tasks of a run. `task` makes them on demand.

    A task's setting comes from the first source that has it: the grid (its cell), the command line, the conversation's
    `params`, the environment, the config file, the default.

    Attributes:
        shard: the part to run; None for all. Rows and tasks have the numbers of the whole run.
        chosen: numbers of the conversations to run: all, or those of the shard.
        explicit: names of the settings that the command line gave.
        origins: sources of the settings that come from the environment or a file.
        draws: the draws of a race, in order; None without `settings.race`.

    Raises:
        UsageError: no conversation, equal ids, or params that are not allowed in a cell.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        cells: Sequence[Cell],
        resolved: ResolvedSettings,
        shard: Shard | None = None,
    ) -> None:
        if not conversations:
            raise UsageError("there is no conversation to replay", hint="check the script, --only and --limit")
        settings = resolved.settings
        members = [Member(number, c.id, len(c.turns)) for number, c in enumerate(conversations)]
        self.draws = _draws(settings, conversations) if settings.race else None
        repeats = settings.max_repeats or settings.repeats if self.draws is None else self.draws.num_repeats
        super().__init__(members, [cell.name for cell in cells], repeats)
        self.conversations = tuple(conversations)
        self.cells = tuple(cells)
        self.settings = settings
        self.explicit = resolved.explicit
        self.origins = resolved.origins
        self.cell_settings = tuple(settings.replace(**cell.overrides) for cell in self.cells)
        for cell_settings in self.cell_settings:
            cell_settings.check_reply_prefix()
        if len({conversation.id for conversation in self.conversations}) < len(self.conversations):
            raise UsageError("two conversations have the same id", hint="ids must differ between all scripts of a run")
        self.shard = shard
        self.chosen: Sequence[int] = range(len(self.conversations))
        self._chosen_ids: frozenset[str] | None = None
        if shard is not None:
            self.chosen = shard.share([member.turns for member in members])
            self._chosen_ids = frozenset(self.conversations[number].id for number in self.chosen)
        self._arguments = conversations, cells, resolved, shard
        self._settings_of = lru_cache(maxsize=4096)(self._resolve)
        for number, conversation in enumerate(self.conversations):
            if _has_params(conversation):
                for cell_number in range(len(self.cells)):
                    self._settings_of(number, cell_number)

    def __repr__(self) -> str:
        counts = f"conversations {len(self.conversations)}, cells {len(self.cells)}, repeats {self.repeats}"
        return f"<Plan: rows {self.num_rows}, {counts}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def times_played(self) -> dict[int, int]:
        """By conversation, the number of replays in a cell. In a race, upper bounds for the drawn conversations."""
        if self.draws is None:
            return dict.fromkeys(self.chosen, self.repeats)
        return dict(sorted(Counter(self.draws.conversation).items()))

    def task(self, number: int) -> Task:
        conversation, cell = self.conversation_of(number), self.cell_of(number)
        task_settings, turns = self._settings_of(conversation, cell)
        return Task(
            number,
            first_row=self.rows_of(number)[0],
            conversation=self.conversations[conversation],
            cell=self.cells[cell],
            repeat=number % self.repeats,
            **vars(task_settings),
            turns=turns,
        )

    def replaces_system(self, cell: int) -> bool:
        """Whether the cell's system message, if any, replaces those of the script.

        A message of the command line or the grid replaces them. One of the environment or the config file is used only
        for conversations that have none.
        """
        return "system" in self.explicit or "system" in self.cells[cell].overrides

    def greedy_cells(self) -> tuple[Cell, ...]:
        """The cells in which every reply is greedy, so that repetitions cannot differ."""
        with_own_params = [number for number in self.chosen if _has_params(self.conversations[number])]
        all_have_params = len(with_own_params) == len(self.chosen)
        return tuple(
            cell
            for number, cell in enumerate(self.cells)
            if (all_have_params or self.cell_settings[number].sampling.greedy)
            and all(self.task(self.number_of(conversation, number, 0)).greedy for conversation in with_own_params)
        )

    def row_number(self, key: RowKey) -> int | None:
        """The number of a row, None if this run or shard has no such row."""
        if self._chosen_ids is not None and key.conversation not in self._chosen_ids:
            return None
        return super().row_number(key)

    def _resolve(self, conversation_number: int, cell_number: int) -> tuple[TurnSettings, dict[int, TurnSettings]]:
        """The settings of a task, and by turn those of the turns that have their own params."""
        conversation, cell = self.conversations[conversation_number], self.cells[cell_number]
        default = TurnSettings(self.cell_settings[cell_number], self.settings.seed)
        source, has_tools = conversation.source, bool(conversation.tools)
        fills_in = default.settings.system is not None and not self.replaces_system(cell_number)
        if fills_in and conversation.system is not None:
            default = TurnSettings(default.settings.replace(system=None), default.seed)
        task_settings = self._with_params(default, conversation.params, cell, f"{source}: params", has_tools=has_tools)
        turns = {
            number: self._with_params(
                task_settings, turn.params, cell, f"{source}: params of turn {number}", has_tools=has_tools
            )
            for number, turn in enumerate(conversation.turns)
            if turn.params
        }
        return task_settings, turns

    def _with_params(
        self, base: TurnSettings, params: Mapping[str, Any], cell: Cell, source: str, *, has_tools: bool
    ) -> TurnSettings:
        """`base` with the `params` that neither the command line nor the cell overrides; errors begin with `source`."""
        used = {key: value for key, value in params.items() if key not in self.explicit and key not in cell.overrides}
        seed = used.pop("seed", base.seed)
        try:
            settings = with_params(base.settings, used, has_tools=has_tools)
            settings.check_reply_prefix()
            return TurnSettings(settings, seed)
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from None


_Settings = TypeVar("_Settings", bound=CellSettings)


def with_params(settings: _Settings, params: Mapping[str, Any], *, has_tools: bool) -> _Settings:
    """`settings` with the `params` of a conversation or a turn.

    A `reply_prefix` that begins a tool call is dropped if the reply begins with thinking or a server makes the prompt.

    Raises:
        UsageError: a value is not allowed.
    """
    if not params:
        return settings
    merged = settings.replace(**params)
    is_tool_call = has_tools and str(params.get("reply_prefix", "")).startswith(CALL_PREFIX)
    if is_tool_call and (merged.think in OPEN_THINKING or merged.uses_chat_api):
        return merged.replace(reply_prefix="")
    return merged


def _draws(settings: RunSettings, conversations: Sequence[Conversation]) -> Draws:
    """The draws of a race: `--repeats` per conversation with checks, or as many as `--race-rows` allows two cells."""
    eligible = [number for number, c in enumerate(conversations) if any(turn.checks for turn in c.turns)]
    num_draws = settings.repeats * len(eligible)
    if settings.race_rows is not None:
        num_draws = min(num_draws, max(FIRST_LOOK, settings.race_rows // 2))
    return Draws(settings.seed, eligible, num_draws)


def _has_params(conversation: Conversation) -> bool:
    return bool(conversation.params) or any(turn.params for turn in conversation.turns)


def select(conversations: Sequence[Conversation], settings: RunSettings) -> tuple[Conversation, ...]:
    """The conversations selected by `--only`, in the order of `--shuffle-seed`, at most `--limit` of them.

    Raises:
        UsageError: no conversation has an id or tag that a pattern of `--only` matches.
    """
    chosen = list(conversations)
    if settings.only:
        selected = selected_ids(settings.only, {c.id: c.tags for c in conversations})
        chosen = [c for c in chosen if c.id in selected]
    if settings.shuffle_seed is not None:
        # Sorted by hash: the order of two conversations depends neither on the others nor on Python's version.
        prefix = f"{settings.shuffle_seed}\x1f"
        chosen.sort(key=lambda c: hashlib.blake2b((prefix + c.id).encode("utf-8", "surrogatepass")).digest())
    return tuple(chosen[: settings.limit])
