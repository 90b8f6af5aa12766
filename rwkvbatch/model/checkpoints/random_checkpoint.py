"""Random RWKV-7 checkpoints of any shape, for tests and measurements."""

from __future__ import annotations

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
    random = _RandomTensors(width, dtype, seed)
    hidden = 4 * width if hidden is None else hidden
    ranks = ranks or LowRankWidths.official(width)
    tensors = {"emb.weight": random.normal(vocab_size, width, scale=1.0), **random.norm("blocks.0.ln0")}
    for layer in range(num_layers):
        block = f"blocks.{layer}"
        tensors |= random.norm(f"{block}.ln1")
        tensors |= random.norm(f"{block}.ln2")
        tensors |= random.time_mix(f"{block}.att", head_size, ranks, first_value=layer > 0 or first_value_residual)
        tensors |= random.channel_mix(f"{block}.ffn", hidden)
        if sparsity is not None:
            _shift_hidden(tensors, layer, sparsity)
        if deep_embed is not None:
            tensors |= random.deep_embed(f"{block}.ffn", hidden, deep_embed, vocab_size)
    tensors |= random.norm("ln_out")
    tensors["head.weight"] = random.linear(vocab_size, width, gain=2.0)
    return tensors


class _RandomTensors:
    """Makes the tensors of a checkpoint of one width from one generator: their order determines their values."""

    def __init__(self, width: int, dtype: torch.dtype, seed: int) -> None:
        self._width = width
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float, mean: float = 0.0) -> Tensor:
        return (torch.randn(*shape, generator=self._generator) * scale + mean).to(self._dtype)

    def uniform(self, low: float, high: float) -> Tensor:
        """A factor of each channel, [1, 1, width]."""
        return (torch.rand(1, 1, self._width, generator=self._generator) * (high - low) + low).to(self._dtype)

    def linear(self, rows: int, columns: int, gain: float = 1.0) -> Tensor:
        return self.normal(rows, columns, scale=gain / columns**0.5)

    def norm(self, name: str) -> dict[str, Tensor]:
        weight = self.normal(self._width, scale=0.1, mean=1.0)
        return {f"{name}.weight": weight, f"{name}.bias": self.normal(self._width, scale=0.05)}

    def time_mix(self, att: str, head_size: int, ranks: LowRankWidths, *, first_value: bool) -> dict[str, Tensor]:
        """The tensors of a layer's time mix `att`; `first_value` tells whether it has `v0`, `v1` and `v2`."""
        width = self._width
        tensors = {f"{att}.x_{letter}": self.uniform(0, 1) for letter in "rwkvag"}
        chains = [("w", ranks.decay, (-6.0, 1.0)), ("a", ranks.rate, (-2.0, 2.0)), ("v", ranks.value, (-1.0, 1.0))]
        for letter, rank, (low, high) in chains if first_value else chains[:-1]:
            tensors[f"{att}.{letter}0"] = self.uniform(low, high)
            tensors[f"{att}.{letter}1"] = self.normal(width, rank, scale=width**-0.5)
            tensors[f"{att}.{letter}2"] = self.normal(rank, width, scale=rank**-0.5)
        tensors[f"{att}.g1"] = self.normal(width, ranks.gate, scale=width**-0.5)
        tensors[f"{att}.g2"] = self.normal(ranks.gate, width, scale=2 * ranks.gate**-0.5)
        tensors[f"{att}.k_k"] = self.uniform(0.6, 1.1)
        tensors[f"{att}.k_a"] = self.uniform(0.5, 1.5)
        tensors[f"{att}.r_k"] = self.normal(width // head_size, head_size, scale=0.1)
        for name in ("receptance", "key", "value"):
            tensors[f"{att}.{name}.weight"] = self.linear(width, width)
        tensors[f"{att}.output.weight"] = self.linear(width, width, gain=0.5)
        return tensors | self.norm(f"{att}.ln_x")

    def channel_mix(self, ffn: str, hidden: int) -> dict[str, Tensor]:
        return {
            f"{ffn}.x_k": self.uniform(0, 1),
            f"{ffn}.key.weight": self.linear(hidden, self._width),
            f"{ffn}.value.weight": self.linear(self._width, hidden, gain=0.5),
        }

    def deep_embed(self, ffn: str, hidden: int, size: int, vocab_size: int) -> dict[str, Tensor]:
        """The tensors of RWKV-7a's DeepEmbed, with matrices of `size` x `size`."""
        return {
            f"{ffn}.s_emb.weight": self.normal(vocab_size, size**2, scale=0.5 * size**-0.5),
            f"{ffn}.s_emb_x.weight": self.linear(size**2, self._width, gain=0.5 * size**-0.5),
            f"{ffn}.s0": self.normal(1, 1, hidden, scale=0.1, mean=1.0),
            f"{ffn}.s1": self.normal(self._width, size, scale=self._width**-0.5),
            f"{ffn}.s2": self.normal(size, hidden, scale=size**-0.5),
        }


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
