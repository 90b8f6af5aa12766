"""Choices of a user message, and what a model thinks of them: multiple choice by likelihood.

Each choice is scored as the beginning of the reply. The three ways to compare choices of different lengths are those
of the field (lm-evaluation-harness: `acc`, and `acc_norm` with the length in bytes): the sum of the log-probabilities,
the sum by token, the sum by byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

Normalize = Literal["none", "token", "byte"]
"""How sums of log-probabilities are compared: as they are, divided by the number of tokens, or by that of bytes."""
NORMALIZE: tuple[Normalize, ...] = get_args(Normalize)

MIN_CHOICES, MAX_CHOICES = 2, 10_000


@dataclass(frozen=True)
class Choice:
    """One choice of a script: its name, which is its text where the script gives none, and its text as written."""

    name: str
    text: str


@dataclass(frozen=True)
class ChoiceScore:
    """One choice as scored.

    Attributes:
        logprob: sum of the log-probabilities of its tokens, in nats.
        tokens, bytes: of the text that was scored, a space before it included.
    """

    name: str
    logprob: float
    tokens: int
    bytes: int

    def value(self, normalize: Normalize) -> float:
        """The number that choices are compared by; higher is better."""
        return self.logprob / {"none": 1, "token": self.tokens, "byte": self.bytes}[normalize]


@dataclass(frozen=True)
class ChoiceScores:
    """All choices of a turn, in the script's order."""

    scores: tuple[ChoiceScore, ...]

    def best(self, normalize: Normalize = "none") -> ChoiceScore:
        """The likeliest choice; of equal ones the first."""
        return max(self.scores, key=lambda score: score.value(normalize))

    def named(self, choice: str | int) -> ChoiceScore:
        """The choice of a name or of an index from 0 up.

        Raises:
            KeyError: there is none.
        """
        return self.scores[find_choice([score.name for score in self.scores], choice)]

    def as_dict(self) -> dict[str, Any]:
        """JSON values; the best choices are there for readers of the file and are not read back."""
        best = {normalize: self.best(normalize).name for normalize in NORMALIZE}
        return {"best": best, "scores": [vars(score) for score in self.scores]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The opposite of `as_dict`.

        Raises:
            KeyError, TypeError: `values` is not one of its results.
        """
        return cls(tuple(ChoiceScore(**score) for score in values["scores"]))


def find_choice(names: Sequence[str], choice: str | int) -> int:
    """The index of a choice, given by name or by index; raises `KeyError` if there is none."""
    if isinstance(choice, int):
        if not 0 <= choice < len(names):
            raise KeyError(choice)
        return choice
    try:
        return names.index(choice)
    except ValueError:
        raise KeyError(choice) from None


def probability_among(logprobs: Sequence[float], index: int) -> float:
    """The probability of one of several choices if the reply is one of them: softmax of their log-probabilities."""
    highest = max(logprobs)
    return math.exp(logprobs[index] - highest) / math.fsum(math.exp(logprob - highest) for logprob in logprobs)
