"""Digests by which a row is recognized as one of another plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rwkvbatch.config import CellSettings
from rwkvbatch.hashes import json_sha256
from rwkvbatch.prompt.templates import with_turn_end
from rwkvbatch.replay.continuing.identity import GENERATION_RULES, NOT_BY_VALUE
from rwkvbatch.replay.judging.checks import judging_digest
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.results.row_codec import RowDigest
from rwkvbatch.script.records import Turn


class RowDigests:
    """Digests of a plan's rows (`RowDigest`), which tell whether a row of another command is also a row of this plan.

    The content digest is a chain of hashes over the turns of a conversation up to the row's turn. The chain begins with
    `GENERATION_RULES`, the conversation's id and system message, and the settings and file hashes of the cell. Each
    turn adds its content (message and reference) and the settings and the seed of its reply. The digest does not depend
    on checks, tags, other conversations and cells, their order, or the number of repeats.

    Args:
        cells: the identity of each cell in order, see `cell_identities`.
    """

    def __init__(self, plan: Plan, cells: Sequence[Mapping[str, Any]]) -> None:
        self._plan = plan
        self.cells = cells
        self._contents_of = lru_cache(maxsize=4096)(self._contents)
        self._judging_of = lru_cache(maxsize=256)(self._judging)
        self._cell_values_of = lru_cache(maxsize=None)(self._cell_values)

    def of_row(self, row: int) -> RowDigest:
        """The digests of row `row` of the plan."""
        task, turn = self._plan.task_of_row(row)
        conversation = self._plan.conversation_of(task)
        contents = self.contents(conversation, self._plan.cell_of(task))
        return RowDigest(contents[turn], self.judging(conversation)[turn])

    def contents(self, conversation: int, cell: int) -> tuple[str, ...]:
        """`[turns]` the content digests of a conversation's rows in a cell."""
        return self._contents_of(conversation, cell)

    def judging(self, conversation: int) -> tuple[str, ...]:
        """`[turns]` the digests of a conversation's checks and tags."""
        return self._judging_of(conversation)

    def _contents(self, conversation: int, cell: int) -> tuple[str, ...]:
        task, values = self._plan.task(self._plan.number_of(conversation, cell, 0)), self.cells[cell]
        cell_values = {name: value for name, value in values.items() if name not in _REPLY_SETTINGS}
        script = task.conversation
        previous = json_sha256([GENERATION_RULES, script.row_context, cell_values])[:32]
        digests = [""] * len(script.turns)
        task_values = self._reply_values(task.settings, cell)
        for turn in script.order:
            of_turn, probe = task.of_turn(turn), script.turns[turn].probe
            if of_turn.settings is task.settings:
                turn_values = task_values
            else:
                turn_values = self._reply_values(of_turn.settings, cell)
            # The random numbers of a reply depend on the turn's index, which a probe's position in the chain does not
            # determine.
            index = [] if probe is None else [turn]
            content = script.row_contents[turn]
            counting = [_CHOICE_COUNTS] if _continues_by_length(script.turns[turn], content) else []
            digests[turn] = json_sha256([previous, content, turn_values, of_turn.seed, *index, *counting])[:32]
            if probe is None:  # later turns do not depend on a probe
                previous = digests[turn]
        return tuple(digests)

    def _reply_values(self, settings: CellSettings, cell: int) -> dict[str, Any]:
        """The values of `_REPLY_SETTINGS` in `settings`, which are those of the cell unless a script changes them."""
        if settings is self._plan.cell_settings[cell]:
            return self._cell_values_of(cell)
        return _reply_settings(settings, str(self.cells[cell]["weights_sha256"]))

    def _cell_values(self, cell: int) -> dict[str, Any]:
        return _reply_settings(self._plan.cell_settings[cell], str(self.cells[cell]["weights_sha256"]))

    def _judging(self, conversation: int) -> tuple[str, ...]:
        script = self._plan.conversations[conversation]
        return tuple(judging_digest(script, turn) for turn in range(len(script.turns)))


_CHOICE_COUNTS = "counts 2"
"""Version of the bytes and characters of choices, for turns whose choice in the history depends on them."""


def _continues_by_length(turn: Turn, content: Mapping[str, Any]) -> bool:
    """Whether a dialogue continues with the choice that is best per byte or character; a plain prompt is one turn."""
    return not turn.plain and content.get("normalize") in ("byte", "character")


_REPLY_SETTINGS = frozenset(CellSettings.model_fields) - NOT_BY_VALUE
"""Settings that may differ between the conversations or turns of a cell."""


def _reply_settings(settings: CellSettings, weights_sha256: str) -> dict[str, Any]:
    return with_turn_end(settings, weights_sha256).model_dump(mode="json", include=set(_REPLY_SETTINGS))
