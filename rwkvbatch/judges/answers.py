"""A judge's answers to questions, the votes that follow from them, and the record of answered questions."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from rwkvbatch.hashes import canonical_json
from rwkvbatch.judges.questions import Question, VoteRequest

Seed = int | None

STOPPED = "the judge was stopped before it answered"


@dataclass(frozen=True)
class JudgeAnswer:
    """A judge's answer to a question.

    Attributes:
        probability: probability of the first of the two words; None if the judge gives no probability.
        votes: without a probability, whether the answer was the first word, by the vote's seed.
        problem: why there is no answer, or no answer for some votes.
    """

    probability: float | None = None
    votes: Mapping[Seed, bool] = field(default_factory=dict[Seed, bool])
    problem: str | None = None


@dataclass(frozen=True)
class Votes:
    """The votes on a question: `first` of `number` votes are for the first word."""

    first: int
    number: int
    probability: float | None

    @property
    def passed(self) -> bool:
        return 2 * self.first > self.number


class Judge(Protocol):
    """Answers questions; `identity` is everything that the answers depend on, as JSON values."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> Mapping[str, Any]: ...

    def answers(self, requests: Iterator[VoteRequest]) -> Iterator[tuple[VoteRequest, JudgeAnswer] | None]:
        """The answers to all `requests`, in any order.

        Yields None from time to time while it works. A question that fails gets an answer with a `problem`.
        """
        ...


class AnswerRecord(Protocol):
    """Storage of answers, see `results.answers.AnswerStore`."""

    def probability(self, key: str) -> float | None: ...
    def vote(self, key: str, seed: Seed) -> bool | None: ...
    def add(self, key: str, answer: JudgeAnswer) -> None: ...
    def flush(self) -> None: ...


class MemoryRecord:
    """Answers in memory."""

    def __init__(self) -> None:
        self._probabilities: dict[str, float] = {}
        self._votes: dict[tuple[str, Seed], bool] = {}

    def probability(self, key: str) -> float | None:
        """The recorded probability of the first word; None without one."""
        return self._probabilities.get(key)

    def vote(self, key: str, seed: Seed) -> bool | None:
        """The recorded vote under a seed; None without one."""
        return self._votes.get((key, seed))

    def add(self, key: str, answer: JudgeAnswer) -> None:
        if answer.probability is not None:
            self._probabilities[key] = answer.probability
        self._votes.update({(key, seed): vote for seed, vote in answer.votes.items()})

    def flush(self) -> None: ...


def digest_of(identity: Mapping[str, Any]) -> str:
    """16 hex digits of a judge's identity."""
    return hashlib.blake2b(canonical_json(identity), digest_size=8).hexdigest()


class JudgeAnswers:
    """A judge's answers to questions, each of which is asked once.

    Args:
        judge: None to use recorded answers only.
        digest: digest of the judge's identity.
        record: stores the answers.

    Attributes:
        used: keys of the questions that were looked up, which the record must keep.
    """

    def __init__(self, judge: Judge | None, digest: str, record: AnswerRecord) -> None:
        self._judge = judge
        self._record = record
        self._digest = digest
        self._problems: dict[str, str] = {}
        self.used = set[str]()

    @classmethod
    def in_memory(cls, judge: Judge) -> Self:
        """Answers of a judge that are not stored."""
        return cls(judge, digest_of(judge.identity), MemoryRecord())

    def key(self, question: Question) -> str:
        return question.key(self._digest)

    def votes(self, request: VoteRequest) -> Votes | str:
        """The votes on a question, or why there are none."""
        key = self.key(request.question)
        self.used.add(key)
        probability = self._record.probability(key)
        if probability is not None:
            drawn = [probability > 0.5 if seed is None else _uniform(seed) < probability for seed in request.seeds]
            return Votes(sum(drawn), len(drawn), probability)
        votes = [vote for seed in request.seeds if (vote := self._record.vote(key, seed)) is not None]
        if len(votes) == len(request.seeds):
            return Votes(sum(votes), len(votes), None)
        return self._problems.get(key, "the judge was not asked")

    def ask_missing(
        self,
        requests: Callable[[], Iterable[VoteRequest]],
        progress: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Ask the judge all questions without a recorded answer; False if it was stopped before the end.

        Args:
            requests: returns all questions in every call.
            progress: is called with the numbers of answers and of questions.
        """
        if self._judge is None:
            return True
        # Missing votes by question, because several cells may ask the same question with different seeds.
        missing: dict[str, dict[Seed, None]] = {}
        for request in requests():
            if isinstance(self.votes(request), str):
                missing.setdefault(self.key(request.question), {}).update(
                    (seed, None)
                    for seed in request.seeds
                    if self._record.vote(self.key(request.question), seed) is None
                )
        if not missing:
            return True
        total, done, stopped = len(missing), 0, False

        def unanswered() -> Iterator[VoteRequest]:
            for request in requests():
                if (seeds := missing.pop(self.key(request.question), None)) is not None:
                    yield VoteRequest(request.question, tuple(seeds))

        progress(0, total)
        shown_s = time.monotonic()
        for answered in self._judge.answers(unanswered()):
            if answered is not None:
                request, answer = answered
                key = self.key(request.question)
                done += 1
                self._record.add(key, answer)
                if answer.problem is not None:
                    self._problems[key] = answer.problem
            if answered is None or time.monotonic() - shown_s > 0.1:
                shown_s = time.monotonic()
                progress(done, total)
                if should_stop():
                    stopped = True
                    break
        self._record.flush()
        progress(done, total)
        return not stopped


def _uniform(seed: int) -> float:
    """A number in [0, 1) that is determined by a seed."""
    digest = hashlib.blake2b(b"vote %d" % seed, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
