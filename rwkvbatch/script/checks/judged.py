"""The check `judge`: a model decides whether a reply meets a rubric, see `rwkvbatch.judges`.

The rule itself asks no model. It looks up the judge's verdict in the facts about the reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

from rwkvbatch.script.checks.text import flag, wrong
from rwkvbatch.script.records import ReplyFacts, Verdict

MAX_RUBRIC = 10_000
"""Largest number of characters of a rubric."""
MAX_VOTES = 99

NOT_ASKED = "no judge was asked: give one with --judge FILE or --judge-url URL"

Context = Literal["turn", "dialogue"]


@dataclass(frozen=True)
class Rubric:
    """A judge decides that the reply meets a requirement in words.

    Attributes:
        text: the requirement.
        votes: number of votes, of which the majority decides; odd.
        context: what the judge sees with the reply: the user's message (`turn`), or also the earlier dialogue.
        reference: whether the judge sees the turn's reference reply.
    """

    options: ClassVar[frozenset[str]] = frozenset({"votes", "context", "reference"})
    text: str
    votes: int = 1
    context: Context = "turn"
    reference: bool = False

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        if not isinstance(expected, str) or not expected.strip():
            wrong("must be a rubric: text that says what the reply must do", expected)
        if len(expected) > MAX_RUBRIC:
            wrong(f"must have at most {MAX_RUBRIC:,} characters", f"{len(expected):,} characters")
        votes = options.get("votes", 1)
        if not isinstance(votes, int) or isinstance(votes, bool) or not 1 <= votes <= MAX_VOTES or votes % 2 == 0:
            wrong(f"must be an odd number in [1, {MAX_VOTES}], so that most votes decide", votes, key="votes")
        context = options.get("context", "turn")
        if context not in get_args(Context):
            wrong(f"must be one of {', '.join(get_args(Context))}", context, key="context")
        return cls(expected.strip(), votes, context, flag(options, "reference"))

    @property
    def needs_reference(self) -> bool:
        return self.reference

    @property
    def rubrics(self) -> tuple[Self]:
        return (self,)

    def judge(self, facts: ReplyFacts) -> Verdict:
        judge_verdict = facts.judge_verdicts.get(self)
        if judge_verdict is None:
            return Verdict(False, 0.0, NOT_ASKED, missing=True)
        if judge_verdict.passed is None:
            return Verdict(False, 0.0, judge_verdict.detail, missing=True)
        return Verdict(judge_verdict.passed, float(judge_verdict.passed), judge_verdict.detail)
