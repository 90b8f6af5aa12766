"""Layer norm, alone and with RWKV's token shift and its mixes. One program a row; fp32 whatever goes in and out."""

# Kernels are not quite Python: constants are passed as plain values, launches have options of their own.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _norm(x_ptr, row, weight, bias, columns, inside, WIDTH: tl.constexpr, EPS: tl.constexpr):
    x = tl.load(x_ptr + row.to(tl.int64) * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / WIDTH
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / WIDTH
    return centred / tl.sqrt_rn(variance + EPS) * weight + bias


@triton.jit
def _gather_norm(
    x_ptr,
    index_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    EPS: tl.constexpr,
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
        # The program of a sequence's first row also leaves the last one in the state, so that nobody else touches it.
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


def gather_norm(
    x: torch.Tensor,
    index: torch.Tensor,
    norm: tuple[torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    eps: float,
) -> None:
    """out[i] = layer_norm(x[index[i]]), [n, C] from [any, C]; `index` int32 or int64."""
    width = x.shape[1]
    _gather_norm[(len(index),)](
        x,
        index,
        *norm,
        out,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        EPS=eps,
        num_warps=_warps(width),
    )


def shift_mix(
    x: torch.Tensor,
    norm: tuple[torch.Tensor, torch.Tensor],
    mix: torch.Tensor,
    carried: torch.Tensor,
    first_slots: torch.Tensor,
    last_rows: torch.Tensor,
    out: torch.Tensor,
    eps: float,
) -> None:
    """`Operations.shift_mix` into `out` [M, R, C].

    Args:
        x: [R, C] fp32.
        mix: [M, C] fp32.
        carried: the state's shifts of this layer [capacity, C] fp32.
        first_slots: for the first row of each sequence that has a state its slot, -1 for all other rows; [R] int32.
        last_rows: for the same rows, the sequence's last row; [R] int32.
    """
    num_rows, width = x.shape
    _shift_mix[(num_rows,)](
        x,
        *norm,
        mix,
        carried,
        first_slots,
        last_rows,
        out,
        num_rows,
        WIDTH=width,
        MIXES=len(mix),
        BLOCK=triton.next_power_of_2(width),
        EPS=eps,
        num_warps=_warps(width),
    )


def _warps(width: int) -> int:
    return 4 if width <= 2048 else 8
