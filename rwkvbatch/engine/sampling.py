"""The rows of one choice of tokens: penalties, bans and noise keys, gathered from the replies under way.

Penalties are those of ChatRWKV's `API_DEMO_CHAT.py`: logit -= presence_penalty + count * frequency_penalty
for every token that is already in the reply; each step all counts are multiplied by `penalty_decay`, then the new
token's count grows by 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from rwkvbatch.config import Sampling
from rwkvbatch.model.base import SampleBatch


class Penalties:
    """The penalties of one reply: its banned tokens, and the decayed counts of the tokens it already has."""

    def __init__(self, sampling: Sampling) -> None:
        self._presence, self._frequency, self._decay = (
            sampling.presence_penalty,
            sampling.frequency_penalty,
            sampling.penalty_decay,
        )
        self._counting = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self._banned = np.array(sorted(set(sampling.banned_token_ids)), dtype=np.int64)
        self._places: dict[int, int] = {}
        self._ids = np.empty(16, dtype=np.int64)
        self._counts = np.zeros(16, dtype=np.float64)

    def count(self, token: int) -> None:
        """`token` was added to the reply."""
        if not self._counting:
            return
        num_seen = len(self._places)
        self._counts[:num_seen] *= self._decay
        place = self._places.get(token)
        if place is None:
            if num_seen == len(self._ids):
                self._ids = np.resize(self._ids, 2 * num_seen)
                self._counts = np.resize(self._counts, 2 * num_seen)
            place = self._places[token] = num_seen
            self._ids[place], self._counts[place] = token, 0.0
        self._counts[place] += 1.0

    def ids(self, vocab_size: int) -> npt.NDArray[np.int64]:
        banned = self._banned[self._banned < vocab_size] if len(self._banned) else self._banned
        if not self._places:
            return banned
        return np.concatenate([self._ids[: len(self._places)], banned])

    def values(self, num_ids: int) -> npt.NDArray[np.float32]:
        """What is subtracted from the logits of `ids`, fp32; infinity for banned tokens."""
        values = np.empty(num_ids, dtype=np.float32)
        num_seen = len(self._places)
        values[num_seen:] = np.inf
        if num_seen:
            values[:num_seen] = self._presence + self._counts[:num_seen] * self._frequency
        return values


@dataclass(frozen=True)
class SampleRow:
    """What one row's choice depends on besides its logits. `noise_key` is the 64-bit Philox key."""

    sampling: Sampling
    penalties: Penalties
    noise_key: int
    turn: int
    step: int


def gather(rows: Sequence[SampleRow], given: Sequence[int], vocab_size: int) -> SampleBatch:
    """The arrays of one choice of tokens: `rows` to sample from, then one for each of the tokens that are `given`."""
    ids = [row.penalties.ids(vocab_size) for row in rows]
    values = [row.penalties.values(len(row_ids)) for row, row_ids in zip(rows, ids, strict=True)]
    return SampleBatch(
        temperature=np.array([row.sampling.temperature for row in rows], dtype=np.float32),
        top_p=np.array([row.sampling.top_p for row in rows], dtype=np.float32),
        top_k=np.array([row.sampling.top_k for row in rows], dtype=np.int64),
        temperature_first=np.array([row.sampling.order == "temperature-first" for row in rows], dtype=np.bool_),
        penalty_ids=np.concatenate([np.empty(0, dtype=np.int64), *ids]),
        penalty_values=np.concatenate([np.empty(0, dtype=np.float32), *values]),
        penalty_starts=np.array([0, *accumulate(map(len, ids))], dtype=np.int64),
        noise_keys=np.array([row.noise_key for row in rows], dtype=np.uint64),
        turns=np.array([row.turn for row in rows], dtype=np.int64),
        steps=np.array([row.step for row in rows], dtype=np.int64),
        given=np.array(given, dtype=np.int64),
    )
