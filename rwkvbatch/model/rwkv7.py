"""RWKV-7, said once, over a ragged batch, in terms of `Operations`.

The formulas are those of the RWKV-7 paper (Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution",
2025) and of the `rwkv` package, which writes exp(-1/2) as 0.606531. Prompt reading and decoding are the same code:
a sequence may have any number of rows in a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rwkvbatch.model.base import RaggedBatch, StatePool
from rwkvbatch.model.ops import Activation, Array, Operations, Product, StepOperations

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
    k_k: Array
    k_a: Array
    r_k: Array
    group_norm: Norm


@dataclass(frozen=True)
class ChannelMix:
    norm: Norm
    mix: Array
    key: Array
    value: Array


@dataclass(frozen=True)
class Block:
    att: TimeMix
    ffn: ChannelMix


@dataclass(frozen=True)
class Network:
    """The weights of one RWKV-7 model, in the form that `ops` wants them."""

    embedding: Array
    embedding_norm: Norm
    blocks: tuple[Block, ...]
    out_norm: Norm
    head: Array

    @classmethod
    def build(cls, tensors: Mapping[str, torch.Tensor], num_layers: int, ops: Operations) -> Network:
        """Pack checkpoint tensors (official names, already checked) for `ops`."""

        def norm(name: str) -> Norm:
            return ops.vector(tensors[f"{name}.weight"]), ops.vector(tensors[f"{name}.bias"])

        def large(name: str, activation: Activation = "none") -> Array:
            return ops.linear_layer(tensors[f"{name}.weight"], activation=activation, large=True)

        def low_rank(att: str, letter: str, inner: Activation, outer: Activation) -> LowRank:
            bias = tensors.get(f"{att}.{letter}0")
            return LowRank(
                down=ops.linear_layer(tensors[f"{att}.{letter}1"].t(), activation=inner),
                up=ops.linear_layer(tensors[f"{att}.{letter}2"].t(), None if bias is None else bias.flatten(), outer),
            )

        def time_mix(layer: int) -> TimeMix:
            att = f"blocks.{layer}.att"
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
                k_k=ops.vector(tensors[f"{att}.k_k"].flatten()),
                k_a=ops.vector(tensors[f"{att}.k_a"].flatten()),
                r_k=ops.vector(tensors[f"{att}.r_k"].flatten()),
                group_norm=norm(f"{att}.ln_x"),
            )

        def channel_mix(layer: int) -> ChannelMix:
            ffn = f"blocks.{layer}.ffn"
            return ChannelMix(
                norm=norm(f"blocks.{layer}.ln2"),
                mix=ops.vector(tensors[f"{ffn}.x_k"].flatten().unsqueeze(0)),
                key=large(f"{ffn}.key", "relu_squared"),
                value=large(f"{ffn}.value"),
            )

        # The largest tensors first, while little else is in memory: they exist twice while they are packed.
        head = large("head")
        return cls(
            embedding=ops.table(tensors["emb.weight"]),
            embedding_norm=norm("blocks.0.ln0"),
            blocks=tuple(Block(time_mix(layer), channel_mix(layer)) for layer in range(num_layers)),
            out_norm=norm("ln_out"),
            head=head,
        )

    def step(self, ops: Operations, batch: RaggedBatch, pool: StatePool) -> torch.Tensor:
        """Read one ragged batch, advancing its states in `pool`; logits [P, vocab] of its output rows."""
        return self.run(ops, ops.begin(batch, pool))

    def run(self, ops: StepOperations, step: Array) -> torch.Tensor:
        """`step`, for a batch that `ops.begin` has prepared."""
        x = ops.embed(step, self.embedding, self.embedding_norm)
        v_first = None
        for layer, block in enumerate(self.blocks):
            att, ffn = block.att, block.ffn

            x_r, x_w, x_k, x_v, x_a, x_g = ops.shift_mix(step, "att", layer, x, att.norm, att.mix)
            first = [
                Product(x_r, att.receptance),
                Product(x_k, att.key),
                Product(x_v, att.value),
                Product(x_w, att.decay.down),
                Product(x_a, att.rate.down),
                Product(x_g, att.gate.down),
            ]
            if v_first is None or att.value_residual is None:
                r, k, v, w, a, g = ops.linears(first)
                w, a, g = ops.linears([Product(w, att.decay.up), Product(a, att.rate.up), Product(g, att.gate.up)])
                v_first = v
            else:
                r, k, v, w, a, g, amount = ops.linears([*first, Product(x_v, att.value_residual.down)])
                w, a, g, v = ops.linears(
                    [
                        Product(w, att.decay.up),
                        Product(a, att.rate.up),
                        Product(g, att.gate.up),
                        Product(amount, att.value_residual.up, blend=(v, v_first)),
                    ]
                )
            y = ops.wkv7(step, layer, r, w, k, v, a, g, att.k_k, att.k_a, att.r_k, att.group_norm)
            (x,) = ops.linears([Product(y, att.output, add=x)])

            (x_k,) = ops.shift_mix(step, "ffn", layer, x, ffn.norm, ffn.mix)
            (k,) = ops.linears([Product(x_k, ffn.key)])
            (x,) = ops.linears([Product(k, ffn.value, add=x)])
        return ops.head(step, x, self.out_norm, self.head)
