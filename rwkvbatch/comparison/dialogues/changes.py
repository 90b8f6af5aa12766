"""The changes of dialogues between a baseline and a variant: which changed most, and word by word."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

from rwkvbatch.comparison.dialogues.selection import turn_record
from rwkvbatch.comparison.pairing.matching import MatchedRows

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_MAX_WORDS = 4000


@dataclass(frozen=True)
class Piece:
    """A span of a diff that is in both texts (`same`), only in the first (`gone`) or only in the second (`new`)."""

    kind: Literal["same", "gone", "new"]
    text: str


def word_diff(before: str, after: str) -> list[Piece]:
    """The word diff of two texts: the `same` and `gone` pieces spell `before`, the `same` and `new` pieces `after`.

    Texts of more than 4,000 words are not aligned: the diff is one `gone` and one `new` piece.
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
    """Merge two changes that only white space separates."""
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


@dataclass(frozen=True)
class TurnChange:
    """One matched turn of a conversation: the records of both sides (see `turn_record`)."""

    repeat: int
    baseline: Mapping[str, Any]
    variant: Mapping[str, Any]

    @property
    def pieces(self) -> list[Piece]:
        """The word diff of the replies."""
        return word_diff(self.baseline["reply"], self.variant["reply"])

    @property
    def score(self) -> float:
        """The absolute difference in score; 0 if a side has no score."""
        return _size(self.variant["metrics"].get("score", math.nan) - self.baseline["metrics"].get("score", math.nan))


@dataclass(frozen=True)
class ConversationChange:
    """The changes of a conversation over all its matched turns and repeats.

    Attributes:
        score, nll: mean differences, NaN where unknown.
        replies_changed: share of replies whose text differs.
    """

    conversation: str
    score: float
    nll: float
    replies_changed: float
    num_turns: int


def most_changed(matched: MatchedRows) -> list[ConversationChange]:
    """All conversations of a pair, sorted by the absolute difference in score, then in nll, then by changed replies."""
    rows = matched.columns
    if not len(rows):
        return []
    import pandas as pd

    by_conversation: Any = pd.DataFrame(
        {
            "conversation": rows["conversation"],
            "score": rows["score_b"] - rows["score_a"],
            "nll": rows["nll_b"] - rows["nll_a"],
            "changed": (rows["reply_a"] != rows["reply_b"]).astype(float),
        }
    ).groupby("conversation", sort=False)
    means, num_turns = by_conversation[["score", "nll", "changed"]].mean(), by_conversation.size()
    changes = [
        ConversationChange(str(name), score, nll, changed, turns)
        for name, (score, nll, changed), turns in zip(
            means.index, means.to_numpy().tolist(), num_turns.tolist(), strict=True
        )
    ]
    return sorted(changes, key=lambda change: (-_size(change.score), -_size(change.nll), -change.replies_changed))


def turn_changes(matched: MatchedRows, conversation: str) -> list[TurnChange]:
    """The matched turns of one conversation, by repeat and turn."""
    rows = matched.rows
    rows = rows.loc[rows["conversation"] == conversation].sort_values(["repeat", "turn"])
    return [
        TurnChange(int(row["repeat"]), turn_record(row, "_a"), turn_record(row, "_b"))
        for row in rows.to_dict("records")
    ]


def most_changed_turn(turns: Sequence[TurnChange]) -> TurnChange | None:
    """The first turn with the largest difference in score among those whose replies differ."""
    differing = [turn for turn in turns if turn.baseline["reply"] != turn.variant["reply"]]
    return max(differing, key=lambda turn: turn.score, default=None)


def changed_turns(matched: MatchedRows, number: int) -> list[tuple[ConversationChange, TurnChange]]:
    """The `number` most changed conversations of a pair whose replies differ, each with its most changed turn."""
    changed = [change for change in most_changed(matched) if change.replies_changed > 0][:number]
    turns = ((change, most_changed_turn(turn_changes(matched, change.conversation))) for change in changed)
    return [(change, turn) for change, turn in turns if turn is not None]


def _size(value: float) -> float:
    return 0.0 if math.isnan(value) else abs(value)
