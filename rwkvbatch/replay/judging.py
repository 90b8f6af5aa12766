"""Judges replies by the checks of a script: new ones, and those of rows that exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rwkvbatch.errors import RowError, RwkvBatchError, in_words
from rwkvbatch.results.row import CheckResult, Logprob, Row
from rwkvbatch.script.records import Check, Conversation, ReplyFacts, Ruling
from rwkvbatch.signals import ENDS_PROCESS

_NOT_JUDGED = "not judged: the turn ended in an error"


def judge(checks: Sequence[Check], facts: ReplyFacts) -> tuple[CheckResult, ...]:
    """The verdicts of all checks on a reply.

    Raises:
        RowError: a check raised an exception, or its score is not in [0, 1].
    """
    return tuple(_judge(check, facts) for check in checks)


def not_judged(checks: Sequence[Check]) -> tuple[CheckResult, ...]:
    """The verdicts on a turn that ended in an error: checks count as failed."""
    return tuple(
        CheckResult(check.kind, check.expected, passed=False, score=0.0, weight=check.weight, detail=_NOT_JUDGED)
        for check in checks
    )


def judged_again(row: Row, conversation: Conversation, rulings: Mapping[Any, Ruling] | None = None) -> Row:
    """A row with the verdicts and tags of `conversation`, which its reply belongs to.

    `rulings` are those of a judge; verdicts that need others are missing.
    An error row stays one. A row on which a check fails to give a verdict becomes one, as it would in a new run.
    """
    turn = conversation.turns[row.turn]
    row = replace(row, tags=conversation.tags)
    if row.finish_reason == "error":
        return replace(row, checks=not_judged(turn.checks))
    facts = ReplyFacts(row.reply, row.finish_reason, len(row.reply_ids), turn.reference, row.choices, rulings or {})
    try:
        return replace(row, checks=judge(turn.checks, facts))
    except ENDS_PROCESS:
        raise
    except BaseException as error:  # checks are plug-ins: any exception fails the row, not the run
        return replace(
            row,
            finish_reason="error",
            stopped_by=None,
            logprob=Logprob(None, 0.0),
            reference=None,
            checks=not_judged(turn.checks),
            error=explain(error),
        )


def explain(error: BaseException) -> str:
    """The message of this program's errors; the type and text of others."""
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
    by = next((facts.rulings[rubric].judge for rubric in check.rubrics if rubric in facts.rulings), None)
    score = float(verdict.score)
    if not 0 <= score <= 1:
        raise RowError(f"check {check.kind!r} failed: its score must be in [0, 1], got {score}")
    return CheckResult(check.kind, check.expected, bool(verdict.passed), score, check.weight, verdict.detail, by)
