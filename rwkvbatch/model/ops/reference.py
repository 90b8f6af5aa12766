"""The operations in plain torch, on any device: the reference implementation that the fast ones are tested against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.base import Choices, RaggedBatch, SampleBatch, State, StatePool
from rwkvbatch.model.ops import (
    Activation,
    HeadRows,
    HeadWeights,
    MatrixKind,
    Product,
    Rounding,
    ShiftKind,
    matrix_rounding,
)
from rwkvbatch.model.ops.choosing import choose

SCALED_INPUTS = 128
"""Inputs of an output that share a scale, in 8 bits."""

INT4_SCALED_INPUTS = 32
"""Inputs of an output that share a scale, in 4 bits."""

_PIECE = 1 << 18
"""Weights that are quantised at a time, so that intermediate results stay in the caches."""

Rounded = tuple[Tensor, Tensor]
"""Integers [out, in] and scales [out, groups], both fp32."""


def _int8_groups(groups: Tensor) -> Rounded:
    return _nearest(groups, groups.abs().amax(1, keepdim=True) / 127, -127, 127)


def _int4_groups(groups: Tensor) -> Rounded:
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    largest = torch.where(high > -low, high, low)
    # Of two opposite numbers the first one counts. `argmax` for all groups would be several times slower.
    tied = (high == -low).squeeze(1).nonzero().squeeze(1)
    rows = groups[tied]
    largest[tied] = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return _nearest(groups, (largest / -8).to(torch.bfloat16).float(), -8, 7)


def _nearest(groups: Tensor, scale: Tensor, lowest: int, highest: int) -> Rounded:
    integers = (groups / scale).round_().clamp_(lowest, highest)
    # Zeros, and denormals so small that their scale is zero.
    integers[(scale == 0).squeeze(1).nonzero().squeeze(1)] = 0
    return integers, scale


@dataclass(frozen=True)
class RoundingRule:
    """How matrices are quantised.

    Attributes:
        quantize_groups: quantises fp32 weights [groups, up to `group`], which get one scale per row.
        group: number of inputs that share a scale; the last group of an output may have fewer.
        rounds_inputs: whether inputs are rounded too (`quantized`), in groups of `SCALED_INPUTS`.
        bytes_per_weight: bytes in memory, including the weight's share of the scale.
    """

    quantize_groups: Callable[[Tensor], Rounded]
    group: int
    rounds_inputs: bool
    bytes_per_weight: float

    @property
    def input_group(self) -> int | None:
        """Number of inputs that share a scale when inputs are rounded; None if they are not."""
        return SCALED_INPUTS if self.rounds_inputs else None

    def quantize(self, weight: Tensor) -> Rounded:
        """Integers and scales of a weight [out, in]."""
        out, inputs = weight.shape
        integers, scales = torch.empty(out, inputs), torch.empty(out, -(-inputs // self.group))
        whole = inputs // self.group
        if whole:
            groups = weight[:, : whole * self.group].float().reshape(-1, self.group)
            numbers, scale = self.quantize_groups(groups)
            integers[:, : whole * self.group] = numbers.view(out, -1)
            scales[:, :whole] = scale.view(out, -1)
        if inputs % self.group:
            rest = weight[:, whole * self.group :].float()
            integers[:, whole * self.group :], scales[:, whole:] = self.quantize_groups(rest)
        return integers, scales

    def dequantize(self, integers: Tensor, scales: Tensor) -> Tensor:
        """The weight [out, in] that integers and scales stand for, fp32."""
        return integers * scales.repeat_interleave(self.group, 1)[:, : integers.shape[1]]

    def rounded(self, weight: Tensor) -> Tensor:
        """A weight [out, in] quantised and dequantised, fp32."""
        result = torch.empty(weight.shape)
        for rows in row_pieces(*weight.shape):
            result[rows] = self.dequantize(*self.quantize(weight[rows]))
        return result


def row_pieces(out: int, inputs: int) -> Iterator[slice]:
    """Rows that hold about `_PIECE` weights together."""
    step = max(1, _PIECE // max(1, inputs))
    return (slice(start, start + step) for start in range(0, out, step))


ROUNDINGS: dict[Rounding, RoundingRule] = {
    "int8": RoundingRule(_int8_groups, SCALED_INPUTS, False, 1 + 4 / SCALED_INPUTS),
    "w8a8": RoundingRule(_int8_groups, SCALED_INPUTS, True, 1 + 4 / SCALED_INPUTS),
    "int4": RoundingRule(_int4_groups, INT4_SCALED_INPUTS, True, 1 / 2 + 2 / INT4_SCALED_INPUTS),
}


def rounded_to_int8(weight: Tensor) -> Tensor:
    """`weight` [out, in] quantised to int8 and dequantised, fp32.

    Each block of 128 inputs of an output (the last one may be shorter) becomes round(w / scale) * scale with the scale
    max |w| / 127, halves rounded to even, clamped to [-127, 127]. All arithmetic is fp32.
    """
    return ROUNDINGS["int8"].rounded(weight)


def rounded_to_int4(weight: Tensor) -> Tensor:
    """`weight` [out, in] quantised to 4 bits and dequantised, fp32.

    Each block of 32 inputs of an output becomes round(w / scale) * scale, halves rounded to even, clamped to [-8, 7].
    The scale is the weight with the largest magnitude (the first among equals), divided by -8 and rounded to bf16.
    """
    return ROUNDINGS["int4"].rounded(weight)


LEAST_INPUT = 2.0**-100
"""A group of inputs counts as zeros in integer products if all are smaller than this in magnitude."""


def quantized(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Inputs x [R, in] quantised for integer products: integers [R, in] (fp32) and scales [R, groups].

    For each row and each `group` of inputs (the last one may have fewer), the scale is max |x| / 127 and the integers
    are round(x * (1 / scale)), halves to even, in fp32. If max |x| is below `LEAST_INPUT`, the integers and the scale
    are zero. If an input is NaN or infinite, the group's integers are zero and its scale is NaN.
    """
    rows, width = x.shape
    blocks = F.pad(x.float(), (0, -width % group)).view(rows, -(-width // group), group)
    largest = blocks.abs().amax(2, keepdim=True)
    scales = largest / 127
    integers = (blocks * (1 / scales)).round()
    bad, small = ~blocks.isfinite().all(2, keepdim=True), largest < LEAST_INPUT
    integers = integers.masked_fill(bad | small, 0)
    scales = scales.masked_fill(small, 0).masked_fill(bad, float("nan"))
    return integers.flatten(1)[:, :width], scales.squeeze(2)


LAYER_NORM_EPS = 1e-5
GROUP_NORM_EPS = 64e-5
NORMALIZE_EPS = 1e-12
DECAY_SCALE = float(np.exp(-0.5))

Vectors = tuple[Tensor, Tensor]


@dataclass(eq=False)
class ReferencePool:
    """State slots as torch tensors: shifts [2, L, capacity, C] (att, ffn) and wkv [L, capacity, H, N, N], fp32.

    `initial`: the wkv [L, H, N, N] of an empty sequence, None for zeros.
    """

    shifts: Tensor
    wkv: Tensor
    initial: Tensor | None = None

    @classmethod
    def zeros(cls, device: str, capacity: int, num_layers: int, num_heads: int, head_size: int) -> ReferencePool:
        return cls(
            shifts=torch.zeros(2, num_layers, capacity, num_heads * head_size, device=device),
            wkv=torch.zeros(num_layers, capacity, num_heads, head_size, head_size, device=device),
        )

    @property
    def capacity(self) -> int:
        return self.wkv.shape[1]

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of a `State`, [L, capacity, ...] each."""
        return {"att_shift": self.shifts[0], "ffn_shift": self.shifts[1], "wkv": self.wkv}

    def clear(self, slot: int) -> None:
        for tensor in self._tensors.values():
            tensor[:, slot] = 0
        if self.initial is not None:
            self.wkv[:, slot] = self.initial

    def with_initial(self, wkv: Tensor) -> ReferencePool:
        """The same slots, which `clear` sets to `wkv` [L, H, N, N]."""
        return ReferencePool(self.shifts, self.wkv, wkv.to(self.wkv))

    def copy(self, source: int, target: int) -> None:
        for tensor in self._tensors.values():
            tensor[:, target] = tensor[:, source]

    def read(self, slots: Sequence[int]) -> State:
        index = list(slots)
        return State({name: tensor[:, index].transpose(0, 1).contiguous() for name, tensor in self._tensors.items()})

    def write(self, slots: Sequence[int], state: State) -> None:
        check_state(state, self.wkv.shape, len(slots))
        index = list(slots)
        for name, tensor in self._tensors.items():
            tensor[:, index] = state.tensors[name].transpose(0, 1).to(tensor)


def check_state(state: State, wkv_shape: Sequence[int], batch_size: int) -> None:
    """Raise `CheckpointError` unless `state` has the tensors of an RWKV-7 pool [L, _, H, N, N] for a batch."""
    num_layers, _, num_heads, head_size, _ = wkv_shape
    shift = (batch_size, num_layers, num_heads * head_size)
    expected = {
        "att_shift": shift,
        "ffn_shift": shift,
        "wkv": (batch_size, num_layers, num_heads, head_size, head_size),
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in state.tensors.items()}
    if shapes != expected:
        raise CheckpointError(f"the state must have tensors {expected}, got {shapes}")


@dataclass(frozen=True)
class ReferenceStep:
    """One ragged batch with its index tensors on the device."""

    batch: RaggedBatch
    pool: ReferencePool
    tokens: Tensor
    first_rows: Tensor
    last_rows: Tensor
    slots: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class TorchLinear:
    """A linear layer: weight [out, in] in the dtype of the products, bias [out] fp32.

    `input_group`: see `RoundingRule.input_group`.
    """

    weight: Tensor
    bias: Tensor | None
    activation: Activation
    input_group: int | None = None


class ReferenceOps:
    """`Operations` in plain torch.

    Args:
        device: any torch device.
        dtype: weights are rounded to it at loading; None keeps them unchanged. Arithmetic is fp32 on the CPU; elsewhere
            matrix products run in `dtype` and all else in fp32.
        rounding: how matrices, and with `w8a8` and `int4` their inputs, are rounded, see `matrix_rounding`; None for no
            rounding.
    """

    name = "reference"
    bitwise = False
    in_torch = True

    def __init__(
        self, device: str = "cpu", dtype: torch.dtype | None = None, *, rounding: Rounding | None = None
    ) -> None:
        self.device = device
        self._rounding: Rounding | None = rounding
        self._weight_dtype = dtype
        self._matmul_dtype = torch.float32 if device == "cpu" or dtype is None else dtype

    def vector(self, weight: Tensor) -> Tensor:
        return self._rounded(weight).to(self.device, torch.float32)

    def linear_layer(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        *,
        kind: MatrixKind = "other",
        sparse_inputs: bool = False,
    ) -> TorchLinear:
        rounding = matrix_rounding(self._rounding, kind)
        rule = None if rounding is None else ROUNDINGS[rounding]
        rounded = self._rounded(weight) if rule is None else rule.rounded(weight)
        packed = rounded.to(self.device, self._matmul_dtype).contiguous()
        group = None if rule is None else rule.input_group
        return TorchLinear(packed, None if bias is None else self.vector(bias), activation, group)

    def table(self, weight: Tensor) -> Tensor:
        return self.vector(weight)

    def _rounded(self, weight: Tensor) -> Tensor:
        return weight if self._weight_dtype is None else weight.to(self._weight_dtype)

    def make_pool(self, capacity: int, num_layers: int, num_heads: int, head_size: int) -> ReferencePool:
        return ReferencePool.zeros(self.device, capacity, num_layers, num_heads, head_size)

    def begin(self, batch: RaggedBatch, pool: StatePool) -> ReferenceStep:
        assert isinstance(pool, ReferencePool)
        arrays = (batch.tokens, batch.starts[:-1], batch.starts[1:] - 1, batch.slots, batch.outputs)
        return ReferenceStep(batch, pool, *(torch.from_numpy(array).to(self.device) for array in arrays))

    def embed(self, step: ReferenceStep, table: Tensor, norm: Vectors, *, as_input: bool = False) -> Tensor:
        return layer_norm(table[step.tokens], norm)

    def shift_mix(
        self, step: ReferenceStep, kind: ShiftKind, layer: int, x: Tensor, norm: Vectors, mix: Tensor
    ) -> list[Tensor]:
        carried = step.pool.shifts[0 if kind == "att" else 1, layer]
        x = layer_norm(x, norm)
        previous = torch.roll(x, 1, dims=0)
        previous[step.first_rows] = carried[step.slots]
        carried[step.slots] = x[step.last_rows]
        difference = previous - x
        return [x + difference * factor for factor in mix]

    def linears(self, products: Sequence[Product]) -> list[Tensor]:
        return [self._linear(product) for product in products]

    def _linear(self, product: Product) -> Tensor:
        x, layer, add, blend, times = product
        if layer.input_group is not None:
            integers, scales = quantized(x, layer.input_group)
            x = integers * scales.repeat_interleave(layer.input_group, 1)[:, : x.shape[1]]
        y = F.linear(x.to(self._matmul_dtype), layer.weight).float()
        y = _ACTIVATIONS[layer.activation](y if layer.bias is None else y + layer.bias)
        if add is not None:
            return add + y
        if blend is not None:
            start, target = blend
            return start + (target - start) * y
        return y if times is None else times * y

    def token_matrix(self, step: ReferenceStep, table: Tensor, offset: Tensor, x: Tensor) -> Tensor:
        size = x.shape[1]
        matrices = (table[step.tokens] + offset).view(-1, size, size)
        return (x.unsqueeze(1) @ matrices).squeeze(1)

    def wkv7(self, step: ReferenceStep, layer: int, rows: HeadRows, weights: HeadWeights) -> Tensor:
        r, w, k, v, a, g = rows
        num_rows, width = r.shape
        carried = step.pool.wkv[layer]
        num_heads, head_size = carried.shape[1:3]
        heads = (num_rows, num_heads, head_size)

        kk = F.normalize((k * weights.k_k).view(heads), dim=-1, eps=NORMALIZE_EPS)
        k = k * (1 + (a - 1) * weights.k_a)
        removal = (kk * a.view(heads)).unsqueeze(-2)
        decay, key, value = w.view(heads).unsqueeze(-2), k.view(heads).unsqueeze(-2), v.view(heads).unsqueeze(-1)
        kk, query = kk.unsqueeze(-1), r.view(heads).unsqueeze(-1)

        # With the longest sequences first, those that have a row at a position are the first `running` ones.
        lengths = np.diff(step.batch.starts)
        order = np.argsort(-lengths, kind="stable")
        first_rows = step.batch.starts[:-1][order]
        slots = torch.from_numpy(step.batch.slots[order]).to(self.device)
        S = carried.index_select(0, slots)
        y = torch.empty(heads, device=r.device)
        for position in range(int(lengths.max())):
            running = int(np.count_nonzero(lengths > position))
            row = torch.from_numpy(first_rows[:running] + position).to(self.device)
            state = S[:running]
            removed = state @ kk[row]
            state.mul_(decay[row]).addcmul_(removed, removal[row], value=-1).addcmul_(value[row], key[row])
            y[row] = (state @ query[row]).squeeze(-1)
        carried.index_copy_(0, slots, S)

        norm = weights.norm_weight, weights.norm_bias
        normed = F.group_norm(y.view(num_rows, width), num_heads, *norm, eps=GROUP_NORM_EPS)
        bonus = (r * k * weights.r_k).view(heads).sum(-1, keepdim=True) * v.view(heads)
        return (normed + bonus.view(num_rows, width)) * g

    def head(self, step: ReferenceStep, x: Tensor, norm: Vectors, layer: TorchLinear) -> Tensor:
        return self._linear(Product(layer_norm(x[step.outputs], norm), layer))

    def choose(self, logits: Tensor, batch: SampleBatch) -> Choices:
        return choose(logits, batch)


def layer_norm(x: Tensor, norm: Vectors) -> Tensor:
    """Layer norm of the rows of x [R, C], with weight and bias."""
    return F.layer_norm(x, x.shape[-1:], norm[0], norm[1], eps=LAYER_NORM_EPS)


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "decay": lambda x: torch.exp(-DECAY_SCALE * torch.sigmoid(x)),
    "relu_squared": lambda x: torch.relu(x) ** 2,
}
