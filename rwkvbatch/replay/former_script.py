"""The script of rows that an earlier version wrote, which have no digest of what they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from rwkvbatch.errors import RunMismatchError, RwkvBatchError, counted
from rwkvbatch.replay.plan import Plan
from rwkvbatch.results.row import Row
from rwkvbatch.results.script_copy import read_script, script_sha256
from rwkvbatch.script.reader import read_scripts
from rwkvbatch.script.records import Conversation

MAX_TRIED = 2000
"""The longest script in which new conversations are looked for at every place; in longer ones only at the end."""


class FormerScript:
    """The script that the rows of the run directory `path` were made from.

    It is read when it is asked for. Raises `RunMismatchError` when it is gone.

    Args:
        plan: of the command that continues the run. former: the run's manifest.
    """

    def __init__(self, plan: Plan, former: Mapping[str, Any], path: Path) -> None:
        self._plan = plan
        self._former = former
        self._path = path

    @cached_property
    def conversations(self) -> dict[str, Conversation]:
        """By id: those of a part of this script, of its copy, or of the file it was read from."""
        former = self._former["identity"].get("script")
        script = cast("dict[str, Any]", former) if isinstance(former, dict) else {}
        count, sha256 = script.get("conversations"), script.get("sha256")
        if (part := _without_new_ones(self._plan.conversations, count, sha256)) is not None:
            return {each.id: each for each in part}
        about = self._former.get("about")
        names = [str(name) for name in cast("dict[str, Any]", about).get("scripts", [])] if about else []
        with suppress(RwkvBatchError):
            copy = read_script(self._path, self._former)
            if copy is not None:
                return {each.id: each for each in copy}
        with suppress(RwkvBatchError):
            if "-" not in names:
                found = read_scripts(names, skip_bad=True).conversations
                if script_sha256(found) == sha256:
                    return {each.id: each for each in found}
        raise RunMismatchError(
            "holds another run:\n"
            f"    script: existing run: {count} conversations of {', '.join(names) or 'an unknown file'}, of which the "
            f"version of rwkvbatch that made the run kept no copy; this command: "
            f"{counted(len(self._plan.conversations), 'conversation')}, other ones or changed",
            path=self._path,
            hint="give the script as it was, with new conversations in one place, or another directory with --out",
        )

    def is_unchanged(self, number: int, row: Row) -> bool:
        """Whether a row without a digest is of the conversation as it is now, up to its turn."""
        now, then = self._plan.conversations[number], self.conversations.get(row.conversation)
        if then is None:
            return False
        upto = row.turn + 1
        return (
            then.row_context == now.row_context
            and then.params == now.params
            and then.row_contents[:upto] == now.row_contents[:upto]
            and [turn.params for turn in then.turns[:upto]] == [turn.params for turn in now.turns[:upto]]
        )


def _without_new_ones(
    conversations: Sequence[Conversation], count: object, sha256: object
) -> Sequence[Conversation] | None:
    """The `count` conversations whose script has a hash, if the others stand together, as at the end of a file."""
    if not isinstance(count, int) or not 0 < count <= len(conversations):
        return None
    num_new = len(conversations) - count
    starts = range(count, -1, -1) if len(conversations) <= MAX_TRIED else (count,)
    for start in starts:
        part = (*conversations[:start], *conversations[start + num_new :])
        if script_sha256(part) == sha256:
            return part
        if num_new == 0:
            break
    return None
