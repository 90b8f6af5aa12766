"""Rounding matrices to int8: what the strategy `cpu int8` means by its weights. Plain torch, slow twin of packing."""

from __future__ import annotations

import torch

SCALED_INPUTS = 128
"""So many inputs of an output share a scale."""

_PIECE = 1 << 20


def rounded_to_int8(weight: torch.Tensor) -> torch.Tensor:
    """The numbers that `weight` [out, in] becomes, fp32.

    Each block of 128 inputs of an output (the last one may be shorter) is round(w / scale) * scale with the scale
    max |w| / 127, halves to the even integer, at most 127 either way. All of it is fp32 arithmetic.
    """
    out, inputs = weight.shape
    result = torch.empty(out, inputs)
    step = max(1, _PIECE // inputs)
    for start in range(0, out, step):
        for begin in range(0, inputs, SCALED_INPUTS):
            block = weight[start : start + step, begin : begin + SCALED_INPUTS].float()
            scale = block.abs().amax(1, keepdim=True) / 127
            integers = (block / scale).round().clamp(-127, 127)
            # Zeros, and denormals so small that their scale is zero.
            integers[scale.squeeze(1) == 0] = 0
            result[start : start + step, begin : begin + SCALED_INPUTS] = integers * scale
    return result
