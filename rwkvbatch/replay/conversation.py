"""Replays one task turn by turn: engine requests out of a script's turns, rows out of the engine's replies.

A turn passes these records on its way from the script to the run directory: `Conversation` and `Turn` (the script),
`Task` and `TurnSettings` (the plan), `ConversationReplay` (here), `Request` and `Reply` (the engine), `ReplyFacts` and
`CheckResult` (the checks), `Row` (the results).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, cast

from rwkvbatch.engine.request import END_OF_TEXT, FinishReason, NoiseKey, Reply, Request, Score, closed_history
from rwkvbatch.errors import NonFiniteLogitsError, PromptTooLongError, RowError
from rwkvbatch.prompt.templates import PromptTemplate
from rwkvbatch.prompt.tokenizer import encode_long
from rwkvbatch.replay.failed import error_row
from rwkvbatch.replay.judging import explain, judge
from rwkvbatch.replay.plan import Task
from rwkvbatch.replay.prompts import PromptEncoder
from rwkvbatch.results.row import SCORED, Logprob, Reference, Row, TokenCounts, short_text
from rwkvbatch.script.checks.structured import Chosen
from rwkvbatch.script.choices import Choice, ChoiceScore, ChoiceScores
from rwkvbatch.script.records import ReplyFacts, Turn
from rwkvbatch.signals import ENDS_PROCESS

if TYPE_CHECKING:
    from rwkvbatch.endpoint.engine import EndpointEngine
    from rwkvbatch.engine.engine import Engine


class ConversationReplay:
    """A task and the state of its replay.

    Attributes:
        pending: engine requests of the next turn that have no result yet.
    """

    def __init__(self, task: Task, encoder: PromptEncoder) -> None:
        self.task = task
        self.pending: set[int] = set()
        self._place = 0
        self._work: _Work | None = None
        # By turn of the dialogue, the tokens up to the end of its user message: probes count from there.
        self._said: dict[int, int] = {}
        self._encoder = encoder
        self._history = encoder.opening(task)
        # The dialogue so far as messages, for a served model that has a template of its own.
        self._messages = [{"role": "system", "content": task.system}] if task.system else []

    @property
    def over(self) -> bool:
        return self._place >= len(self.task.conversation.order)

    @property
    def turn(self) -> int:
        """The number of the next turn, in the order of the replay; the number of turns when `over`."""
        order = self.task.conversation.order
        return len(order) if self.over else order[self._place]

    @property
    def turns_after(self) -> tuple[int, ...]:
        """The numbers of the turns that follow the next one."""
        return self.task.conversation.order[self._place + 1 :]

    @property
    def is_at_probe(self) -> bool:
        """Whether the next turn is a probe, whose failure does not end the dialogue."""
        return not self.over and self._next.probe is not None

    def prompt(self) -> tuple[int, ...]:
        """All tokens before the next reply."""
        return (*self._history, *self._encoder.encode(self._template.turn(self._next.user)))

    def request(self) -> Request:
        """The engine request for the next turn's reply; raises `PromptTooLongError`."""
        tokens = self.prompt()
        self._check_length(len(tokens))
        turn = self.task.of_turn(self.turn)
        settings = turn.settings
        # Where a server's template makes the prompt, it also says what ends a reply.
        is_chat = settings.uses_chat_api
        messages = (*self._messages, {"role": "user", "content": self._next.user}) if is_chat else ()
        return Request(
            tokens=tokens,
            sampling=settings.sampling,
            noise=self._noise(turn.seed),
            max_tokens=settings.max_tokens,
            max_seconds=settings.max_seconds,
            stop=settings.stop if is_chat else (*self._template.stops, *settings.stop),
            closing=self._template.closing,
            root=self._encoder.root(settings),
            messages=messages,
        )

    def _check_length(self, num_tokens: int) -> None:
        limit = self._encoder.max_prompt_tokens
        if limit is not None and num_tokens > limit:
            raise PromptTooLongError(f"the prompt has {num_tokens} tokens; --max-prompt-tokens allows {limit}")

    def _noise(self, seed: int) -> NoiseKey:
        """The key of the turn's random numbers; that of a probe does not depend on how many turns there are."""
        conversation, probe = self.task.conversation.id, self._next.probe
        if probe is None:
            return NoiseKey(seed, conversation, self.task.repeat, self.turn)
        return NoiseKey(seed, f"{conversation}\x1fprobe {probe.number}", self.task.repeat, probe.after)

    def submit(self, engine: Engine | EndpointEngine) -> None:
        """Submit the work of the next turn: its reply, its reference reply, its choices.

        Raises `RwkvBatchError` or `ValueError` when the prompt is too long or the engine refuses the request.
        """
        turn = self._next
        texts = [] if turn.reference is None else [self._reference_tokens(turn.reference)]
        texts += map(self._choice_tokens, turn.choices)
        if not turn.generate:
            for prefix, _ in texts:
                self._check_length(len(prefix))
        self._work = _Work(self.request() if turn.generate else None, texts)
        self.submit_more(engine)

    def submit_more(self, engine: Engine | EndpointEngine) -> None:
        """Submit what is left of the next turn's work, as far as `MAX_PENDING` allows: each request has its tokens."""
        work = self._work
        if work is None:
            return
        root = self._encoder.root(self.task.of_turn(self.turn).settings)
        try:
            while work.num_submitted < work.num_parts and len(self.pending) < MAX_PENDING:
                part = work.num_submitted
                if work.request is not None and part == 0:
                    number = engine.submit(work.request)
                else:
                    place = part - (work.request is not None)
                    # Only a reference reply can be part of a later history.
                    cache = place == 0 and self._next.reference is not None and not self._next.plain
                    number = engine.submit_score(*work.texts[place], root, cache=cache)
                work.part_of[number] = part
                self.pending.add(number)
                work.num_submitted += 1
        except BaseException:  # Ctrl-C too: the engine would go on with requests that nobody takes
            for number in self.pending:
                engine.cancel(number)
            raise

    def take_result(self, request_id: int, result: Reply | Score) -> Row | None:
        """Take a pending request's result. Returns the turn's row once all its results are there.

        Without a row, the caller calls `submit_more`. With one, the replay has moved to the next turn, unless it is an
        error row.
        """
        work, results = self._work, self.collect(request_id, result)
        if work is None or results is None:
            return None
        reply, scores = results.reply, results.scores
        text = "" if reply is None else self._template.shown_reply(reply.text)
        try:
            row = self._row(work, reply, scores, text)
        except ENDS_PROCESS:
            raise
        except BaseException as error:  # checks are plug-ins: any exception fails the row, not the run
            return error_row(self.task, self.turn, explain(error), reply, text)
        self._advance(() if reply is None else reply.history, row)
        return row

    def collect(self, request_id: int, result: Reply | Score) -> TurnResults | None:
        """Take a pending request's result, as `take_result` does, and stay at the turn: nothing is judged.

        Returns:
            All results of the turn once they are there; before that None, and the caller calls `submit_more`.
        """
        self.pending.remove(request_id)
        work = self._work
        assert work is not None
        work.results[work.part_of.pop(request_id)] = result
        if len(work.results) < work.num_parts:
            return None
        self._work = None
        reply = work.results[0] if work.request is not None else None
        assert reply is None or isinstance(reply, Reply)
        return TurnResults(reply, [found for _, found in sorted(work.results.items()) if isinstance(found, Score)])

    def fail_turn(self, error: Exception) -> Row:
        """The error row of the next turn. The replay stays at that turn."""
        self.pending = set()
        self._work = None
        return error_row(self.task, self.turn, explain(error))

    def skip_turn(self, row: Row) -> None:
        """Move past a turn whose row exists: its tokens are added to the history, nothing is generated."""
        history: tuple[int, ...] = ()
        if self._next.generate and self._next.probe is None:
            end = cast("FinishReason", row.finish_reason), row.stopped_by, self._template.closing
            history = closed_history(self._encoder.tokenizer, self.prompt(), row.reply_ids, *end)
        self._advance(history, row)

    def take_references(self) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """The tokens before each of the next references, and those of the reference, as rows score them.

        Goes past their turns, with the references as history, and stops before a turn of the dialogue without one;
        probes without one are passed over.
        """
        while not self.over:
            turn = self._next
            if turn.reference is not None:
                yield self._reference_tokens(turn.reference)
                if turn.probe is None and not turn.plain:
                    self._history = self._given_history(turn.reference)
            elif turn.probe is None:
                return
            self._place += 1

    def take_reply(self, reply: Reply) -> None:
        """Go past the next turn with the model's reply as history, and make no row of it.

        Raises:
            RowError: the engine could not make the reply.
        """
        if reply.finish_reason == "error":
            raise RowError(reply.error or "the engine could not make this reply")
        self._history = reply.history
        self._place += 1

    @property
    def _next(self) -> Turn:
        return self.task.conversation.turns[self.turn]

    @property
    def _template(self) -> PromptTemplate:
        return self._encoder.template(self.task.of_turn(self.turn).settings)

    def _reference_tokens(self, reference: str) -> tuple[Sequence[int], Sequence[int]]:
        """The tokens before the turn's reference that are not scored, and those that are.

        Of a plain text that nothing is read before (`bos` off), the first token cannot be scored.
        """
        if not self._next.plain:
            return self._with_given(*self._template.given_reply(reference))
        before, text = self._plain_prompt(), encode_long(self._encoder.tokenizer, reference)
        if not before and len(text) < 2:
            raise RowError("the text has one token, and nothing is read before it: use --bos on")
        return (before, text) if before else (text[:1], text[1:])

    def _plain_prompt(self) -> tuple[int, ...]:
        """The tokens before a plain text: token 0 (unless `bos` is off) and its prompt, read without a template."""
        settings = self.task.of_turn(self.turn).settings
        begin = (END_OF_TEXT,) if settings.begins_with_bos(plain_text=True) else ()
        # Not through the cache of encoded texts, which would keep documents.
        return (*begin, *self._encoder.tokenizer.encode(self._next.user))

    def _choice_tokens(self, choice: Choice) -> tuple[Sequence[int], Sequence[int]]:
        """The tokens before a choice, and those of the choice, as a reply's beginning or after a plain prompt."""
        if self._next.plain:
            return self._plain_prompt(), tuple(self._encoder.encode(choice.text))
        return self._with_choice(self._choice_text(choice))

    def _choice_text(self, choice: Choice) -> str:
        """A choice as the template writes a reply; after a `reply_prefix` or a plain prompt as the script has it."""
        if self._template.reply_prefix or self._next.plain:
            return choice.text
        return self._template.reply(choice.text).removesuffix(self._template.closing)

    def _with_choice(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.prompt(), self._encoder.encode(text)) if self._template.reply_prefix else self._with_given(text)

    def _with_given(self, *parts: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens before the last of a reply's `parts`, as the template writes them, and those of that part."""
        texts = (self._template.past_turn(self._next.user), *parts)
        *before, last = [self._encoder.encode(text) for text in texts]
        return (*self._history, *chain.from_iterable(before)), last

    def _given_history(self, reference: str) -> tuple[int, ...]:
        """All tokens after a turn whose reply is its reference."""
        prefix, reply = self._with_given(self._template.reply(reference))
        return (*prefix, *reply)

    def _advance(self, history: tuple[int, ...], row: Row) -> None:
        """Move to the next turn, after `history` if this one had a generated reply.

        A probe and a plain text leave the history as it is. A turn of choices without a reply goes on with the choice
        that is the likeliest by its first check of choices, or else by the sum of the log-probabilities.
        """
        turn, settings = self._next, self.task.settings
        if turn.probe is None and not turn.plain:
            self._said[self.turn] = len(self.prompt())
            if settings.history == "gold" and turn.reference is not None:
                history = self._given_history(turn.reference)
            elif not turn.generate:
                chosen = self._choice_text(_chosen(turn, row.choices))
                prefix, reply = self._with_choice(chosen + self._template.closing)
                history = (*prefix, *reply)
            self._history = history
            is_given = settings.history == "gold" and turn.reference is not None
            said = turn.reference if is_given and turn.reference is not None else row.reply
            self._messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": said}]
        self._place += 1

    def _row(self, work: _Work, reply: Reply | None, scores: list[Score], text: str) -> Row:
        turn = self._next
        if reply is not None and reply.finish_reason == "error":
            raise RowError(reply.error or "the engine could not make this reply")
        self._check_scores(turn, scores)
        total = 0.0 if reply is None else math.fsum(reply.logprobs)
        sums = [math.fsum(score.logprobs) for score in scores]
        if not all(map(math.isfinite, (total, *sums))):
            raise NonFiniteLogitsError("the model's log-probabilities hold NaN or infinity")
        reference, choices = None, None
        if turn.reference is not None:
            if not scores[0].unavailable:
                reference = self._reference(scores[0], sums[0], work.texts[0][1])
            scores, sums = scores[1:], sums[1:]
        if turn.choices:
            choices = ChoiceScores(
                tuple(
                    ChoiceScore(choice.name, logprob, len(score.logprobs), len(self._choice_text(choice).encode()))
                    for choice, score, logprob in zip(turn.choices, scores, sums, strict=True)
                )
            )
            if reply is None:
                text = _chosen(turn, choices).text.strip()
        num_ids = 0 if reply is None else len(reply.ids)
        # A served model may give none, or count other tokens than those of this vocabulary.
        num_logprobs = 0 if reply is None else len(reply.logprobs)
        finish_reason = SCORED if reply is None else reply.finish_reason
        facts = ReplyFacts(text, finish_reason, num_ids, turn.reference, choices)
        row = error_row(self.task, self.turn, "", reply, text)
        probe = row.probe
        if probe is not None and turn.probe is not None:
            said = 0 if turn.probe.since < 0 else self._said[turn.probe.since]
            probe = replace(probe, tokens=len(self._history) - said)
        return replace(
            row,
            finish_reason=finish_reason,
            stopped_by=None if reply is None else reply.stopped_by,
            tokens=TokenCounts(max(len(prefix) for prefix, _ in work.texts), 0)
            if reply is None
            else replace(row.tokens, thinking=self._num_thinking(reply)),
            logprob=Logprob(total / num_logprobs if num_logprobs else None, total),
            reference=reference,
            checks=judge(turn.checks, facts),
            error=None,
            choices=choices,
            probe=probe,
        )

    @staticmethod
    def _check_scores(turn: Turn, scores: Sequence[Score]) -> None:
        """Raise `RowError` where a served model did not score a text that the row cannot do without."""
        for score in scores:
            if score.error is not None:
                raise RowError(score.error)
            if score.unavailable and (turn.choices or not turn.generate):
                raise RowError(f"{score.unavailable}, so that neither choices nor texts can be scored")

    def _num_thinking(self, reply: Reply) -> int | None:
        """Tokens of the reply's thinking part; None if it has none, all if that has no end."""
        begun = self._template.begun
        text = begun + reply.text
        if not text.lstrip().startswith("<think"):
            return None
        end = text.find("</think>")
        if end < 0:
            return len(reply.ids)
        num_bytes = len(text[len(begun) : end + len("</think>")].encode("utf-8", "surrogatepass"))
        count = 0
        for token in reply.ids:
            if num_bytes <= 0:
                break
            num_bytes -= len(self._encoder.tokenizer.token_bytes(token))
            count += 1
        return count

    def _reference(self, score: Score, logprob: float, tokens: Sequence[int]) -> Reference:
        turn, num_tokens = self._next, len(tokens)
        assert turn.reference is not None
        matched = score.num_matched / num_tokens
        if not turn.plain:
            return Reference(turn.reference, score.nll, matched, num_tokens)
        token_bytes = self._encoder.tokenizer.token_bytes
        num_bytes = sum(len(token_bytes(token)) for token in tokens)
        return Reference(short_text(turn.reference), -logprob / num_tokens, matched, num_tokens, logprob, num_bytes)


@dataclass(frozen=True)
class TurnResults:
    """What the engine made for one turn: the reply, if one is generated, and the scores of reference and choices."""

    reply: Reply | None
    scores: list[Score]


MAX_PENDING = 256
"""The most requests of one turn that are in the engine at a time."""


@dataclass
class _Work:
    """What the engine does for one turn: a request, then the scoring of `texts` (tokens before, and of the text).

    The first text is the reference where the turn has one; the others are its choices.

    Attributes:
        part_of: by number of a pending request, its place among them. results: by place.
    """

    request: Request | None
    texts: Sequence[tuple[Sequence[int], Sequence[int]]]
    num_submitted: int = 0
    part_of: dict[int, int] = field(default_factory=dict[int, int])
    results: dict[int, Reply | Score] = field(default_factory=dict["int", "Reply | Score"])

    @property
    def num_parts(self) -> int:
        return len(self.texts) + (self.request is not None)


def _chosen(turn: Turn, scores: ChoiceScores | None) -> Choice:
    """The choice that the dialogue goes on with."""
    if scores is None:
        raise RowError("the row of this turn has no choices")
    rules = [check.rule for check in turn.checks if isinstance(check.rule, Chosen)]
    best = scores.best(rules[0].normalize if rules else "none").name
    return next(choice for choice in turn.choices if choice.name == best)
