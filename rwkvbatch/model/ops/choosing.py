"""The reference implementation of `Model.choose`: penalties, cuts, noise and log-probabilities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rwkvbatch.model.base import TEMPERATURE_FIRST, TOP_K_FIRST, Choices, FloatArray, IntArray, SampleBatch

Scores = np.ndarray[tuple[int], np.dtype[np.float64]]


def choose(logits: Tensor, batch: SampleBatch) -> Choices:
    """The definition of `Model.choose`: `sample` on the first rows of `logits` [P, V], `look_up` on the others.

    Log-probabilities are computed in fp64 and rounded to fp32 at the end.

    Raises:
        ValueError: see `Model.choose`.
    """
    batch.check(*logits.shape)
    sampled = sample(logits[: batch.num_sampled], batch)
    looked_up = look_up(logits, np.concatenate([np.maximum(sampled, 0), batch.target_ids]))
    return Choices(np.concatenate([sampled, looked_up.tokens[batch.num_sampled :]]), looked_up.logprobs)


def look_up(logits: Tensor, target_ids: IntArray) -> Choices:
    """The likeliest token of each row of `logits` [P, V], and the log-probabilities of `target_ids` [P]."""
    # Apple's GPUs have no fp64.
    rows = (logits.cpu() if logits.device.type == "mps" else logits).double()
    target_logits = rows.gather(1, torch.from_numpy(target_ids).to(rows.device).unsqueeze(1)).squeeze(1)
    logprobs = (target_logits - torch.logsumexp(rows, dim=1)).float().cpu().numpy()
    return Choices(rows.argmax(dim=1).cpu().numpy(), logprobs)


def sample(logits: Tensor, batch: SampleBatch) -> IntArray:
    """Choose a token for each row of `logits` [S, V], with cuts in the order of the `rwkv` package's `sample_logits`.

    1. Penalties are subtracted. All later arithmetic is fp64.
    2. Top-p keeps the likeliest tokens whose probabilities (softmax) add up to top_p, and all tokens as likely as the
       last of them. Then top-k keeps at most top_k tokens, smaller ids first among equals. With `TOP_K_FIRST` top-k
       comes first, and top_p is a share of the probability that it keeps. With `TEMPERATURE_FIRST` the logits are
       divided by the temperature before both cuts.
    3. Tokens below `min_p_cutoffs` are dropped.
    4. The kept token with the largest logit / temperature + Gumbel noise is chosen.

    Temperature 0, top_p 0 or top_k 1 choose the largest logit, the smallest id among equals. A row without a possible
    token gets -1.
    """
    rows = logits.float().cpu().numpy()
    return np.array([_sample_row(rows[row], batch, row) for row in range(len(rows))], dtype=np.int64)


def _sample_row(row_logits: FloatArray, batch: SampleBatch, row: int) -> int:
    if np.isnan(row_logits).any() or np.isposinf(row_logits).any():
        return -1
    start, stop = batch.penalty_starts[row : row + 2]
    penalised = row_logits.copy()
    penalised[batch.penalty_ids[start:stop]] -= batch.penalty_values[start:stop]
    best = int(penalised.argmax())
    if np.isneginf(penalised[best]):
        return -1
    temperature, top_p, top_k = float(batch.temperature[row]), float(batch.top_p[row]), int(batch.top_k[row])
    if temperature == 0 or top_p == 0 or top_k == 1:
        return best
    scores = penalised.astype(np.float64) - float(penalised[best])
    scaled = scores / temperature
    order = int(batch.orders[row])
    kept = _kept(scaled if order & TEMPERATURE_FIRST else scores, top_p, top_k, top_k_first=bool(order & TOP_K_FIRST))
    kept = kept[scores[kept] >= batch.min_p_cutoffs[row]]
    noise = gumbel(int(batch.noise_keys[row]), int(batch.turns[row]), int(batch.steps[row]), kept)
    return int(kept[np.argmax(scaled[kept] + noise)])


def _kept(scores: Scores, top_p: float, top_k: int, *, top_k_first: bool = False) -> IntArray:
    """Ascending ids of the tokens that survive top-p and top-k; `scores` are logits less their maximum."""
    if top_k_first:
        scores = _within_top_k(scores, top_k)
    if top_p < 1:
        probabilities = np.exp(scores)
        probabilities /= probabilities.sum()
        scores = np.where(probabilities >= _top_p_cutoff(probabilities, top_p), scores, -np.inf)
    if not top_k_first:
        scores = _within_top_k(scores, top_k)
    return np.flatnonzero(scores > -np.inf).astype(np.int64)


def _within_top_k(scores: Scores, top_k: int) -> Scores:
    """`scores` with minus infinity for all but the largest `top_k`, smaller ids first among equals; 0 keeps all."""
    if not 0 < top_k < len(scores):
        return scores
    result = np.full_like(scores, -np.inf)
    kept = np.argsort(-scores, kind="stable")[:top_k]
    result[kept] = scores[kept]
    return result


def _top_p_cutoff(probabilities: Scores, top_p: float) -> float:
    """The smallest probability that top-p keeps: where the cumulative sum, likeliest first, reaches `top_p`."""
    # Most of a large vocabulary is far below the cut: sort the 512 likeliest tokens, and all only if needed.
    size = len(probabilities)
    for count in (512, size):
        if count < size:
            descending = -np.sort(-np.partition(probabilities, size - count)[size - count :])
        else:
            descending = -np.sort(-probabilities)
        reached = np.cumsum(descending) >= top_p
        if reached.any():
            return float(descending[int(np.argmax(reached))])
    return 0.0


# Philox 4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The
# key is the row's 64-bit noise key; the counter is (token id // 4, step, turn, 0), and word `token id % 4` of the block
# belongs to the token. Nothing depends on the batch, the worker or the order of calls.
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_MASK = 0xFFFFFFFF
_WORD_BITS = np.uint64(32)
ROUNDS = 10


def philox_4x32(counter: npt.NDArray[np.uint32], key: int) -> npt.NDArray[np.uint32]:
    """The Philox 4x32-10 block of each counter.

    Args:
        counter: [n, 4] uint32.
        key: 64 bits; the low word is the first key word.

    Returns:
        [n, 4] uint32.
    """
    even, odd = (counter.T[first::2].astype(np.uint64) for first in (0, 1))  # words 0 and 2, words 1 and 3
    key_words = np.array([[key & _MASK], [(key >> 32) & _MASK]], dtype=np.uint64)
    for _ in range(ROUNDS):
        products = even * _MULTIPLIERS
        high, low = products >> _WORD_BITS, products & _MASK
        even, odd = high[::-1] ^ odd ^ key_words, low[::-1]
        key_words = (key_words + _WEYL) & _MASK
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=1).astype(np.uint32)


def gumbel(key: int, turn: int, step: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of `tokens` [n] at one step of one turn; [n] float64.

    -ln(-ln u) with u = (word + 1/2) / 2^32. The token with the largest sum of log-probability and noise is a
    sample of the distribution (Gumbel-max).
    """
    blocks, inverse = np.unique(tokens // 4, return_inverse=True)
    counter = np.zeros((len(blocks), 4), dtype=np.uint32)
    counter[:, 0] = blocks
    counter[:, 1] = step
    counter[:, 2] = turn
    words = philox_4x32(counter, key)[inverse, tokens % 4]
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-32
    return -np.log(-np.log(uniform))
