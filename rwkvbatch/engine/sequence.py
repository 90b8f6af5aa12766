"""The work of one step: what is read for whom, as rows for the network, and what is made of the logits after them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import eq

import numpy as np

from rwkvbatch.engine.request import END_OF_TEXT, FinishReason, Reply, ReplyTiming, Request, Score
from rwkvbatch.engine.sampling import Penalties, SampleRow, gather
from rwkvbatch.engine.scheduler import Chunk, SequenceState
from rwkvbatch.model.base import Choices, RaggedBatch, SampleBatch
from rwkvbatch.prompt.decoding import TextStream
from rwkvbatch.prompt.tokenizer import Tokenizer


def closed_history(
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    reply: Sequence[int],
    finish_reason: FinishReason,
    stopped_by: str | None,
    closing: str,
) -> tuple[int, ...]:
    """The tokens that the next turn's prompt follows.

    Args:
        prompt: all tokens that the reply followed.
        reply: the reply's tokens, without end of text.
        stopped_by: the stop text, when `finish_reason` is `stop`.
        closing: the text that closes a turn.

    Returns:
        `prompt` + `reply` when the reply closed itself; else with `closing` added, and without the tokens of a
        stop text other than `closing` and the line ends before it.
    """
    if finish_reason == "stop" and stopped_by == closing:
        return (*prompt, *reply)
    kept = tuple(reply)
    if finish_reason == "stop" and stopped_by:
        kept = _before_stop(tokenizer, kept, stopped_by)
    return (*prompt, *kept, *tokenizer.encode(closing))


def _before_stop(tokenizer: Tokenizer, reply: tuple[int, ...], stopped_by: str) -> tuple[int, ...]:
    text = tokenizer.decode_bytes(reply)
    text = text[: text.find(stopped_by.encode())].rstrip(b"\n")
    whole, length = 0, 0
    for token in reply:
        size = len(tokenizer.token_bytes(token))
        if length + size > len(text):
            break
        whole, length = whole + 1, length + size
    rest = text[length:].decode("utf-8", errors="ignore")
    return (*reply[:whole], *tokenizer.encode(rest))


class Generation:
    """A reply under way.

    Attributes:
        fallback: slot and length of the state before the token in which a possible stop text began. When it was one,
            and is not part of the history, the next turn goes on from there.
    """

    def __init__(self, request: Request, sequence: SequenceState, tokenizer: Tokenizer, now_s: float) -> None:
        self.request = request
        self.sequence = sequence
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.fallback: tuple[int, int] | None = None
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, request.stop)
        self._penalties = Penalties(request.sampling)
        self._noise_key = request.noise.philox_key
        self._submitted_s = now_s
        self._started_s: float | None = None
        self._first_logits_s: float | None = None

    @property
    def wants_fallback(self) -> bool:
        """Whether some stop text would not be part of the history."""
        return any(stop != self.request.closing for stop in self.request.stop)

    @property
    def holds_back(self) -> bool:
        """Whether the text so far ends in what may become a stop text."""
        return bool(self._stream.held)

    def is_overdue(self, now_s: float) -> bool:
        limit_s, started_s = self.request.max_seconds, self._started_s
        return limit_s is not None and started_s is not None and now_s - started_s >= limit_s

    def begin(self, now_s: float) -> None:
        """The first of its rows is about to be read."""
        if self._started_s is None:
            self._started_s = now_s

    def sample_row(self) -> SampleRow:
        return SampleRow(
            sampling=self.request.sampling,
            penalties=self._penalties,
            noise_key=self._noise_key,
            turn=self.request.noise.turn,
            step=len(self.ids),
        )

    def take(self, token: int, logprob: float, now_s: float) -> FinishReason | None:
        """Add a sampled token; says how the reply ended, if it did. A token of -1 means that none could be chosen."""
        if self._first_logits_s is None:
            self._first_logits_s = now_s
        if token < 0:
            return "error"
        if token == END_OF_TEXT:
            return "eos"
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.sequence.tokens.append(token)
        self._penalties.count(token)
        self._emit(self._stream.push(token))
        if self._stream.stopped_by is not None:
            return "stop"
        return "length" if len(self.ids) >= self.request.max_tokens else None

    def reply(self, finish_reason: FinishReason, now_s: float, error: str | None = None) -> Reply:
        """The finished reply."""
        self._emit(self._stream.finish())
        stopped_by = self._stream.stopped_by if finish_reason == "stop" else None
        prompt = self.request.tokens
        started_s = now_s if self._started_s is None else self._started_s
        first_s = now_s if self._first_logits_s is None else self._first_logits_s
        return Reply(
            text=self._stream.text,
            ids=tuple(self.ids),
            history=closed_history(self._tokenizer, prompt, self.ids, finish_reason, stopped_by, self.request.closing),
            finish_reason=finish_reason,
            stopped_by=stopped_by,
            logprobs=tuple(self.logprobs),
            num_prompt=self.sequence.num_prompt,
            num_cached=min(self.sequence.num_cached, self.sequence.num_prompt),
            timing=ReplyTiming(
                queued_s=started_s - self._submitted_s,
                prefill_s=first_s - started_s,
                first_token_s=first_s - self._submitted_s,
                total_s=now_s - self._submitted_s,
            ),
            error=error,
        )

    def _emit(self, text: str) -> None:
        if text and self.request.on_text is not None:
            self.request.on_text(text)


@dataclass
class Scoring:
    """The log-probabilities of `continuation` after a prefix, as far as they are known.

    Attributes:
        first_output: the position of the prefix's last token, after which the first of the continuation comes.
    """

    sequence: SequenceState
    continuation: tuple[int, ...]
    first_output: int
    logprobs: list[float] = field(default_factory=list[float])
    num_matched: int = 0

    @property
    def is_complete(self) -> bool:
        return len(self.logprobs) == len(self.continuation)

    def given(self, chunk: Chunk) -> tuple[int, ...]:
        """The tokens of the continuation that come after rows of `chunk`, one after each of its last rows."""
        start, stop = chunk.start - self.first_output, chunk.stop - self.first_output
        return self.continuation[max(0, start) : max(0, stop)]

    def take(self, given: Sequence[int], likeliest: Sequence[int], logprobs: Sequence[float]) -> None:
        """Add what was found about the next tokens, `given`."""
        self.logprobs.extend(logprobs)
        self.num_matched += sum(map(eq, likeliest, given))

    def start_over(self) -> None:
        """Forget what is known: the text is read again from its beginning."""
        self.logprobs.clear()
        self.num_matched = 0

    def score(self) -> Score:
        return Score(tuple(self.logprobs), self.num_matched)


Job = Generation | Scoring


@dataclass(frozen=True)
class StepWork:
    """What one step reads and for what. Logits come in the order of the chunks.

    Attributes:
        chunks: what is read; what is for replies comes first, so that the first logits are those to sample from.
        num_outputs: after how many of each chunk's last rows logits are wanted.
        sampled: the replies that get a token, one row of logits each.
        scored: the texts, and those of their tokens that come after rows of this step, one row of logits for each.
    """

    chunks: list[Chunk]
    num_outputs: list[int]
    sampled: list[Generation]
    scored: list[tuple[Scoring, tuple[int, ...]]]

    @classmethod
    def of(cls, chunks: Iterable[Chunk], jobs: Mapping[int, Job]) -> StepWork:
        """The work of sequence `chunks`, each for the one of `jobs` that has its sequence's number."""
        replies: list[tuple[Chunk, Generation]] = []
        texts: list[tuple[Chunk, Scoring]] = []
        for chunk in chunks:
            job = jobs[chunk.sequence.id]
            if isinstance(job, Scoring):
                texts.append((chunk, job))
            else:
                replies.append((chunk, job))
        scored = [(job, job.given(chunk)) for chunk, job in texts]
        return cls(
            chunks=[chunk for chunk, _ in (*replies, *texts)],
            num_outputs=[int(chunk.ends) for chunk, _ in replies] + [len(given) for _, given in scored],
            sampled=[job for chunk, job in replies if chunk.ends],
            scored=scored,
        )

    def rows(self) -> RaggedBatch:
        """The token rows that the network reads."""
        starts = [0, *accumulate(chunk.stop - chunk.start for chunk in self.chunks)]
        tokens = [token for chunk in self.chunks for token in chunk.sequence.part(chunk.start, chunk.stop)]
        outputs = [
            row for stop, count in zip(starts[1:], self.num_outputs, strict=True) for row in range(stop - count, stop)
        ]
        slots = [chunk.sequence.slot for chunk in self.chunks]
        return RaggedBatch(*(np.array(part, dtype=np.int64) for part in (tokens, starts, slots, outputs)))

    def wanted(self, vocab_size: int) -> SampleBatch:
        """What is to be made of the logits after `rows`."""
        given = [token for _, tokens in self.scored for token in tokens]
        return gather([job.sample_row() for job in self.sampled], given, vocab_size)

    def take_scores(self, choices: Choices) -> list[Scoring]:
        """Hand the texts what was found in their rows; returns those of which all tokens are scored now."""
        tokens, logprobs = choices.tokens.tolist(), choices.logprobs.tolist()
        row = len(self.sampled)
        for job, given in self.scored:
            rows = slice(row, row + len(given))
            job.take(given, tokens[rows], logprobs[rows])
            row = rows.stop
        return [job for job, _ in self.scored if job.is_complete]
