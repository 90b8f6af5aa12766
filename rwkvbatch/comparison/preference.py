"""`preference`: which of two matched replies a judge finds better, as a metric of pairs.

Each pair of replies is shown in both orders. A win counts 1, a tie one half and a loss 0, so the mean of a variant is
its share of wins with ties as halves, and the difference to its baseline is wins minus losses over all pairs. It is
tested as the other metrics are, by conversation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rwkvbatch.comparison.gates import Gate
from rwkvbatch.comparison.loading import RunData
from rwkvbatch.comparison.matching import MatchedRows, rows_of
from rwkvbatch.comparison.metrics import metric_named
from rwkvbatch.comparison.pairing import Pair, Variant
from rwkvbatch.errors import UsageError, counted
from rwkvbatch.judges.pairs import PairOutcome, SidesOf
from rwkvbatch.judges.questions import Exchange, Side
from rwkvbatch.results.row import SCORED
from rwkvbatch.script.checks.text import answer
from rwkvbatch.script.records import ReplyFacts

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

PREFERENCE = "preference"


class JudgesPairs(Protocol):
    """Says which of two replies is better, see `judges.pairs.PairJudge`."""

    @property
    def name(self) -> str: ...
    @property
    def criterion(self) -> str: ...
    def settle(self, sides: SidesOf, /) -> bool: ...
    def outcome(self, one: Side, other: Side, /) -> PairOutcome: ...


@dataclass(frozen=True)
class Preferences:
    """What a judge said about the replies of a variant and its baseline.

    Attributes:
        pairs: matched turns with a reply or an error. wins, ties, losses: of the variant, over turns.
        equal: of the ties, pairs of equal replies, which nobody was asked about.
        errors: pairs in which a side ended in an error: it loses to a reply, and two errors tie.
        judged: pairs that were answered in both orders. disagreements: of these, other winners in the two orders.
        first: of the disagreements, those in which the reply shown first won both times.
        missing: pairs without an answer in both orders. reason: of the first of them.
    """

    baseline: str
    variant: str
    judge: str
    criterion: str
    pairs: int
    wins: int
    ties: int
    losses: int
    equal: int
    errors: int
    judged: int
    disagreements: int
    first: int
    missing: int
    reason: str = ""

    @property
    def sentence(self) -> str:
        """The counts and the position bias, in words."""
        text = (
            f"{self.variant} against {self.baseline}, judged by {self.judge}: {self.wins:,} wins, {self.ties:,} ties "
            f"({self.equal:,} equal replies), {self.losses:,} losses of {counted(self.pairs, 'pair')}"
        )
        if self.judged:
            share, second = self.disagreements / self.judged, self.disagreements - self.first
            text += (
                f"; position bias: the two orders disagree on {self.disagreements:,} of {self.judged:,} ({share:.0%}), "
                f"{self.first:,} times for the reply shown first, {second:,} for the second"
            )
        if self.missing:
            text += f"; {counted(self.missing, 'pair')} without a verdict, the first because: {self.reason}"
        return text

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def with_preference(
    matched: Sequence[MatchedRows], judge: JudgesPairs, table: pd.DataFrame, runs: Sequence[RunData]
) -> tuple[list[MatchedRows], list[Preferences]]:
    """The matched rows with the columns `preference_a` and `preference_b`, and the counts of each pair.

    Args:
        table: all rows of all runs (`comparable_rows`), for the dialogues before the replies.
    """
    gold = {(run.name, name) for run in runs for name, cell in run.facts.cells.items() if cell.get("history") == "gold"}
    dialogues: dict[Variant, _Dialogues] = {}
    for each in matched:
        for side in (each.pair.baseline, each.pair.variant):
            if side not in dialogues:
                dialogues[side] = _Dialogues(rows_of(table, side), is_gold=(side.run, side.cell) in gold)

    def sides() -> Iterator[tuple[Side, Side]]:
        for each in matched:
            for entry in _entries(each, dialogues):
                if isinstance(entry, tuple):
                    yield entry

    judge.settle(sides)
    found = [_judged(each, list(_entries(each, dialogues)), judge) for each in matched]
    return [rows for rows, _ in found], [counts for _, counts in found]


def _entries(matched: MatchedRows, dialogues: Mapping[Variant, _Dialogues]) -> Iterator[tuple[Side, Side] | float]:
    """What to compare in each matched row; a value where that is known without a judge, NaN where there is no reply."""
    columns = ("conversation", "repeat", "turn", "finish_reason_a", "finish_reason_b")
    a, b = dialogues[matched.pair.baseline], dialogues[matched.pair.variant]
    for *place, one, other in zip(*(matched.rows[name].tolist() for name in columns), strict=True):
        if SCORED in (one, other):
            yield math.nan
        elif "error" in (one, other):
            yield 0.5 if one == other else float(one == "error")
        else:
            conversation, repeat, turn = place
            yield a.side(conversation, repeat, turn), b.side(conversation, repeat, turn)


def _judged(
    matched: MatchedRows, entries: Sequence[tuple[Side, Side] | float], judge: JudgesPairs
) -> tuple[MatchedRows, Preferences]:
    values = np.full(len(entries), math.nan)
    counts: Counter[str] = Counter()
    reason = ""
    for place, entry in enumerate(entries):
        if isinstance(entry, tuple):
            outcome = judge.outcome(*entry)
            counts["equal"] += not outcome.asked
            counts["judged"] += outcome.asked and outcome.value is not None
            counts["missing"] += outcome.value is None
            reason = reason or outcome.reason
        else:
            outcome = PairOutcome(None if math.isnan(entry) else entry, asked=False)
            counts["errors"] += outcome.value is not None
        counts["disagreements"] += outcome.disagrees
        counts["first"] += outcome.disagrees and outcome.first
        if outcome.value is not None:
            values[place] = outcome.value
            counts[{1.0: "wins", 0.5: "ties", 0.0: "losses"}[outcome.value]] += 1
    pair: Pair = matched.pair
    names = ("wins", "ties", "losses", "equal", "errors", "judged", "disagreements", "first", "missing")
    rows = matched.rows.assign(**{f"{PREFERENCE}_a": 1.0 - values, f"{PREFERENCE}_b": values})
    pairs = int(np.count_nonzero(~np.isnan(values))) + counts["missing"]
    numbers = {name: counts[name] for name in names}
    found = Preferences(
        pair.baseline.label, pair.variant.label, judge.name, judge.criterion, pairs, reason=reason, **numbers
    )
    return replace(matched, rows=rows), found


class _Dialogues:
    """The turns of one variant, with the dialogue that its model saw before each."""

    def __init__(self, rows: pd.DataFrame, *, is_gold: bool) -> None:
        columns = ("conversation", "repeat", "turn", "prompt", "reply", "finish_reason", "reference", "probe_after")
        self._is_gold = is_gold
        self._turns: dict[tuple[str, int], dict[int, tuple[Any, ...]]] = {}
        for conversation, repeat, turn, *rest in zip(*(rows[name].tolist() for name in columns), strict=True):
            self._turns.setdefault((conversation, repeat), {})[turn] = tuple(rest)

    def side(self, conversation: str, repeat: int, turn: int) -> Side:
        turns = self._turns[conversation, repeat]
        prompt, reply, reason, _, after = turns[turn]
        last = turn if math.isnan(after) else int(after) + 1
        before: list[Exchange] = []
        for number in sorted(turns):
            user, said, ended, reference, probe = turns[number]
            if number < last and math.isnan(probe):
                given = reference if self._is_gold and reference is not None else _answer(said, ended)
                before.append(Exchange(user, given))
        return Side(tuple(before), prompt, _answer(reply, reason))


def _answer(reply: str, reason: str) -> str:
    return answer(ReplyFacts(reply, reason, 0))


def missing_in(rows: pd.DataFrame) -> int:
    """The matched replies of which the judge gave no verdict; 0 where it was not asked."""
    if f"{PREFERENCE}_b" not in rows:
        return 0
    scored = (rows["finish_reason_a"] == SCORED) | (rows["finish_reason_b"] == SCORED)
    return int(np.count_nonzero(rows[f"{PREFERENCE}_b"].isna() & ~scored))


def refuse_without_judge(names: Iterable[str | None], gates: Sequence[Gate]) -> None:
    """Raise `UsageError` where a metric of a judge is named, and there is none."""
    named = [name for name in names if name is not None] + [value.metric for gate in gates for value in gate.values]
    if any(metric_named(name).level == "pair" for name in named):
        raise UsageError(
            f"{PREFERENCE} is what a judge says about pairs of replies, and none is given",
            hint="add --judge FILE, or --judge-url URL",
        )


def judge_notes(pairs: Sequence[Pair], table: pd.DataFrame) -> list[str]:
    """Notes on variants whose checks were judged by other judges than those of their baselines."""
    if not bool(table["judge"].notna().any()):
        return []
    judges = {
        side: sorted(set(rows_of(table, side)["judge"].dropna().tolist()))
        for pair in pairs
        for side in (pair.baseline, pair.variant)
    }
    notes: list[str] = []
    for pair in pairs:
        a, b = judges[pair.baseline], judges[pair.variant]
        if a and b and (a != b or len(a) > 1):
            notes.append(
                f"checks were judged by different judges ({pair.baseline.label}: {', '.join(a)}; "
                f"{pair.variant.label}: {', '.join(b)}): `rwkvbatch check RUN --judge` asks one for both"
            )
    return notes
