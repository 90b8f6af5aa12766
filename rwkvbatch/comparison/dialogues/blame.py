"""The turn at which a dialogue went wrong: the first that fails after the model's own history but not after gold.

Two cells replay every turn: one with `--history own`, and one with `--history gold` whose other settings are the same.
A turn that fails after both histories is too hard by itself. A turn that fails only after the model's own history fails
because of the model's earlier replies.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rwkvbatch.comparison.runs.data import RunData, Variant
from rwkvbatch.comparison.values.columns import rows_of
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
    """A dialogue that failed after the model's own history.

    Attributes:
        failed: the first turn with a failed check.
        cause: why the dialogue failed.
        turn: the first turn that fails after the own history and passes after gold; None if there is none.
        num_failed: number of failed turns.
        after_gold: number of those that fail after the gold history too.
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
    """The failed dialogues of a cell with `--history own`, compared with its counterpart with `--history gold`.

    Attributes:
        num_dialogues: number of repeats of conversations with checks that both cells have.
        dialogues: the failed ones.
    """

    own: Variant
    gold: Variant
    num_dialogues: int
    dialogues: tuple[BlamedDialogue, ...]

    @property
    def by_turn(self) -> dict[int, int]:
        """The number of dialogues that went wrong at each turn, ascending."""
        turns = Counter(dialogue.turn for dialogue in self.dialogues if dialogue.turn is not None)
        return dict(sorted(turns.items()))

    @property
    def sentence(self) -> str:
        """The number of failed dialogues by cause."""
        causes = Counter(dialogue.cause for dialogue in self.dialogues)
        parts = [f"{causes[cause]:,} {words}" for cause, words in CAUSES.items() if causes[cause]]
        head = f"{self.own.label}: {len(self.dialogues):,} of {self.num_dialogues:,} dialogues failed"
        return head + (f": {'; '.join(parts)}" if parts else "")

    def as_dict(self) -> dict[str, Any]:
        return {
            "own": self.own.label,
            "gold": self.gold.label,
            "num_dialogues": self.num_dialogues,
            "by_turn": [{"turn": turn, "dialogues": count} for turn, count in self.by_turn.items()],
            "dialogues": [vars(dialogue) for dialogue in self.dialogues],
        }


def blame(variants: Sequence[Variant], runs: Sequence[RunData], table: pd.DataFrame) -> tuple[Blame, ...]:
    """Compare every cell with `--history own` with its counterpart with `--history gold`.

    Args:
        table: all rows of all runs (`comparable_rows`).

    Raises:
        UsageError: no cell has a counterpart, or no such pair of cells has turns with checks in common.
    """
    cells_of = {run.name: run.facts.cells for run in runs}
    settings = {variant: cells_of[variant.run].get(variant.cell, {}) for variant in variants}
    gold = {
        _without_history(values): variant for variant, values in settings.items() if values.get("history") == "gold"
    }
    pairs = [
        (variant, gold[_without_history(values)])
        for variant, values in settings.items()
        if values.get("history") == "own" and _without_history(values) in gold
    ]
    if not pairs:
        raise UsageError(
            "--blame compares the same turns after the model's own history and after the script's replies, and there "
            "are no two cells that differ only in --history",
            hint="give the run's command again with `--history own,gold`, which keeps the existing rows; or give "
            "a run with each",
        )
    blames = tuple(_blame(own_cell, gold_cell, table) for own_cell, gold_cell in pairs)
    if not any(pair_blame.num_dialogues for pair_blame in blames):
        raise UsageError("--blame needs turns with checks that both histories have, and there are none")
    return blames


def _without_history(settings: Mapping[str, Any]) -> str:
    """A key that is equal for cells that differ only in `history`."""
    return json.dumps({key: value for key, value in settings.items() if key != "history"}, sort_keys=True, default=str)


def _blame(own: Variant, gold: Variant, table: pd.DataFrame) -> Blame:
    passed_own, passed_gold = _passed(own, table), _passed(gold, table)
    dialogues: dict[tuple[str, int], dict[int, bool]] = {}
    for (conversation, repeat, turn), passed in passed_own.items():
        dialogues.setdefault((conversation, repeat), {})[turn] = passed
    in_gold = {(conversation, repeat) for conversation, repeat, _ in passed_gold}
    blamed: list[BlamedDialogue] = []
    for (conversation, repeat), turns in dialogues.items():
        failed = sorted(turn for turn, passed in turns.items() if not passed)
        if not failed or (conversation, repeat) not in in_gold:
            continue
        gold_results = [passed_gold.get((conversation, repeat, turn)) for turn in failed]
        turn = next((turn for turn, passed in zip(failed, gold_results, strict=True) if passed), None)
        # A failed turn before `turn` that has no result after the gold history could be the true one.
        cause: Cause = "turn" if turn is None else "history"
        if None in (gold_results if turn is None else gold_results[: failed.index(turn)]):
            cause, turn = "unknown", None
        num_failed_after_gold = gold_results.count(False)
        blamed.append(BlamedDialogue(conversation, repeat, failed[0], turn, cause, len(failed), num_failed_after_gold))
    return Blame(own, gold, len(dialogues.keys() & in_gold), tuple(blamed))


def _passed(variant: Variant, table: pd.DataFrame) -> dict[tuple[str, int, int], bool]:
    """Whether each turn with checks passed all of them; without probes, because later turns do not see them."""
    rows = rows_of(table, variant)
    rows = rows.loc[rows["probe_turns"].isna()]
    columns = (rows[name].tolist() for name in ("conversation", "repeat", "turn", "passed"))
    return {
        (str(conversation), int(repeat), int(turn)): passed == 1
        for conversation, repeat, turn, passed in zip(*columns, strict=True)
        if not math.isnan(passed)
    }
