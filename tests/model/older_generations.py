"""Random checkpoints of RWKV-4, 5.0, 5.1, 5.2 and 6, with the tensor names and shapes of their official files."""

from __future__ import annotations

import torch

Tensors = dict[str, torch.Tensor]

GENERATIONS = ("4", "5.0", "5.1", "5.2", "6.0")


def older_tensors(
    generation: str, num_layers: int = 2, width: int = 64, vocab_size: int = 97, head_size: int = 32, seed: int = 0
) -> Tensors:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale + mean

    def linear(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        return normal(rows, columns, scale=gain / columns**0.5)

    def mix() -> torch.Tensor:
        return torch.rand(1, 1, width, generator=generator)

    def norm(name: str) -> Tensors:
        return {f"{name}.weight": normal(width, scale=0.1, mean=1.0), f"{name}.bias": normal(width, scale=0.05)}

    heads = width // head_size
    tensors: Tensors = {"emb.weight": normal(vocab_size, width), **norm("blocks.0.ln0")}
    for layer in range(num_layers):
        att, ffn = f"blocks.{layer}.att", f"blocks.{layer}.ffn"
        tensors |= norm(f"blocks.{layer}.ln1") | norm(f"blocks.{layer}.ln2")
        for name in ("key", "value", "receptance", "output"):
            tensors[f"{att}.{name}.weight"] = linear(width, width)
        if generation != "4":
            tensors |= norm(f"{att}.ln_x")
        if generation in ("5.1", "5.2", "6.0"):
            tensors[f"{att}.gate.weight"] = linear(width, width)
        if generation == "6.0":
            tensors |= {f"{att}.time_maa_{letter}": mix() for letter in "xwkvrg"}
            tensors[f"{att}.time_maa_w1"] = normal(width, 5 * 8, scale=0.1)
            tensors[f"{att}.time_maa_w2"] = normal(5, 8, width, scale=0.1)
            tensors[f"{att}.time_decay"] = normal(1, 1, width, mean=-1.0)
            tensors[f"{att}.time_decay_w1"] = normal(width, 16, scale=0.1)
            tensors[f"{att}.time_decay_w2"] = normal(16, width, scale=0.1)
            tensors[f"{att}.time_faaaa"] = normal(heads, head_size, scale=0.5)
            tensors |= {f"{ffn}.time_maa_{letter}": mix() for letter in "kr"}
        else:
            letters = "kvrg" if generation in ("5.1", "5.2") else "kvr"
            tensors |= {f"{att}.time_mix_{letter}": mix() for letter in letters}
            tensors |= {f"{ffn}.time_mix_{letter}": mix() for letter in "kr"}
            shape = {"4": (width,), "5.0": (heads,), "5.1": (heads,), "5.2": (heads, head_size)}[generation]
            tensors[f"{att}.time_decay"] = normal(*shape, mean=-1.0)
            first = "time_faaaa" if generation == "5.2" else "time_first"
            tensors[f"{att}.{first}"] = normal(*shape, scale=0.5)
        tensors[f"{ffn}.key.weight"] = linear(4 * width, width)
        tensors[f"{ffn}.value.weight"] = linear(width, 4 * width, gain=0.5)
        tensors[f"{ffn}.receptance.weight"] = linear(width, width)
    return tensors | norm("ln_out") | {"head.weight": linear(vocab_size, width, gain=2.0)}
