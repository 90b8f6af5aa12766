"""Runs the checks of a script on new replies, and on the replies of existing rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rwkvbatch.errors import RowError, RwkvBatchError, in_words
from rwkvbatch.hashes import json_sha256
from rwkvbatch.prompt.segments import clean_reply
from rwkvbatch.results.row import CheckResult, Logprob, Row
from rwkvbatch.script.checks.answers import Chosen
from rwkvbatch.script.choices import Choice, ChoiceScores
from rwkvbatch.script.records import Check, Conversation, JudgeVerdict, ReplyFacts, Turn
from rwkvbatch.signals import ENDS_PROCESS

JUDGING_RULES = 4
"""Version of the checks: incremented when a check judges the same reply otherwise than before; rows are then judged
again."""

_NOT_JUDGED = "not judged: the turn ended in an error"


def judge(checks: Sequence[Check], facts: ReplyFacts) -> tuple[CheckResult, ...]:
    """The results of all checks on a reply.

    Raises:
        RowError: a check raised an exception, or its score is not in [0, 1].
    """
    return tuple(_judge(check, facts) for check in checks)


def not_judged(checks: Sequence[Check]) -> tuple[CheckResult, ...]:
    """The results of the checks of a turn that ended in an error: all count as failed."""
    return tuple(
        CheckResult(check.kind, check.expected, passed=False, score=0.0, weight=check.weight, detail=_NOT_JUDGED)
        for check in checks
    )


def judged_again(row: Row, conversation: Conversation, judge_verdicts: Mapping[Any, JudgeVerdict] | None = None) -> Row:
    """`row` with the check results and tags by `conversation`, whose reply it has.

    An error row stays an error row. A row becomes one if a check raises an exception, as in a new run.

    Args:
        judge_verdicts: by rubric, the verdicts of a judge. A check of another rubric has no verdict.
    """
    turn = conversation.turns[row.turn]
    row = replace(row, tags=conversation.tags)
    if row.finish_reason == "error":
        return replace(row, checks=not_judged(turn.checks))
    if row.choices is not None:
        row = _recounted(row, turn, row.choices)
    facts = ReplyFacts(
        row.reply.strip(), row.finish_reason, len(row.reply_ids), turn.reference, row.choices, judge_verdicts or {}
    )
    try:
        return replace(row, checks=judge(turn.checks, facts))
    except ENDS_PROCESS:
        raise
    except BaseException as error:  # checks may be plug-ins: an exception fails the row, not the run
        return replace(
            row,
            finish_reason="error",
            stopped_by=None,
            logprob=Logprob(None, 0.0),
            reference=None,
            checks=not_judged(turn.checks),
            error=explain(error),
        )


def _recounted(row: Row, turn: Turn, scores: ChoiceScores) -> Row:
    """`row` with the bytes and characters of its choices as they are counted now, and the reply that is best by them.

    The reply to a message stays as it is, because later turns may have it in their history.
    """
    texts = {choice.name: _scored_texts(turn, choice) for choice in turn.choices}
    choices = ChoiceScores(tuple(score.recounted(texts.get(score.name, ())) for score in scores.scores))
    reply = likeliest_choice(turn, choices).text.strip() if turn.plain and choices != scores else row.reply
    return replace(row, choices=choices, reply=reply)


def _scored_texts(turn: Turn, choice: Choice) -> Sequence[str]:
    """What may have been scored for a choice: its text as a reply, or verbatim after a prompt or a `reply_prefix`."""
    if turn.plain:
        return (choice.text if turn.continuation is None else turn.continuation,)
    return f" {clean_reply(choice.text)}", choice.text


def likeliest_choice(turn: Turn, scores: ChoiceScores | None) -> Choice:
    """The choice with the highest score, by the normalization of the turn's first check of choices."""
    if scores is None:
        raise RowError("the row of this turn has no choices")
    rules = [check.rule for check in turn.checks if isinstance(check.rule, Chosen)]
    best = scores.best(rules[0].normalize if rules else "none").name
    return next(choice for choice in turn.choices if choice.name == best)


def explain(error: BaseException) -> str:
    """The message of an `RwkvBatchError`; the type and text of another exception."""
    return error.message if isinstance(error, RwkvBatchError) else in_words(error)


def _judge(check: Check, facts: ReplyFacts) -> CheckResult:
    try:
        verdict = check.judge(facts)
    except (RowError, *ENDS_PROCESS):
        raise
    except BaseException as error:
        raise RowError(f"check {check.kind!r} failed: {in_words(error)}") from error
    if verdict.missing:
        return CheckResult(check.kind, check.expected, None, None, check.weight, verdict.detail)
    judge_name = next(
        (facts.judge_verdicts[rubric].judge for rubric in check.rubrics if rubric in facts.judge_verdicts), None
    )
    score = float(verdict.score)
    if not 0 <= score <= 1:
        raise RowError(f"check {check.kind!r} failed: its score must be in [0, 1], got {score}")
    passed = bool(verdict.passed)
    return CheckResult(check.kind, check.expected, passed, score, check.weight, verdict.detail, judge_name)


def judging_digest(conversation: Conversation, turn: int) -> str:
    """The digest of a turn's checks and of the conversation's tags."""
    return json_sha256([JUDGING_RULES, conversation.judging(turn)])[:16]
