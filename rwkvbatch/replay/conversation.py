"""One dialogue under way: what to ask the engine next, and what row its answer makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from rwkvbatch.engine.request import FinishReason, NoiseKey, Reply, Request, Score
from rwkvbatch.engine.sequence import closed_history
from rwkvbatch.errors import NonFiniteLogitsError, PromptTooLongError, RowError, RwkvBatchError
from rwkvbatch.prompt.templates import PromptTemplate, load_template
from rwkvbatch.prompt.tokenizer import Tokenizer
from rwkvbatch.replay.plan import Dialogue
from rwkvbatch.replay.settings import CellSettings
from rwkvbatch.results.row import CheckResult, Logprob, Reference, Row, RowTiming, TokenCounts
from rwkvbatch.script.records import Check, ReplyFacts, Turn

NO_TIMING = RowTiming(0.0, 0.0, 0.0, 0.0, 0.0, 0)
_NOT_JUDGED = "not judged: the turn ended in an error"


class PromptEncoder:
    """What the dialogues of one model share: its tokenizer, templates, and texts that are encoded already.

    Args:
        tokenizer: the model's.
        roots: the engine's number of each initial state file; None (no file) is root 0.
        max_prompt_tokens: see `RunSettings`.
    """

    def __init__(
        self, tokenizer: Tokenizer, roots: dict[str, int] | None = None, max_prompt_tokens: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self._roots = dict(roots or {})
        # A conversation comes back in every cell and repeat, so its texts are worth keeping.
        self.encode = lru_cache(maxsize=8192)(self._encode)
        self._texts = lru_cache(maxsize=256)(self._load)

    def template(self, settings: CellSettings) -> PromptTemplate:
        return self._texts(settings.think, settings.template, settings.prelude)[0]

    def root(self, settings: CellSettings) -> int:
        """The engine's number of the initial state."""
        return 0 if settings.state is None else self._roots[settings.state]

    def prelude(self, settings: CellSettings) -> str | None:
        return self._texts(settings.think, settings.template, settings.prelude)[1]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text))

    def _load(self, think: Any, template: str | None, prelude: str | None) -> tuple[PromptTemplate, str | None]:
        prompting = CellSettings(think=think, template=template, prelude=prelude).prompting()
        return load_template(prompting), prompting.prelude


@dataclass(frozen=True)
class Scoring:
    """A reference reply to be scored: `continuation` after `prefix`, from initial state `root`."""

    prefix: tuple[int, ...]
    continuation: tuple[int, ...]
    root: int


class ConversationReplay:
    """A dialogue at its next turn.

    Attributes:
        turn: the next turn's number; the conversation's length when it is over.
        request_id, score_id: what the engine is working on for it. reply, score: what it answered.
    """

    def __init__(self, dialogue: Dialogue, desk: PromptEncoder) -> None:
        self.dialogue = dialogue
        self.turn = 0
        self.request_id = -1
        self.score_id = -1
        self.reply: Reply | None = None
        self.score: Score | None = None
        self._desk = desk
        self._template = desk.template(dialogue.settings)
        opening = self._template.opening(dialogue.conversation.system, desk.prelude(dialogue.settings))
        self._history = desk.encode(opening)

    @property
    def over(self) -> bool:
        return self.turn >= len(self.dialogue.conversation.turns)

    @property
    def row_number(self) -> int:
        """The next turn's place in the plan."""
        return self.dialogue.first_row + self.turn

    def prompt(self) -> tuple[int, ...]:
        """All tokens that the next reply follows."""
        return (*self._history, *self._desk.encode(self._template.turn(self._now.user)))

    def request(self) -> Request:
        """The next turn, for the engine.

        Raises:
            PromptTooLongError: it has more tokens than allowed.
        """
        tokens = self.prompt()
        limit = self._desk.max_prompt_tokens
        if limit is not None and len(tokens) > limit:
            raise PromptTooLongError(f"the prompt has {len(tokens)} tokens; --max-prompt-tokens allows {limit}")
        dialogue, turn = self.dialogue, self.dialogue.of_turn(self.turn)
        settings = turn.settings
        return Request(
            tokens=tokens,
            sampling=settings.sampling,
            noise=NoiseKey(turn.seed, dialogue.conversation.id, dialogue.repeat, self.turn),
            max_tokens=settings.max_tokens,
            max_seconds=settings.max_seconds,
            stop=(*self._template.stops, *settings.stop),
            closing=self._template.closing,
            root=self._desk.root(settings),
        )

    def scoring(self) -> Scoring | None:
        """The next turn's reference reply, for the engine; None when it has none."""
        if self._now.reference is None:
            return None
        prefix = (*self._history, *self._desk.encode(self._template.past_turn(self._now.user)))
        continuation = self._desk.encode(self._template.reply(self._now.reference))
        return Scoring(prefix, continuation, self._desk.root(self.dialogue.settings))

    def finish_turn(self, reply: Reply, score: Score | None) -> Row:
        """The row of the next turn, out of the engine's answers; the dialogue moves on to the turn after it."""
        text = self._template.shown_reply(reply.text)
        try:
            row = self._row(reply, score, text)
        except Exception as error:
            # A check is foreign code: whatever it raises ends its row, not the run.
            return error_row(self.dialogue, self.turn, _explain(error), reply, text)
        self._advance(reply.history)
        return row

    def fail_turn(self, error: Exception) -> Row:
        """The error row of the next turn, which could not be generated. The dialogue does not move on."""
        return error_row(self.dialogue, self.turn, _explain(error))

    def replay(self, row: Row) -> None:
        """Move over a turn whose row is there already: its tokens become history, nothing is generated."""
        finish_reason = cast("FinishReason", row.finish_reason)
        closing = self._template.closing
        self._advance(
            closed_history(self._desk.tokenizer, self.prompt(), row.reply_ids, finish_reason, row.stopped_by, closing)
        )

    @property
    def _now(self) -> Turn:
        return self.dialogue.conversation.turns[self.turn]

    def _advance(self, history: tuple[int, ...]) -> None:
        if self.dialogue.settings.history == "gold" and self._now.reference is not None:
            past = self._desk.encode(self._template.past_turn(self._now.user))
            history = (*self._history, *past, *self._desk.encode(self._template.reply(self._now.reference)))
        self._history = history
        self.turn += 1

    def _row(self, reply: Reply, score: Score | None, text: str) -> Row:
        turn, dialogue = self._now, self.dialogue
        if reply.finish_reason == "error":
            raise RowError(reply.error or "the engine could not make this reply")
        total = math.fsum(reply.logprobs)
        if not math.isfinite(total) or (score is not None and not math.isfinite(score.nll)):
            raise NonFiniteLogitsError("the model's log-probabilities hold NaN or infinity")
        facts = ReplyFacts(text, reply.finish_reason, len(reply.ids), turn.reference)
        return Row(
            conversation=dialogue.conversation.id,
            cell=dialogue.cell.name,
            repeat=dialogue.repeat,
            turn=self.turn,
            seed=dialogue.of_turn(self.turn).seed,
            tags=dialogue.conversation.tags,
            prompt=turn.user,
            reply=text,
            reply_ids=reply.ids,
            finish_reason=reply.finish_reason,
            stopped_by=reply.stopped_by,
            tokens=TokenCounts(reply.num_prompt, len(reply.ids)),
            logprob=Logprob(total / len(reply.ids) if reply.ids else None, total),
            reference=_reference(turn, score),
            checks=tuple(_judged(check, facts) for check in turn.checks),
            error=None,
            timing=_timing(reply),
        )


def error_row(dialogue: Dialogue, turn: int, message: str, reply: Reply | None = None, text: str = "") -> Row:
    """The row of a turn that failed; `reply` and `text` are what there is of it. Its checks count as failed."""
    ids: Sequence[int] = () if reply is None else reply.ids
    return Row(
        conversation=dialogue.conversation.id,
        cell=dialogue.cell.name,
        repeat=dialogue.repeat,
        turn=turn,
        seed=dialogue.of_turn(turn).seed,
        tags=dialogue.conversation.tags,
        prompt=dialogue.conversation.turns[turn].user,
        reply=text,
        reply_ids=tuple(ids),
        finish_reason="error",
        stopped_by=None,
        tokens=TokenCounts(0 if reply is None else reply.num_prompt, len(ids)),
        logprob=Logprob(None, 0.0),
        reference=None,
        checks=tuple(
            CheckResult(check.kind, check.expected, passed=False, score=0.0, weight=check.weight, detail=_NOT_JUDGED)
            for check in dialogue.conversation.turns[turn].checks
        ),
        error=message,
        timing=NO_TIMING if reply is None else _timing(reply),
    )


def _reference(turn: Turn, score: Score | None) -> Reference | None:
    if turn.reference is None or score is None:
        return None
    num_tokens = len(score.logprobs)
    return Reference(turn.reference, score.nll, score.num_matched / num_tokens, num_tokens)


def _judged(check: Check, facts: ReplyFacts) -> CheckResult:
    try:
        verdict = check.judge(facts)
    except RowError:
        raise
    except Exception as error:
        raise RowError(f"check {check.kind!r} failed: {type(error).__name__}: {error}") from error
    score = float(verdict.score)
    if not 0 <= score <= 1:
        raise RowError(f"check {check.kind!r} failed: its score must be in [0, 1], got {score}")
    return CheckResult(check.kind, check.expected, bool(verdict.passed), score, check.weight, verdict.detail)


def _timing(reply: Reply) -> RowTiming:
    timing = reply.timing
    generating_s = timing.total_s - timing.queued_s
    return RowTiming(
        queued_s=round(timing.queued_s, 6),
        prefill_s=round(timing.prefill_s, 6),
        first_token_s=round(timing.first_token_s, 6),
        total_s=round(timing.total_s, 6),
        tokens_per_s=round(len(reply.ids) / generating_s, 3) if generating_s > 0 else 0.0,
        cached_tokens=reply.num_cached,
    )


def _explain(error: Exception) -> str:
    return error.message if isinstance(error, RwkvBatchError) else f"{type(error).__name__}: {error}"
