"""Questions for a judge about the rows of a run, and rows with the judge's verdicts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rwkvbatch.judges.answers import JudgeAnswers, Votes
from rwkvbatch.judges.questions import Exchange, Question, Side, VoteRequest, about_reply, seeds_of
from rwkvbatch.replay.judging.checks import judged_again
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.results.row import Row
from rwkvbatch.script.checks.judged import NOT_ASKED, Rubric
from rwkvbatch.script.checks.text import answer_of
from rwkvbatch.script.records import Conversation, JudgeVerdict

RowOfTurn = Callable[[Row, int], Row | None]
"""Gives the row of another turn of a row's dialogue; None if it does not exist."""


def rubrics_of(conversation: Conversation, turn: int) -> tuple[Rubric, ...]:
    """The rubrics of a turn's checks, without duplicates."""
    return tuple(dict.fromkeys(rubric for check in conversation.turns[turn].checks for rubric in check.rubrics))


def turns_with_rubrics(conversations: Iterable[Conversation]) -> dict[str, frozenset[int]]:
    """By conversation id, the turns that have rubrics; without conversations that have none."""
    turns_of = {c.id: frozenset(turn for turn in range(len(c.turns)) if rubrics_of(c, turn)) for c in conversations}
    return {name: turns for name, turns in turns_of.items() if turns}


def questions_of(plan: Plan) -> int:
    """The largest number of questions about a complete run. It is smaller if replies are equal."""
    num_rubrics = sum(
        len(rubrics_of(plan.conversations[number], turn))
        for number in plan.chosen
        for turn in range(len(plan.conversations[number].turns))
    )
    return num_rubrics * len(plan.cells) * plan.repeats


@dataclass(frozen=True)
class RubricJudge:
    """Makes questions from rows, and verdicts from a judge's answers.

    Args:
        answers: the judge's answers; None if no judge is known, so that there are no verdicts.
        judge: the judge's name and digest, for the rows.
        row_of: finds the rows of the other turns of a dialogue.
        is_gold: tells whether the later turns of a cell see the references instead of the replies.
    """

    answers: JudgeAnswers | None
    judge: str | None
    row_of: RowOfTurn
    is_gold: Callable[[str], bool]

    def requests(self, row: Row, conversation: Conversation) -> Iterator[VoteRequest]:
        """The questions about a row; none about a turn that ended in an error."""
        if row.finish_reason != "error":
            for rubric in rubrics_of(conversation, row.turn):
                yield self._request(rubric, row, conversation)

    def judged(self, row: Row, conversation: Conversation) -> Row:
        """`row` with the check results and tags by `conversation`, including the judge's verdicts."""
        judge_verdicts: dict[Rubric, JudgeVerdict] = {}
        if row.finish_reason != "error":
            for rubric in rubrics_of(conversation, row.turn):
                judge_verdicts[rubric] = self._judge_verdict(rubric, row, conversation)
        return judged_again(row, conversation, judge_verdicts)

    def _judge_verdict(self, rubric: Rubric, row: Row, conversation: Conversation) -> JudgeVerdict:
        if self.answers is None:
            return JudgeVerdict(None, NOT_ASKED)
        votes = self.answers.votes(self._request(rubric, row, conversation))
        if isinstance(votes, str):  # the reason why there are none
            return JudgeVerdict(None, votes)
        return JudgeVerdict(votes.passed, in_words(votes), self.judge)

    def _request(self, rubric: Rubric, row: Row, conversation: Conversation) -> VoteRequest:
        turn = conversation.turns[row.turn]
        reference = answer_of(turn.reference) if rubric.reference and turn.reference is not None else None
        dialogue = self._dialogue(row, conversation) if rubric.context == "dialogue" else ()
        side = Side(tuple(dialogue), row.prompt, answer_of(row.reply))
        question: Question = about_reply(rubric.text, side, reference)
        return VoteRequest(question, seeds_of(rubric.votes, row.seed, row.conversation, row.repeat, row.turn))

    def _dialogue(self, row: Row, conversation: Conversation) -> Sequence[Exchange]:
        """The earlier turns that the model saw before a row's reply, with the replies or references that it saw."""
        probe = conversation.turns[row.turn].probe
        end = row.turn if probe is None else probe.after + 1
        is_gold = self.is_gold(row.cell)
        exchanges: list[Exchange] = []
        for number, turn in enumerate(conversation.turns[:end]):
            if turn.probe is not None or turn.plain:
                continue
            earlier = None if is_gold and turn.reference is not None else self.row_of(row, number)
            assistant = turn.reference if earlier is None else earlier.reply
            exchanges.append(Exchange(turn.user, answer_of(assistant or "")))
        return exchanges


def in_words(votes: Votes) -> str:
    """The votes as text, for the detail of a verdict."""
    probability = "" if votes.probability is None else f", probability of Yes {votes.probability:.3f}"
    if votes.number == 1:
        return ("Yes" if votes.passed else "No") + probability
    return f"{votes.first} of {votes.number} votes are Yes{probability}"


def vote_requests_of(
    rubric_judge: RubricJudge,
    rows: Iterable[Row],
    conversation_of: Mapping[str, Conversation],
    turns: Mapping[str, Collection[int]],
) -> Iterator[VoteRequest]:
    """The questions about those of `rows` whose turn has rubrics."""
    for row in rows:
        if row.turn in turns.get(row.conversation, ()):
            yield from rubric_judge.requests(row, conversation_of[row.conversation])
