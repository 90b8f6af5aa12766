"""A judge of pairs of replies, which asks about both orders and counts a disagreement between them as a tie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rwkvbatch.judges.answers import JudgeAnswers, Votes
from rwkvbatch.judges.questions import DEFAULT_CRITERION, Side, VoteRequest, about_pair

SidesOf = Callable[[], Iterable[tuple[Side, Side]]]


@dataclass(frozen=True)
class PairOutcome:
    """A judge's verdict on two replies.

    Attributes:
        value: 1 if the second reply is better, 0 if it is worse, 0.5 for a tie; None without an answer in both orders.
        disagrees: whether the two orders have different winners, which makes a tie.
        first: whether, in such a tie, the reply shown first won both times (otherwise the one shown second did).
        asked: whether the replies differ, so that the judge was asked.
        reason: why there is no answer; empty otherwise.
    """

    value: float | None
    disagrees: bool = False
    first: bool = False
    asked: bool = True
    reason: str = ""


@dataclass(frozen=True)
class PairJudge:
    """Compares replies.

    Attributes:
        name: the judge's name and digest.
        criterion: what makes a reply the better one.
        progress: called with the number of answers so far, and of all questions that have to be asked.
        should_stop: if it returns True, no more questions are asked; pairs without an answer then have no verdict.
    """

    answers: JudgeAnswers
    name: str
    criterion: str = DEFAULT_CRITERION
    progress: Callable[[int, int], None] = lambda done, total: None
    should_stop: Callable[[], bool] = lambda: False

    def ask_missing(self, sides: SidesOf) -> bool:
        """Ask about each pair of replies in both orders, unless the answer is recorded; False if it was stopped."""

        def requests() -> Iterator[VoteRequest]:
            for one, other in sides():
                if one != other:
                    yield self._request(one, other)
                    yield self._request(other, one)

        return self.answers.ask_missing(requests, self.progress, self.should_stop)

    def outcome(self, one: Side, other: Side) -> PairOutcome:
        """The verdict on two replies; equal replies are a tie, without asking the judge."""
        if one == other:
            return PairOutcome(0.5, asked=False)
        votes = [self.answers.votes(self._request(*order)) for order in ((one, other), (other, one))]
        known = [vote for vote in votes if isinstance(vote, Votes)]
        if len(known) < 2:
            return PairOutcome(None, reason=next(vote for vote in votes if isinstance(vote, str)))
        won_first, won_second = known[0].passed, known[1].passed
        if won_first == won_second:
            return PairOutcome(0.5, disagrees=True, first=won_first)
        return PairOutcome(0.0 if won_first else 1.0)

    def _request(self, first: Side, second: Side) -> VoteRequest:
        return VoteRequest(about_pair(first, second, self.criterion))
