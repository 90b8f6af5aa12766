"""Which conversations changed most between a baseline and a variant."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

from rwkvbatch.comparison.paired import MatchedRows

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_MAX_WORDS = 4000


@dataclass(frozen=True)
class Piece:
    """A run of text that both have (`same`), or only the first (`gone`) or the second (`new`)."""

    kind: Literal["same", "gone", "new"]
    text: str


def word_diff(before: str, after: str) -> list[Piece]:
    """The pieces that make `before` (same and gone) and `after` (same and new), in reading order.

    Texts of more than 4000 words are not searched: they come as one `gone` and one `new` piece.
    """
    if before == after:
        return [Piece("same", before)] if before else []
    first, second = _WORDS.findall(before), _WORDS.findall(after)
    if max(len(first), len(second)) > _MAX_WORDS:
        return [Piece("gone", before), Piece("new", after)]
    return list(_joined(_pieces(first, second)))


def _pieces(first: list[str], second: list[str]) -> Iterator[Piece]:
    for kind, a_from, a_to, b_from, b_to in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if kind == "equal":
            yield Piece("same", "".join(first[a_from:a_to]))
            continue
        if a_to > a_from:
            yield Piece("gone", "".join(first[a_from:a_to]))
        if b_to > b_from:
            yield Piece("new", "".join(second[b_from:b_to]))


def _joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """A lone space between two changes reads better as part of them."""
    gone, new = "", ""
    for piece in pieces:
        if piece.kind == "gone":
            gone += piece.text
        elif piece.kind == "new":
            new += piece.text
        elif piece.text.isspace() and (gone or new):
            gone, new = gone + piece.text, new + piece.text
        else:
            yield from _flushed(gone, new)
            gone, new = "", ""
            yield piece
    yield from _flushed(gone, new)


def _flushed(gone: str, new: str) -> Iterator[Piece]:
    if (gone and not gone.isspace()) or gone != new:
        if gone:
            yield Piece("gone", gone)
        if new:
            yield Piece("new", new)
    elif gone:
        yield Piece("same", gone)


# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


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
    return sorted(changes, key=lambda change: (-_size(change.score), -_size(change.nll), -change.replies_changed))


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
