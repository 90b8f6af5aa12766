"""The script of rows without a digest, which an earlier version of this program wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from rwkvbatch.errors import RunMismatchError, RwkvBatchError, counted
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.results.row import Row
from rwkvbatch.results.script_copy import read_script, script_sha256
from rwkvbatch.script.reader import WIDEST_LIMITS, read_scripts
from rwkvbatch.script.records import Conversation

MAX_TRIED = 2000
"""Largest number of conversations for which new ones are searched at every position; otherwise only at the end."""


class FormerScript:
    """The script from which the rows of the run directory `path` were made; read on first use.

    Args:
        plan: the plan of the command that continues the run.
        former: the run's manifest.
    """

    def __init__(self, plan: Plan, former: Mapping[str, Any], path: Path) -> None:
        self._plan = plan
        self._former = former
        self._path = path

    @cached_property
    def conversations(self) -> dict[str, Conversation]:
        """The conversations by id: from the plan's script without new ones, the script's copy, or the original file.

        Raises:
            RunMismatchError: none of these is the former script.
        """
        former = self._former["identity"].get("script")
        script = cast("dict[str, Any]", former) if isinstance(former, dict) else {}
        count, sha256 = script.get("conversations"), script.get("sha256")
        if (old_part := _without_new_ones(self._plan.conversations, count, sha256)) is not None:
            return {c.id: c for c in old_part}
        about = self._former.get("about")
        names = [str(name) for name in cast("dict[str, Any]", about).get("scripts", [])] if about else []
        with suppress(RwkvBatchError):
            copy = read_script(self._path, self._former)
            if copy is not None:
                return {c.id: c for c in copy}
        with suppress(RwkvBatchError):
            if "-" not in names:
                conversations = read_scripts(names, limits=WIDEST_LIMITS, skip_bad=True).conversations
                if script_sha256(conversations) == sha256:
                    return {c.id: c for c in conversations}
        raise RunMismatchError(
            "holds another run:\n"
            f"    script: existing run: {count} conversations of {', '.join(names) or 'an unknown file'}, of which the "
            f"version of rwkvbatch that made the run kept no copy; this command: "
            f"{counted(len(self._plan.conversations), 'conversation')}, other ones or changed",
            path=self._path,
            hint="give the script as it was, with new conversations in one place, or another directory with --out",
        )

    def is_unchanged(self, number: int, row: Row) -> bool:
        """Whether the plan's conversation `number` equals the row's former conversation up to the row's turn."""
        new, former = self._plan.conversations[number], self.conversations.get(row.conversation)
        if former is None:
            return False
        end = row.turn + 1
        return (
            former.row_context == new.row_context
            and former.params == new.params
            and former.row_contents[:end] == new.row_contents[:end]
            and [turn.params for turn in former.turns[:end]] == [turn.params for turn in new.turns[:end]]
        )


def _without_new_ones(
    conversations: Sequence[Conversation], count: object, sha256: object
) -> Sequence[Conversation] | None:
    """The conversations without a consecutive block of new ones, so that `count` remain, whose script has the `sha256`.

    None if there is no such block.
    """
    if not isinstance(count, int) or not 0 < count <= len(conversations):
        return None
    num_new = len(conversations) - count
    starts = range(count, -1, -1) if len(conversations) <= MAX_TRIED else (count,)
    for start in starts:
        others = (*conversations[:start], *conversations[start + num_new :])
        if script_sha256(others) == sha256:
            return others
        if num_new == 0:
            break
    return None
