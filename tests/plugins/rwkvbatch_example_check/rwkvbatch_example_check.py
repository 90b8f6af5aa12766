"""An example of check plug-ins: `{"words": 5}` passes replies of at most five words; `explodes` has a mistake in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rwkvbatch.script.checks import ReplyFacts, Verdict
from rwkvbatch.script.checks.text import answer, wrong


@dataclass(frozen=True)
class Words:
    """The reply has at most this many words, and at least `at_least`."""

    options = frozenset({"at_least"})
    at_most: int
    at_least: int

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Words:
        at_least = options.get("at_least", 0)
        if not isinstance(expected, int):
            wrong("must be a number of words", expected)
        if not isinstance(at_least, int) or at_least > expected:
            wrong("must be a number of words, not above the limit", at_least, key="at_least")
        return cls(expected, at_least)

    def judge(self, facts: ReplyFacts) -> Verdict:
        count = len(answer(facts).split())
        passed = self.at_least <= count <= self.at_most
        return Verdict(passed, float(passed), None if passed else f"has {count} words")


@dataclass(frozen=True)
class Explodes:
    """A plug-in with a mistake in it."""

    options = frozenset[str]()
    value: Any

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Explodes:
        return cls(expected["needs a dict"])

    def judge(self, facts: ReplyFacts) -> Verdict:
        if self.value == "score":
            return Verdict(True, 7.0)
        raise ZeroDivisionError("on purpose")
