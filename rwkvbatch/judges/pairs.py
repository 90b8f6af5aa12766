"""A judge of pairs of replies: both orders are asked, and what they disagree about is a tie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rwkvbatch.judges.opinions import Opinions, Votes
from rwkvbatch.judges.questions import DEFAULT_CRITERION, Ask, Side, about_pair

SidesOf = Callable[[], Iterable[tuple[Side, Side]]]


@dataclass(frozen=True)
class PairOutcome:
    """What a judge says about two replies.

    Attributes:
        value: of the second one: 1 better, 0 worse, 0.5 a tie; None without an answer in both orders.
        disagrees: the two orders have different winners, which is a tie.
        first: of those, the reply that was shown first won both times (else the one shown second).
        asked: the replies are not equal, so that the judge was needed.
        reason: why there is no answer.
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
        name: the judge's, and its digest. criterion: what makes a reply the better one.
        progress: called with answers, and questions in all that were not asked before.
        should_stop: true ends the asking; pairs without an answer have no verdict then.
    """

    opinions: Opinions
    name: str
    criterion: str = DEFAULT_CRITERION
    progress: Callable[[int, int], None] = lambda done, total: None
    should_stop: Callable[[], bool] = lambda: False

    def settle(self, sides: SidesOf) -> bool:
        """Ask about all pairs of replies in both orders; False when it was stopped before the end."""

        def asks() -> Iterator[Ask]:
            for one, other in sides():
                if one != other:
                    yield self._ask(one, other)
                    yield self._ask(other, one)

        return self.opinions.settle(asks, self.progress, self.should_stop)

    def outcome(self, one: Side, other: Side) -> PairOutcome:
        """Which reply is better; equal ones are a tie that nobody is asked about."""
        if one == other:
            return PairOutcome(0.5, asked=False)
        votes = [self.opinions.votes(self._ask(*order)) for order in ((one, other), (other, one))]
        known = [vote for vote in votes if isinstance(vote, Votes)]
        if len(known) < 2:
            return PairOutcome(None, reason=next(vote for vote in votes if isinstance(vote, str)))
        won_first, won_second = known[0].passed, known[1].passed
        if won_first == won_second:
            return PairOutcome(0.5, disagrees=True, first=won_first)
        return PairOutcome(0.0 if won_first else 1.0)

    def _ask(self, first: Side, second: Side) -> Ask:
        return Ask(about_pair(first, second, self.criterion))
