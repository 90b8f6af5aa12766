"""The work of one step: what is read for whom, as rows for the network, and what is made of the logits after them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rwkvbatch.engine.jobs import Generation, Job, Scoring
from rwkvbatch.engine.sampling import gather
from rwkvbatch.engine.scheduler import Chunk
from rwkvbatch.model.base import Choices, RaggedBatch, SampleBatch


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
        """The work of reading `chunks`, each for the one of `jobs` that has its reading's number."""
        replies: list[tuple[Chunk, Generation]] = []
        texts: list[tuple[Chunk, Scoring]] = []
        for chunk in chunks:
            job = jobs[chunk.reading.id]
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
        tokens = [token for chunk in self.chunks for token in chunk.reading.part(chunk.start, chunk.stop)]
        outputs = [
            row
            for stop, count in zip(starts[1:], self.num_outputs, strict=True)
            for row in range(stop - count, stop)
        ]
        slots = [chunk.reading.slot for chunk in self.chunks]
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
