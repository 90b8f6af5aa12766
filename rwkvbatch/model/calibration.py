"""Rounding of the large matrices to 4 bits that is fitted to texts, for `model quantize --calibrate`.

Rounding to the nearest number makes each weight's error small. What counts is the error of the outputs on inputs x that
occur: for a row w of a matrix and its rounded form q, E (w x - q x)^2 = (w - q) H (w - q)^T with H the second moments
E x x^T of the inputs. The columns are rounded one after the other, and the error of each is fed back to the columns
that are not rounded yet, by the inverse of H (GPTQ: Frantar et al. 2022, arXiv:2210.17323, algorithm 1, with its
Cholesky form and damping; columns with the greatest moments first). Each group's scale is the one of a few that makes
the error least, weighted by the diagonal of H.

Layers are fitted in order. The inputs of a layer are those that the layers before it give with their fitted weights.
One layer is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rwkvbatch.model.base import Dimensions, RaggedBatch
from rwkvbatch.model.checkpoint import Checkpoint, initial_wkv
from rwkvbatch.model.ops import Activation, Product
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
from rwkvbatch.model.rwkv7 import Block, packed_norm

PIECE_TOKENS = 512
"""Texts are cut into pieces of as many tokens, each read from an empty state after token 0."""
ROWS_AT_ONCE = 4096
"""Tokens that go through a layer together."""
DAMPING = 0.01
"""Of the mean of H's diagonal, added to it."""
COLUMNS_AT_ONCE = 128
"""Columns whose errors are fed back to the rest in one product."""
SCALE_FACTORS = tuple(factor / 100 for factor in range(85, 107, 3))
"""Tried for each group, of the scale that makes its greatest weight -8; up to 1.066 that weight stays -8."""
LOWEST, HIGHEST = -8, 7

LARGE_IN_BLOCK = ("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value")

Shown = Callable[[int, int], None]
"""Called with how many matrices are done, and how many there are."""


def fitted_scales(weight: Tensor, importance: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The scales of a weight's groups, and the columns that are -8 in them.

    A group needs a column of -8, by which rounding what is multiplied out finds the same scale again.

    Args:
        weight: [out, in], fp32.
        importance: H's diagonal, [in].

    Returns:
        [out, groups] each; the scales in fp32, with values of bf16, and 0 where all weights are 0.
    """
    scales, anchors = list[Tensor](), list[Tensor]()
    for start in range(0, weight.shape[1], group):
        part, weights = weight[:, start : start + group], importance[start : start + group]
        anchor = part.abs().argmax(1, keepdim=True)
        largest = part.gather(1, anchor)
        best = torch.zeros_like(largest)
        least = torch.full_like(largest, float("inf"))
        for factor in SCALE_FACTORS:
            scale = (largest * (factor / LOWEST)).to(torch.bfloat16).float()
            rounded = _nearest(part, scale)
            error = ((part - rounded * scale) ** 2 * weights).sum(1, keepdim=True)
            better = error < least
            best, least = torch.where(better, scale, best), torch.where(better, error, least)
        scales.append(best)
        anchors.append(anchor + start)
    return torch.cat(scales, 1), torch.cat(anchors, 1)


def _nearest(weight: Tensor, scale: Tensor) -> Tensor:
    """The integers nearest to weight / scale; 0 where the scale is 0."""
    return torch.where(scale == 0, 0.0, (weight / torch.where(scale == 0, 1.0, scale)).round()).clamp(LOWEST, HIGHEST)


def rounded_with_feedback(weight: Tensor, moments: Tensor, rule: RoundingRule) -> Rounded:
    """Integers [out, in] and scales [out, groups] of a weight [out, in] for inputs with second moments [in, in].

    Rounding what they multiply out to by `rule` gives them again.
    """
    weight = weight.float().clone()
    diagonal = moments.diagonal().clone()
    scales, anchors = fitted_scales(weight, diagonal, rule.group)
    order = torch.argsort(diagonal, descending=True, stable=True)
    factor = _inverse_factor(moments[order][:, order])
    weight = weight[:, order]
    group_of = torch.div(order, rule.group, rounding_mode="floor")
    integers = torch.empty_like(weight)
    for start in range(0, weight.shape[1], COLUMNS_AT_ONCE):
        end = min(start + COLUMNS_AT_ONCE, weight.shape[1])
        errors = torch.empty(len(weight), end - start)
        for place in range(start, end):
            column, group = weight[:, place], group_of[place]
            scale = scales[:, group]
            chosen = _nearest(column, scale)
            chosen = torch.where((anchors[:, group] == order[place]) & (scale != 0), float(LOWEST), chosen)
            integers[:, place] = chosen
            error = (column - chosen * scale) / factor[place, place]
            weight[:, place + 1 : end] -= error[:, None] * factor[place, place + 1 : end]
            errors[:, place - start] = error
        weight[:, end:] -= errors @ factor[start:end, end:]
    unordered = torch.empty_like(integers)
    unordered[:, order] = integers
    return unordered, scales


def _inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of damped moments, in fp32."""
    damped = moments.double()
    diagonal = damped.diagonal()
    damping = DAMPING * float(diagonal.mean())
    diagonal += damping if damping > 0 else 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def as_multiplied(x: Tensor, group: int | None) -> Tensor:
    """Inputs [R, in] rounded as products of integers round them, by groups; as they are without groups."""
    if group is None:
        return x
    integers, scales = quantized(x, group)
    return integers * scales.repeat_interleave(group, 1)[:, : x.shape[1]]


class _MomentOps(ReferenceOps):
    """Reference operations that add up the second moments of the inputs of large layers.

    Attributes:
        moments: by the order in which large layers were made: [in, in].
    """

    def __init__(self, rule: RoundingRule, *, record: bool) -> None:
        super().__init__()
        self._group = rule.input_group
        self._record = record
        self._places: dict[int, int] = {}
        self.moments: list[Tensor] = []

    def linear_layer(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        *,
        large: bool = False,
        sparse_inputs: bool = False,
    ) -> TorchLinear:
        made = super().linear_layer(weight, bias, activation)
        if not large:
            return made
        layer = TorchLinear(made.weight, made.bias, activation, self._group)
        if self._record:
            self._places[id(layer)] = len(self.moments)
            self.moments.append(torch.zeros(weight.shape[1], weight.shape[1]))
        return layer

    def _linear(self, product: Product) -> Tensor:
        place = self._places.get(id(product.layer))
        if place is not None:
            self.add(place, product.x)
        return super()._linear(product)

    def add(self, place: int, x: Tensor) -> None:
        """Add the moments of inputs [R, in], rounded as the products will round them."""
        x = as_multiplied(x, self._group)
        self.moments[place].addmm_(x.t(), x)


@dataclass
class _Stream:
    """The activations of some pieces of text between two layers."""

    batch: RaggedBatch
    x: Tensor
    v_first: Tensor | None
    x0: Tensor | None


def pieces(tokens: Iterable[Sequence[int]], limit: int) -> list[list[int]]:
    """Pieces of texts, `PIECE_TOKENS` long with token 0 before each, of `limit` tokens in all."""
    found: list[list[int]] = []
    for text in tokens:
        for start in range(0, len(text), PIECE_TOKENS - 1):
            if limit <= 1:
                return found
            piece = [0, *text[start : start + PIECE_TOKENS - 1]][:limit]
            limit -= len(piece)
            found.append(piece)
    return found


def fitted(checkpoint: Checkpoint, texts: Sequence[Sequence[int]], shown: Shown) -> Iterator[tuple[str, Rounded]]:
    """Each large matrix' name with its integers and scales for int4, fitted to pieces of text.

    Args:
        texts: tokens, see `pieces`.
    """
    rule = ROUNDINGS["int4"]
    with torch.no_grad():
        yield from _fitted(checkpoint, texts, rule, shown)


def _fitted(
    checkpoint: Checkpoint, texts: Sequence[Sequence[int]], rule: RoundingRule, shown: Shown
) -> Iterator[tuple[str, Rounded]]:
    shape, total = checkpoint.architecture, len(LARGE_IN_BLOCK) * checkpoint.architecture.num_layers + 1
    streams = list(_streams(checkpoint, texts))
    tuned = initial_wkv(checkpoint)
    done = 0
    for layer in range(shape.num_layers):
        prefix = f"blocks.{layer}."
        initial = None if tuned is None else tuned[layer : layer + 1]
        shown(done, total)
        tensors = {name: checkpoint[name] for name in checkpoint if name.startswith(prefix)}
        ops = _MomentOps(rule, record=True)
        block = Block.build(tensors, layer, ops)
        for stream in streams:
            _run(block, ops, stream, shape, initial)
        del block
        for name, moments in zip(LARGE_IN_BLOCK, ops.moments, strict=True):
            full = f"{prefix}{name}.weight"
            found = rounded_with_feedback(tensors[full], moments, rule)
            tensors[full] = rule.multiplied_out(*found)
            done += 1
            shown(done, total)
            yield full, found
        ops = _MomentOps(rule, record=False)
        block = Block.build(tensors, layer, ops)
        for stream in streams:
            stream.x, stream.v_first = _run(block, ops, stream, shape, initial)
    weight = checkpoint["head.weight"]
    ops = _MomentOps(rule, record=True)
    ops.linear_layer(weight, large=True)
    norm = packed_norm({name: checkpoint[name] for name in ("ln_out.weight", "ln_out.bias")}, "ln_out", ops)
    for stream in streams:
        ops.add(0, layer_norm(stream.x, norm))
    yield "head.weight", rounded_with_feedback(weight, ops.moments[0], rule)
    shown(total, total)


def _streams(checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> Iterator[_Stream]:
    ops = ReferenceOps()
    norm_names = ("blocks.0.ln0.weight", "blocks.0.ln0.bias")
    norm = packed_norm({name: checkpoint[name] for name in norm_names}, "blocks.0.ln0", ops)
    table = checkpoint["emb.weight"]
    has_deep_embed = "blocks.0.ffn.s0" in checkpoint
    group: list[Sequence[int]] = []
    for number, text in enumerate(texts):
        group.append(text)
        if number + 1 == len(texts) or sum(map(len, group)) + len(texts[number + 1]) > ROWS_AT_ONCE:
            batch = RaggedBatch.of(group, range(len(group)))
            rows = table[torch.from_numpy(batch.tokens)].float()
            x = layer_norm(rows, norm)
            yield _Stream(batch, x, None, x if has_deep_embed else None)
            group = []


def _run(
    block: Block, ops: ReferenceOps, stream: _Stream, shape: Dimensions, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The activations after a layer, and the values of layer 0."""
    slots = len(stream.batch.slots)
    pool = ReferencePool.zeros("cpu", slots, 1, shape.num_heads, shape.head_size)
    if initial is not None:
        pool = pool.with_initial(initial)
        for slot in range(slots):
            pool.clear(slot)
    return block.run(ops, ops.begin(stream.batch, pool), 0, stream.x, stream.v_first, stream.x0)
