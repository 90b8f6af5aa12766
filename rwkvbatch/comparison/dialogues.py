"""Dialogues of a run, and how dialogues differ between a baseline and a variant."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from rwkvbatch.comparison.loading import RunData, system_messages
from rwkvbatch.comparison.matching import MatchedRows
from rwkvbatch.comparison.metrics import TURN_METRICS
from rwkvbatch.errors import UsageError
from rwkvbatch.results.manifest import system_of

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

SHOWN_METRICS = ("score", "nll", "tokens", "logprob", "loop", "first_token_s")
"""The metrics under each reply of a printed dialogue."""

_TURN_TEXTS = ("prompt", "reply", "finish_reason", "error", "reference", "checks")
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_MAX_WORDS = 4000


@dataclass(frozen=True)
class Dialogue:
    """One conversation in one cell and repeat, with its turns as records (see `turn_record`).

    `system` is None without a system message, and where the run does not have it.
    """

    conversation: str
    cell: str
    repeat: int
    tags: tuple[str, ...]
    turns: tuple[dict[str, Any], ...]
    system: str | None = None

    def as_record(self) -> dict[str, Any]:
        return {**vars(self), "tags": list(self.tags), "turns": list(self.turns)}


def dialogues(
    run: RunData,
    *,
    conversations: Sequence[str] = (),
    cells: Sequence[str] = (),
    repeat: int | None = None,
    turn: int | None = None,
    failed_only: bool = False,
) -> list[Dialogue]:
    """Selects dialogues of `run`, in the order of the cells, then of the rows.

    Args:
        conversations: ids or tags, or patterns of them with `*` and `?`; empty for all. cells: the same for cells.
        failed_only: only dialogues with an error or a failed check.

    Raises:
        UsageError: the run has no such conversation, tag, cell, repeat or turn.
    """
    tags: dict[str, list[str]] = {}
    for name, own in zip(run.rows["conversation"], run.rows["tags"], strict=True) if conversations else ():
        for tag in own:
            tags.setdefault(tag, []).append(name)
    names = _chosen("conversation", conversations, run.conversations, tags)
    wanted_cells = _chosen("--cell", cells, [*run.facts.cells, *run.cells])
    rows = run.rows.loc[run.rows["conversation"].isin(names) & run.rows["cell"].isin(wanted_cells)]
    for name, wanted in (("repeat", repeat), ("turn", turn)):
        if wanted is not None:
            rows = _only(rows, name, wanted)
    groups: dict[tuple[str, str, int], list[dict[Any, Any]]] = {}
    for row in rows.sort_values("turn", kind="stable").to_dict("records"):
        groups.setdefault((row["conversation"], row["cell"], row["repeat"]), []).append(row)
    systems, settings = system_messages(run) or {}, run.facts.cells
    found = [
        Dialogue(
            name,
            cell,
            number,
            tuple(own[0]["tags"]),
            tuple(map(turn_record, own)),
            system_of(settings.get(cell, {}), systems.get(name)),
        )
        for (name, cell, number), own in groups.items()
        if not failed_only or any(_failed(row) for row in own)
    ]
    order = {name: position for position, name in enumerate(names)}
    return sorted(found, key=lambda d: (wanted_cells.index(d.cell), order[d.conversation], d.repeat))


def _only(rows: pd.DataFrame, column: str, wanted: int) -> pd.DataFrame:
    found = rows.loc[rows[column] == wanted]
    if len(rows) and not len(found):
        last = max(rows[column].tolist())
        allowed = f"in 0 to {last}" if last else "0"
        raise UsageError(f"--{column} must be {allowed} for this selection, got {wanted}")
    return found


def turn_record(row: Mapping[Any, Any], side: str = "") -> dict[str, Any]:
    """One turn as JSON values; `metrics` has only those that are known.

    Args:
        side: the suffix of the columns of one side of matched rows.
    """
    numbers = {metric.name: row[f"{metric.name}{side}"] for metric in TURN_METRICS}
    return {
        "turn": row["turn"],
        **{name: row[f"{name}{side}"] for name in _TURN_TEXTS},
        "metrics": {name: value for name, value in numbers.items() if not math.isnan(value)},
    }


def _failed(row: dict[Any, Any]) -> bool:
    return row["finish_reason"] == "error" or any(check["passed"] is False for check in row["checks"])


def _chosen(
    what: str, patterns: Sequence[str], known: Sequence[str], tags: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """The names that match; a pattern of none of them may match a tag, and stands for the names that have it."""
    names = list(dict.fromkeys(known))
    if not patterns:
        return names
    chosen: list[str] = []
    for pattern in patterns:
        found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
        if not found:
            found = [
                name for tag in tags or () if tag == pattern or fnmatchcase(tag, pattern) for name in (tags or {})[tag]
            ]
        if not found:
            some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise UsageError(f"{what}: the run has none called {pattern!r}", hint=f"known: {some}")
        chosen.extend(found)
    return list(dict.fromkeys(chosen))


@dataclass(frozen=True)
class Piece:
    """A span of text: in both texts (`same`), only in the first (`gone`) or only in the second (`new`)."""

    kind: Literal["same", "gone", "new"]
    text: str


def word_diff(before: str, after: str) -> list[Piece]:
    """The word diff of two texts: `same` and `gone` pieces make `before`, `same` and `new` ones make `after`.

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
    """Makes white space between two changes a part of them."""
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
        """The size of the difference in score; 0 where a side has none."""
        return _size(self.variant["metrics"].get("score", math.nan) - self.baseline["metrics"].get("score", math.nan))


@dataclass(frozen=True)
class ConversationChange:
    """The changes of a conversation over all its matched turns and repeats.

    `score` and `nll` are mean differences (NaN where unknown), `replies_changed` is the share of replies whose text
    differs.
    """

    conversation: str
    score: float
    nll: float
    replies_changed: float
    num_turns: int


def most_changed(matched: MatchedRows) -> list[ConversationChange]:
    """All conversations of a pair, by the size of the difference in score, then in nll, then by changed replies."""
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
        .agg(score=("score", "mean"), nll=("nll", "mean"), changed=("changed", "mean"), turns=("changed", "size"))
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
    return [
        TurnChange(int(row["repeat"]), turn_record(row, "_a"), turn_record(row, "_b")) for row in own.to_dict("records")
    ]


def most_changed_turn(turns: Sequence[TurnChange]) -> TurnChange | None:
    """The turn with the largest difference in score among those whose replies differ; the first of equals."""
    differing = [turn for turn in turns if turn.baseline["reply"] != turn.variant["reply"]]
    return max(differing, key=lambda turn: turn.score, default=None)


def _size(value: float) -> float:
    return 0.0 if math.isnan(value) else abs(value)
