"""The metric `preference`: which of two matched replies a judge prefers.

The judge sees each pair of replies in both orders. A win counts 1, a tie 0.5 and a loss 0, so the mean of a variant is
its share of wins plus half its share of ties, and the difference from its baseline is the share of wins minus that of
losses. The difference is tested by conversation, like those of other metrics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from rwkvbatch.comparison.pairing.matching import MatchedRows
from rwkvbatch.comparison.pairing.pairs import Pair
from rwkvbatch.comparison.runs.data import RunData, Variant
from rwkvbatch.comparison.values.columns import rows_of
from rwkvbatch.errors import counted
from rwkvbatch.judges.pairs import PairOutcome, SidesOf
from rwkvbatch.judges.questions import Exchange, Side
from rwkvbatch.results.row import SCORED
from rwkvbatch.results.summary import percentage
from rwkvbatch.script.checks.text import answer_of

if TYPE_CHECKING:
    import pandas as pd

    from rwkvbatch.comparison.values.columns import Columns

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

PREFERENCE = "preference"


@runtime_checkable
class JudgesPairs(Protocol):
    """A judge of pairs of replies, see `judges.pairs.PairJudge`."""

    @property
    def name(self) -> str: ...
    @property
    def criterion(self) -> str: ...
    def ask_missing(self, sides: SidesOf, /) -> bool: ...
    def outcome(self, one: Side, other: Side, /) -> PairOutcome: ...


@dataclass(frozen=True)
class Preferences:
    """Counts of a judge's verdicts on the replies of a variant and its baseline.

    Attributes:
        pairs: matched turns in which each side has a reply or an error.
        wins, ties, losses: the variant's outcomes.
        equal: ties because the replies are equal; the judge is not asked about these.
        errors: pairs in which a side ended in an error. An error loses to a reply; two errors tie.
        judged: pairs with a verdict in both orders.
        disagreements: judged pairs whose two orders have different winners.
        first: disagreements in which the reply shown first won both times.
        missing: pairs that lack a verdict in one of the orders.
        reason: why the first of them lacks it.
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
        """The counts and the position bias as a sentence."""
        text = (
            f"{self.variant} against {self.baseline}, judged by {self.judge}: {self.wins:,} wins, {self.ties:,} ties "
            f"({self.equal:,} equal replies), {self.losses:,} losses of {counted(self.pairs, 'pair')}"
        )
        if self.judged:
            share, second = percentage(self.disagreements, self.judged), self.disagreements - self.first
            text += (
                f"; position bias: the two orders disagree on {self.disagreements:,} of {self.judged:,} ({share}), "
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
        table: all rows of all runs (`comparable_rows`); it has the dialogues before the replies.
    """
    gold = {(run.name, name) for run in runs for name, cell in run.facts.cells.items() if cell.get("history") == "gold"}
    dialogues: dict[Variant, _Dialogues] = {}
    for pair_rows in matched:
        for side in (pair_rows.pair.baseline, pair_rows.pair.variant):
            if side not in dialogues:
                dialogues[side] = _Dialogues(rows_of(table, side), is_gold=(side.run, side.cell) in gold)

    def replies_to_judge() -> Iterator[tuple[Side, Side]]:
        for pair_rows in matched:
            for entry in _entries(pair_rows, dialogues):
                if isinstance(entry, tuple):
                    yield entry

    judge.ask_missing(replies_to_judge)
    judged = [_judged(pair_rows, list(_entries(pair_rows, dialogues)), judge) for pair_rows in matched]
    return [pair_rows for pair_rows, _ in judged], [counts for _, counts in judged]


def _entries(matched: MatchedRows, dialogues: Mapping[Variant, _Dialogues]) -> Iterator[tuple[Side, Side] | float]:
    """For each matched row, the two replies to judge, or the variant's value if no judge is needed.

    The value is NaN in a row of which a side has no reply because texts were only scored.
    """
    columns = ("conversation", "repeat", "turn", "finish_reason_a", "finish_reason_b")
    baseline, variant = dialogues[matched.pair.baseline], dialogues[matched.pair.variant]
    for conversation, repeat, turn, baseline_reason, variant_reason in zip(
        *(matched.rows[name].tolist() for name in columns), strict=True
    ):
        reasons = (baseline_reason, variant_reason)
        if SCORED in reasons:
            yield math.nan
        elif "error" in reasons:
            yield 0.5 if baseline_reason == variant_reason else float(baseline_reason == "error")
        else:
            yield baseline.side(conversation, repeat, turn), variant.side(conversation, repeat, turn)


def _judged(
    matched: MatchedRows, entries: Sequence[tuple[Side, Side] | float], judge: JudgesPairs
) -> tuple[MatchedRows, Preferences]:
    """The rows of one pair with its preferences, and the counts."""
    values = np.full(len(entries), math.nan)
    counts: Counter[str] = Counter()
    reason = ""
    for index, entry in enumerate(entries):
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
            values[index] = outcome.value
            counts[{1.0: "wins", 0.5: "ties", 0.0: "losses"}[outcome.value]] += 1
    pair: Pair = matched.pair
    names = ("wins", "ties", "losses", "equal", "errors", "judged", "disagreements", "first", "missing")
    rows = matched.rows.assign(**{f"{PREFERENCE}_a": 1.0 - values, f"{PREFERENCE}_b": values})
    num_pairs = int(np.count_nonzero(~np.isnan(values))) + counts["missing"]
    preferences = Preferences(
        pair.baseline.label,
        pair.variant.label,
        judge.name,
        judge.criterion,
        num_pairs,
        reason=reason,
        **{name: counts[name] for name in names},
    )
    return replace(matched, columns=rows), preferences


class _Turn(NamedTuple):
    """A turn as the table has it; `probe_after` is NaN unless the turn is a probe."""

    prompt: str
    reply: str
    reference: str | None
    probe_after: float

    @property
    def is_probe(self) -> bool:
        return not math.isnan(self.probe_after)

    @property
    def answer(self) -> str:
        """The reply without its thinking part."""
        return answer_of(self.reply)


class _Dialogues:
    """The turns of one variant, with the dialogue that the model saw before each of them.

    Args:
        is_gold: whether later turns follow the script's references (`--history gold`) instead of the model's replies.
    """

    def __init__(self, rows: pd.DataFrame, *, is_gold: bool) -> None:
        self._is_gold = is_gold
        self._turns: dict[tuple[str, int], dict[int, _Turn]] = {}
        columns = ("conversation", "repeat", "turn", *_Turn._fields)
        for conversation, repeat, turn, *values in zip(*(rows[name].tolist() for name in columns), strict=True):
            self._turns.setdefault((conversation, repeat), {})[turn] = _Turn(*values)

    def side(self, conversation: str, repeat: int, turn: int) -> Side:
        """A turn's reply, with its prompt and the dialogue before it."""
        turns = self._turns[conversation, repeat]
        judged = turns[turn]
        history_end = int(judged.probe_after) + 1 if judged.is_probe else turn
        history = [
            Exchange(earlier.prompt, self._reply_in_history(earlier))
            for number, earlier in sorted(turns.items())
            if number < history_end and not earlier.is_probe
        ]
        return Side(tuple(history), judged.prompt, judged.answer)

    def _reply_in_history(self, turn: _Turn) -> str:
        return answer_of(turn.reference) if self._is_gold and turn.reference is not None else turn.answer


def missing_in(rows: Columns) -> int:
    """The number of matched replies without a verdict of the judge; 0 if no judge was asked."""
    if f"{PREFERENCE}_b" not in rows:
        return 0
    scored = (rows["finish_reason_a"] == SCORED) | (rows["finish_reason_b"] == SCORED)
    return int(np.count_nonzero(rows[f"{PREFERENCE}_b"].isna() & ~scored))
