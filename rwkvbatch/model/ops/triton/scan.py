"""The recurrence of RWKV-7 row by row, and the operations on whole rows.

The recurrence includes all other per-head arithmetic. It runs one program per sequence and head.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from rwkvbatch.model.ops import HeadRows, HeadWeights
from rwkvbatch.model.ops.reference import GROUP_NORM_EPS, NORMALIZE_EPS

# Kernels are not quite Python: constants are passed as plain values, launches have options of their own.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false


@triton.jit
def _norm(x_ptr, row, weight, bias, columns, inside, WIDTH: tl.constexpr, EPS: tl.constexpr):
    x = tl.load(x_ptr + row.to(tl.int64) * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / WIDTH
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / WIDTH
    return centred / tl.sqrt_rn(variance + EPS) * weight + bias


@triton.jit
def _gather_norm(
    x_ptr, index_ptr, weight_ptr, bias_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr
):
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0)
    row = tl.load(index_ptr + program)
    normed = _norm(x_ptr, row, weight, bias, columns, inside, WIDTH, EPS)
    out = out_ptr + program.to(tl.int64) * WIDTH + columns
    tl.store(out, normed.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def _shift_mix(
    x_ptr,
    weight_ptr,
    bias_ptr,
    mix_ptr,
    carried_ptr,
    first_slots_ptr,
    last_rows_ptr,
    out_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    MIXES: tl.constexpr,
    BLOCK: tl.constexpr,
    EPS: tl.constexpr,
):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0)
    current = _norm(x_ptr, row, weight, bias, columns, inside, WIDTH, EPS)
    slot = tl.load(first_slots_ptr + row)
    if slot >= 0:
        # The program of a sequence's first row also stores its last row in the state, so no other program accesses it.
        carried = carried_ptr + slot.to(tl.int64) * WIDTH + columns
        previous = tl.load(carried, mask=inside, other=0.0)
        last = _norm(x_ptr, tl.load(last_rows_ptr + row), weight, bias, columns, inside, WIDTH, EPS)
        tl.debug_barrier()
        tl.store(carried, last, mask=inside)
    else:
        previous = _norm(x_ptr, tl.maximum(row - 1, 0), weight, bias, columns, inside, WIDTH, EPS)
    difference = previous - current
    for m in tl.static_range(MIXES):
        factor = tl.load(mix_ptr + m * WIDTH + columns, mask=inside, other=0.0)
        mixed = (current + difference * factor).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + (m * num_rows + row).to(tl.int64) * WIDTH + columns, mixed, mask=inside)


def gather_norm(x: Tensor, index: Tensor, norm: tuple[Tensor, Tensor], out: Tensor, eps: float) -> None:
    """out[i] = layer_norm(x[index[i]]), [n, C] from [any, C]; `index` int32 or int64."""
    width = x.shape[1]
    _gather_norm[(len(index),)](
        x, index, *norm, out, WIDTH=width, BLOCK=triton.next_power_of_2(width), EPS=eps, num_warps=_warps(width)
    )


def shift_mix(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    mix: Tensor,
    carried: Tensor,
    first_slots: Tensor,
    last_rows: Tensor,
    out: Tensor,
    eps: float,
) -> None:
    """`Operations.shift_mix` into `out` [M, R, C].

    Args:
        x: [R, C] fp32.
        mix: [M, C] fp32.
        carried: the state's shifts of this layer [capacity, C] fp32.
        first_slots, last_rows: see `Indices`; [R] int32.
    """
    num_rows, width = x.shape
    constants = {"WIDTH": width, "MIXES": len(mix), "BLOCK": triton.next_power_of_2(width), "EPS": eps}
    _shift_mix[(num_rows,)](
        x, *norm, mix, carried, first_slots, last_rows, out, num_rows, **constants, num_warps=_warps(width)
    )


def _warps(width: int) -> int:
    return 4 if width <= 2048 else 8


_GROUP_NORM_EPS: tl.constexpr = tl.constexpr(GROUP_NORM_EPS)
_NORMALIZE_EPS: tl.constexpr = tl.constexpr(NORMALIZE_EPS)


class Sequences(NamedTuple):
    """Rows starts[b] to stops[b] - 1 belong to the state in slots[b], or to none if that is -1; [B] int32 each."""

    starts: Tensor
    stops: Tensor
    slots: Tensor


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
        offsets = row * (HEADS * SIZE) + columns
        r = tl.load(r_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        a = tl.load(a_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        kk = normalized(k * k_k, 0)
        k = k * (1.0 + (a - 1.0) * k_a)
        removed = tl.sum(S * kk[None, :], 1)
        S = S * w[None, :] - removed[:, None] * (kk * a)[None, :] + v[:, None] * k[None, :]
        y = tl.sum(S * r[None, :], 1)
        bonus = tl.sum(r * k * r_k, 0, keep_dims=True)
        y = finished(y, bonus, v, g, norm_weight, norm_bias, inside, SIZE, 0)
        tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(state_ptr, S, mask=kept)


def scan(rows: HeadRows, weights: HeadWeights, sequences: Sequences, carried: Tensor, out: Tensor) -> None:
    """`Operations.wkv7` of `sequences` into their rows of `out` [R, C].

    Args:
        carried: the states of this layer [capacity, H, N, N] fp32, values before keys; changed in place.
    """
    num_heads, size = carried.shape[1:3]
    constants = {"HEADS": num_heads, "SIZE": size, "BLOCK": triton.next_power_of_2(size)}
    grid = len(sequences.starts), num_heads
    _scan[grid](*rows, *weights, *sequences, carried, out, **constants, num_warps=8)
