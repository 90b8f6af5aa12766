"""Replays one task turn by turn: makes engine requests from a script's turns, and rows from the engine's replies.

These records hold a turn on its way from the script to the run directory: `Conversation` and `Turn` (the script),
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
        self._position = 0
        """Index of the next turn in the order of the replay."""
        self._work: _Work | None = None
        # By turn of the dialogue, the number of tokens up to the end of its user message: the distance of a probe is
        # counted from there.
        self._num_tokens_through: dict[int, int] = {}
        self._encoder = encoder
        self._history = encoder.opening(task)
        # The dialogue so far as messages, for a server that applies a template of its own.
        self._messages = [{"role": "system", "content": task.system}] if task.system else []

    @property
    def over(self) -> bool:
        return self._position >= len(self.task.conversation.order)

    @property
    def turn(self) -> int:
        """The index of the next turn in the conversation; the number of turns when `over`."""
        order = self.task.conversation.order
        return len(order) if self.over else order[self._position]

    @property
    def turns_after(self) -> tuple[int, ...]:
        """The indices of the turns after the next one, in the order of the replay."""
        return self.task.conversation.order[self._position + 1 :]

    @property
    def is_at_probe(self) -> bool:
        """Whether the next turn is a probe, whose failure does not end the dialogue."""
        return not self.over and self._next.probe is not None

    def prompt(self) -> tuple[int, ...]:
        """All tokens before the next reply."""
        return (*self._history, *self._encoder.encode(self._template.turn(self._next.user)))

    def scored_texts(self) -> list[tuple[Sequence[int], Sequence[int]]]:
        """The tokens before each text of the next turn that is scored, and the text's own: its reference, its choices.

        Raises:
            RowError: a plain text has no token that can be scored.
        """
        turn = self._next
        texts = [] if turn.reference is None else [self._reference_tokens(turn.reference)]
        return [*texts, *map(self._choice_tokens, turn.choices)]

    def request(self) -> Request:
        """The engine request for the next turn's reply; raises `PromptTooLongError`."""
        tokens = self.prompt()
        self._check_length(len(tokens))
        turn = self.task.of_turn(self.turn)
        settings = turn.settings
        # With the chat API, the server's template makes the prompt and also decides what ends a reply.
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
        """The key of the turn's random numbers. A probe's key does not depend on how many turns the dialogue has."""
        conversation, probe = self.task.conversation.id, self._next.probe
        if probe is None:
            return NoiseKey(seed, conversation, self.task.repeat, self.turn)
        return NoiseKey(seed, f"{conversation}\x1fprobe {probe.number}", self.task.repeat, probe.after)

    def submit(self, engine: Engine | EndpointEngine) -> None:
        """Submit the work of the next turn: generating the reply, scoring the reference and the choices.

        Raises:
            PromptTooLongError: the prompt is longer than the settings allow.
            RwkvBatchError, ValueError: the engine refuses a request.
        """
        turn, scored_texts = self._next, self.scored_texts()
        if not turn.generate:
            for prefix, _ in scored_texts:
                self._check_length(len(prefix))
        self._work = _Work(self.request() if turn.generate else None, scored_texts)
        self.submit_more(engine)

    def submit_more(self, engine: Engine | EndpointEngine) -> None:
        """Submit more requests of the next turn's work, until `MAX_PENDING` are pending. This bounds their tokens."""
        work = self._work
        if work is None:
            return
        root = self._encoder.root(self.task.of_turn(self.turn).settings)
        try:
            while work.num_submitted < work.num_parts and len(self.pending) < MAX_PENDING:
                part = work.num_submitted
                if work.request is not None and part == 0:
                    request_id = engine.submit(work.request)
                else:
                    index = part - (work.request is not None)
                    # Only a reference reply can be part of a later history.
                    cache = index == 0 and self._next.reference is not None and not self._next.plain
                    request_id = engine.submit_score(*work.scored_texts[index], root, cache=cache)
                work.part_of[request_id] = part
                self.pending.add(request_id)
                work.num_submitted += 1
        except BaseException:  # also KeyboardInterrupt: the engine must not continue requests without a receiver
            for request_id in self.pending:
                engine.cancel(request_id)
            raise

    def take_result(self, request_id: int, result: Reply | Score) -> Row | None:
        """Take a pending request's result. Returns the turn's row once all its results are there.

        The replay has then moved to the next turn, unless the row is an error row. When it returns None, call
        `submit_more`.
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
        except BaseException as error:  # checks may be plug-ins: an exception fails the row, not the run
            return error_row(self.task, self.turn, explain(error), reply, text)
        self._advance(() if reply is None else reply.history, row)
        return row

    def collect(self, request_id: int, result: Reply | Score) -> TurnResults | None:
        """Take a pending request's result, as `take_result` does, but run no checks and stay at the turn.

        Returns:
            All results of the turn once they are there. When it returns None, call `submit_more`.
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
        return TurnResults(reply, [result for _, result in sorted(work.results.items()) if isinstance(result, Score)])

    def fail_turn(self, error: Exception) -> Row:
        """The error row of the next turn. The replay stays at that turn."""
        self.pending = set()
        self._work = None
        return error_row(self.task, self.turn, explain(error))

    def skip_turn(self, row: Row) -> None:
        """Move past a turn whose row exists: add its tokens to the history and generate nothing."""
        history: tuple[int, ...] = ()
        if self._next.generate and self._next.probe is None:
            history = closed_history(
                self._encoder.tokenizer,
                self.prompt(),
                row.reply_ids,
                cast("FinishReason", row.finish_reason),
                row.stopped_by,
                self._template.closing,
            )
        self._advance(history, row)

    def take_references(self) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """For each of the next references, the tokens before it and its own tokens, as rows score them.

        Moves past the turns of these references, with the references as history, and stops before a turn of the
        dialogue that has none. Probes without a reference are skipped.
        """
        while not self.over:
            turn = self._next
            if turn.reference is not None:
                yield self._reference_tokens(turn.reference)
                if turn.probe is None and not turn.plain:
                    self._history = self._history_after_reference(turn.reference)
            elif turn.probe is None:
                return
            self._position += 1

    def take_reply(self, reply: Reply) -> None:
        """Move past the next turn with the model's reply as history, without making a row.

        Raises:
            RowError: the engine could not make the reply.
        """
        if reply.finish_reason == "error":
            raise RowError(reply.error or "the engine could not make this reply")
        self._history = reply.history
        self._position += 1

    @property
    def _next(self) -> Turn:
        return self.task.conversation.turns[self.turn]

    @property
    def _template(self) -> PromptTemplate:
        return self._encoder.template(self.task.of_turn(self.turn).settings)

    def _reference_tokens(self, reference: str) -> tuple[Sequence[int], Sequence[int]]:
        """The tokens before the scored part of the turn's reference, and the scored tokens.

        The first token of a plain text cannot be scored if no token precedes it (`bos` off, no prompt).
        """
        if not self._next.plain:
            return self._split_before_last(*self._template.given_reply(reference))
        return self._plain_tokens(self._next.user, encode_long(self._encoder.tokenizer, reference))

    def _plain_tokens(self, prompt: str, text: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """The tokens before the scored part of a plain text, and the scored tokens.

        Before the text are token 0 (unless `bos` is off) and its prompt, read without a template. Without either, the
        first token of the text is not scored, because no token precedes it.
        """
        settings = self.task.of_turn(self.turn).settings
        bos = (END_OF_TEXT,) if settings.begins_with_bos(plain_text=True) else ()
        # Without the cache of encoded texts, which would keep whole documents in memory.
        prefix = (*bos, *self._encoder.tokenizer.encode(prompt))
        if not prefix and len(text) < 2:
            raise RowError("the text has one token, and nothing is read before it: use --bos on")
        return (prefix, text) if prefix else (text[:1], text[1:])

    def _choice_tokens(self, choice: Choice) -> tuple[Sequence[int], Sequence[int]]:
        """The tokens before a choice, and its own tokens, as the beginning of a reply or after a plain prompt.

        With a `continuation` of the turn, the choice belongs to the tokens before, and the continuation is scored.
        """
        turn = self._next
        if not turn.plain:
            return self._split_before_choice(self._choice_text(choice))
        if turn.continuation is None:
            return self._plain_tokens(turn.user, self._encoder.encode(choice.text))
        return self._plain_tokens(turn.user + choice.text, self._encoder.encode(turn.continuation))

    def _choice_text(self, choice: Choice) -> str:
        """A choice as the template writes a reply; verbatim after a `reply_prefix` or a plain prompt."""
        if self._template.reply_prefix or self._next.plain:
            return choice.text
        return self._template.reply(choice.text).removesuffix(self._template.closing)

    def _split_before_choice(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens before the choice `text` of the next turn, and its own tokens."""
        if self._template.reply_prefix:
            return self.prompt(), self._encoder.encode(text)
        return self._split_before_last(text)

    def _split_before_last(self, *parts: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens before the last of the `parts` of the next turn's reply, and the tokens of that part."""
        texts = (self._template.past_turn(self._next.user), *parts)
        *before, last = [self._encoder.encode(text) for text in texts]
        return (*self._history, *chain.from_iterable(before)), last

    def _history_after_reference(self, reference: str) -> tuple[int, ...]:
        """All tokens up to the end of the next turn, with its reference as the reply."""
        prefix, reply = self._split_before_last(self._template.reply(reference))
        return (*prefix, *reply)

    def _advance(self, history: tuple[int, ...], row: Row) -> None:
        """Move to the next turn; `history` has all tokens up to the end of this one if its reply was generated.

        Probes and plain texts leave the history as it is. After a turn with choices and no reply, the history has the
        most likely choice, by the turn's first check of choices or else by the sum of log-probabilities.
        """
        turn, settings = self._next, self.task.settings
        if turn.probe is None and not turn.plain:
            self._num_tokens_through[self.turn] = len(self.prompt())
            assistant = row.reply
            if settings.history == "gold" and turn.reference is not None:
                history = self._history_after_reference(turn.reference)
                assistant = turn.reference
            elif not turn.generate:
                choice = self._choice_text(_likeliest_choice(turn, row.choices))
                prefix, reply = self._split_before_choice(choice + self._template.closing)
                history = (*prefix, *reply)
            self._history = history
            self._messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": assistant}]
        self._position += 1

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
                reference = self._reference(scores[0], sums[0], work.scored_texts[0][1])
            scores, sums = scores[1:], sums[1:]
        if turn.choices:
            texts = work.scored_texts[-len(turn.choices) :]
            choices = ChoiceScores(
                tuple(
                    self._choice_score(choice, tokens, logprob)
                    for choice, (_, tokens), logprob in zip(turn.choices, texts, sums, strict=True)
                )
            )
            if reply is None:
                text = _likeliest_choice(turn, choices).text.strip()
        row = error_row(self.task, self.turn, "", reply, text)
        if reply is None:
            num_ids, num_logprobs, finish_reason, stopped_by = 0, 0, SCORED, None
            tokens = TokenCounts(max(len(prefix) for prefix, _ in work.scored_texts), 0)
        else:
            # A served model may give no log-probabilities, or those of other tokens than this vocabulary's.
            num_ids, num_logprobs = len(reply.ids), len(reply.logprobs)
            finish_reason, stopped_by = reply.finish_reason, reply.stopped_by
            tokens = replace(row.tokens, thinking=self._num_thinking(reply))
        facts = ReplyFacts(text, finish_reason, num_ids, turn.reference, choices)
        probe = row.probe
        if probe is not None and turn.probe is not None:
            start = 0 if turn.probe.since < 0 else self._num_tokens_through[turn.probe.since]
            probe = replace(probe, tokens=len(self._history) - start)
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
            probe=probe,
        )

    @staticmethod
    def _check_scores(turn: Turn, scores: Sequence[Score]) -> None:
        """Raise `RowError` if the engine did not score a text that the row needs."""
        for score in scores:
            if score.error is not None:
                raise RowError(score.error)
            if score.unavailable and (turn.choices or not turn.generate):
                raise RowError(f"{score.unavailable}, so that neither choices nor texts can be scored")

    def _num_thinking(self, reply: Reply) -> int | None:
        """Number of tokens in the reply's thinking part: None if there is none, all tokens if it is not closed."""
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
        num_bytes = self._num_bytes(tokens)
        return Reference(short_text(turn.reference), -logprob / num_tokens, matched, num_tokens, logprob, num_bytes)

    def _choice_score(self, choice: Choice, tokens: Sequence[int], logprob: float) -> ChoiceScore:
        continuation = self._next.continuation
        text = self._choice_text(choice) if continuation is None else continuation
        not_scored = self._encoder.encode(text)[: -len(tokens)]
        return ChoiceScore.of(choice.name, logprob, len(tokens), text.encode()[self._num_bytes(not_scored) :])

    def _num_bytes(self, tokens: Sequence[int]) -> int:
        token_bytes = self._encoder.tokenizer.token_bytes
        return sum(len(token_bytes(token)) for token in tokens)


@dataclass(frozen=True)
class TurnResults:
    """The engine's results for one turn: the reply, if one is generated, and the scores of reference and choices."""

    reply: Reply | None
    scores: list[Score]


MAX_PENDING = 256
"""Largest number of requests of one turn that are in the engine at a time."""


@dataclass
class _Work:
    """The engine's work for one turn. Its parts are the request, if any, and then each of the scored texts.

    Attributes:
        scored_texts: the tokens before each text, and the text's own. The first text is the turn's reference, if it
            has one; the others are its choices.
        num_submitted: number of parts that were submitted, in order.
        part_of: by id of a pending request, the index of its part.
        results: by index of the part.
    """

    request: Request | None
    scored_texts: Sequence[tuple[Sequence[int], Sequence[int]]]
    num_submitted: int = 0
    part_of: dict[int, int] = field(default_factory=dict[int, int])
    results: dict[int, Reply | Score] = field(default_factory=dict["int", "Reply | Score"])

    @property
    def num_parts(self) -> int:
        return len(self.scored_texts) + (self.request is not None)


def _likeliest_choice(turn: Turn, scores: ChoiceScores | None) -> Choice:
    """The choice with the highest score, by the normalization of the turn's first check of choices."""
    if scores is None:
        raise RowError("the row of this turn has no choices")
    rules = [check.rule for check in turn.checks if isinstance(check.rule, Chosen)]
    best = scores.best(rules[0].normalize if rules else "none").name
    return next(choice for choice in turn.choices if choice.name == best)
