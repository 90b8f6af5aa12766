"""Linear layers of at most 16 rows, and the token matrix of DeepEmbed.

One launch computes a group of layers, so that weights are read without gaps. Each program computes 16 outputs of one
layer, always for 16 rows, and adds up the inputs in order, so that a row's bits do not depend on the number of rows.
cuBLAS computes products of more rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import triton
import triton.language as tl
from torch import Tensor

from rwkvbatch.model.ops import Product
from rwkvbatch.model.ops.reference import DECAY_SCALE

# Kernels are not quite Python: constants are passed as plain values, launches have options of their own.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false


BLOCK = 1024
_DECAY_SCALE: tl.constexpr = tl.constexpr(DECAY_SCALE)


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    if ACTIVATION == "tanh":
        y = 2.0 * tl.sigmoid(2.0 * y) - 1.0
    elif ACTIVATION == "sigmoid":
        y = tl.sigmoid(y)
    elif ACTIVATION == "decay":
        y = tl.exp(tl.sigmoid(y) * -_DECAY_SCALE)
    elif ACTIVATION == "relu_squared":
        y = tl.where(y > 0.0, y * y, tl.where(y == y, 0.0, y))
    return y


@triton.jit(do_not_specialize=["size"])
def _epilogue(
    y_ptr,
    bias_ptr,
    start_ptr,
    target_ptr,
    out_ptr,
    size,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIASED: tl.constexpr,
    COMBINE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    y = tl.load(y_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        y += tl.load(bias_ptr + offsets % WIDTH, mask=inside, other=0.0)
    y = activate(y, ACTIVATION)
    if COMBINE == "add":
        y += tl.load(start_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    elif COMBINE == "times":
        y *= tl.load(start_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    elif COMBINE == "blend":
        start = tl.load(start_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        target = tl.load(target_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        y = start + (target - start) * y
    tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=inside)


def epilogue(y: Tensor, product: Product, out: Tensor) -> None:
    """The rest of `product` after y = x W^T [R, width], into `out`, which may be any of the arrays read."""
    bias = product.layer.bias
    start, target = _combined(product)
    if start is None:
        combine = "none"
    elif target is not None:
        combine = "blend"
    else:
        combine = "add" if product.times is None else "times"
    constants = {
        "WIDTH": y.shape[1],
        "ACTIVATION": product.layer.activation,
        "BIASED": bias is not None,
        "COMBINE": combine,
    }
    _epilogue[(triton.cdiv(y.numel(), BLOCK),)](y, bias, start, target, out, y.numel(), **constants, BLOCK=BLOCK)


def _combined(product: Product) -> tuple[Tensor | None, Tensor | None]:
    """The arrays that the result is combined with: `add` or `times` and None, or both of `blend`."""
    return product.blend or (product.times if product.add is None else product.add, None)


MAX_ROWS = 16
"""The smallest tile of tensor cores."""
BLOCK_OUT = 16
_BLOCK_IN_BYTES = 512
_STAGES = 4
_MAX_ROWS: tl.constexpr = tl.constexpr(MAX_ROWS)


@triton.jit
def _product(
    x_ptr,
    weight_ptr,
    outs,
    num_rows,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """x W^T for all rows and the columns `outs`, fp32."""
    rows = tl.arange(0, _MAX_ROWS)
    y = tl.zeros([_MAX_ROWS, BLOCK_OUT], tl.float32)
    for first in range(0, IN, BLOCK_IN):
        ins = first + tl.arange(0, BLOCK_IN)
        x_inside = (rows < num_rows)[:, None] & (ins < IN)[None, :]
        x = tl.load(x_ptr + rows[:, None] * IN + ins[None, :], mask=x_inside, other=0.0)
        weight_inside = (ins < IN)[:, None] & (outs < OUT)[None, :]
        weight = tl.load(weight_ptr + outs[None, :] * IN + ins[:, None], mask=weight_inside, other=0.0)
        if WIDEN:
            x, weight = x.to(tl.float32), weight.to(tl.float32)
        y = tl.dot(x, weight, y, input_precision="ieee")
    return y


@triton.jit(do_not_specialize=["num_rows"])
def _linears(
    xs,
    weights,
    biases,
    starts,
    targets,
    outs,
    num_rows,
    TIMES: tl.constexpr,
    FIRST_PROGRAMS: tl.constexpr,
    INS: tl.constexpr,
    OUTS: tl.constexpr,
    BLOCKS_IN: tl.constexpr,
    ACTIVATIONS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    WIDEN: tl.constexpr,
):
    program = tl.program_id(0)
    rows = tl.arange(0, _MAX_ROWS)
    for p in tl.static_range(COUNT):
        if (program >= FIRST_PROGRAMS[p]) & (program < FIRST_PROGRAMS[p + 1]):
            columns = (program - FIRST_PROGRAMS[p]) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
            y = _product(xs[p], weights[p], columns, num_rows, INS[p], OUTS[p], BLOCKS_IN[p], BLOCK_OUT, WIDEN)
            within = columns < OUTS[p]
            inside = (rows < num_rows)[:, None] & within[None, :]
            offsets = rows[:, None] * OUTS[p] + columns[None, :]
            if biases[p] is not None:
                y += tl.load(biases[p] + columns, mask=within, other=0.0)[None, :]
            y = activate(y, tl.constexpr(ACTIVATIONS[p]))
            if targets[p] is not None:
                start = tl.load(starts[p] + offsets, mask=inside, other=0.0).to(tl.float32)
                target = tl.load(targets[p] + offsets, mask=inside, other=0.0).to(tl.float32)
                y = start + (target - start) * y
            elif TIMES[p]:
                y *= tl.load(starts[p] + offsets, mask=inside, other=0.0).to(tl.float32)
            elif starts[p] is not None:
                y += tl.load(starts[p] + offsets, mask=inside, other=0.0).to(tl.float32)
            tl.store(outs[p] + offsets, y.to(outs[p].dtype.element_ty), mask=inside)


def linears(products: Sequence[Product], outs: Sequence[Tensor]) -> None:
    """Compute `products` into `outs`. Their `x` have the same number of rows, at most `MAX_ROWS`."""
    layers = [product.layer for product in products]
    weights = [layer.weight for layer in layers]
    combined = [_combined(product) for product in products]
    programs = [triton.cdiv(len(weight), BLOCK_OUT) for weight in weights]
    first_programs = (0, *accumulate(programs))
    _linears[(first_programs[-1],)](
        tuple(product.x for product in products),
        tuple(weights),
        tuple(layer.bias for layer in layers),
        tuple(start for start, _ in combined),
        tuple(target for _, target in combined),
        tuple(outs),
        len(products[0].x),
        TIMES=tuple(product.times is not None for product in products),
        FIRST_PROGRAMS=first_programs,
        INS=tuple(weight.shape[1] for weight in weights),
        OUTS=tuple(weight.shape[0] for weight in weights),
        BLOCKS_IN=tuple(map(_block_in, weights)),
        ACTIVATIONS=tuple(layer.activation for layer in layers),
        COUNT=len(products),
        BLOCK_OUT=BLOCK_OUT,
        # Triton's interpreter has no products of bf16.
        WIDEN=weights[0].device.type == "cpu",
        num_warps=4,
        num_stages=_STAGES,
    )


def _block_in(weight: Tensor) -> int:
    return max(16, min(_BLOCK_IN_BYTES // weight.element_size(), triton.next_power_of_2(weight.shape[1])))


@triton.jit
def _token_matrix(
    table_ptr, tokens_ptr, offset_ptr, x_ptr, out_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_IN: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens_ptr + row).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    y = tl.zeros([BLOCK], tl.float32)
    for first in range(0, SIZE, BLOCK_IN):
        ins = first + tl.arange(0, BLOCK_IN)
        inside = (ins < SIZE)[:, None] & (columns < SIZE)[None, :]
        offsets = ins[:, None] * SIZE + columns[None, :]
        matrix = tl.load(table_ptr + token * (SIZE * SIZE) + offsets, mask=inside, other=0.0).to(tl.float32)
        matrix += tl.load(offset_ptr + row * (SIZE * SIZE) + offsets, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * SIZE + ins, mask=ins < SIZE, other=0.0).to(tl.float32)
        y += tl.sum(matrix * x[:, None], 0)
    tl.store(out_ptr + row * SIZE + columns, y.to(out_ptr.dtype.element_ty), mask=columns < SIZE)


_MATRIX_BLOCK = 4096
"""Elements of a token's matrix that a program holds at a time."""


def token_matrix(table: Tensor, tokens: Tensor, offset: Tensor, x: Tensor, out: Tensor) -> None:
    """`Operations.token_matrix` into `out` [R, D], in fp32. One program per row: its bits depend on that row alone."""
    size = x.shape[1]
    block = triton.next_power_of_2(size)
    block_in = max(1, min(block, _MATRIX_BLOCK // block))
    _token_matrix[(len(x),)](table, tokens, offset, x, out, SIZE=size, BLOCK=block, BLOCK_IN=block_in, num_warps=4)
