"""The choice of tokens on the device: penalties, cuts and keyed noise. One program per row; nothing is sorted.

The reference implementation is `choosing.sample`. Exponentials are fp32, added in fp32 within a block of the vocabulary
and in fp64 across blocks, so the top-p cut can differ from the reference if a sum of probabilities is within about 1e-6
of top_p. The noise and the scores that decide are fp64, as in the reference. fp32 bounds exclude only tokens that
cannot win: -ln u >= 1 - u, so a token's noise is at most -ln(1 - u).
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

# Kernels are not quite Python: constants are passed as plain values, launches have options of their own.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false


MAX_BLOCK = 1024
_WAYS: tl.constexpr = tl.constexpr(8)
"""Thresholds per pass of the search for a cut, which runs over the ordered bits of the logits."""
_LOWEST_KEY: tl.constexpr = tl.constexpr(0x007FFFFF)
"""The ordered key of -infinity."""


@triton.jit
def _largest(row_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """The largest logit of a row, the smallest id that has it, and how many logits are NaN or +infinity."""
    largest = tl.cast(float("-inf"), tl.float32)
    best = tl.cast(0, tl.int32)
    num_unusable = tl.cast(0, tl.int32)
    for start in range(0, VOCAB, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + ids, mask=ids < VOCAB, other=float("-inf"))
        usable = x < float("inf")
        num_unusable += tl.sum((usable == 0).to(tl.int32), 0)
        value, index = tl.max(tl.where(usable, x, float("-inf")), 0, return_indices=True)
        best = tl.where(value > largest, start + index, best)
        largest = tl.maximum(value, largest)
    return largest, best, num_unusable


@triton.jit
def _log_sum(row_ptr, largest, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """ln of the sum of e^x of a row, fp64."""
    total = tl.cast(0.0, tl.float64)
    for start in range(0, VOCAB, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + ids, mask=ids < VOCAB, other=float("-inf"))
        total += tl.sum(tl.exp(x - largest), 0).to(tl.float64)
    return largest.to(tl.float64) + tl.log(total)


@triton.jit
def _ordered(x):
    """The ordered key of an fp32 value: an int64 whose order is that of the values."""
    x = tl.where(x == 0.0, 0.0, x)  # both zeros are equal
    word = x.to(tl.uint32, bitcast=True)
    word = tl.where(word >> 31 == 1, word ^ 0xFFFFFFFF, word | 0x80000000)
    return word.to(tl.int64)


@triton.jit
def _weight(x, largest, divisor, COUNTED: tl.constexpr):
    if COUNTED:
        return tl.where(x > float("-inf"), 1.0, 0.0)
    return tl.exp((x - largest) / divisor)


@triton.jit
def _sum_from(row_ptr, keys, largest, divisor, COUNTED: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """For each of `keys` [W], the sum of the weights of the tokens at or above it; fp64."""
    sums = tl.zeros_like(keys).to(tl.float64)
    for start in range(0, VOCAB, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + ids, mask=ids < VOCAB, other=float("-inf"))
        weight = _weight(x, largest, divisor, COUNTED)
        above = _ordered(x)[None, :] >= keys[:, None]
        sums += tl.sum(tl.where(above, weight[None, :], 0.0), 1).to(tl.float64)
    return sums


@triton.jit
def _cut(row_ptr, target, lowest, largest, divisor, COUNTED: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key at or above `lowest` such that the weights at or above it sum to at least `target`."""
    low, high = lowest, _ordered(largest) + 1
    ways = tl.arange(0, _WAYS).to(tl.int64)
    while high - low > 1:
        stride = (high - low + _WAYS - 1) // _WAYS
        sums = _sum_from(row_ptr, low + ways * stride, largest, divisor, COUNTED, VOCAB, BLOCK)
        reached = tl.maximum(tl.sum((sums >= target).to(tl.int64), 0), 1)
        high = tl.minimum(low + reached * stride, high)
        low = low + (reached - 1) * stride
    return low


@triton.jit
def _total(row_ptr, lowest, largest, divisor, COUNTED: tl.constexpr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    keys = lowest + tl.zeros([_WAYS], tl.int64)
    return tl.max(_sum_from(row_ptr, keys, largest, divisor, COUNTED, VOCAB, BLOCK), 0)


@triton.jit
def _noise_words(start, key, turn, step, BLOCK: tl.constexpr):
    """The Philox words of the tokens `start` to `start + BLOCK`, four to a counter."""
    blocks = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zero = tl.zeros_like(blocks)
    w0, w1, w2, w3 = tl.philox(key, blocks, zero + step.to(tl.uint32), zero + turn.to(tl.uint32), zero)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def _draw(
    row_ptr,
    largest,
    temperature,
    lowest,
    num_equal,
    min_p_cutoff,
    key,
    turn,
    step,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The kept token with the largest logit / temperature + noise.

    Kept are the tokens above the key `lowest` and the first `num_equal` tokens at it, except those whose logit less the
    largest one is below `min_p_cutoff`.
    """
    best = tl.cast(0, tl.int32)
    best_score = tl.cast(float("-inf"), tl.float64)
    num_seen = tl.cast(0, tl.int64)
    for start in range(0, VOCAB, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + ids, mask=ids < VOCAB, other=float("-inf"))
        order = _ordered(x)
        equal = (order == lowest).to(tl.int64)
        rank = num_seen + tl.cumsum(equal, 0)
        num_seen += tl.sum(equal, 0)
        kept = (order > lowest) | ((equal == 1) & (rank <= num_equal))
        kept = kept & (x.to(tl.float64) - largest.to(tl.float64) >= min_p_cutoff)
        if tl.max(kept.to(tl.int32), 0) == 1:
            words = _noise_words(start, key, turn, step, BLOCK)
            complement = (words ^ 0xFFFFFFFF).to(tl.float32) * 2.3283064365386963e-10
            ratio = tl.exp((x - largest) / temperature - best_score.to(tl.float32))
            possible = kept & (ratio * 1.001 >= complement)
            if tl.max(possible.to(tl.int32), 0) == 1:
                uniform = (words.to(tl.float64) + 0.5) * 2.3283064365386963e-10
                scaled = (x.to(tl.float64) - largest.to(tl.float64)) / temperature.to(tl.float64)
                score = tl.where(possible, scaled - tl.log(-tl.log(uniform)), float("-inf"))
                value, index = tl.max(score, 0, return_indices=True)
                best = tl.where(value > best_score, start + index, best)
                best_score = tl.maximum(value, best_score)
    return best


@triton.jit
def _penalise(row_ptr, work_ptr, ids_ptr, values_ptr, start, stop, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    for first in range(0, VOCAB, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        tl.store(work_ptr + ids, tl.load(row_ptr + ids, mask=ids < VOCAB, other=0.0), mask=ids < VOCAB)
    # Other threads read what a thread wrote, after this barrier and after the second one.
    tl.debug_barrier()
    for first in range(start, stop, BLOCK):
        offsets = first + tl.arange(0, BLOCK)
        inside = offsets < stop
        ids = tl.load(ids_ptr + offsets, mask=inside, other=0)
        values = tl.load(values_ptr + offsets, mask=inside, other=0.0)
        x = tl.load(work_ptr + ids, mask=inside, other=0.0)
        tl.store(work_ptr + ids, x - values, mask=inside)
    tl.debug_barrier()


@triton.jit
def _sample(
    logits_ptr,
    work_ptr,
    temperature_ptr,
    top_p_ptr,
    top_k_ptr,
    orders_ptr,
    penalty_ids_ptr,
    penalty_values_ptr,
    penalty_starts_ptr,
    noise_keys_ptr,
    turns_ptr,
    steps_ptr,
    min_p_cutoffs_ptr,
    tokens_ptr,
    logprobs_ptr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * VOCAB
    work_ptr += row.to(tl.int64) * VOCAB
    raw_largest, _, num_unusable = _largest(logits_ptr, VOCAB, BLOCK)
    start, stop = tl.load(penalty_starts_ptr + row), tl.load(penalty_starts_ptr + row + 1)
    _penalise(logits_ptr, work_ptr, penalty_ids_ptr, penalty_values_ptr, start, stop, VOCAB, BLOCK)
    largest, token, _ = _largest(work_ptr, VOCAB, BLOCK)
    temperature, top_p = tl.load(temperature_ptr + row), tl.load(top_p_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    if (num_unusable > 0) | (largest == float("-inf")):
        token = tl.cast(-1, tl.int32)
    elif (temperature != 0.0) & (top_p != 0.0) & (top_k != 1):
        order = tl.load(orders_ptr + row)
        divisor = tl.where(order % 2 == 1, temperature, 1.0)
        top_k_first = order >= 2
        lowest = tl.cast(_LOWEST_KEY + 1, tl.int64)
        num_equal = tl.cast(VOCAB, tl.int64)
        if (top_p < 1.0) & (top_k_first == 0):
            total = _total(work_ptr, lowest, largest, divisor, False, VOCAB, BLOCK)
            lowest = _cut(work_ptr, total * top_p.to(tl.float64), lowest, largest, divisor, False, VOCAB, BLOCK)
        if top_k > 0:
            num_kept = _total(work_ptr, lowest, largest, divisor, True, VOCAB, BLOCK)
            if num_kept > top_k.to(tl.float64):
                lowest = _cut(work_ptr, top_k.to(tl.float64), lowest, largest, divisor, True, VOCAB, BLOCK)
                num_above = _total(work_ptr, lowest + 1, largest, divisor, True, VOCAB, BLOCK)
                num_equal = top_k - num_above.to(tl.int64)
        if (top_p < 1.0) & top_k_first:
            # Top-k kept only the first `num_equal` of the tokens at the cut; count their share of the equal weights.
            above = _total(work_ptr, lowest + 1, largest, divisor, False, VOCAB, BLOCK)
            equal = _total(work_ptr, lowest, largest, divisor, False, VOCAB, BLOCK) - above
            num_at = _total(work_ptr, lowest, largest, divisor, True, VOCAB, BLOCK)
            num_at -= _total(work_ptr, lowest + 1, largest, divisor, True, VOCAB, BLOCK)
            share = tl.minimum(num_equal.to(tl.float64), num_at) / tl.maximum(num_at, 1.0)
            target = (above + equal * share) * top_p.to(tl.float64)
            cut = _cut(work_ptr, target, lowest, largest, divisor, False, VOCAB, BLOCK)
            num_equal = tl.where(cut > lowest, tl.cast(VOCAB, tl.int64), num_equal)
            lowest = cut
        token = _draw(
            work_ptr,
            largest,
            temperature,
            lowest,
            num_equal,
            tl.load(min_p_cutoffs_ptr + row),
            tl.load(noise_keys_ptr + row),
            tl.load(turns_ptr + row),
            tl.load(steps_ptr + row),
            VOCAB,
            BLOCK,
        )
    chosen = tl.load(logits_ptr + tl.maximum(token, 0)).to(tl.float64)
    tl.store(tokens_ptr + row, token)
    tl.store(logprobs_ptr + row, (chosen - _log_sum(logits_ptr, raw_largest, VOCAB, BLOCK)).to(tl.float32))


@triton.jit
def _look_up(logits_ptr, target_ids_ptr, best_ptr, logprobs_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * VOCAB
    largest, best, _ = _largest(logits_ptr, VOCAB, BLOCK)
    chosen = tl.load(logits_ptr + tl.load(target_ids_ptr + row)).to(tl.float64)
    tl.store(best_ptr + row, best)
    tl.store(logprobs_ptr + row, (chosen - _log_sum(logits_ptr, largest, VOCAB, BLOCK)).to(tl.float32))


def sample(logits: Tensor, settings: Sequence[Tensor], work: Tensor, tokens: Tensor, logprobs: Tensor) -> None:
    """`choosing.sample` of `logits` [P, V] fp32 into `tokens` [P] int32 and `logprobs` [P] fp32.

    Args:
        settings: `SampleBatch.arrays` without `target_ids`, on the device.
        work: scratch memory of the shape of `logits`.
    """
    num_rows, vocab_size = logits.shape
    _sample[(num_rows,)](
        logits, work, *settings, tokens, logprobs, VOCAB=vocab_size, BLOCK=_block(vocab_size), num_warps=8
    )


def look_up(logits: Tensor, target_ids: Tensor, best: Tensor, logprobs: Tensor) -> None:
    """`choosing.look_up` of `target_ids` [P] in `logits` [P, V] fp32 into `best` [P] int32 and `logprobs` [P] fp32."""
    num_rows, vocab_size = logits.shape
    _look_up[(num_rows,)](logits, target_ids, best, logprobs, VOCAB=vocab_size, BLOCK=_block(vocab_size), num_warps=8)


def _block(vocab_size: int) -> int:
    return max(16, min(MAX_BLOCK, triton.next_power_of_2(vocab_size)))
