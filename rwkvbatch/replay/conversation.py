"""Replays one task turn by turn: engine requests out of a script's turns, rows out of the engine's replies.

A turn passes these records on its way from the script to the run directory: `Conversation` and `Turn` (the script),
`Task` and `TurnSettings` (the plan), `ConversationReplay` (here), `Request` and `Reply` (the engine), `ReplyFacts` and
`CheckResult` (the checks), `Row` (the results).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import chain, takewhile
from typing import TYPE_CHECKING, cast

from rwkvbatch.config import CellSettings, Prompting
from rwkvbatch.engine.request import END_OF_TEXT, FinishReason, NoiseKey, Reply, Request, Score, closed_history
from rwkvbatch.errors import NonFiniteLogitsError, PromptTooLongError, RowError, RwkvBatchError, in_words
from rwkvbatch.prompt.templates import PromptTemplate, load_prelude, load_template, with_turn_end
from rwkvbatch.prompt.tokenizer import Tokenizer
from rwkvbatch.replay.plan import Plan, Task
from rwkvbatch.results.row import NOT_REACHED, CheckResult, Logprob, Reference, Row, RowTiming, TokenCounts
from rwkvbatch.script.records import Check, Conversation, ReplyFacts, Turn
from rwkvbatch.signals import ENDS_PROCESS

if TYPE_CHECKING:
    from rwkvbatch.engine.engine import Engine

_NOT_JUDGED = "not judged: the turn ended in an error"


class PromptEncoder:
    """Tokenizer, templates and initial states of one model, shared by its tasks. Caches encoded texts.

    `roots` has the engine's root number of each initial state file; root 0 is the empty state.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        roots: dict[str, int] | None = None,
        max_prompt_tokens: int | None = None,
        weights_sha256: str = "",
    ) -> None:
        self._weights_sha256 = weights_sha256
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self._roots = dict(roots or {})
        # Every cell and repetition encodes the same texts of a conversation.
        self.encode = lru_cache(maxsize=8192)(self._encode)
        self._load_template = lru_cache(maxsize=256)(self._make_template)
        self._load_prelude = lru_cache(maxsize=256)(load_prelude)

    def template(self, settings: CellSettings) -> PromptTemplate:
        """The prompt template of a reply."""
        return self._load_template(settings.prompting)

    def _make_template(self, prompting: Prompting) -> PromptTemplate:
        return load_template(with_turn_end(prompting, self._weights_sha256))

    def opening(self, conversation: Conversation, settings: CellSettings) -> tuple[int, ...]:
        """The tokens before the first turn: token 0 with `bos`, the system message and the prelude; may be empty."""
        prelude = None if settings.prelude is None else self._load_prelude(settings.prelude)
        begin = (END_OF_TEXT,) if settings.begins_with_bos() else ()
        return (*begin, *self.encode(self.template(settings).opening(conversation.system, prelude)))

    def root(self, settings: CellSettings) -> int:
        """The engine's root number of the initial state."""
        return 0 if settings.state is None else self._roots[settings.state]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text))


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
        self._history = encoder.opening(task.conversation, task.settings)

    @property
    def over(self) -> bool:
        return self.turn >= len(self.task.conversation.turns)

    def prompt(self) -> tuple[int, ...]:
        """All tokens before the next reply."""
        return (*self._history, *self._encoder.encode(self._template.turn(self._next.user)))

    def request(self) -> Request:
        """The engine request for the next turn's reply; raises `PromptTooLongError`."""
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

        Raises `RwkvBatchError` or `ValueError` when the prompt is too long or the engine refuses the request.
        """
        self.pending = {engine.submit(self.request())}
        if self._next.reference is not None:
            root = self._encoder.root(self.task.settings)
            given = self._template.given_reply(self._next.reference)
            self.pending.add(engine.submit_score(*self._with_reference(*given), root))

    def take_result(self, request_id: int, result: Reply | Score) -> Row | None:
        """Take a pending request's result. Returns the turn's row once all its results are there.

        The replay has then moved to the next turn, unless the row is an error row.
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
        text = self._template.shown_reply(reply.text)
        try:
            row = self._row(reply, score, text)
        except ENDS_PROCESS:
            raise
        except BaseException as error:  # checks are plug-ins: any exception fails the row, not the run
            return error_row(self.task, self.turn, explain(error), reply, text)
        self._advance(reply.history)
        return row

    def fail_turn(self, error: Exception) -> Row:
        """The error row of the next turn. The replay stays at that turn."""
        self.pending = set()
        self._reply = self._score = None
        return error_row(self.task, self.turn, explain(error))

    def skip_turn(self, row: Row) -> None:
        """Move past a turn whose row exists: its tokens are added to the history, nothing is generated."""
        end = cast("FinishReason", row.finish_reason), row.stopped_by, self._template.closing
        self._advance(closed_history(self._encoder.tokenizer, self.prompt(), row.reply_ids, *end))

    @property
    def _next(self) -> Turn:
        return self.task.conversation.turns[self.turn]

    @property
    def _template(self) -> PromptTemplate:
        return self._encoder.template(self.task.of_turn(self.turn).settings)

    def _with_reference(self, *parts: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens before the last of a reference's `parts`, as the template writes them, and those of that part."""
        texts = (self._template.past_turn(self._next.user), *parts)
        *before, last = [self._encoder.encode(text) for text in texts]
        return (*self._history, *chain.from_iterable(before)), last

    def _advance(self, history: tuple[int, ...]) -> None:
        if self.task.settings.history == "gold" and self._next.reference is not None:
            prefix, reply = self._with_reference(self._template.reply(self._next.reference))
            history = (*prefix, *reply)
        self._history = history
        self.turn += 1

    def _row(self, reply: Reply, score: Score | None, text: str) -> Row:
        turn = self._next
        if reply.finish_reason == "error":
            raise RowError(reply.error or "the engine could not make this reply")
        total = math.fsum(reply.logprobs)
        if not math.isfinite(total) or (score is not None and not math.isfinite(score.nll)):
            raise NonFiniteLogitsError("the model's log-probabilities hold NaN or infinity")
        reference = None
        if turn.reference is not None and score is not None:
            num_tokens = len(score.logprobs)
            reference = Reference(turn.reference, score.nll, score.num_matched / num_tokens, num_tokens)
        facts = ReplyFacts(text, reply.finish_reason, len(reply.ids), turn.reference)
        return replace(
            error_row(self.task, self.turn, "", reply, text),
            finish_reason=reply.finish_reason,
            stopped_by=reply.stopped_by,
            logprob=Logprob(total / len(reply.ids) if reply.ids else None, total),
            reference=reference,
            checks=tuple(_check(check, facts) for check in turn.checks),
            error=None,
        )


def error_row(task: Task, turn: int, message: str, reply: Reply | None = None, text: str = "") -> Row:
    """The row of a failed turn, whose checks count as failed; `reply` and `text` hold what was generated."""
    num_prompt, ids = (0, ()) if reply is None else (reply.num_prompt, reply.ids)
    return Row(
        **vars(task.key(turn)),
        seed=task.of_turn(turn).seed,
        tags=task.conversation.tags,
        prompt=task.conversation.turns[turn].user,
        reply=text,
        reply_ids=ids,
        finish_reason="error",
        stopped_by=None,
        tokens=TokenCounts(num_prompt, len(ids)),
        logprob=Logprob(None, 0.0),
        reference=None,
        checks=tuple(
            CheckResult(check.kind, check.expected, passed=False, score=0.0, weight=check.weight, detail=_NOT_JUDGED)
            for check in task.conversation.turns[turn].checks
        ),
        error=message,
        timing=_timing(reply),
    )


def not_reached(failed_turn: int) -> str:
    """The error message of a turn after a failed one."""
    return f"{NOT_REACHED} turn {failed_turn} of this conversation failed"


def was_reached(error: str) -> bool:
    """Whether an error message is of a turn that failed itself, rather than one that follows a failed turn."""
    return not error.startswith(NOT_REACHED)


def explain(error: BaseException) -> str:
    """The message of this program's errors; the type and text of others."""
    return error.message if isinstance(error, RwkvBatchError) else in_words(error)


def _check(check: Check, facts: ReplyFacts) -> CheckResult:
    try:
        verdict = check.judge(facts)
    except (RowError, *ENDS_PROCESS):
        raise
    except BaseException as error:
        raise RowError(f"check {check.kind!r} failed: {in_words(error)}") from error
    score = float(verdict.score)
    if not 0 <= score <= 1:
        raise RowError(f"check {check.kind!r} failed: its score must be in [0, 1], got {score}")
    return CheckResult(check.kind, check.expected, bool(verdict.passed), score, check.weight, verdict.detail)


def _timing(reply: Reply | None) -> RowTiming:
    if reply is None:
        return RowTiming(0.0, 0.0, 0.0, 0.0, 0.0, 0)
    timing = reply.timing
    generating_s = timing.total_s - timing.queued_s
    rate = len(reply.ids) / generating_s if generating_s > 0 else 0.0
    seconds = [round(s, 6) for s in (timing.queued_s, timing.prefill_s, timing.first_token_s, timing.total_s)]
    return RowTiming(*seconds, tokens_per_s=round(rate, 3), cached_tokens=reply.num_cached)


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

    as_dict = asdict


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
        for number, turn in enumerate(turns[1:], start=1):
            later += played * len(encoder.encode(encoder.template(task.of_turn(number).settings).turn(turn.user)))
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
    count, previous = 0, ("", ())
    for key, tokens in sorted(prompts):
        pairs = zip(previous[1], tokens, strict=False) if previous[0] == key else ()
        count += len(tokens) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        previous = (key, tokens)
    return count
