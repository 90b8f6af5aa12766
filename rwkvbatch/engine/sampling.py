"""Penalties of replies, and the `SampleBatch` of a step.

Penalties are those of ChatRWKV's `API_DEMO_CHAT.py`: logit -= presence_penalty + count * frequency_penalty
for every token that is already in the reply; each step all counts are multiplied by `penalty_decay`, then the new
token's count grows by 1. Tokens of `no_penalty` keep the count 0, as those of ' \t0123456789' do in the loop of the
`rwkv` package (`PIPELINE.generate`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from rwkvbatch.config import ORDERS, Sampling
from rwkvbatch.model.base import TEMPERATURE_FIRST, TOP_K_FIRST, SampleBatch
from rwkvbatch.prompt.tokenizer import Tokenizer

_ORDER_BITS = {
    name: TEMPERATURE_FIRST * order.temperature_first | TOP_K_FIRST * order.top_k_first
    for name, order in ORDERS.items()
}


@lru_cache(maxsize=64)
def exempt_tokens(tokenizer: Tokenizer, texts: tuple[str, ...]) -> frozenset[int]:
    """Ids of the tokens whose text is a substring of one of `texts`; tokens of incomplete characters are excluded."""
    if not texts:
        return frozenset()
    exempt: set[int] = set()
    longest = max(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    for token in range(tokenizer.vocab_size):
        data = tokenizer.token_bytes(token)
        if 0 < len(data) <= longest:
            with suppress(UnicodeDecodeError):
                token_text = data.decode("utf-8")
                if any(token_text in text for text in texts):
                    exempt.add(token)
    return frozenset(exempt)


_NO_PENALTIES = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)


class Penalties:
    """Penalties of one reply: the banned tokens, the biases, and the decayed counts of its tokens.

    Args:
        exempt: tokens that are never counted: only the presence penalty is subtracted from their logits.
        bias: by token id, a number that is added to its logit. Banned tokens stay banned.
    """

    def __init__(
        self, sampling: Sampling, exempt: frozenset[int] = frozenset(), bias: Mapping[int, float] | None = None
    ) -> None:
        self._sampling = sampling
        self._exempt = exempt
        self._has_penalties = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self._banned = np.array(sorted(set(sampling.banned_token_ids)), dtype=np.int64)
        biased = {token: value for token, value in (bias or {}).items() if token not in sampling.banned_token_ids}
        self._biased = np.array(sorted(biased), dtype=np.int64)
        self._bias = np.array([biased[token] for token in sorted(biased)], dtype=np.float64)
        self._index: dict[int, int] = {}
        self._ids = np.empty(16, dtype=np.int64)
        self._counts = np.zeros(16, dtype=np.float64)

    def count(self, token: int) -> None:
        """Decay all counts, then count `token`, which was added to the reply."""
        if not self._has_penalties:
            return
        num_seen = len(self._index)
        self._counts[:num_seen] *= self._sampling.penalty_decay
        index = self._index.get(token)
        if index is None:
            if num_seen == len(self._ids):
                self._ids = np.resize(self._ids, 2 * num_seen)
                self._counts = np.resize(self._counts, 2 * num_seen)
            index = self._index[token] = num_seen
            self._ids[index], self._counts[index] = token, 0.0
        if token not in self._exempt:
            self._counts[index] += 1.0

    def subtracted(self, vocab_size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Token ids, each at most once, and the values to subtract from their logits; infinity for banned tokens."""
        banned = self._banned[self._banned < vocab_size] if len(self._banned) else self._banned
        num_seen = len(self._index)
        if not num_seen and not len(banned) and not len(self._biased):
            return _NO_PENALTIES
        seen = self._ids[:num_seen]
        presence, frequency = self._sampling.presence_penalty, self._sampling.frequency_penalty
        seen_values = presence + self._counts[:num_seen] * frequency
        if not len(self._biased):
            ids = np.concatenate([seen, banned])
            values = np.full(len(ids), np.inf, dtype=np.float32)
            values[:num_seen] = seen_values
            return ids, values
        at = np.searchsorted(self._biased, seen).clip(max=len(self._biased) - 1)
        is_biased = self._biased[at] == seen
        seen_values[is_biased] -= self._bias[at[is_biased]]
        is_new = np.ones(len(self._biased), dtype=np.bool_)
        is_new[at[is_biased]] = False
        is_new &= self._biased < vocab_size
        ids = np.concatenate([seen, self._biased[is_new], banned])
        banned_values = np.full(len(banned), np.inf)
        return ids, np.concatenate([seen_values, -self._bias[is_new], banned_values]).astype(np.float32)


_SETTINGS = np.dtype(
    [
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("top_k", np.int64),
        ("orders", np.uint8),
        ("noise_keys", np.uint64),
        ("turns", np.int64),
        ("min_p_cutoffs", np.float64),
    ]
)
"""The arrays of a `SampleBatch` that do not change during a reply."""


@dataclass(frozen=True)
class SampleRow:
    """The inputs of the choices of a reply's tokens, other than the logits and the position in the reply.

    Attributes:
        noise_key: the 64-bit Philox key.
    """

    sampling: Sampling
    penalties: Penalties
    noise_key: int
    turn: int

    @cached_property
    def settings(self) -> tuple[float, ...]:
        """The values of `_SETTINGS`."""
        sampling = self.sampling
        return (
            *(sampling.temperature, sampling.top_p, sampling.top_k, _ORDER_BITS[sampling.order]),
            *(self.noise_key, self.turn, _min_p_cutoff(sampling)),
        )


def _min_p_cutoff(sampling: Sampling) -> float:
    """ln(min_p) in units of the logits. Tokens whose logit, less the largest one, is below it are dropped."""
    if sampling.min_p == 0:
        return -math.inf
    first = ORDERS[sampling.order].temperature_first
    return math.log(sampling.min_p) * (float(np.float32(sampling.temperature)) if first else 1.0)


def likeliest(
    logits: torch.Tensor, tokens: Sequence[int], logprobs: Sequence[float], counts: Sequence[int]
) -> list[tuple[tuple[int, float], ...]]:
    """The `counts[r]` likeliest tokens of each row r of `logits` [R, vocab_size], and their log-probabilities.

    Args:
        tokens: one token per row; -1 for none, which gives an empty list.
        logprobs: its log-probability, from which the others follow: log p(i) = log p(token) + logit(i) - logit(token).
    """
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(tokens)
    for count in set(counts) - {0}:
        rows = [row for row, row_count in enumerate(counts) if row_count == count and tokens[row] >= 0]
        if not rows:
            continue
        row_logits = logits[rows]
        values, ids = row_logits.topk(min(count, row_logits.shape[1]), dim=1)
        token_logits: list[float] = logits[rows, [tokens[row] for row in rows]].cpu().numpy().tolist()
        top_logits: list[list[float]] = values.cpu().numpy().tolist()
        top_ids: list[list[int]] = ids.cpu().numpy().tolist()
        for row, token_logit, row_top, row_ids in zip(rows, token_logits, top_logits, top_ids, strict=True):
            pairs = sorted(zip(row_ids, row_top, strict=True), key=lambda pair: (-pair[1], pair[0]))
            tops[row] = tuple((token, logprobs[row] + (logit - token_logit)) for token, logit in pairs)
    return tops


def gather(rows: Sequence[SampleRow], steps: Sequence[int], target_ids: Sequence[int], vocab_size: int) -> SampleBatch:
    """The `SampleBatch` of `rows` to sample from, followed by one row for each of the `target_ids`.

    Args:
        steps: of each of `rows`, the token's position in its reply.
    """
    settings = np.array([row.settings for row in rows], dtype=_SETTINGS)
    penalties = [row.penalties.subtracted(vocab_size) for row in rows]
    return SampleBatch(
        **{name: np.ascontiguousarray(settings[name]) for name in _SETTINGS.fields or ()},
        penalty_ids=np.concatenate([np.empty(0, dtype=np.int64), *(ids for ids, _ in penalties)]),
        penalty_values=np.concatenate([np.empty(0, dtype=np.float32), *(values for _, values in penalties)]),
        penalty_starts=np.array([0, *accumulate(len(ids) for ids, _ in penalties)], dtype=np.int64),
        steps=np.array(steps, dtype=np.int64),
        target_ids=np.array(target_ids, dtype=np.int64),
    )
