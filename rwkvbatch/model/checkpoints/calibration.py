"""Rounding of the large matrices to 4 bits, fitted to texts, for `model quantize --calibrate`.

Rounding to the nearest number minimises the error of each weight. Fitting minimises the error of the outputs for inputs
x that occur: for a row w of a matrix and its rounded form q, E (w x - q x)^2 = (w - q) H (w - q)^T with the second
moments H = E x x^T. The columns are rounded one after the other, and the error of each is fed back to the columns that
are not rounded yet, by the inverse of H (GPTQ: Frantar et al. 2022, arXiv:2210.17323, algorithm 1, with its Cholesky
form and damping; columns with the largest moments first). Each group's scale is the one of a few candidates with the
smallest error, weighted by the diagonal of H.

Layers are fitted in order. The inputs of a layer come from the fitted weights of the layers before it. One layer is in
memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rwkvbatch.model.base import Dimensions, RaggedBatch
from rwkvbatch.model.checkpoints.checkpoint import Checkpoint, initial_wkv
from rwkvbatch.model.network.rwkv7 import Block, packed_norm
from rwkvbatch.model.ops import Activation, MatrixKind, Product
from rwkvbatch.model.ops.reference import (
    ROUNDINGS,
    ReferenceOps,
    ReferencePool,
    Rounded,
    RoundingRule,
    TorchLinear,
    layer_norm,
    quantized,
)

PIECE_TOKENS = 512
"""Texts are cut into pieces of this many tokens. Each is read from an empty state and begins with token 0."""
ROWS_PER_PASS = 4096
"""Tokens that a layer computes together."""
DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to the diagonal."""
COLUMNS_PER_UPDATE = 128
"""Columns whose errors are fed back to all later columns in one product."""
SCALE_FACTORS = tuple(factor / 100 for factor in range(85, 107, 3))
"""Candidates for a group's scale, as factors of the scale that makes its largest weight -8.

Up to a factor of 1.066 that weight is still rounded to -8."""
LOWEST, HIGHEST = -8, 7

LARGE_IN_BLOCK = ("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value")

OnProgress = Callable[[int, int], None]
"""Called with the number of finished matrices and the number of all matrices."""


def fitted_scales(weight: Tensor, importance: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The scales of a weight's groups, and the column of each group that is rounded to -8.

    Each group needs such a column, so that quantising the dequantised weight finds the same scale again.

    Args:
        weight: [out, in], fp32.
        importance: H's diagonal, [in].

    Returns:
        [out, groups] each; the scales in fp32, with values of bf16, and 0 where all weights are 0.
    """
    scales, anchors = list[Tensor](), list[Tensor]()
    for start in range(0, weight.shape[1], group):
        columns = slice(start, start + group)
        block, block_importance = weight[:, columns], importance[columns]
        anchor = block.abs().argmax(1, keepdim=True)
        largest = block.gather(1, anchor)
        best_scale = torch.zeros_like(largest)
        best_error = torch.full_like(largest, float("inf"))
        for factor in SCALE_FACTORS:
            scale = (largest * (factor / LOWEST)).to(torch.bfloat16).float()
            rounded = _nearest(block, scale)
            error = ((block - rounded * scale) ** 2 * block_importance).sum(1, keepdim=True)
            is_better = error < best_error
            best_scale = torch.where(is_better, scale, best_scale)
            best_error = torch.where(is_better, error, best_error)
        scales.append(best_scale)
        anchors.append(anchor + start)
    return torch.cat(scales, 1), torch.cat(anchors, 1)


def _nearest(weight: Tensor, scale: Tensor) -> Tensor:
    """The integers nearest to weight / scale; 0 where the scale is 0."""
    return torch.where(scale == 0, 0.0, (weight / torch.where(scale == 0, 1.0, scale)).round()).clamp(LOWEST, HIGHEST)


def rounded_with_feedback(weight: Tensor, moments: Tensor, rule: RoundingRule) -> Rounded:
    """Integers [out, in] and scales [out, groups] of a weight [out, in] for inputs with second moments [in, in].

    `rule` quantises the dequantised weight to the same integers and scales.
    """
    weight = weight.float()
    diagonal = moments.diagonal().clone()
    scales, anchors = fitted_scales(weight, diagonal, rule.group)
    order = torch.argsort(diagonal, descending=True, stable=True)
    factor = _inverse_factor(moments[order][:, order])
    # The columns of the weight as rows, so that each is contiguous.
    columns = weight.t()[order].contiguous()
    scale_rows, anchor_rows = scales.t().contiguous(), anchors.t().contiguous()
    integers = torch.empty_like(columns)
    for start in range(0, len(columns), COLUMNS_PER_UPDATE):
        end = min(start + COLUMNS_PER_UPDATE, len(columns))
        errors = torch.empty(end - start, columns.shape[1])
        for index in range(start, end):
            number = int(order[index])
            scale, anchor = scale_rows[number // rule.group], anchor_rows[number // rule.group]
            rounded = _nearest(columns[index], scale)
            rounded = torch.where((anchor == number) & (scale != 0), float(LOWEST), rounded)
            integers[index] = rounded
            error = (columns[index] - rounded * scale) / factor[index, index]
            columns[index + 1 : end].addr_(factor[index, index + 1 : end], error, alpha=-1)
            errors[index - start] = error
        columns[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1)
    unordered = torch.empty_like(integers)
    unordered[order] = integers
    return unordered.t().contiguous(), scales


def _inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of damped moments, in fp32."""
    damped = moments.double()
    diagonal = damped.diagonal()
    damping = DAMPING * float(diagonal.mean())
    diagonal += damping if damping > 0 else 1.0
    # With rows and columns in the opposite order, the inverse of the lower factor of the moments is the upper factor of
    # their inverse.
    lower = torch.linalg.cholesky(damped.flip(0, 1))
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False)
    return inverse.flip(0, 1).float()


def as_multiplied(x: Tensor, group: int | None) -> Tensor:
    """Inputs [R, in] as integer products see them: quantised and dequantised; unchanged if `group` is None."""
    if group is None:
        return x
    integers, scales = quantized(x, group)
    return integers * scales.repeat_interleave(group, 1)[:, : x.shape[1]]


class _MomentOps(ReferenceOps):
    """Reference operations that sum up the second moments of the inputs of large layers.

    Attributes:
        moments: [in, in] for each large layer, in the order of the calls of `linear_layer`.
    """

    def __init__(self, rule: RoundingRule, *, record: bool) -> None:
        super().__init__(rounding="int4")
        self._group = rule.input_group
        self._record = record
        self._layer_numbers: dict[int, int] = {}
        """Index in `moments`, by the `id` of the layer."""
        self.moments: list[Tensor] = []

    def linear_layer(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        *,
        kind: MatrixKind = "other",
        sparse_inputs: bool = False,
    ) -> TorchLinear:
        if kind != "large":
            return super().linear_layer(weight, bias, activation, kind=kind)
        plain = super().linear_layer(weight, bias, activation)
        layer = TorchLinear(plain.weight, plain.bias, activation, self._group)
        if self._record:
            self._layer_numbers[id(layer)] = len(self.moments)
            self.moments.append(torch.zeros(weight.shape[1], weight.shape[1]))
        return layer

    def _linear(self, product: Product) -> Tensor:
        number = self._layer_numbers.get(id(product.layer))
        if number is not None:
            self.add(number, product.x)
        return super()._linear(product)

    def add(self, number: int, x: Tensor) -> None:
        """Add the moments of the inputs x [R, in] of a large layer, rounded as its products will round them."""
        x = as_multiplied(x, self._group)
        self.moments[number].addmm_(x.t(), x)


@dataclass
class _Stream:
    """The activations of a group of text pieces between two layers."""

    batch: RaggedBatch
    x: Tensor
    v_first: Tensor | None
    x0: Tensor | None


def pieces(tokens: Iterable[Sequence[int]], limit: int) -> list[list[int]]:
    """Cut texts into pieces of at most `PIECE_TOKENS`, each beginning with token 0, and of `limit` tokens in all."""
    cut: list[list[int]] = []
    for text in tokens:
        for start in range(0, len(text), PIECE_TOKENS - 1):
            if limit <= 1:
                return cut
            piece = [0, *text[start : start + PIECE_TOKENS - 1]][:limit]
            limit -= len(piece)
            cut.append(piece)
    return cut


def fitted(
    checkpoint: Checkpoint, texts: Sequence[Sequence[int]], on_progress: OnProgress
) -> Iterator[tuple[str, Rounded]]:
    """The name of each large matrix, with its integers and scales for int4, fitted to texts.

    Args:
        texts: the tokens of each piece, see `pieces`.
        on_progress: see `OnProgress`.
    """
    rule = ROUNDINGS["int4"]
    with torch.no_grad():
        yield from _fitted(checkpoint, texts, rule, on_progress)


def _fitted(
    checkpoint: Checkpoint, texts: Sequence[Sequence[int]], rule: RoundingRule, on_progress: OnProgress
) -> Iterator[tuple[str, Rounded]]:
    shape = checkpoint.architecture
    total = len(LARGE_IN_BLOCK) * shape.num_layers + 1
    streams = list(_streams(checkpoint, texts))
    tuned = initial_wkv(checkpoint)
    done = 0
    for layer in range(shape.num_layers):
        prefix = f"blocks.{layer}."
        initial = None if tuned is None else tuned[layer : layer + 1]
        on_progress(done, total)
        tensors = {name: checkpoint[name] for name in checkpoint if name.startswith(prefix)}
        ops = _MomentOps(rule, record=True)
        block = Block.build(tensors, layer, ops)
        for stream in streams:
            _run(block, ops, stream, shape, initial)
        del block
        for name, moments in zip(LARGE_IN_BLOCK, ops.moments, strict=True):
            full_name = f"{prefix}{name}.weight"
            rounded = rounded_with_feedback(tensors[full_name], moments, rule)
            tensors[full_name] = rule.dequantize(*rounded)
            done += 1
            on_progress(done, total)
            yield full_name, rounded
        ops = _MomentOps(rule, record=False)
        block = Block.build(tensors, layer, ops)
        for stream in streams:
            stream.x, stream.v_first = _run(block, ops, stream, shape, initial)
    weight = checkpoint["head.weight"]
    ops = _MomentOps(rule, record=True)
    ops.linear_layer(weight, kind="large")
    norm = packed_norm({name: checkpoint[name] for name in ("ln_out.weight", "ln_out.bias")}, "ln_out", ops)
    for stream in streams:
        ops.add(0, layer_norm(stream.x, norm))
    yield "head.weight", rounded_with_feedback(weight, ops.moments[0], rule)
    on_progress(total, total)


def _streams(checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> Iterator[_Stream]:
    ops = ReferenceOps()
    norm_names = ("blocks.0.ln0.weight", "blocks.0.ln0.bias")
    norm = packed_norm({name: checkpoint[name] for name in norm_names}, "blocks.0.ln0", ops)
    table = checkpoint["emb.weight"]
    has_deep_embed = "blocks.0.ffn.s0" in checkpoint
    group: list[Sequence[int]] = []
    for number, text in enumerate(texts):
        group.append(text)
        if number + 1 == len(texts) or sum(map(len, group)) + len(texts[number + 1]) > ROWS_PER_PASS:
            batch = RaggedBatch.of(group, range(len(group)))
            rows = table[torch.from_numpy(batch.tokens)].float()
            x = layer_norm(rows, norm)
            yield _Stream(batch, x, None, x if has_deep_embed else None)
            group = []


def _run(
    block: Block, ops: ReferenceOps, stream: _Stream, shape: Dimensions, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run a layer from empty states; returns the activations after it, and the values v of layer 0."""
    num_sequences = len(stream.batch.slots)
    pool = ReferencePool.zeros("cpu", num_sequences, 1, shape.num_heads, shape.head_size)
    if initial is not None:
        pool = pool.with_initial(initial)
        for slot in range(num_sequences):
            pool.clear(slot)
    return block.run(ops, ops.begin(stream.batch, pool), 0, stream.x, stream.v_first, stream.x0)
