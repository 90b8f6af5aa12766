"""The recurrence of RWKV-7 in chunks of rows, as matrix products, for prompts.

The reference implementation is `scan.py`.

Per head, with z = -kk, b = kk * a and S of shape (values, keys):

    S_t = S_{t-1} diag(w_t) + (S_{t-1} z_t) b_t^T + v_t k_t^T,    y_t = S_t r_t

Over the L rows of a chunk, with W_t = w_1 ... w_t, let Z_t = z_t W_{t-1}, R_t = r_t W_t, K_t = k_t / W_t,
B_t = b_t / W_t. The vectors u_t = S_{t-1} z_t solve a unit lower triangular system with the inverse P; all else is
products:

    P = (I - tril(Z B^T, -1))^-1
    U = (P Z) S^T + P tril(Z K^T, -1) V                       removed by the rows, [L, values]
    Y = (R + D P Z) S^T + D P tril(Z K^T, -1) V + E V         with D = tril(R B^T), E = tril(R K^T)
    S' = S diag(W_L) + U^T (B W_L) + V^T (K W_L)

Only S depends on earlier chunks, so the work is divided into three kernels. `_prepare` (one program per chunk and head)
computes the factors of S^T, the terms added to them, and the factors of U and V. `_pass_on` (one program per
sequence, head and block of values) goes through the chunks in order, with two products each. `_finish` (one program per
chunk and head) turns the Y into outputs.

A decay is at least exp(-exp(-1/2)) = 0.545, so 1 / W_16 stays below 2e4. Every product contains a ratio of W_i to W_j
with i >= j, which is at most 1, so the division costs no precision in fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from rwkvbatch.model.ops import HeadRows, HeadWeights
from rwkvbatch.model.ops.triton.scan import Sequences, finished, normalized

# Kernels are not quite Python: constants are passed as plain values, launches have options of their own.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false


CHUNK = 16
BLOCK_VALUES = 16
"""Number of value rows of a state that one program of `_pass_on` handles."""
MAX_REGISTERS = 168
"""Registers per thread of `_prepare`, so that three programs fit on a multiprocessor."""
_DOUBLINGS: tl.constexpr = tl.constexpr(3)
"""(I - A)^-1 = (I + A)(I + A^2)(I + A^4)(I + A^8), since A^16 = 0."""


class ChunkRows(NamedTuple):
    """`chunk_starts` [M], `chunk_stops` [M] and `first_chunks` [B] of `Indices`, int32, on the device."""

    starts: Tensor
    stops: Tensor
    firsts: Tensor


class _Prepared(NamedTuple):
    """Results of `_prepare` for M chunks and H heads, fp32. Arrays of 2 L rows have two halves of L rows.

    Attributes:
        factors: the factors of S^T in U, then those in Y, [M, H, 2 L, N].
        sums: the terms added to these products, [M, H, 2 L, N]; `_pass_on` replaces the second half by Y.
        keys: the factors of U^T in S', then those of V^T, [M, H, 2 L, N].
        decays: W_L, [M, H, N].
        bonuses: sum r * k * r_k, [M, H, L].
    """

    factors: Tensor
    sums: Tensor
    keys: Tensor
    decays: Tensor
    bonuses: Tensor


@triton.jit
def _dot(x, y):
    # "ieee" is fp32 multiply-adds; TF32 would round the factors to 10 bits.
    return tl.dot(x, y, input_precision="ieee")


@triton.jit
def _prepare(
    r_ptr,
    w_ptr,
    k_ptr,
    v_ptr,
    a_ptr,
    k_k_ptr,
    k_a_ptr,
    r_k_ptr,
    starts_ptr,
    stops_ptr,
    factors_ptr,
    sums_ptr,
    keys_ptr,
    decays_ptr,
    bonuses_ptr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    chunk, head = tl.program_id(0), tl.program_id(1)
    lanes, steps = tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    rows = tl.load(starts_ptr + chunk) + steps
    within = lanes < SIZE
    inside = (rows < tl.load(stops_ptr + chunk))[:, None] & within[None, :]
    columns = head * SIZE + lanes
    offsets = rows.to(tl.int64)[:, None] * (HEADS * SIZE) + columns[None, :]
    k_k = tl.load(k_k_ptr + columns, mask=within, other=0.0)[None, :]
    k_a = tl.load(k_a_ptr + columns, mask=within, other=0.0)[None, :]
    r_k = tl.load(r_k_ptr + columns, mask=within, other=0.0)[None, :]
    # Padding rows after the last one do not change the state: no decay, no key.
    r = tl.load(r_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    log_w = tl.log(tl.load(w_ptr + offsets, mask=inside, other=1.0).to(tl.float32))
    k = tl.load(k_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(a_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    kk = normalized(k * k_k, 1)
    k = k * (1.0 + (a - 1.0) * k_a)
    b = kk * a

    number = chunk.to(tl.int64) * HEADS + head
    tl.store(bonuses_ptr + number * CHUNK + steps, tl.sum(r * k * r_k, 1))
    log_decay, total = tl.cumsum(log_w, 0), tl.sum(log_w, 0)
    tl.store(decays_ptr + number * SIZE + lanes, tl.exp(total), mask=within)
    halves = number * (2 * CHUNK * SIZE) + steps[:, None] * SIZE + lanes[None, :]
    remaining = tl.exp(total[None, :] - log_decay)
    tl.store(keys_ptr + halves, b * remaining, mask=within[None, :])
    tl.store(keys_ptr + halves + CHUNK * SIZE, k * remaining, mask=within[None, :])

    inverse_decay = tl.exp(-log_decay)
    R, Z = r * tl.exp(log_decay), -kk * tl.exp(log_decay - log_w)
    K_t, B_t = tl.trans(k * inverse_decay), tl.trans(b * inverse_decay)
    lower = steps[:, None] >= steps[None, :]
    strictly_lower = steps[:, None] > steps[None, :]
    zk = tl.where(strictly_lower, _dot(Z, K_t), 0.0)
    zb = tl.where(strictly_lower, _dot(Z, B_t), 0.0)
    rk = tl.where(lower, _dot(R, K_t), 0.0)
    rb = tl.where(lower, _dot(R, B_t), 0.0)
    inverse = zb + tl.where(steps[:, None] == steps[None, :], 1.0, 0.0)
    for _ in tl.static_range(_DOUBLINGS):
        zb = _dot(zb, zb)
        inverse += _dot(inverse, zb)
    from_state, from_values = _dot(inverse, Z), _dot(_dot(inverse, zk), v)
    tl.store(factors_ptr + halves, from_state, mask=within[None, :])
    tl.store(factors_ptr + halves + CHUNK * SIZE, R + _dot(rb, from_state), mask=within[None, :])
    tl.store(sums_ptr + halves, from_values, mask=within[None, :])
    tl.store(sums_ptr + halves + CHUNK * SIZE, _dot(rb, from_values) + _dot(rk, v), mask=within[None, :])


@triton.jit
def _pass_on(
    v_ptr,
    factors_ptr,
    sums_ptr,
    keys_ptr,
    decays_ptr,
    starts_ptr,
    stops_ptr,
    slots_ptr,
    firsts_ptr,
    carried_ptr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    sequence, head = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(starts_ptr + sequence), tl.load(stops_ptr + sequence)
    slot = tl.load(slots_ptr + sequence).to(tl.int64)
    first = tl.load(firsts_ptr + sequence).to(tl.int64)
    lanes, halves = tl.arange(0, BLOCK), tl.arange(0, 2 * CHUNK)
    values = tl.program_id(2) * BLOCK_VALUES + tl.arange(0, BLOCK_VALUES)
    within, valued = lanes < SIZE, values < SIZE
    upper = halves < CHUNK

    square = values[:, None] * SIZE + lanes[None, :]
    state_ptr = carried_ptr + (slot * HEADS + head) * (SIZE * SIZE) + square
    kept = (tl.where(valued, slot, -1) >= 0)[:, None] & within[None, :]
    S = tl.load(state_ptr, mask=kept, other=0.0)
    by_lane = halves[:, None] * SIZE + lanes[None, :]
    by_value = halves[:, None] * SIZE + values[None, :]
    for step in range(0, tl.cdiv(stop - start, CHUNK)):
        number = (first + step) * HEADS + head
        base = number * (2 * CHUNK * SIZE)
        factors = tl.load(factors_ptr + base + by_lane, mask=within[None, :], other=0.0)
        keys = tl.load(keys_ptr + base + by_lane, mask=within[None, :], other=0.0)
        decay = tl.load(decays_ptr + number * SIZE + lanes, mask=within, other=0.0)
        sums = tl.load(sums_ptr + base + by_value, mask=valued[None, :], other=0.0)
        rows = start + step * CHUNK + halves - CHUNK
        offsets = rows.to(tl.int64)[:, None] * (HEADS * SIZE) + (head * SIZE + values)[None, :]
        inside = (~upper & (rows < stop))[:, None] & valued[None, :]
        v = tl.load(v_ptr + offsets, mask=inside, other=0.0).to(tl.float32)

        u_and_y = _dot(factors, tl.trans(S)) + sums
        tl.store(sums_ptr + base + by_value, u_and_y, mask=~upper[:, None] & valued[None, :])
        u_and_v = tl.where(upper[:, None], u_and_y, v)
        S = S * decay[None, :] + _dot(tl.trans(u_and_v), keys)
    tl.store(state_ptr, S, mask=kept)


@triton.jit
def _finish(
    v_ptr,
    g_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    starts_ptr,
    stops_ptr,
    sums_ptr,
    bonuses_ptr,
    out_ptr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    chunk, head = tl.program_id(0), tl.program_id(1)
    lanes, steps = tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    rows = tl.load(starts_ptr + chunk) + steps
    within = (lanes < SIZE)[None, :]
    inside = (rows < tl.load(stops_ptr + chunk))[:, None] & within
    columns = head * SIZE + lanes[None, :]
    offsets = rows.to(tl.int64)[:, None] * (HEADS * SIZE) + columns
    number = chunk.to(tl.int64) * HEADS + head
    lower_half = (number * 2 + 1) * (CHUNK * SIZE) + steps[:, None] * SIZE + lanes[None, :]
    y = tl.load(sums_ptr + lower_half, mask=inside, other=0.0)
    bonus = tl.load(bonuses_ptr + number * CHUNK + steps)[:, None]
    v = tl.load(v_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    norm_weight = tl.load(norm_weight_ptr + columns, mask=within, other=0.0)
    norm_bias = tl.load(norm_bias_ptr + columns, mask=within, other=0.0)
    y = finished(y, bonus, v, g, norm_weight, norm_bias, within, SIZE, 1)
    tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=inside)


def chunks(
    rows: HeadRows, weights: HeadWeights, sequences: Sequences, chunk_rows: ChunkRows, carried: Tensor, out: Tensor
) -> None:
    """`scan.scan` in chunks: the same results up to rounding.

    Args:
        chunk_rows: the chunks of all `sequences`.
    """
    num_heads, size = carried.shape[1:3]
    num_chunks = len(chunk_rows.starts)
    shape = {"HEADS": num_heads, "SIZE": size, "BLOCK": max(16, triton.next_power_of_2(size)), "CHUNK": CHUNK}
    prepared = _Prepared(
        *(carried.new_empty(num_chunks, num_heads, 2 * CHUNK, size) for _ in range(3)),
        decays=carried.new_empty(num_chunks, num_heads, size),
        bonuses=carried.new_empty(num_chunks, num_heads, CHUNK),
    )
    r, w, k, v, a, g = rows
    bounds = chunk_rows.starts, chunk_rows.stops
    grid = num_chunks, num_heads
    _prepare[grid](r, w, k, v, a, *weights[:3], *bounds, *prepared, **shape, num_warps=4, maxnreg=MAX_REGISTERS)
    _pass_on[len(sequences.starts), num_heads, triton.cdiv(size, BLOCK_VALUES)](
        v, *prepared[:4], *sequences, chunk_rows.firsts, carried, **shape, BLOCK_VALUES=BLOCK_VALUES, num_warps=4
    )
    _finish[grid](v, g, *weights[3:], *bounds, prepared.sums, prepared.bonuses, out, **shape, num_warps=4)
