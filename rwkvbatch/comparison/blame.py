"""At which turn a dialogue went wrong: the first that fails after the model's own history and not after the gold one.

Every turn is there twice, in a cell with `--history own` and in one with `--history gold` whose other settings are the
same. A turn that fails after both is too hard by itself; one that fails only after the own history fails because of
what the model said before.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rwkvbatch.comparison.loading import RunData
from rwkvbatch.comparison.matching import rows_of
from rwkvbatch.comparison.pairing import Variant
from rwkvbatch.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

Cause = Literal["history", "turn", "unknown"]
CAUSES: Mapping[Cause, str] = {
    "history": "fail only after the model's own history",
    "turn": "fail after the gold history too",
    "unknown": "have a failed turn that was not judged after the gold history",
}


@dataclass(frozen=True)
class BlamedDialogue:
    """A dialogue that failed after its own history.

    Attributes:
        failed: its first turn of which a check failed. cause: of the dialogue's failure.
        turn: the first turn that fails after the own history and passes after the gold one; None without such a turn.
        num_failed: its failed turns. after_gold: those of them that fail after the gold history too.
    """

    conversation: str
    repeat: int
    failed: int
    turn: int | None
    cause: Cause
    num_failed: int
    after_gold: int


@dataclass(frozen=True)
class Blame:
    """The failed dialogues of a cell with `--history own`, held against its counterpart with `--history gold`.

    Attributes:
        num_dialogues: conversations and repeats with checks that both cells have. dialogues: those that failed.
    """

    own: Variant
    gold: Variant
    num_dialogues: int
    dialogues: tuple[BlamedDialogue, ...]

    @property
    def by_turn(self) -> dict[int, int]:
        """The number of dialogues that went wrong at each turn, ascending."""
        return dict(sorted(Counter(each.turn for each in self.dialogues if each.turn is not None).items()))

    @property
    def sentence(self) -> str:
        """What became of the failed dialogues, by cause."""
        causes = Counter(each.cause for each in self.dialogues)
        parts = [f"{causes[cause]:,} {words}" for cause, words in CAUSES.items() if causes[cause]]
        head = f"{self.own.label}: {len(self.dialogues):,} of {self.num_dialogues:,} dialogues failed"
        return head + (f": {'; '.join(parts)}" if parts else "")

    def as_dict(self) -> dict[str, Any]:
        return {
            "own": self.own.label,
            "gold": self.gold.label,
            "num_dialogues": self.num_dialogues,
            "by_turn": [{"turn": turn, "dialogues": count} for turn, count in self.by_turn.items()],
            "dialogues": [vars(each) for each in self.dialogues],
        }


def blame(variants: Sequence[Variant], runs: Sequence[RunData], table: pd.DataFrame) -> tuple[Blame, ...]:
    """Hold every cell with `--history own` against its counterpart with `--history gold`.

    Args:
        table: all rows of all runs (`comparable_rows`).

    Raises:
        UsageError: no cell has a counterpart, or none of them has checks.
    """
    settings = {run.name: run.facts.cells for run in runs}
    cells = {variant: settings[variant.run].get(variant.cell, {}) for variant in variants}
    gold = {_others(values): variant for variant, values in cells.items() if values.get("history") == "gold"}
    pairs = [
        (variant, gold[_others(values)])
        for variant, values in cells.items()
        if values.get("history") == "own" and _others(values) in gold
    ]
    if not pairs:
        raise UsageError(
            "--blame compares the same turns after the model's own history and after the script's replies, and there "
            "are no two cells that differ in nothing but --history",
            hint="give the run's command again with `--history own,gold`, which keeps the rows that are there; or give "
            "a run with each",
        )
    found = tuple(_blame(own, other, table) for own, other in pairs)
    if not any(each.num_dialogues for each in found):
        raise UsageError("--blame needs turns with checks that both histories have, and there are none")
    return found


def _others(values: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in values.items() if key != "history"}, sort_keys=True, default=str)


def _blame(own: Variant, gold: Variant, table: pd.DataFrame) -> Blame:
    ours, theirs = _passed(own, table), _passed(gold, table)
    dialogues: dict[tuple[str, int], dict[int, bool]] = {}
    for (conversation, repeat, turn), passed in ours.items():
        dialogues.setdefault((conversation, repeat), {})[turn] = passed
    both = {(conversation, repeat) for conversation, repeat, _ in theirs}
    found: list[BlamedDialogue] = []
    for (conversation, repeat), turns in dialogues.items():
        failed = sorted(turn for turn, passed in turns.items() if not passed)
        if not failed or (conversation, repeat) not in both:
            continue
        there = [theirs.get((conversation, repeat, turn)) for turn in failed]
        turn = next((turn for turn, passed in zip(failed, there, strict=True) if passed), None)
        # Before the blamed turn, or without one, a turn that the gold history lacks could be the one.
        doubtful = None in (there if turn is None else there[: failed.index(turn)])
        cause: Cause = "unknown" if doubtful else "turn" if turn is None else "history"
        found.append(
            BlamedDialogue(
                conversation, repeat, failed[0], None if doubtful else turn, cause, len(failed), there.count(False)
            )
        )
    return Blame(own, gold, len(dialogues.keys() & both), tuple(found))


def _passed(variant: Variant, table: pd.DataFrame) -> dict[tuple[str, int, int], bool]:
    """Whether each turn with checks passed all of them; probes, which later turns do not see, are left out."""
    rows = rows_of(table, variant)
    rows = rows.loc[rows["probe_turns"].isna()]
    columns = (rows[name].tolist() for name in ("conversation", "repeat", "turn", "passed"))
    return {
        (str(conversation), int(repeat), int(turn)): passed == 1
        for conversation, repeat, turn, passed in zip(*columns, strict=True)
        if not math.isnan(passed)
    }
