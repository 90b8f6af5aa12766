"""Random RWKV-7 checkpoints of any shape, for tests and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankWidths:
    """Inner widths of the low-rank chains."""

    decay: int
    rate: int
    value: int
    gate: int

    @classmethod
    def official(cls, width: int) -> LowRankWidths:
        """The widths that the official training code chooses."""
        factors = ((1.8, 0.5), (1.8, 0.5), (1.3, 0.5), (0.6, 0.8))
        return cls(*(max(32, round(factor * width**power / 32) * 32) for factor, power in factors))


def random_tensors(
    num_layers: int,
    width: int,
    vocab_size: int = 65536,
    head_size: int = 64,
    seed: int = 0,
    *,
    hidden: int | None = None,
    ranks: LowRankWidths | None = None,
    first_value_residual: bool = True,
    deep_embed: int | None = None,
    sparsity: float | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Tensor]:
    """An RWKV-7 checkpoint of random weights.

    Magnitudes are chosen so that activations stay near 1, decays and rates take all values, and logits have a standard
    deviation near 2. The chosen tokens then depend on all tokens before them.

    Args:
        hidden: width of the channel mix, 4 x `width` unless given.
        ranks: inner widths of the low-rank chains, by default those of official models.
        first_value_residual: whether layer 0 has the unused `v0`, `v1`, `v2` of official files.
        deep_embed: the size of DeepEmbed's matrices (32 in official files) for RWKV-7a; None for RWKV-7.
        sparsity: approximate share of zeros in the channel mix's hidden layer after relu squared, in [0, 1); their
            positions depend on the token. None for weights without a bias, which have about one half.

    Raises:
        ValueError: `width` is not a multiple of `head_size`, or `sparsity` is not in [0, 1).
    """
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(f"the sparsity must be in [0, 1), got {sparsity}")
    if width % head_size:
        raise ValueError(f"the width must be a multiple of the head size {head_size}, got {width}")
    generator = torch.Generator().manual_seed(seed)
    hidden = 4 * width if hidden is None else hidden
    ranks = ranks or LowRankWidths.official(width)

    def normal(*shape: int, scale: float, mean: float = 0.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale + mean).to(dtype)

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(1, 1, width, generator=generator) * (high - low) + low).to(dtype)

    def linear(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        return normal(rows, columns, scale=gain / columns**0.5)

    def norm(name: str, mean: float = 1.0) -> Mapping[str, Tensor]:
        return {f"{name}.weight": normal(width, scale=0.1, mean=mean), f"{name}.bias": normal(width, scale=0.05)}

    tensors: dict[str, Tensor] = {"emb.weight": normal(vocab_size, width, scale=1.0), **norm("blocks.0.ln0")}
    for layer in range(num_layers):
        block = f"blocks.{layer}"
        att, ffn = f"{block}.att", f"{block}.ffn"
        tensors |= norm(f"{block}.ln1")
        tensors |= norm(f"{block}.ln2")
        tensors |= {f"{att}.x_{letter}": uniform(0, 1) for letter in "rwkvag"}
        chains = [("w", ranks.decay, (-6.0, 1.0)), ("a", ranks.rate, (-2.0, 2.0)), ("v", ranks.value, (-1.0, 1.0))]
        for letter, rank, (low, high) in chains:
            if letter != "v" or layer > 0 or first_value_residual:
                tensors[f"{att}.{letter}0"] = uniform(low, high)
                tensors[f"{att}.{letter}1"] = normal(width, rank, scale=width**-0.5)
                tensors[f"{att}.{letter}2"] = normal(rank, width, scale=rank**-0.5)
        tensors[f"{att}.g1"] = normal(width, ranks.gate, scale=width**-0.5)
        tensors[f"{att}.g2"] = normal(ranks.gate, width, scale=2 * ranks.gate**-0.5)
        tensors[f"{att}.k_k"] = uniform(0.6, 1.1)
        tensors[f"{att}.k_a"] = uniform(0.5, 1.5)
        tensors[f"{att}.r_k"] = normal(width // head_size, head_size, scale=0.1)
        for name in ("receptance", "key", "value"):
            tensors[f"{att}.{name}.weight"] = linear(width, width)
        tensors[f"{att}.output.weight"] = linear(width, width, gain=0.5)
        tensors |= norm(f"{att}.ln_x")
        tensors[f"{ffn}.x_k"] = uniform(0, 1)
        tensors[f"{ffn}.key.weight"] = linear(hidden, width)
        tensors[f"{ffn}.value.weight"] = linear(width, hidden, gain=0.5)
        if sparsity is not None:
            _shift_hidden(tensors, layer, sparsity)
        if deep_embed is not None:
            tensors[f"{ffn}.s_emb.weight"] = normal(vocab_size, deep_embed**2, scale=0.5 * deep_embed**-0.5)
            tensors[f"{ffn}.s_emb_x.weight"] = linear(deep_embed**2, width, gain=0.5 * deep_embed**-0.5)
            tensors[f"{ffn}.s0"] = normal(1, 1, hidden, scale=0.1, mean=1.0)
            tensors[f"{ffn}.s1"] = normal(width, deep_embed, scale=width**-0.5)
            tensors[f"{ffn}.s2"] = normal(deep_embed, hidden, scale=deep_embed**-0.5)
    tensors |= norm("ln_out")
    tensors["head.weight"] = linear(vocab_size, width, gain=2.0)
    return tensors


MAX_SHIFT = 5.0
"""Largest shift of hidden values, in standard deviations; larger ones change hardly any sign."""


def _shift_hidden(tensors: dict[str, Tensor], layer: int, sparsity: float) -> None:
    """Make `sparsity` of a layer's hidden values negative.

    Adding 1 to all channels of the normed input lets the key's weights add a constant to each hidden value. The
    constant is the quantile of `sparsity` for a normal distribution with the variance of the hidden values: per channel
    2/3, for the mix of two tokens by a uniform factor, plus 1.
    """
    ffn = f"blocks.{layer}.ffn"
    quantile = NormalDist().inv_cdf(sparsity) if sparsity > 0 else -MAX_SHIFT
    shift = max(-MAX_SHIFT, min(MAX_SHIFT, quantile)) * (2 / 3 + 1) ** 0.5
    bias, key, value = f"blocks.{layer}.ln2.bias", f"{ffn}.key.weight", f"{ffn}.value.weight"
    tensors[bias] = (tensors[bias].float() + 1).to(tensors[bias].dtype)
    tensors[key] = (tensors[key].float() - shift / tensors[key].shape[1]).to(tensors[key].dtype)
    # A shift towards positive values makes the squares larger.
    tensors[value] = (tensors[value].float() / (1 + max(0.0, -shift) ** 2)).to(tensors[value].dtype)
