"""Runs the checks of a script on new replies, and on the replies of existing rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rwkvbatch.errors import RowError, RwkvBatchError, in_words
from rwkvbatch.hashes import json_sha256
from rwkvbatch.results.row import CheckResult, Logprob, Row
from rwkvbatch.script.records import Check, Conversation, JudgeVerdict, ReplyFacts
from rwkvbatch.signals import ENDS_PROCESS

JUDGING_RULES = 2
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
    facts = ReplyFacts(
        row.reply, row.finish_reason, len(row.reply_ids), turn.reference, row.choices, judge_verdicts or {}
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
