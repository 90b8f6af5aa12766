"""Replies and scores in progress, and the work of one step: its token rows and the use of their logits."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import eq

import numpy as np
import torch

from rwkvbatch.engine.request import (
    END_OF_TEXT,
    FinishReason,
    Reply,
    ReplyTiming,
    Request,
    Score,
    TokenDetails,
    closed_history,
)
from rwkvbatch.engine.sampling import Penalties, SampleRow, exempt_tokens, gather, likeliest
from rwkvbatch.engine.scheduler import Chunk, SequenceState
from rwkvbatch.model.base import Choices, RaggedBatch, SampleBatch
from rwkvbatch.prompt.text_stream import TextStream
from rwkvbatch.prompt.tokenizer import Tokenizer


class Generation:
    """A reply in progress.

    Attributes:
        fallback: slot and length of the state before the token in which a possible stop text began. It is cached when
            that stop text ends the reply.
        sample_row: the inputs of the choices of its tokens.
    """

    def __init__(self, request: Request, sequence: SequenceState, tokenizer: Tokenizer, now_s: float) -> None:
        self.request = request
        self.sequence = sequence
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.details: list[TokenDetails] = []
        self.fallback: tuple[int, int] | None = None
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer.token_bytes, request.stop)
        exempt = exempt_tokens(tokenizer, request.sampling.no_penalty)
        self._penalties = Penalties(request.sampling, exempt, request.logit_bias)
        self.sample_row = SampleRow(request.sampling, self._penalties, request.noise.philox_key, request.noise.turn)
        self._submitted_s = now_s
        self._started_s: float | None = None
        self._first_logits_s: float | None = None

    @property
    def num_top(self) -> int | None:
        return self.request.num_top

    @property
    def needs_fallback(self) -> bool:
        """Whether one of the stop texts is left out of the history."""
        return any(stop != self.request.closing for stop in self.request.stop)

    @property
    def ends_with_partial_stop(self) -> bool:
        """Whether the text so far ends with the beginning of a stop text."""
        return bool(self._stream.held)

    def is_overdue(self, now_s: float) -> bool:
        limit_s, started_s = self.request.max_seconds, self._started_s
        return limit_s is not None and started_s is not None and now_s - started_s >= limit_s

    def begin(self, now_s: float) -> None:
        """Record the time at which its first prompt row is read."""
        if self._started_s is None:
            self._started_s = now_s

    def take(self, token: int, logprob: float, now_s: float) -> FinishReason | None:
        """Add a sampled token (-1: none could be chosen). Returns the reason if the reply ended, else None."""
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
            details=tuple(self.details),
        )

    def add_details(self, details: TokenDetails) -> None:
        """Add the details of the token that `take` is called with next."""
        self.details.append(details)
        if self.request.on_details is not None:
            self.request.on_details(details)

    def _emit(self, text: str) -> None:
        if text and self.request.on_text is not None:
            self.request.on_text(text)


@dataclass
class Scoring:
    """A score in progress: the log-probabilities of a continuation so far.

    Attributes:
        sequence: the tokens of the prefix and of the continuation, the last one excluded.
        last: the last token of the continuation, which the network does not read.
        num_tokens: the length of the continuation.
        first_output: the position of the prefix's last token, whose logits predict the first token of the continuation.
        cache: whether the last state is cached, for requests that continue the text.
        num_top: as `Request.num_top`.
    """

    sequence: SequenceState
    last: int
    num_tokens: int
    first_output: int
    cache: bool = True
    num_top: int | None = None
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    details: list[TokenDetails] = field(default_factory=list[TokenDetails])
    num_matched: int = 0

    @property
    def is_complete(self) -> bool:
        return len(self.logprobs) == self.num_tokens

    def targets(self, chunk: Chunk) -> array[int]:
        """The tokens of the continuation that the last rows of `chunk` predict, one per row."""
        tokens = self.sequence.part(max(chunk.start, self.first_output) + 1, chunk.stop + 1)
        if chunk.reaches_end:
            tokens.append(self.last)
        return tokens

    def take(self, targets: Sequence[int], likeliest: Sequence[int], logprobs: Sequence[float]) -> None:
        """Add the log-probabilities of the next `targets`, and compare these with the likeliest tokens."""
        self.logprobs.extend(logprobs)
        self.num_matched += sum(map(eq, likeliest, targets))

    def add_details(self, details: TokenDetails) -> None:
        """Add the details of a token."""
        self.details.append(details)

    def start_over(self) -> None:
        """Discard the results: the text is read again from its beginning."""
        del self.logprobs[:]
        del self.details[:]
        self.num_matched = 0

    def score(self) -> Score:
        return Score(self.logprobs, self.num_matched, details=tuple(self.details))


Job = Generation | Scoring


@dataclass(frozen=True)
class StepWork:
    """The chunks of one step and the use of their logits, which are in the order of the chunks.

    Attributes:
        chunks: the chunks of replies, then those of scores, so that the rows to sample from come first.
        num_outputs: for each chunk, how many of its last rows need logits.
        sampled: the replies that get a token, one row of logits each.
        scored: the scores, each with its target tokens in this step, one row of logits per token.
    """

    chunks: list[Chunk]
    num_outputs: list[int]
    sampled: list[Generation]
    scored: list[tuple[Scoring, array[int]]]

    @classmethod
    def from_chunks(cls, chunks: Iterable[Chunk], jobs: Mapping[int, Job]) -> StepWork:
        """The work of `chunks`; `jobs` are keyed by the id of their sequence."""
        pairs = [(chunk, jobs[chunk.sequence.id]) for chunk in chunks]
        replies = [(chunk, job) for chunk, job in pairs if isinstance(job, Generation)]
        texts = [(chunk, job) for chunk, job in pairs if isinstance(job, Scoring)]
        scored = [(job, job.targets(chunk)) for chunk, job in texts]
        return cls(
            chunks=[chunk for chunk, _ in (*replies, *texts)],
            num_outputs=[int(chunk.reaches_end) for chunk, _ in replies] + [len(targets) for _, targets in scored],
            sampled=[job for chunk, job in replies if chunk.reaches_end],
            scored=scored,
        )

    def ragged_batch(self) -> RaggedBatch:
        """The token rows for the model."""
        starts = [0, *accumulate(chunk.stop - chunk.start for chunk in self.chunks)]
        tokens = [token for chunk in self.chunks for token in chunk.sequence.part(chunk.start, chunk.stop)]
        outputs = [
            row for stop, count in zip(starts[1:], self.num_outputs, strict=True) for row in range(stop - count, stop)
        ]
        slots = [chunk.sequence.slot for chunk in self.chunks]
        return RaggedBatch(*(np.array(values, dtype=np.int64) for values in (tokens, starts, slots, outputs)))

    def sample_batch(self, vocab_size: int) -> SampleBatch:
        """The tokens to sample, and those to look up, in the logits of `ragged_batch`."""
        targets = [token for _, targets in self.scored for token in targets]
        rows, steps = [job.sample_row for job in self.sampled], [len(job.ids) for job in self.sampled]
        return gather(rows, steps, targets, vocab_size)

    def add_details(self, logits: torch.Tensor, choices: Choices) -> None:
        """Add the details of this step's tokens to the jobs that ask for them; `logits` are [P, vocab_size]."""
        selected = self._rows_with_details(choices)
        if not selected:
            return
        rows, jobs, tokens = zip(*selected, strict=True)
        logprobs = choices.logprobs[list(rows)].tolist()
        tops = likeliest(logits[list(rows)], tokens, logprobs, [job.num_top or 0 for job in jobs])
        for job, token, logprob, top in zip(jobs, tokens, logprobs, tops, strict=True):
            if token >= 0:
                job.add_details(TokenDetails(token, logprob, top))

    def _rows_with_details(self, choices: Choices) -> list[tuple[int, Job, int]]:
        """The rows of logits whose details are asked for, each with its job and its sampled or target token."""
        selected: list[tuple[int, Job, int]] = [
            (row, job, int(choices.tokens[row])) for row, job in enumerate(self.sampled) if job.num_top is not None
        ]
        first_row = len(self.sampled)
        for job, targets in self.scored:
            if job.num_top is not None:
                selected += [(row, job, token) for row, token in enumerate(targets, first_row)]
            first_row += len(targets)
        return selected

    def take_scores(self, choices: Choices) -> list[Scoring]:
        """Add the results of this step to the scores; returns the complete ones."""
        tokens, logprobs = choices.tokens.tolist(), choices.logprobs.tolist()
        first_row = len(self.sampled)
        for job, targets in self.scored:
            rows = slice(first_row, first_row + len(targets))
            job.take(targets, tokens[rows], logprobs[rows])
            first_row = rows.stop
        return [job for job, _ in self.scored if job.is_complete]
