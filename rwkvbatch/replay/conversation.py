"""Replays one task turn by turn: engine requests out of a script's turns, rows out of the engine's replies.

A turn passes these records on its way from the script to the run directory: `Conversation` and `Turn` (the script),
`Task` and `TurnSettings` (the plan), `ConversationReplay` (here), `Request` and `Reply` (the engine), `ReplyFacts` and
`CheckResult` (the checks), `Row` (the results).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any, cast

from rwkvbatch.config import CellSettings
from rwkvbatch.engine.request import FinishReason, NoiseKey, Reply, Request, Score
from rwkvbatch.engine.sequence import closed_history
from rwkvbatch.errors import NonFiniteLogitsError, PromptTooLongError, RowError, RwkvBatchError
from rwkvbatch.prompt.templates import PromptTemplate, load_template, prompting_of
from rwkvbatch.prompt.tokenizer import Tokenizer
from rwkvbatch.replay.plan import Plan, Task
from rwkvbatch.results.row import CheckResult, Logprob, Reference, Row, RowTiming, TokenCounts
from rwkvbatch.script.records import Check, ReplyFacts, Turn

if TYPE_CHECKING:
    from rwkvbatch.engine.engine import Engine

NO_TIMING = RowTiming(0.0, 0.0, 0.0, 0.0, 0.0, 0)
_NO_LOGPROB = Logprob(None, 0.0)
_NOT_REACHED = "not reached:"


class PromptEncoder:
    """Tokenizer, templates and initial states of one model, shared by its tasks. Caches encoded texts.

    Args:
        tokenizer: the model's.
        roots: the engine's root number of each initial state file; root 0 is the empty state.
        max_prompt_tokens: see `RunSettings`.
    """

    def __init__(
        self, tokenizer: Tokenizer, roots: dict[str, int] | None = None, max_prompt_tokens: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self._roots = dict(roots or {})
        # Every cell and repetition encodes the same texts of a conversation.
        self.encode = lru_cache(maxsize=8192)(self._encode)
        self._load = lru_cache(maxsize=256)(self._load_uncached)

    def template(self, settings: CellSettings) -> PromptTemplate:
        return self._load(settings.think, settings.template, settings.prelude)[0]

    def prelude(self, settings: CellSettings) -> str | None:
        return self._load(settings.think, settings.template, settings.prelude)[1]

    def root(self, settings: CellSettings) -> int:
        """The engine's root number of the initial state."""
        return 0 if settings.state is None else self._roots[settings.state]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text))

    @staticmethod
    def _load_uncached(think: Any, template: str | None, prelude: str | None) -> tuple[PromptTemplate, str | None]:
        prompting = prompting_of(CellSettings(think=think, template=template, prelude=prelude))
        return load_template(prompting), prompting.prelude


class ConversationReplay:
    """A task and the state of its replay.

    Attributes:
        turn: number of the next turn; the number of turns when `over`.
        pending: engine requests of the next turn that have no result yet.
    """

    def __init__(self, task: Task, encoder: PromptEncoder) -> None:
        self.task = task
        self.turn = 0
        self.pending: set[int] = set()
        self._reply: Reply | None = None
        self._score: Score | None = None
        self._encoder = encoder
        self._template = encoder.template(task.settings)
        opening = self._template.opening(task.conversation.system, encoder.prelude(task.settings))
        self._history = encoder.encode(opening)

    @property
    def over(self) -> bool:
        return self.turn >= len(self.task.conversation.turns)

    def prompt(self) -> tuple[int, ...]:
        """All tokens before the next reply."""
        return (*self._history, *self._encoder.encode(self._template.turn(self._next.user)))

    def request(self) -> Request:
        """The engine request for the next turn's reply.

        Raises:
            PromptTooLongError: the prompt has more tokens than allowed.
        """
        tokens = self.prompt()
        limit = self._encoder.max_prompt_tokens
        if limit is not None and len(tokens) > limit:
            raise PromptTooLongError(f"the prompt has {len(tokens)} tokens; --max-prompt-tokens allows {limit}")
        task, turn = self.task, self.task.of_turn(self.turn)
        settings = turn.settings
        return Request(
            tokens=tokens,
            sampling=settings.sampling,
            noise=NoiseKey(turn.seed, task.conversation.id, task.repeat, self.turn),
            max_tokens=settings.max_tokens,
            max_seconds=settings.max_seconds,
            stop=(*self._template.stops, *settings.stop),
            closing=self._template.closing,
            root=self._encoder.root(settings),
        )

    def submit(self, engine: Engine) -> None:
        """Submit the next turn's request, and the scoring of its reference reply when it has one.

        Raises:
            PromptTooLongError: the prompt has more tokens than allowed.
            RwkvBatchError, ValueError: the engine refuses the request.
        """
        self.pending = {engine.submit(self.request())}
        if self._next.reference is not None:
            prefix = (*self._history, *self._encoder.encode(self._template.past_turn(self._next.user)))
            continuation = self._encoder.encode(self._template.reply(self._next.reference))
            self.pending.add(engine.submit_score(prefix, continuation, self._encoder.root(self.task.settings)))

    def take_result(self, request_id: int, result: Reply | Score) -> Row | None:
        """Take the engine's result of a pending request.

        Returns:
            The turn's row when all its results are there, else None. The replay has then moved to the next turn,
            unless the row is an error row.
        """
        self.pending.remove(request_id)
        if isinstance(result, Reply):
            self._reply = result
        else:
            self._score = result
        if self.pending or self._reply is None:
            return None
        reply, score = self._reply, self._score
        self._reply = self._score = None
        return self._finish_turn(reply, score)

    def fail_turn(self, error: Exception) -> Row:
        """The error row of the next turn. The replay stays at that turn."""
        self.pending = set()
        self._reply = self._score = None
        return error_row(self.task, self.turn, _explain(error))

    def skip_turn(self, row: Row) -> None:
        """Move past a turn whose row exists: its tokens are added to the history, nothing is generated."""
        finish_reason = cast("FinishReason", row.finish_reason)
        closing = self._template.closing
        self._advance(
            closed_history(
                self._encoder.tokenizer, self.prompt(), row.reply_ids, finish_reason, row.stopped_by, closing
            )
        )

    @property
    def _next(self) -> Turn:
        return self.task.conversation.turns[self.turn]

    def _finish_turn(self, reply: Reply, score: Score | None) -> Row:
        text = self._template.shown_reply(reply.text)
        try:
            row = self._row(reply, score, text)
        except Exception as error:  # checks are plug-ins: any exception fails the row, not the run
            return error_row(self.task, self.turn, _explain(error), reply, text)
        self._advance(reply.history)
        return row

    def _advance(self, history: tuple[int, ...]) -> None:
        if self.task.settings.history == "gold" and self._next.reference is not None:
            past = self._encoder.encode(self._template.past_turn(self._next.user))
            history = (*self._history, *past, *self._encoder.encode(self._template.reply(self._next.reference)))
        self._history = history
        self.turn += 1

    def _row(self, reply: Reply, score: Score | None, text: str) -> Row:
        turn = self._next
        if reply.finish_reason == "error":
            raise RowError(reply.error or "the engine could not make this reply")
        total = math.fsum(reply.logprobs)
        if not math.isfinite(total) or (score is not None and not math.isfinite(score.nll)):
            raise NonFiniteLogitsError("the model's log-probabilities hold NaN or infinity")
        facts = ReplyFacts(text, reply.finish_reason, len(reply.ids), turn.reference)
        return _make_row(
            self.task,
            self.turn,
            reply,
            text,
            logprob=Logprob(total / len(reply.ids) if reply.ids else None, total),
            reference=_reference(turn, score),
            checks=tuple(_check(check, facts) for check in turn.checks),
        )


def error_row(task: Task, turn: int, message: str, reply: Reply | None = None, text: str = "") -> Row:
    """The row of a failed turn; `reply` and `text` hold what was generated, if anything was."""
    return _make_row(task, turn, reply, text, error=message)


def _make_row(
    task: Task,
    turn: int,
    reply: Reply | None,
    text: str,
    *,
    logprob: Logprob = _NO_LOGPROB,
    reference: Reference | None = None,
    checks: tuple[CheckResult, ...] = (),
    error: str | None = None,
) -> Row:
    good = reply if error is None else None
    ids = () if reply is None else reply.ids
    return Row(
        conversation=task.conversation.id,
        cell=task.cell.name,
        repeat=task.repeat,
        turn=turn,
        seed=task.of_turn(turn).seed,
        tags=task.conversation.tags,
        prompt=task.conversation.turns[turn].user,
        reply=text,
        reply_ids=ids,
        finish_reason="error" if good is None else good.finish_reason,
        stopped_by=None if good is None else good.stopped_by,
        tokens=TokenCounts(0 if reply is None else reply.num_prompt, len(ids)),
        logprob=logprob,
        reference=reference,
        checks=checks,
        error=error,
        timing=NO_TIMING if reply is None else _timing(reply),
    )


def not_reached(failed_turn: int) -> str:
    """The error message of a turn after a failed one."""
    return f"{_NOT_REACHED} turn {failed_turn} of this conversation failed"


def was_reached(error: str) -> bool:
    """Whether an error message is of a turn that failed itself, rather than one that follows a failed turn."""
    return not error.startswith(_NOT_REACHED)


def _reference(turn: Turn, score: Score | None) -> Reference | None:
    if turn.reference is None or score is None:
        return None
    num_tokens = len(score.logprobs)
    return Reference(turn.reference, score.nll, score.num_matched / num_tokens, num_tokens)


def _check(check: Check, facts: ReplyFacts) -> CheckResult:
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


@dataclass(frozen=True)
class Preview:
    """Numbers of rows, tasks and tokens of a plan (`--dry-run`), or of its shard.

    Attributes:
        dialogues: tasks.
        first_prompt_tokens: in the first turns' prompts of all tasks.
        first_prompt_distinct: those of them to compute when shared prefixes are computed once.
        later_turn_tokens: tokens of the later turns' user messages, without the replies.
        max_reply_tokens: upper bound of all replies together.
    """

    rows: int
    dialogues: int
    conversations: int
    cells: tuple[str, ...]
    repeats: int
    first_prompt_tokens: int
    first_prompt_distinct: int
    later_turn_tokens: int
    max_reply_tokens: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def preview(plan: Plan, encoder: PromptEncoder) -> Preview:
    """Count a plan's work without a model, of a race at most; `encoder` needs no initial states."""
    times = plan.times_played()
    first = later = replies = rows = dialogues = 0
    prompts: set[tuple[str, tuple[int, ...]]] = set()
    numbers = [plan.number_of(conversation, cell, 0) for conversation in times for cell in range(len(plan.cells))]
    for task in map(plan.task, numbers):
        turns, played = task.conversation.turns, times[plan.conversation_of(task.number)]
        dialogues += played
        rows += played * len(turns)
        prompt = ConversationReplay(task, encoder).prompt()
        # Prompts of different models or initial states share no cached state.
        prompts.add((f"{task.settings.model}\0{task.settings.state}", prompt))
        first += played * len(prompt)
        template = encoder.template(task.settings)
        later += played * sum(len(encoder.encode(template.turn(turn.user))) for turn in turns[1:])
        replies += played * sum(task.of_turn(turn).settings.max_tokens for turn in range(len(turns)))
    return Preview(
        rows=rows if plan.settings.race_rows is None else min(rows, plan.settings.race_rows),
        dialogues=dialogues,
        conversations=len(times),
        cells=tuple(cell.name for cell in plan.cells),
        repeats=plan.settings.repeats if plan.settings.race else plan.repeats,
        first_prompt_tokens=first,
        first_prompt_distinct=_num_distinct(prompts),
        later_turn_tokens=later,
        max_reply_tokens=replies,
    )


def _num_distinct(prompts: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Nodes of the prompts' prefix tree: in sorted order, each prompt adds the tokens that its predecessor lacks."""
    count = 0
    previous: tuple[str, tuple[int, ...]] = ("", ())
    for key, tokens in sorted(prompts):
        pairs = zip(previous[1], tokens, strict=False) if previous[0] == key else ()
        count += len(tokens) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        previous = (key, tokens)
    return count
