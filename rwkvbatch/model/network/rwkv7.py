"""`Network`: RWKV-7 and 7a over a ragged batch, in terms of `Operations`.

The formulas are those of the RWKV-7 paper (Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", 2025)
and of the `rwkv` package, which writes exp(-1/2) as 0.606531; DeepEmbed (RWKV-7a) is that of its version 0.8.32 with
`RWKV_DE_VERSION=1`. Prefill and decode use the same code: a sequence may have any number of rows in a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rwkvbatch.model.base import Dimensions, RaggedBatch, StatePool
from rwkvbatch.model.ops import Activation, Array, HeadRows, HeadWeights, Operations, Product, StepOperations

Norm = tuple[Array, Array]
"""Weight and bias."""

MIX_NAMES = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g")


@dataclass(frozen=True)
class LowRank:
    """outer(bias + inner(x down^T) up^T) as two linear layers."""

    down: Array
    up: Array


@dataclass(frozen=True)
class TimeMix:
    norm: Norm
    mix: Array
    receptance: Array
    key: Array
    value: Array
    output: Array
    decay: LowRank
    rate: LowRank
    gate: LowRank
    value_residual: LowRank | None
    head_weights: HeadWeights


@dataclass(frozen=True)
class DeepEmbed:
    """RWKV-7a's factor of the channel mix's hidden layer, (x s1) E s2 + s0 with E = table[token] + projection(x0).

    x is the channel mix's normed input before its token shift, x0 the normed embedding of the token.
    """

    down: Array
    table: Array
    projection: Array
    up: Array


@dataclass(frozen=True)
class ChannelMix:
    """The channel mix. With DeepEmbed, `mix` has a second row of zeros, whose result is the normed input itself."""

    norm: Norm
    mix: Array
    key: Array
    value: Array
    deep_embed: DeepEmbed | None


@dataclass(frozen=True)
class Block:
    att: TimeMix
    ffn: ChannelMix

    @classmethod
    def build(
        cls, tensors: Mapping[str, Tensor], layer: int, ops: Operations, reader: WeightReader | None = None
    ) -> Block:
        """Pack the tensors of one layer; arguments as those of `Network.build`."""

        def norm(name: str) -> Norm:
            return packed_norm(tensors, name, ops)

        def large(name: str, activation: Activation = "none", *, sparse_inputs: bool = False) -> Array:
            return packed_matrix(tensors, f"{name}.weight", ops, reader, activation, sparse_inputs=sparse_inputs)

        def factor(name: str, bias: Tensor | None, activation: Activation) -> Array:
            return ops.linear_layer(tensors[name].t(), bias, activation, kind="low_rank")

        def low_rank(att: str, letter: str, inner: Activation, outer: Activation) -> LowRank:
            bias = tensors.get(f"{att}.{letter}0")
            return LowRank(
                down=factor(f"{att}.{letter}1", None, inner),
                up=factor(f"{att}.{letter}2", None if bias is None else bias.flatten(), outer),
            )

        def time_mix() -> TimeMix:
            att = f"blocks.{layer}.att"

            def vector(name: str) -> Array:
                return ops.vector(tensors[f"{att}.{name}"].flatten())

            return TimeMix(
                norm=norm(f"blocks.{layer}.ln1"),
                mix=ops.vector(torch.stack([tensors[f"{att}.{name}"].flatten() for name in MIX_NAMES])),
                receptance=large(f"{att}.receptance"),
                key=large(f"{att}.key"),
                value=large(f"{att}.value"),
                output=large(f"{att}.output"),
                decay=low_rank(att, "w", "tanh", "decay"),
                rate=low_rank(att, "a", "none", "sigmoid"),
                gate=low_rank(att, "g", "sigmoid", "none"),
                value_residual=low_rank(att, "v", "none", "sigmoid") if layer > 0 else None,
                head_weights=HeadWeights(vector("k_k"), vector("k_a"), vector("r_k"), *norm(f"{att}.ln_x")),
            )

        def deep_embed(ffn: str) -> DeepEmbed | None:
            if f"{ffn}.s_emb.weight" not in tensors:
                return None
            return DeepEmbed(
                down=ops.linear_layer(tensors[f"{ffn}.s1"].t()),
                table=ops.table(tensors[f"{ffn}.s_emb.weight"]),
                projection=ops.linear_layer(tensors[f"{ffn}.s_emb_x.weight"]),
                up=ops.linear_layer(tensors[f"{ffn}.s2"].t(), tensors[f"{ffn}.s0"].flatten()),
            )

        def channel_mix() -> ChannelMix:
            ffn = f"blocks.{layer}.ffn"
            mix, deep = tensors[f"{ffn}.x_k"].flatten().unsqueeze(0), deep_embed(ffn)
            return ChannelMix(
                norm=norm(f"blocks.{layer}.ln2"),
                mix=ops.vector(mix if deep is None else torch.cat([mix, torch.zeros_like(mix)])),
                key=large(f"{ffn}.key", "relu_squared"),
                value=large(f"{ffn}.value", sparse_inputs=True),
                deep_embed=deep,
            )

        return cls(time_mix(), channel_mix())

    def run(
        self, ops: StepOperations, step: Array, layer: int, x: Array, v_first: Array | None, x0: Array | None
    ) -> tuple[Array, Array]:
        """Run one layer of a step; returns the residual stream after it, and the values v of layer 0.

        Args:
            layer: the layer of the step's pool that holds the state.
            v_first: the values of layer 0; None in layer 0.
            x0: the normed embedding, for DeepEmbed; else None.
        """
        att, ffn = self.att, self.ffn

        x_r, x_w, x_k, x_v, x_a, x_g = ops.shift_mix(step, "att", layer, x, att.norm, att.mix)
        products = [
            Product(x_r, att.receptance),
            Product(x_k, att.key),
            Product(x_v, att.value),
            Product(x_w, att.decay.down),
            Product(x_a, att.rate.down),
            Product(x_g, att.gate.down),
        ]
        if v_first is None or att.value_residual is None:
            r, k, v, w, a, g = ops.linears(products)
            w, a, g = ops.linears([Product(w, att.decay.up), Product(a, att.rate.up), Product(g, att.gate.up)])
            v_first = v
        else:
            r, k, v, w, a, g, amount = ops.linears([*products, Product(x_v, att.value_residual.down)])
            w, a, g, v = ops.linears(
                [
                    Product(w, att.decay.up),
                    Product(a, att.rate.up),
                    Product(g, att.gate.up),
                    Product(amount, att.value_residual.up, blend=(v, v_first)),
                ]
            )
        y = ops.wkv7(step, layer, HeadRows(r, w, k, v, a, g), att.head_weights)
        (x,) = ops.linears([Product(y, att.output, add=x)])

        deep = ffn.deep_embed
        if deep is None:
            (x_k,) = ops.shift_mix(step, "ffn", layer, x, ffn.norm, ffn.mix)
            (k,) = ops.linears([Product(x_k, ffn.key)])
        else:
            x_k, normed = ops.shift_mix(step, "ffn", layer, x, ffn.norm, ffn.mix)
            k, inner, offset = ops.linears(
                [Product(x_k, ffn.key), Product(normed, deep.down), Product(x0, deep.projection)]
            )
            inner = ops.token_matrix(step, deep.table, offset, inner)
            (k,) = ops.linears([Product(inner, deep.up, times=k)])
        (x,) = ops.linears([Product(k, ffn.value, add=x)])
        return x, v_first


def packed_norm(tensors: Mapping[str, Tensor], name: str, ops: Operations) -> Norm:
    """A norm's weight and bias."""
    return ops.vector(tensors[f"{name}.weight"]), ops.vector(tensors[f"{name}.bias"])


class WeightReader(Protocol):
    """Packs matrices while it reads them from a file, so that no unpacked matrix is in memory.

    Both methods return None for a matrix that they cannot read. Packing the loaded tensor is the reference
    implementation.
    """

    def layer(self, name: str, activation: Activation, *, sparse_inputs: bool = False) -> Array | None:
        """As `Operations.linear_layer` of the tensor `name`, which is large."""
        ...

    def table(self, name: str) -> Array | None:
        """As `Operations.table` of the tensor `name`."""
        ...


def packed_matrix(
    tensors: Mapping[str, Tensor],
    name: str,
    ops: Operations,
    reader: WeightReader | None,
    activation: Activation,
    *,
    sparse_inputs: bool = False,
) -> Array:
    """A large matrix, packed by `reader` if it can read the matrix, else by `ops`."""
    layer = None if reader is None else reader.layer(name, activation, sparse_inputs=sparse_inputs)
    if layer is not None:
        return layer
    return ops.linear_layer(tensors[name], activation=activation, kind="large", sparse_inputs=sparse_inputs)


@dataclass(frozen=True)
class Network:
    """The weights of one RWKV-7 model, packed by `Operations`."""

    embedding: Array
    embedding_norm: Norm
    blocks: tuple[Block, ...]
    out_norm: Norm
    head: Array

    @classmethod
    def build(
        cls, tensors: Mapping[str, Tensor], num_layers: int, ops: Operations, reader: WeightReader | None = None
    ) -> Network:
        """Pack checkpoint tensors (official names, already checked) for `ops`.

        Args:
            reader: packs large matrices from the file of `tensors`; None to pack the loaded tensors.
        """
        # The largest tensors first, while memory is free: packing needs memory for both copies.
        head = packed_matrix(tensors, "head.weight", ops, reader, "none")
        table = None if reader is None else reader.table("emb.weight")
        return cls(
            embedding=ops.table(tensors["emb.weight"]) if table is None else table,
            embedding_norm=packed_norm(tensors, "blocks.0.ln0", ops),
            blocks=tuple(Block.build(tensors, layer, ops, reader) for layer in range(num_layers)),
            out_norm=packed_norm(tensors, "ln_out", ops),
            head=head,
        )

    def step(self, ops: Operations, batch: RaggedBatch, pool: StatePool) -> Tensor:
        """Read one ragged batch and advance its states in `pool`; returns the logits of its output rows, [P, vocab]."""
        return self.run(ops, ops.begin(batch, pool))

    def run(self, ops: StepOperations, step: Array) -> Tensor:
        """`step` of a batch that `ops.begin` has prepared."""
        x = ops.embed(step, self.embedding, self.embedding_norm)
        v_first = x0 = None
        if any(block.ffn.deep_embed is not None for block in self.blocks):
            x0 = ops.embed(step, self.embedding, self.embedding_norm, as_input=True)
        for layer, block in enumerate(self.blocks):
            x, v_first = block.run(ops, step, layer, x, v_first, x0)
        return ops.head(step, x, self.out_norm, self.head)


def state_bytes(network: Dimensions) -> int:
    """Size of one sequence's RWKV-7 state: two shifts and the matrices, all fp32."""
    return 4 * network.num_layers * network.width * (2 + network.head_size)
