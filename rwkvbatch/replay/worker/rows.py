"""Makes the rows of turns: from the engine's results, or of turns that failed or were not reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rwkvbatch.engine.request import Reply, Score
from rwkvbatch.errors import NonFiniteLogitsError, RowError
from rwkvbatch.replay.judging.checks import judge, likeliest_choice, not_judged
from rwkvbatch.replay.planning.plan import Task
from rwkvbatch.replay.worker.prompts import ScoredText, TurnPrompt
from rwkvbatch.results.row import (
    NOT_REACHED,
    SCORED,
    Logprob,
    ProbePlace,
    Reference,
    Row,
    RowTiming,
    TokenCounts,
    short_text,
    stored_prompt,
)
from rwkvbatch.script.choices import Choice, ChoiceScore, ChoiceScores
from rwkvbatch.script.records import ReplyFacts, Turn


@dataclass(frozen=True)
class TurnResults:
    """The engine's results for one turn: the reply, if one is generated, and the scores of reference and choices.

    Attributes:
        scored_texts: the texts of `scores`.
    """

    reply: Reply | None
    scores: list[Score]
    scored_texts: Sequence[ScoredText]


def turn_row(prompt: TurnPrompt, results: TurnResults, text: str, probe_tokens: int | None) -> Row:
    """The row of a turn, from the engine's results.

    Args:
        text: the reply as shown.
        probe_tokens: for a probe, the number of tokens since the message that it asks about.

    Raises:
        RowError: the engine could not make the reply or a score, or a check failed.
        NonFiniteLogitsError: a log-probability is NaN or infinite.
    """
    turn, reply, scores, texts = prompt.turn, results.reply, results.scores, results.scored_texts
    if reply is not None and reply.finish_reason == "error":
        raise RowError(reply.error or "the engine could not make this reply")
    check_scores(turn, scores)
    total = 0.0 if reply is None else math.fsum(reply.logprobs)
    sums = [math.fsum(score.logprobs) for score in scores]
    if not all(map(math.isfinite, (total, *sums))):
        raise NonFiniteLogitsError("the model's log-probabilities contain NaN or infinity")
    reference, choices = None, None
    if turn.reference is not None:
        if not scores[0].unavailable:
            reference = _reference(prompt, scores[0], sums[0], texts[0][1])
        scores, sums = scores[1:], sums[1:]
    if turn.choices:
        choices = ChoiceScores(
            tuple(
                _choice_score(prompt, choice, tokens, logprob)
                for choice, (_, tokens), logprob in zip(turn.choices, texts[-len(turn.choices) :], sums, strict=True)
            )
        )
        if reply is None:
            text = likeliest_choice(turn, choices).text.strip()
    row = error_row(prompt.task, prompt.number, "", reply, text)
    if reply is None:
        num_ids, num_logprobs, finish_reason, stopped_by = 0, 0, SCORED, None
        tokens = TokenCounts(max(len(prefix) for prefix, _ in texts), 0)
    else:
        # A served model may give no log-probabilities, or those of other tokens than this vocabulary's.
        num_ids, num_logprobs = len(reply.ids), len(reply.logprobs)
        finish_reason, stopped_by = reply.finish_reason, reply.stopped_by
        tokens = replace(row.tokens, thinking=_num_thinking(prompt, reply))
    facts = ReplyFacts(text.strip(), finish_reason, num_ids, turn.reference, choices)
    return replace(
        row,
        finish_reason=finish_reason,
        stopped_by=stopped_by,
        tokens=tokens,
        logprob=Logprob(total / num_logprobs if num_logprobs else None, total),
        reference=reference,
        checks=judge(turn.checks, facts),
        error=None,
        choices=choices,
        probe=None if row.probe is None else replace(row.probe, tokens=probe_tokens),
    )


def check_scores(turn: Turn, scores: Sequence[Score]) -> None:
    """Raise `RowError` if the engine did not score a text that the row needs."""
    for score in scores:
        if score.error is not None:
            raise RowError(score.error)
        if score.unavailable and (turn.choices or not turn.generate):
            raise RowError(f"{score.unavailable}, so that neither choices nor texts can be scored")


def _num_thinking(prompt: TurnPrompt, reply: Reply) -> int | None:
    """Number of tokens in the reply's thinking part: None if there is none, all tokens if it is not closed."""
    reply_start = "" if prompt.reply_template is None else prompt.template.reply_start
    text = reply_start + reply.text
    if not text.lstrip().startswith("<think"):
        return None
    end = text.find("</think>")
    if end < 0:
        return len(reply.ids)
    num_bytes = len(text[len(reply_start) : end + len("</think>")].encode("utf-8", "surrogatepass"))
    count = 0
    for token in reply.ids:
        if num_bytes <= 0:
            break
        num_bytes -= len(prompt.encoder.tokenizer.token_bytes(token))
        count += 1
    return count


def _reference(prompt: TurnPrompt, score: Score, logprob: float, tokens: Sequence[int]) -> Reference:
    turn, num_tokens = prompt.turn, len(tokens)
    assert turn.reference is not None
    matched = score.num_matched / num_tokens
    if not turn.plain or turn.generate:
        return Reference(turn.reference, score.nll, matched, num_tokens)
    num_bytes = _num_bytes(prompt, tokens)
    return Reference(short_text(turn.reference), -logprob / num_tokens + 0.0, matched, num_tokens, logprob, num_bytes)


def _choice_score(prompt: TurnPrompt, choice: Choice, tokens: Sequence[int], logprob: float) -> ChoiceScore:
    continuation = prompt.turn.continuation
    text = prompt.choice_text(choice) if continuation is None else continuation
    not_scored = prompt.encoder.encode(text)[: -len(tokens)]
    scored = text.encode()[_num_bytes(prompt, not_scored) :]
    prefix = prompt.turn.choice_prefix
    return ChoiceScore.of(choice.name, logprob, len(tokens), scored, " " if prefix is None else prefix)


def _num_bytes(prompt: TurnPrompt, tokens: Sequence[int]) -> int:
    token_bytes = prompt.encoder.tokenizer.token_bytes
    return sum(len(token_bytes(token)) for token in tokens)


def error_row(task: Task, turn: int, message: str, reply: Reply | None = None, text: str = "") -> Row:
    """The row of a failed turn, whose checks count as failed; `reply` and `text` have what was generated before."""
    num_prompt, ids = (0, ()) if reply is None else (reply.num_prompt, reply.ids)
    script_turn = task.conversation.turns[turn]
    probe = script_turn.probe
    return Row(
        **vars(task.key(turn)),
        seed=task.of_turn(turn).seed,
        tags=task.conversation.tags,
        prompt=stored_prompt(script_turn),
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
