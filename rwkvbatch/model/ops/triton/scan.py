"""The recurrence of RWKV-7 row by row, with everything that belongs to a head. One program a sequence and head."""

# Kernels are not quite Python: constants are passed as plain values, launches have options of their own.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from rwkvbatch.model.ops.reference import GROUP_NORM_EPS, NORMALIZE_EPS

_GROUP_NORM_EPS: tl.constexpr = tl.constexpr(GROUP_NORM_EPS)
_NORMALIZE_EPS: tl.constexpr = tl.constexpr(NORMALIZE_EPS)


class Rows(NamedTuple):
    """What the rows bring, [R, C] each, in any floating dtype."""

    r: torch.Tensor
    w: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    a: torch.Tensor
    g: torch.Tensor


class HeadWeights(NamedTuple):
    """A layer's vectors, [C] fp32 each."""

    k_k: torch.Tensor
    k_a: torch.Tensor
    r_k: torch.Tensor
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor


class Sequences(NamedTuple):
    """Rows starts[b] to stops[b] - 1 belong to the state in slots[b], or to none if that is -1; [B] int32 each."""

    starts: torch.Tensor
    stops: torch.Tensor
    slots: torch.Tensor


@triton.jit
def normalized(kk, AXIS: tl.constexpr):
    """kk / max(|kk|, 1e-12) along an axis."""
    length = tl.sqrt_rn(tl.sum(kk * kk, AXIS, keep_dims=True))
    return kk / tl.maximum(length, _NORMALIZE_EPS)


@triton.jit
def finished(y, bonus, v, g, norm_weight, norm_bias, inside, SIZE: tl.constexpr, AXIS: tl.constexpr):
    """(group_norm(y) + bonus v) * g along an axis of one head."""
    mean = tl.sum(y, AXIS, keep_dims=True) / SIZE
    centred = tl.where(inside, y - mean, 0.0)
    variance = tl.sum(centred * centred, AXIS, keep_dims=True) / SIZE
    normed = centred / tl.sqrt_rn(variance + _GROUP_NORM_EPS) * norm_weight + norm_bias
    return (normed + bonus * v) * g


@triton.jit
def _scan(
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
):
    sequence, head = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(starts_ptr + sequence), tl.load(stops_ptr + sequence)
    slot = tl.load(slots_ptr + sequence).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    inside = lanes < SIZE
    columns = head * SIZE + lanes
    k_k = tl.load(k_k_ptr + columns, mask=inside, other=0.0)
    k_a = tl.load(k_a_ptr + columns, mask=inside, other=0.0)
    r_k = tl.load(r_k_ptr + columns, mask=inside, other=0.0)
    norm_weight = tl.load(norm_weight_ptr + columns, mask=inside, other=0.0)
    norm_bias = tl.load(norm_bias_ptr + columns, mask=inside, other=0.0)

    square = lanes[:, None] * SIZE + lanes[None, :]
    state_ptr = carried_ptr + (slot * HEADS + head) * (SIZE * SIZE) + square
    kept = (tl.where(inside, slot, -1) >= 0)[:, None] & inside[None, :]
    S = tl.load(state_ptr, mask=kept, other=0.0)
    for row in range(start, stop):
        place = row * (HEADS * SIZE) + columns
        r = tl.load(r_ptr + place, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + place, mask=inside, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + place, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + place, mask=inside, other=0.0).to(tl.float32)
        a = tl.load(a_ptr + place, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + place, mask=inside, other=0.0).to(tl.float32)
        kk = normalized(k * k_k, 0)
        k = k * (1.0 + (a - 1.0) * k_a)
        removed = tl.sum(S * kk[None, :], 1)
        S = S * w[None, :] - removed[:, None] * (kk * a)[None, :] + v[:, None] * k[None, :]
        y = tl.sum(S * r[None, :], 1)
        bonus = tl.sum(r * k * r_k, 0, keep_dims=True)
        y = finished(y, bonus, v, g, norm_weight, norm_bias, inside, SIZE, 0)
        tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(state_ptr, S, mask=kept)


def scan(
    rows: Rows, weights: HeadWeights, sequences: Sequences, carried: torch.Tensor, out: torch.Tensor
) -> None:
    """`Operations.wkv7` of some sequences into their rows of `out` [R, C].

    Args:
        carried: the states of this layer [capacity, H, N, N] fp32, values before keys; changed in place.
    """
    num_heads, size = carried.shape[1:3]
    _scan[(len(sequences.starts), num_heads)](
        *rows,
        *weights,
        *sequences,
        carried,
        out,
        HEADS=num_heads,
        SIZE=size,
        BLOCK=triton.next_power_of_2(size),
        num_warps=8,
    )
