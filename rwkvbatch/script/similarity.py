"""The `similarity` check: how much the reply is like a text, by sacrebleu's chrF (character n-grams; Popović 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, ClassVar, Self

from rwkvbatch.errors import MissingExtraError
from rwkvbatch.script.records import ReplyFacts, Verdict
from rwkvbatch.script.rules import answer, excerpt, text_of, wrong

MAX_COMPARED_CHARACTERS = 20_000


@dataclass(frozen=True)
class Similarity:
    """chrF between the answer and the reference, or the text `to`, is at least this, in [0, 1]; chrF is the score."""

    options: ClassVar[frozenset[str]] = frozenset({"to"})
    at_least: float
    to: str | None

    @property
    def needs_reference(self) -> bool:
        return self.to is None

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        if isinstance(expected, bool) or not isinstance(expected, int | float) or not 0 <= expected <= 1:
            wrong("must be a number in [0, 1]", expected)
        if find_spec("sacrebleu") is None:
            raise MissingExtraError(
                "the check `similarity` needs the sacrebleu library, which is not installed",
                extra="metrics",
            )
        return cls(float(expected), text_of(options["to"]) if "to" in options else None)

    def judge(self, facts: ReplyFacts) -> Verdict:
        wanted = self.to if self.to is not None else facts.reference
        if wanted is None:
            return Verdict(False, 0.0, "the turn has no reference reply")
        text = answer(facts)
        score = chrf(text, wanted)
        passed = score >= self.at_least
        return Verdict(passed, score, None if passed else f"chrF {score:.3f}; got {excerpt(text)}")


def chrf(text: str, wanted: str) -> float:
    """chrF in [0, 1] of the first `MAX_COMPARED_CHARACTERS` of both."""
    found = _metric().sentence_score(text[:MAX_COMPARED_CHARACTERS], [wanted[:MAX_COMPARED_CHARACTERS]])
    return min(1.0, max(0.0, float(found.score) / 100))


@lru_cache(maxsize=1)
def _metric() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
