"""Rows of turns that failed, or were not reached because an earlier turn failed."""

from __future__ import annotations

from rwkvbatch.engine.request import Reply
from rwkvbatch.replay.judging import not_judged
from rwkvbatch.replay.plan import Task
from rwkvbatch.results.row import NOT_REACHED, Logprob, ProbePlace, Row, RowTiming, TokenCounts, short_text


def error_row(task: Task, turn: int, message: str, reply: Reply | None = None, text: str = "") -> Row:
    """The row of a failed turn, whose checks count as failed; `reply` and `text` have what was generated before."""
    num_prompt, ids = (0, ()) if reply is None else (reply.num_prompt, reply.ids)
    script_turn = task.conversation.turns[turn]
    probe = script_turn.probe
    return Row(
        **vars(task.key(turn)),
        seed=task.of_turn(turn).seed,
        tags=task.conversation.tags,
        prompt=short_text(script_turn.shown_prompt) if script_turn.plain else script_turn.user,
        reply=text,
        reply_ids=ids,
        finish_reason="error",
        stopped_by=None,
        tokens=TokenCounts(num_prompt, len(ids)),
        logprob=Logprob(None, 0.0),
        reference=None,
        checks=not_judged(script_turn.checks),
        error=message,
        timing=timing_of(reply),
        probe=None if probe is None else ProbePlace(probe.after, probe.number, probe.distance, None),
    )


def not_reached(failed_turn: int) -> str:
    """The error message of a turn after a failed one."""
    return f"{NOT_REACHED} turn {failed_turn} of this conversation failed"


def was_reached(error: str) -> bool:
    """Whether a row's error is its own failure: the turn was reached, unlike those after a failed one."""
    return not error.startswith(NOT_REACHED)


def timing_of(reply: Reply | None) -> RowTiming:
    if reply is None:
        return RowTiming(0.0, 0.0, 0.0, 0.0, 0.0, 0)
    timing = reply.timing
    generating_s = timing.total_s - timing.queued_s
    rate = len(reply.ids) / generating_s if generating_s > 0 else 0.0
    seconds = [round(s, 6) for s in (timing.queued_s, timing.prefill_s, timing.first_token_s, timing.total_s)]
    return RowTiming(*seconds, tokens_per_s=round(rate, 3), cached_tokens=reply.num_cached)
