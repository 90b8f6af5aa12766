"""Judges the rows of a run by the rubrics of their turns: what to ask a judge about a row, and its rulings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rwkvbatch.judges.opinions import Opinions, Votes
from rwkvbatch.judges.questions import Ask, Exchange, Question, Side, about_reply, seeds_of
from rwkvbatch.replay.judging import judged_again
from rwkvbatch.replay.plan import Plan
from rwkvbatch.results.row import Row
from rwkvbatch.script.checks.judged import NOT_ASKED, Rubric
from rwkvbatch.script.checks.text import answer
from rwkvbatch.script.records import Conversation, ReplyFacts, Ruling

RowOfTurn = Callable[[Row, int], Row | None]
"""The row of another turn of a row's dialogue; None where it is not there."""


def rubrics_of(conversation: Conversation, turn: int) -> tuple[Rubric, ...]:
    """The rubrics of a turn, each once."""
    return tuple(dict.fromkeys(rubric for check in conversation.turns[turn].checks for rubric in check.rubrics))


def turns_with_rubrics(conversations: Iterable[Conversation]) -> dict[str, frozenset[int]]:
    """By the id of a conversation, the numbers of its turns that a judge is asked about; only of those with some."""
    found = {
        each.id: frozenset(turn for turn in range(len(each.turns)) if rubrics_of(each, turn)) for each in conversations
    }
    return {name: turns for name, turns in found.items() if turns}


def questions_of(plan: Plan) -> int:
    """The questions that a judge is asked about a complete run, at most: equal replies are one question."""
    asked = sum(
        len(rubrics_of(plan.conversations[number], turn))
        for number in plan.chosen
        for turn in range(len(plan.conversations[number].turns))
    )
    return asked * len(plan.cells) * plan.repeats


@dataclass(frozen=True)
class Jury:
    """Turns rows into questions, and a judge's opinions into verdicts.

    Args:
        opinions: None where no judge is known: there are no verdicts then.
        judge: its name and digest, which rows have.
        row_of: finds the other turns of a dialogue. is_gold: whether a cell's later turns see the references.
    """

    opinions: Opinions | None
    judge: str | None
    row_of: RowOfTurn
    is_gold: Callable[[str], bool]

    def asks(self, row: Row, conversation: Conversation) -> Iterator[Ask]:
        """What a judge is asked about a row; nothing about a turn that ended in an error."""
        if row.finish_reason != "error":
            for rubric in rubrics_of(conversation, row.turn):
                yield self._ask(rubric, row, conversation)

    def judged(self, row: Row, conversation: Conversation) -> Row:
        """The row with the verdicts and tags of `conversation`, those of the judge included."""
        rulings: dict[Rubric, Ruling] = {}
        if row.finish_reason != "error":
            for rubric in rubrics_of(conversation, row.turn):
                rulings[rubric] = self._ruling(rubric, row, conversation)
        return judged_again(row, conversation, rulings)

    def _ruling(self, rubric: Rubric, row: Row, conversation: Conversation) -> Ruling:
        if self.opinions is None:
            return Ruling(None, NOT_ASKED)
        found = self.opinions.votes(self._ask(rubric, row, conversation))
        if isinstance(found, str):
            return Ruling(None, found)
        return Ruling(found.passed, in_words(found), self.judge)

    def _ask(self, rubric: Rubric, row: Row, conversation: Conversation) -> Ask:
        turn = conversation.turns[row.turn]
        reply = answer(ReplyFacts(row.reply, row.finish_reason, len(row.reply_ids)))
        dialogue = self._dialogue(row, conversation) if rubric.context == "dialogue" else ()
        side = Side(tuple(dialogue), row.prompt, reply)
        question: Question = about_reply(rubric.text, side, turn.reference if rubric.reference else None)
        return Ask(question, seeds_of(rubric.votes, row.seed, row.conversation, row.repeat, row.turn))

    def _dialogue(self, row: Row, conversation: Conversation) -> Sequence[Exchange]:
        """The turns before a row's that its model saw, with the replies that it saw."""
        probe = conversation.turns[row.turn].probe
        last = row.turn if probe is None else probe.after + 1
        gold = self.is_gold(row.cell)
        found: list[Exchange] = []
        for number, turn in enumerate(conversation.turns[:last]):
            if turn.probe is not None or turn.plain:
                continue
            other = None if gold and turn.reference is not None else self.row_of(row, number)
            said = turn.reference if other is None else answer(ReplyFacts(other.reply, other.finish_reason, 0))
            found.append(Exchange(turn.user, said or ""))
        return found


def in_words(votes: Votes) -> str:
    """How the votes fell, for the detail of a verdict."""
    probability = "" if votes.probability is None else f", probability of Yes {votes.probability:.3f}"
    if votes.number == 1:
        return ("Yes" if votes.passed else "No") + probability
    return f"{votes.first} of {votes.number} votes are Yes{probability}"


def asks_of(
    jury: Jury, rows: Iterable[Row], conversation_of: Mapping[str, Conversation], turns: Mapping[str, Collection[int]]
) -> Iterator[Ask]:
    """The questions about all `rows` whose `turns` have rubrics."""
    for row in rows:
        if row.turn in turns.get(row.conversation, ()):
            yield from jury.asks(row, conversation_of[row.conversation])
