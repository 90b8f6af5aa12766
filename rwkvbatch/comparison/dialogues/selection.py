"""Selection of a run's dialogues, and the changes of dialogues between a baseline and a variant."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from rwkvbatch.comparison.metrics.declarations import TURN_METRICS, Metric
from rwkvbatch.comparison.pairing.matching import MatchedRows
from rwkvbatch.comparison.runs.data import RunData
from rwkvbatch.comparison.runs.loading import system_messages
from rwkvbatch.comparison.wording import number
from rwkvbatch.errors import UsageError, listed
from rwkvbatch.results.manifest import system_of

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

SHOWN_METRICS = ("score", "nll", "tokens", "logprob", "loop", "first_token_s")
"""The metrics that are printed under each reply of a dialogue."""

_TURN_CONTENT = ("prompt", "reply", "finish_reason", "error", "reference", "choices", "checks")
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
_MAX_WORDS = 4000


@dataclass(frozen=True)
class Dialogue:
    """One conversation in one cell and repeat, with its turns as records (see `turn_record`).

    `system` is None if there is no system message, or if the run does not contain it.
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
    """The selected dialogues of `run`, in the order of the cells, then of the rows.

    Args:
        conversations: ids or tags, or patterns of them with `*` and `?`; empty for all.
        cells: the same for cells.
        failed_only: select only dialogues with an error or a failed check.

    Raises:
        UsageError: the run has no such conversation, tag, cell, repeat or turn.
    """
    names_by_tag: dict[str, list[str]] = {}
    for name, tags in zip(run.rows["conversation"], run.rows["tags"], strict=True) if conversations else ():
        for tag in tags:
            names_by_tag.setdefault(tag, []).append(name)
    selected_names = _selected("conversation", conversations, run.conversations, names_by_tag)
    selected_cells = _selected("--cell", cells, [*run.facts.cells, *run.cells])
    rows = run.rows.loc[run.rows["conversation"].isin(selected_names) & run.rows["cell"].isin(selected_cells)]
    for column, place in (("repeat", repeat), ("turn", turn)):
        if place is not None:
            rows = _rows_with(rows, column, place)
    groups: dict[tuple[str, str, int], list[dict[Any, Any]]] = {}
    for row in rows.sort_values("turn", kind="stable").to_dict("records"):
        groups.setdefault((row["conversation"], row["cell"], row["repeat"]), []).append(row)
    systems, settings = system_messages(run) or {}, run.facts.cells
    selected = [
        Dialogue(
            name,
            cell,
            number,
            tags=tuple(turns[0]["tags"]),
            turns=tuple(map(turn_record, turns)),
            system=system_of(settings.get(cell, {}), systems.get(name)),
        )
        for (name, cell, number), turns in groups.items()
        if not failed_only or any(map(_failed, turns))
    ]
    order = {name: position for position, name in enumerate(selected_names)}
    return sorted(
        selected,
        key=lambda dialogue: (selected_cells.index(dialogue.cell), order[dialogue.conversation], dialogue.repeat),
    )


def _rows_with(rows: pd.DataFrame, column: str, number: int) -> pd.DataFrame:
    """The rows with `number` in `column`; raises `UsageError` if there is none."""
    selected = rows.loc[rows[column] == number]
    if len(rows) and not len(selected):
        last = max(rows[column].tolist())
        allowed = f"in 0 to {last}" if last else "0"
        raise UsageError(f"--{column} must be {allowed} for this selection, got {number}")
    return selected


def check_name(check: Mapping[str, Any]) -> str:
    """A check of a `turn_record` in words: its kind and what it expects.

    Results of other programs do not say what they expect; they have their score in its place, unless it is 0 or 1.
    """
    if check["expected"] is not None:
        return f"{check['kind']} {check['expected']!r}"
    score = check["score"]
    return check["kind"] if score in (None, 0, 1) else f"{check['kind']} {_exact_enough(f'{score:.3g}', score)}"


def turn_value(metric: Metric, value: float) -> str:
    """The value of a metric in one turn, with fewer decimals than a mean: an integer for tokens, at most 2 for others.

    A share or score between 0 and 1 is never shown as 0 or 1.
    """
    text = number(value, 0 if metric.unit == "tokens" else min(metric.digits, 2))
    return _exact_enough(text, value) if metric.widest == 1 else text


def _exact_enough(text: str, value: float) -> str:
    """`text`, or `value` with more digits if it is between 0 and 1 and `text` is 0 or 1."""
    if not 0 < value < 1 or float(text) not in (0, 1):
        return text
    return f"{value:.1g}" if value < 0.5 else f"{value:.{math.ceil(-math.log10(1 - value))}f}".rstrip("0")


def turn_record(row: Mapping[Any, Any], side: str = "") -> dict[str, Any]:
    """One turn as JSON values; `metrics` has only those with a value.

    `probe_after` is the turn of the dialogue after which a probe was asked; None for turns of the dialogue.

    Args:
        side: suffix of the columns of one side of matched rows.
    """
    values = {metric.name: row[f"{metric.name}{side}"] for metric in TURN_METRICS}
    probe_after = row.get(f"probe_after{side}", math.nan)
    return {
        "turn": row["turn"],
        "probe_after": None if math.isnan(probe_after) else int(probe_after),
        **{name: row[f"{name}{side}"] for name in _TURN_CONTENT},
        "metrics": {name: value for name, value in values.items() if not math.isnan(value)},
    }


def _failed(row: dict[Any, Any]) -> bool:
    return row["finish_reason"] == "error" or any(check["passed"] is False for check in row["checks"])


def _selected(
    option: str, patterns: Sequence[str], known: Sequence[str], names_by_tag: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """The known names that match a pattern, all of them without patterns.

    A pattern that matches no name selects the names with a tag that matches it.

    Raises:
        UsageError: a pattern matches neither a name nor a tag.
    """
    names = list(dict.fromkeys(known))
    if not patterns:
        return names
    selected: list[str] = []
    for pattern in patterns:
        matches = [name for name in names if _matches(name, pattern)] or [
            name for tag, tagged in (names_by_tag or {}).items() if _matches(tag, pattern) for name in tagged
        ]
        if not matches:
            raise UsageError(f"{option}: the run has none called {pattern!r}", hint=f"known: {listed(names)}")
        selected.extend(matches)
    return list(dict.fromkeys(selected))


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


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


def _size(value: float) -> float:
    return 0.0 if math.isnan(value) else abs(value)
