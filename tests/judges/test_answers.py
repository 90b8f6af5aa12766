"""Votes, and the questions that a judge is asked."""

from __future__ import annotations

import pytest

from rwkvbatch.judges.answers import JudgeAnswer, JudgeAnswers, MemoryRecord, Votes, digest_of
from rwkvbatch.judges.questions import Question, VoteRequest, seeds_of
from tests.judges.fakes import FakeJudge


def ask(name: str = "q", votes: int = 1, repeat: int = 0) -> VoteRequest:
    return VoteRequest(Question(name, ("Yes", "No")), seeds_of(votes, 0, "c", repeat, 0))


def votes_of(answer: JudgeAnswer, asked: VoteRequest) -> Votes | str:
    answers = JudgeAnswers(FakeJudge(lambda _: answer), "d", MemoryRecord())
    assert answers.ask_missing(lambda: [asked])
    return answers.votes(asked)


@pytest.mark.parametrize(("probability", "passed"), [(0.51, True), (0.5, False), (0.2, False)])
def test_one_vote_is_the_likelier_word(probability: float, passed: bool) -> None:
    found = votes_of(JudgeAnswer(probability), ask())
    assert isinstance(found, Votes)
    assert (found.passed, found.number, found.probability) == (passed, 1, probability)


def test_more_votes_are_drawn_by_the_probability_and_most_of_them_decide() -> None:
    found = [votes_of(JudgeAnswer(0.7), ask(votes=3, repeat=repeat)) for repeat in range(2000)]
    share = sum(votes.first for votes in found if isinstance(votes, Votes)) / 6000
    assert share == pytest.approx(0.7, abs=0.03)
    majority = sum(votes.passed for votes in found if isinstance(votes, Votes)) / 2000
    assert majority == pytest.approx(0.7**3 + 3 * 0.7**2 * 0.3, abs=0.03)
    assert found[0] == votes_of(JudgeAnswer(0.7), ask(votes=3))


def test_without_a_probability_the_sampled_answers_are_the_votes() -> None:
    asked = ask(votes=3)
    answer = JudgeAnswer(votes=dict(zip(asked.seeds, (True, False, True), strict=True)))
    assert votes_of(answer, asked) == Votes(2, 3, None)


def test_a_vote_that_cannot_be_read_makes_the_verdict_missing() -> None:
    asked = ask(votes=3)
    answer = JudgeAnswer(votes={asked.seeds[0]: True, asked.seeds[1]: True}, problem="the answer is 'maybe'")
    assert votes_of(answer, asked) == "the answer is 'maybe'"


def test_each_question_is_asked_once_and_more_votes_are_asked_for_alone() -> None:
    def sampled(asked: VoteRequest) -> JudgeAnswer:
        return JudgeAnswer(votes=dict.fromkeys(asked.seeds, True))

    judge, record = FakeJudge(sampled), MemoryRecord()
    answers = JudgeAnswers(judge, "d", record)
    assert answers.ask_missing(lambda: [ask("a", 3), ask("b"), ask("a", 3)])
    assert [asked.question.text for asked in judge.asked] == ["a", "b"]
    assert answers.ask_missing(lambda: [ask("a", 5), ask("b")])
    assert [asked.seeds for asked in judge.asked[2:]] == [ask("a", 5).seeds[3:]]
    assert JudgeAnswers(None, "d", record).votes(ask("a", 5)) == Votes(5, 5, None)
    assert isinstance(JudgeAnswers(None, "other", record).votes(ask("b")), str)


def test_repeats_of_a_question_with_seeds_of_their_own_are_asked_together() -> None:
    judge = FakeJudge(lambda asked: JudgeAnswer(votes=dict.fromkeys(asked.seeds, True)))
    answers = JudgeAnswers(judge, "d", MemoryRecord())
    both = [ask("a", 3, repeat=0), ask("a", 3, repeat=1)]
    assert answers.ask_missing(lambda: both)
    assert [len(asked.seeds) for asked in judge.asked] == [6]
    assert [answers.votes(asked) for asked in both] == [Votes(3, 3, None)] * 2


def test_a_failure_is_not_kept_and_asked_again_the_next_time() -> None:
    record = MemoryRecord()
    failing = JudgeAnswers(FakeJudge(lambda _: JudgeAnswer(problem="unreachable")), "d", record)
    assert failing.ask_missing(lambda: [ask()])
    assert failing.votes(ask()) == "unreachable"
    again = JudgeAnswers(FakeJudge(lambda _: JudgeAnswer(1.0)), "d", record)
    assert again.ask_missing(lambda: [ask()])
    assert again.votes(ask()) == Votes(1, 1, 1.0)


def test_it_stops_between_answers_and_keeps_those_it_has() -> None:
    judge, shown = FakeJudge(lambda _: JudgeAnswer(1.0)), list[tuple[int, int]]()
    answers = JudgeAnswers(judge, "d", MemoryRecord())
    asks = [ask(str(number)) for number in range(9)]
    assert not answers.ask_missing(lambda: asks, lambda *seen: shown.append(seen), lambda: len(judge.asked) == 4)
    assert [isinstance(answers.votes(each), Votes) for each in asks] == [True] * 4 + [False] * 5
    assert shown[0] == (0, 9)
    assert shown[-1] == (4, 9)


def test_the_digest_of_an_identity_stays_the_same() -> None:
    assert digest_of({"b": [1.5, None], "a": "é"}) == "dca5d25ad037b735"  # recorded answers are found by it
