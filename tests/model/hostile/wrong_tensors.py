"""Sound files of wrong tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors.torch import save

from tests.model.hostile.case import Case, from_bytes, tiny
from tests.model.hostile.packing import program, pth, tensor_item


def wrong_tensors() -> Iterator[Case]:
    for label, name, value in (("nan", "blocks.1.att.key.weight", float("nan")), ("inf", "head.weight", float("-inf"))):
        tensors = tiny()
        tensors[name][-1, -1] = value
        for kind, data in (("pth", pth(tensors)), ("safe", save(tensors))):
            yield from_bytes(f"{label}-{kind}", data, f"{name!r} contains NaN or infinity (1 of ")

    def changed(label: str, message: str, **changes: torch.Tensor | None) -> Case:
        tensors = tiny()
        for name, tensor in changes.items():
            if tensor is None:
                del tensors[name]
            else:
                tensors[name] = tensor
        return from_bytes(label, pth(tensors), message)

    wide = torch.ones(64, 65)
    yield changed("missing", "missing: 'blocks.1.att.g1'", **{"blocks.1.att.g1": None})
    yield changed("missing-head", "missing: 'head.weight'", **{"head.weight": None})
    yield changed("missing-embedding", "'emb.weight' is missing", **{"emb.weight": None})
    yield changed("missing-v1", "missing: 'blocks.1.att.v1'", **{"blocks.1.att.v1": None})
    yield changed("surplus", "surplus: 'blocks.0.att.zzz'", **{"blocks.0.att.zzz": torch.ones(1)})
    yield changed("surplus-name", "surplus: '\\x1b[2J'", **{"\x1b[2J": torch.ones(1)})
    yield changed("many-surplus", "more", **{f"extra.{number}": torch.ones(1) for number in range(1000)})
    yield changed(
        "misshapen", "'blocks.0.att.key.weight' must be 64 x 64, it is 64 x 65", **{"blocks.0.att.key.weight": wide}
    )
    yield changed("misshapen-vector", "'ln_out.weight' must be 64, it is 8 x 8", **{"ln_out.weight": torch.ones(8, 8)})
    yield changed(
        "misshapen-rank", "'blocks.0.att.w2' must be 32 x 64, it is 31 x 64", **{"blocks.0.att.w2": torch.ones(31, 64)}
    )
    yield changed("misshapen-heads", "heads times head size", **{"blocks.0.att.r_k": torch.ones(3, 32)})
    yield changed("flat-embedding", "must be [vocabulary, width]", **{"emb.weight": torch.ones(97 * 64)})
    yield changed(
        "scalar", "'head.weight' must be 97 x 64, it is a single number", **{"head.weight": torch.tensor(1.0)}
    )
    yield changed("empty-embedding", "must be [vocabulary, width]", **{"emb.weight": torch.ones(0, 64)})
    yield changed(
        "no-rank",
        "'blocks.1.att.a1' is empty",
        **{"blocks.1.att.a1": torch.ones(64, 0), "blocks.1.att.a2": torch.ones(0, 64)},
    )
    yield changed(
        "whole-numbers", "must be bf16, fp16 or fp32, it is int64", **{"ln_out.bias": torch.ones(64, dtype=torch.int64)}
    )
    yield changed("double", "it is float64", **{"head.weight": torch.ones(97, 64, dtype=torch.float64)})
    yield changed("layer-gap", "layer 2 is missing", **{"blocks.3.ln1.weight": torch.ones(64)})
    yield changed("layer-million", "layer 2 is missing", **{"blocks.999999.ln1.weight": torch.ones(64)})
    yield changed("layer-number-huge", "surplus", **{f"blocks.{'9' * 400}.ln1.weight": torch.ones(64)})
    yield changed(
        "deep-embed-incomplete", "not those of RWKV-7a", **{"blocks.0.ffn.s_emb.weight": torch.ones(97, 1024)}
    )
    older = {"emb.weight": torch.ones(9, 8), "blocks.0.att.time_decay": torch.ones(8)}
    yield from_bytes("older-incomplete", pth(older), "cannot load it")
    yield from_bytes(
        "big-embedding-expanded", program(tensor_item(b"emb.weight", (1 << 16, 1 << 20), (0, 0))), "more than 4 times"
    )
