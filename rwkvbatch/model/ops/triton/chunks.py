"""The recurrence of RWKV-7 in chunks of rows, as matrix products: for prompts. `scan.py` is its slow twin.

Per head, with z = -kk, b = kk * a and S of shape (values, keys):

    S_t = S_{t-1} diag(w_t) + (S_{t-1} z_t) b_t^T + v_t k_t^T,    y_t = S_t r_t

Over the L rows of a chunk, with W_t = w_1 ... w_t, let Z_t = z_t W_{t-1}, R_t = r_t W_t, K_t = k_t / W_t,
B_t = b_t / W_t. The vectors u_t = S_{t-1} z_t solve a unit lower triangular system, and the rest is products:

    U = (I - tril(Z B^T, -1))^-1 (Z S^T + tril(Z K^T, -1) V)
    Y = R S^T + tril(R B^T) U + tril(R K^T) V
    S' = S diag(W_L) + U^T (B W_L) + V^T (K W_L)

A decay is at least exp(-exp(-1/2)) = 0.545, so 1 / W_16 stays below 2e4; every kept product has a ratio of W_i to
W_j with i >= j in it, which is at most 1, so fp32 loses nothing to the division.
"""

# Kernels are not quite Python: constants are passed as plain values, launches have options of their own.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rwkvbatch.model.ops.triton.scan import HeadWeights, Rows, Sequences, finished, normalized

CHUNK = 16
_DOUBLINGS: tl.constexpr = tl.constexpr(3)
"""(I - A)^-1 = (I + A)(I + A^2)(I + A^4)(I + A^8), since A^16 = 0."""


@triton.jit
def _dot(x, y):
    # "ieee" is fp32 multiply-adds; TF32 would round the factors to 10 bits.
    return tl.dot(x, y, input_precision="ieee")


@triton.jit
def _chunks(
    r_ptr,
    w_ptr,
    k_ptr,
    v_ptr,
    a_ptr,
    g_ptr,
    k_k_ptr,
    k_a_ptr,
    r_k_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    starts_ptr,
    stops_ptr,
    slots_ptr,
    carried_ptr,
    out_ptr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    sequence, head = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(starts_ptr + sequence), tl.load(stops_ptr + sequence)
    slot = tl.load(slots_ptr + sequence).to(tl.int64)
    lanes, steps = tl.arange(0, BLOCK), tl.arange(0, CHUNK)
    within = lanes < SIZE
    columns = head * SIZE + lanes
    k_k = tl.load(k_k_ptr + columns, mask=within, other=0.0)[None, :]
    k_a = tl.load(k_a_ptr + columns, mask=within, other=0.0)[None, :]
    r_k = tl.load(r_k_ptr + columns, mask=within, other=0.0)[None, :]
    norm_weight = tl.load(norm_weight_ptr + columns, mask=within, other=0.0)[None, :]
    norm_bias = tl.load(norm_bias_ptr + columns, mask=within, other=0.0)[None, :]
    lower = steps[:, None] >= steps[None, :]
    strictly_lower = steps[:, None] > steps[None, :]
    identity = tl.where(steps[:, None] == steps[None, :], 1.0, 0.0)

    square = lanes[:, None] * SIZE + lanes[None, :]
    state_ptr = carried_ptr + (slot * HEADS + head) * (SIZE * SIZE) + square
    kept = (tl.where(within, slot, -1) >= 0)[:, None] & within[None, :]
    S = tl.load(state_ptr, mask=kept, other=0.0)
    for first in range(start, stop, CHUNK):
        rows = first + steps
        inside = (rows < stop)[:, None] & within[None, :]
        place = rows.to(tl.int64)[:, None] * (HEADS * SIZE) + columns[None, :]
        r = tl.load(r_ptr + place, mask=inside, other=0.0).to(tl.float32)
        log_w = tl.log(tl.load(w_ptr + place, mask=inside, other=1.0).to(tl.float32))
        k = tl.load(k_ptr + place, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + place, mask=inside, other=0.0).to(tl.float32)
        a = tl.load(a_ptr + place, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + place, mask=inside, other=0.0).to(tl.float32)
        kk = normalized(k * k_k, 1)
        k = k * (1.0 + (a - 1.0) * k_a)

        upto = tl.cumsum(log_w, 0)
        grown = tl.exp(-upto)
        R, Z = r * tl.exp(upto), -kk * tl.exp(upto - log_w)
        K, B = k * grown, kk * a * grown
        last = tl.exp(tl.sum(log_w, 0))[None, :]
        K_t, B_t = tl.trans(K), tl.trans(B)
        zk = tl.where(strictly_lower, _dot(Z, K_t), 0.0)
        zb = tl.where(strictly_lower, _dot(Z, B_t), 0.0)
        rk = tl.where(lower, _dot(R, K_t), 0.0)
        rb = tl.where(lower, _dot(R, B_t), 0.0)
        inverse = identity + zb
        for _ in tl.static_range(_DOUBLINGS):
            zb = _dot(zb, zb)
            inverse += _dot(inverse, zb)
        S_t = tl.trans(S)
        U = _dot(inverse, _dot(Z, S_t) + _dot(zk, v))
        y = _dot(R, S_t) + _dot(rb, U) + _dot(rk, v)
        S = S * last + _dot(tl.trans(U), B * last) + _dot(tl.trans(v), K * last)
        y = finished(y, r, k, v, g, r_k, norm_weight, norm_bias, within[None, :], SIZE, 1)
        tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(state_ptr, S, mask=kept)


def chunks(
    rows: Rows, weights: HeadWeights, sequences: Sequences, carried: torch.Tensor, out: torch.Tensor
) -> None:
    """As `scan.scan`, the same but for rounding."""
    num_heads, size = carried.shape[1:3]
    _chunks[(len(sequences.starts), num_heads)](
        *rows,
        *weights,
        *sequences,
        carried,
        out,
        HEADS=num_heads,
        SIZE=size,
        BLOCK=max(16, triton.next_power_of_2(size)),
        CHUNK=CHUNK,
        num_warps=8,
    )
