"""Majority voting over repeats: the answer that a reply votes for, and how often the most frequent answer passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

from rwkvbatch.script.checks.answers import MAX_CHARACTERS, find_letter, last_boxed, plain_latex
from rwkvbatch.script.checks.numbers import UnclearNumberError, last_number

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
        number = last_number(text)
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
