"""What comes after a matrix product: bias, activation, and the addition or blend that its result goes into."""

# Kernels are not quite Python: constants are passed as plain values, launches have options of their own.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rwkvbatch.model.ops import Activation
from rwkvbatch.model.ops.reference import DECAY_SCALE

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
def _end(
    y_ptr,
    bias_ptr,
    start_ptr,
    target_ptr,
    out_ptr,
    size,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIASED: tl.constexpr,
    END: tl.constexpr,
    BLOCK: tl.constexpr,
):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    y = tl.load(y_ptr + places, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        y += tl.load(bias_ptr + places % WIDTH, mask=inside, other=0.0)
    y = activate(y, ACTIVATION)
    if END == "add":
        y += tl.load(start_ptr + places, mask=inside, other=0.0).to(tl.float32)
    elif END == "blend":
        start = tl.load(start_ptr + places, mask=inside, other=0.0).to(tl.float32)
        target = tl.load(target_ptr + places, mask=inside, other=0.0).to(tl.float32)
        y = start + (target - start) * y
    tl.store(out_ptr + places, y.to(out_ptr.dtype.element_ty), mask=inside)


def end(
    y: torch.Tensor,
    bias: torch.Tensor | None,
    activation: Activation,
    add: torch.Tensor | None,
    blend: tuple[torch.Tensor, torch.Tensor] | None,
    out: torch.Tensor,
) -> None:
    """Everything of `Product` after x W^T, from `y` [R, width] into `out`, which may be `y`, `add` or a start."""
    start, target = blend if blend is not None else (add, None)
    _end[(triton.cdiv(y.numel(), BLOCK),)](
        y,
        bias,
        start,
        target,
        out,
        y.numel(),
        WIDTH=y.shape[1],
        ACTIVATION=activation,
        BIASED=bias is not None,
        END="none" if start is None else "add" if target is None else "blend",
        BLOCK=BLOCK,
    )
