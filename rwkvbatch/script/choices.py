"""Choices of a user message and their likelihoods under a model (multiple choice).

Each choice is scored as the beginning of the reply, or after a plain prompt; or the same continuation is scored after
each ("partial scoring": Trinh and Le 2018, https://arxiv.org/abs/1806.02847). Texts of different lengths are compared
by the sum of their log-probabilities, or by this sum per token, per byte or per character (lm-evaluation-harness: `acc`
uses the sum, `acc_norm` the sum per character and `acc_bytes` per byte, without the one space that its tasks put before
a choice).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field

from rwkvbatch.fields import Items, Number, Size

Normalize = Literal["none", "token", "byte", "character"]
"""Divisor of the sums of log-probabilities that are compared: 1, or the number of tokens, bytes or characters."""
NORMALIZE: tuple[Normalize, ...] = get_args(Normalize)

MIN_CHOICES, MAX_CHOICES = 2, 10_000


@dataclass(frozen=True)
class Choice:
    """One choice of a script: its name, which defaults to its stripped text, and its text as written."""

    name: str
    text: str


@dataclass(frozen=True)
class ChoiceScore:
    """The score of a choice.

    Attributes:
        logprob: sum of the log-probabilities of its tokens, in nats.
        tokens: number of tokens of the scored text, including a space before it.
        bytes: number of bytes of the scored text without one space before it, at least 1. Other white space at its ends
            counts, as in lm-evaluation-harness, whose tasks add that space to the choice. After a `choice_prefix`, the
            bytes of the choice alone.
        characters: number of characters (code points) of the same text, at least 1.
    """

    name: str
    logprob: Number
    tokens: Size
    bytes: Size
    characters: Size

    @classmethod
    def of(cls, name: str, logprob: float, tokens: int, scored: bytes, prefix: str = " ") -> Self:
        """The score of the text whose UTF-8 bytes are `scored`; these may begin within a character.

        Args:
            prefix: text that is not counted at the beginning of the choice.
        """
        text = scored.removeprefix(prefix.encode())
        return cls(name, logprob, tokens, max(1, len(text)), max(1, len(text.decode(errors="replace"))))

    def recounted(self, texts: Sequence[str]) -> Self:
        """This score with `bytes` and `characters` as `of` counts them, if they were counted as in judging rules 2.

        `bytes` then included a space before the text, and `characters` no white space around it. A score that agrees
        with the end of one of the texts is returned as it is.

        Args:
            texts: what may have been scored, the likeliest first; only the end of one if its first token was not.
        """
        for text in texts:
            data = text.encode()
            if len(data) < self.bytes:
                continue
            scored = data[len(data) - self.bytes :]
            decoded = scored.decode(errors="replace")
            if len(decoded) == self.characters:
                return self
            if max(1, len(decoded.strip())) == self.characters:
                return self.of(self.name, self.logprob, self.tokens, scored)
        return self

    def value(self, normalize: Normalize) -> float:
        """The number that choices are compared by; higher is better."""
        divisors = {"none": 1, "token": self.tokens, "byte": self.bytes, "character": self.characters}
        return self.logprob / divisors[normalize]


@dataclass(frozen=True)
class ChoiceScores:
    """All choices of a turn, in the script's order."""

    scores: Annotated[Items[ChoiceScore], Field(min_length=1)]

    def best(self, normalize: Normalize = "none") -> ChoiceScore:
        """The choice with the highest `value`; the first one of equal choices."""
        return max(self.scores, key=lambda score: score.value(normalize))

    def named(self, choice: str | int) -> ChoiceScore:
        """The choice with a name, or with an index from 0.

        Raises:
            KeyError: there is none.
        """
        return self.scores[find_choice([score.name for score in self.scores], choice)]

    def as_dict(self) -> dict[str, Any]:
        """JSON values. `best` is for readers of the file; `read_record` ignores it."""
        best = {normalize: self.best(normalize).name for normalize in NORMALIZE}
        return {"best": best, "scores": [dict(vars(score)) for score in self.scores]}


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
    """The probability of a choice, given that the reply is one of the choices: softmax of `logprobs` at `index`."""
    highest = max(logprobs)
    return math.exp(logprobs[index] - highest) / math.fsum(math.exp(logprob - highest) for logprob in logprobs)
