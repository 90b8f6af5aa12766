"""Which conversations changed most between a baseline and a variant."""

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rwkvbatch.compare.diffs import Piece, word_diff
from rwkvbatch.compare.paired import MatchedRows


@dataclass(frozen=True)
class TurnChange:
    """One matched turn: both replies, what differs, and the numbers (NaN where a side has none)."""

    repeat: int
    turn: int
    prompt: str
    baseline_reply: str
    variant_reply: str
    baseline_score: float
    variant_score: float
    baseline_nll: float
    variant_nll: float

    @property
    def pieces(self) -> list[Piece]:
        return word_diff(self.baseline_reply, self.variant_reply)


@dataclass(frozen=True)
class ConversationChange:
    """A conversation, over all its matched turns and repeats.

    `score` and `nll` are mean differences (NaN where unknown), `replies_changed` the share of replies that
    are not the same text.
    """

    conversation: str
    score: float
    nll: float
    replies_changed: float
    num_turns: int


def most_changed(matched: MatchedRows) -> list[ConversationChange]:
    """All conversations of a pair: by size of the score's difference, then the nll's, then by replies changed."""
    rows = matched.rows
    if not len(rows):
        return []
    import pandas as pd

    by_conversation = (
        pd.DataFrame(
            {
                "conversation": rows["conversation"],
                "score": rows["score_b"] - rows["score_a"],
                "nll": rows["nll_b"] - rows["nll_a"],
                "changed": (rows["reply_a"] != rows["reply_b"]).astype(float),
            }
        )
        .groupby("conversation", sort=False)
        .agg(
            score=("score", "mean"),
            nll=("nll", "mean"),
            changed=("changed", "mean"),
            turns=("changed", "size"),
        )
    )
    changes = [
        ConversationChange(str(name), float(score), float(nll), float(changed), int(turns))
        for name, score, nll, changed, turns in by_conversation.itertuples()
    ]
    return sorted(
        changes, key=lambda change: (-_size(change.score), -_size(change.nll), -change.replies_changed)
    )


def turn_changes(matched: MatchedRows, conversation: str) -> list[TurnChange]:
    """The matched turns of one conversation, by repeat and turn."""
    rows = matched.rows
    own = rows.loc[rows["conversation"] == conversation].sort_values(["repeat", "turn"])
    return [_turn_change(row) for row in own.to_dict("records")]


def telling_turn(turns: list[TurnChange]) -> TurnChange | None:
    """The turn that shows best what changed: the largest difference in score, then the first other reply."""
    differing = [turn for turn in turns if turn.baseline_reply != turn.variant_reply]
    if not differing:
        return None
    return max(
        differing,
        key=lambda turn: (_size(turn.variant_score - turn.baseline_score), -turn.repeat, -turn.turn),
    )


def _turn_change(row: Mapping[Any, Any]) -> TurnChange:
    return TurnChange(
        int(row["repeat"]), int(row["turn"]), str(row["prompt_a"]), str(row["reply_a"]), str(row["reply_b"]),
        float(row["score_a"]), float(row["score_b"]), float(row["nll_a"]), float(row["nll_b"]),
    )  # fmt: skip


def _size(value: float) -> float:
    return 0.0 if math.isnan(value) else abs(value)
