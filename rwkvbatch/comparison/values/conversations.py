"""Metrics of conversations: pass@k, all-k and majority votes, from the checks of all turns of all repeats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.declarations import Metric, is_majority, pass_value
from rwkvbatch.comparison.values.columns import array_of
from rwkvbatch.script.checks.answers import MAX_CHARACTERS, last_boxed, plain_latex
from rwkvbatch.script.checks.letters import find_letter
from rwkvbatch.script.checks.numbers import UnclearNumberError, answer_number

if TYPE_CHECKING:
    import pandas as pd

    from rwkvbatch.comparison.values.columns import Columns

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


def conversation_values(rows: Columns, metric: Metric, side: str = "") -> pd.Series:
    """A metric of conversations (`pass_at_K`, `all_K`, `majority_at_K`), indexed by conversation, without NaNs.

    Args:
        side: suffix of the columns of one side of matched rows.
    """
    import pandas as pd

    if is_majority(metric):
        k = int(metric.name.rpartition("_")[2])
        values = {
            name: majority_at_k(votes, k) if len(votes) >= k else math.nan for name, votes in _votes(rows, side).items()
        }
    else:
        values = {name: pass_value(metric.name, passed) for name, passed in _outcomes(rows, side).items()}
    return pd.Series(values, dtype=np.float64).rename_axis("conversation").dropna()


def judged_repeats(rows: Columns, side: str = "") -> dict[str, int]:
    """The number of judged repeats of each conversation with checks."""
    return {name: len(passed) for name, passed in _outcomes(rows, side).items()}


def _outcomes(rows: Columns, side: str) -> dict[str, list[bool]]:
    """For each conversation with checks, whether all checks of all turns passed, one bool per repeat."""
    judged = _judged(rows, side)
    repeats = _repeats_of(rows, judged)
    failed = _failed_repeats(rows, side, judged, repeats)
    outcomes: dict[str, list[bool]] = {}
    for name, has_failed in zip(array_of(rows, "conversation")[repeats.firsts], failed.tolist(), strict=True):
        outcomes.setdefault(name, []).append(not has_failed)
    return outcomes


def _judged(rows: Columns, side: str) -> NDArray[np.int64]:
    """Positions of the rows with a verdict, without repeats of conversations that have an unjudged row."""
    judged = np.flatnonzero(~np.isnan(array_of(rows, f"passed{side}", np.float64)))
    unjudged = np.flatnonzero(array_of(rows, f"unjudged{side}", bool))
    if not unjudged.size:
        return judged
    codes = _repeats_of(rows, np.concatenate([judged, unjudged])).codes
    return judged[~np.isin(codes[: judged.size], codes[judged.size :])]


@dataclass(frozen=True)
class _Repeats:
    """The repeats of conversations that some rows belong to, in the order of their first rows.

    Attributes:
        codes: `[rows]` the number of each row's repeat, from 0.
        firsts: `[repeats]` the position in the table of each repeat's first row.
    """

    codes: NDArray[np.int64]
    firsts: NDArray[np.int64]


def _repeats_of(rows: Columns, positions: NDArray[np.int64]) -> _Repeats:
    """The repeats of the rows at `positions` `[n]`."""
    import pandas as pd

    conversations = pd.factorize(array_of(rows, "conversation")[positions])[0].astype(np.int64)
    repeat_codes, distinct_repeats = pd.factorize(array_of(rows, "repeat")[positions])
    codes, distinct_codes = pd.factorize(conversations * max(1, len(distinct_repeats)) + repeat_codes)
    firsts = np.full(len(distinct_codes), positions.size, dtype=np.int64)
    np.minimum.at(firsts, codes, np.arange(positions.size))
    return _Repeats(codes.astype(np.int64), positions[firsts])


def _failed_repeats(rows: Columns, side: str, positions: NDArray[np.int64], repeats: _Repeats) -> NDArray[np.bool_]:
    """`[repeats]` whether a check failed in any of the rows at `positions`, whose repeats are `repeats`."""
    failed_rows = array_of(rows, f"passed{side}", np.float64)[positions] < 1.0
    return np.bincount(repeats.codes, weights=failed_rows, minlength=repeats.firsts.size) > 0


def _votes(rows: Columns, side: str) -> dict[str, list[tuple[tuple[str, ...], bool]]]:
    """For each conversation with checks, one vote per repeat in their order: its answers, and whether all passed.

    A repeat's answers are those to all its turns with checks. Repeats that passed have no answers, because all passing
    answers count as the same answer.
    """
    judged = _judged(rows, side)
    judged = judged[np.lexsort((array_of(rows, "turn")[judged], array_of(rows, "repeat")[judged]))]
    repeats = _repeats_of(rows, judged)
    failed = _failed_repeats(rows, side, judged, repeats)
    answers: list[list[str]] = [[] for _ in repeats.firsts]
    in_failed = failed[repeats.codes]
    replies, row_checks = (array_of(rows, f"{name}{side}")[judged[in_failed]] for name in ("reply", "checks"))
    for code, reply, checks in zip(repeats.codes[in_failed].tolist(), replies, row_checks, strict=True):
        answers[code].append(vote_of(reply, checks))
    votes: dict[str, list[tuple[tuple[str, ...], bool]]] = {}
    names = array_of(rows, "conversation")[repeats.firsts]
    for name, repeat_answers, has_failed in zip(names, answers, failed.tolist(), strict=True):
        votes.setdefault(name, []).append((tuple(repeat_answers), not has_failed))
    return votes


_LETTERS: Final = "ABCDEFGHIJ"
"""The default letters of a check `letter`; rows do not record a check's letters."""


def majority_at_k(votes: Sequence[tuple[Hashable, bool]], k: int) -> float:
    """The share of groups of `k` repeats whose most frequent answer passes (self-consistency, Wang et al. 2023).

    The repeats are split into groups of `k` in their order; a last incomplete group is left out. If n answers are
    equally frequent, each counts 1 / n.

    Args:
        votes: the answer of each repeat, and whether it passed; all answers that pass count as the same answer.

    Raises:
        ValueError: not 1 <= k <= the number of repeats.
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"k must be in [1, {len(votes)}], the number of repeats; got {k}")
    results: list[float] = []
    for start in range(0, len(votes) - k + 1, k):
        counts = Counter(None if passed else (answer,) for answer, passed in votes[start : start + k])
        highest = max(counts.values())
        results.append((counts[None] == highest) / sum(count == highest for count in counts.values()))
    return sum(results) / len(results)


def vote_of(reply: str, checks: Sequence[Mapping[str, Any]]) -> str:
    """The answer that a reply votes for: the one that the first check of a final answer reads, or the reply's text.

    A check `number` reads the last number, `letter` the letter of an option, and `boxed` and `math` the content of the
    last box (the last number, if there is no box). Without such a check, or if it reads nothing, the vote is the text
    without its thinking part, ignoring case, outer white space and a final full stop.
    """
    text = reply.rpartition("</think>")[2].strip()
    read = next((reader for check in checks if (reader := _READERS.get(str(check.get("kind")))) is not None), None)
    answer = None if read is None else read(text[-MAX_CHARACTERS:])
    return text.casefold().removesuffix(".") if answer is None else answer


def _number(text: str) -> str | None:
    try:
        number = answer_number(text)
    except UnclearNumberError:
        return None
    return None if number is None else str(number)


def _boxed(text: str) -> str | None:
    box = last_boxed(text)
    if box is None:
        return _number(text)
    number = _number(box) if _is_number(box) else None
    return plain_latex(box) if number is None else number


def _is_number(text: str) -> bool:
    """Whether a text is a number by itself: `1/2` is, `x + 1` is not."""
    return not any(letter.isalpha() or letter in "()=^" for letter in plain_latex(text).replace("\\frac", ""))


_READERS: Final[Mapping[str, Callable[[str], str | None]]] = {
    "number": _number,
    "letter": lambda text: find_letter(text, _LETTERS)[0],
    "boxed": _boxed,
    "math": _boxed,
}
