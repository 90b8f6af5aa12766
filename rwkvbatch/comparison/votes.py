"""Majority voting: what a reply votes for, and how often the most frequent answer of several repeats passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

from rwkvbatch.script.checks.answers import MAX_CHARACTERS, find_letter, last_boxed, plain_latex
from rwkvbatch.script.checks.numbers import UnclearNumberError, last_number

_LETTERS: Final = "ABCDEFGHIJ"
"""Those of a check `letter` that does not say its own; rows do not have them."""


def majority_at_k(votes: Sequence[tuple[Hashable, bool]], k: int) -> float:
    """The share of votes of `k` repeats each whose most frequent answer passes (self-consistency, Wang et al. 2023).

    The repeats are cut into votes of `k` in their order; a rest is left out. Of equally frequent answers each counts
    with its share.

    Args:
        votes: the answer of each repeat, and whether it passed; all answers that pass are one answer.

    Raises:
        ValueError: not 1 <= k <= the number of repeats.
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"k must be in [1, {len(votes)}], the number of repeats; got {k}")
    results: list[float] = []
    for start in range(0, len(votes) - k + 1, k):
        counts = Counter(None if passed else (answer,) for answer, passed in votes[start : start + k])
        most = max(counts.values())
        results.append((counts[None] == most) / sum(count == most for count in counts.values()))
    return sum(results) / len(results)


def vote_of(reply: str, checks: Sequence[Mapping[str, Any]]) -> str:
    """The answer that a reply votes for: what the first check of a final answer reads in it, else its text.

    That is the last number (`number`), the letter of an option (`letter`), or the content of the last box (`boxed`,
    `math`; without a box the last number). What such a check cannot read is the text without its thinking part; of
    that, case, outer white space and a final stop are ignored.
    """
    text = reply.rpartition("</think>")[2].strip()
    read = next((reader for check in checks if (reader := _READERS.get(str(check.get("kind")))) is not None), None)
    found = None if read is None else read(text[-MAX_CHARACTERS:])
    return text.casefold().removesuffix(".") if found is None else found


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
    """Whether a text is one number: `1/2` is 0.5, and `x + 1` is not 1."""
    return not any(letter.isalpha() or letter in "()=^" for letter in plain_latex(text).replace("\\frac", ""))


_READERS: Final[Mapping[str, Callable[[str], str | None]]] = {
    "number": _number,
    "letter": lambda text: find_letter(text, _LETTERS)[0],
    "boxed": _boxed,
    "math": _boxed,
}
