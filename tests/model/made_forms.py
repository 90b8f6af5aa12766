"""Writes checkpoints in the forms that other programs write, from the name maps that these publish.

Sources: flash-linear-attention, utils/convert_from_rwkv7.py; transformers, convert_rwkv_checkpoint_to_hf.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


def to_fla(tensors: Mapping[str, torch.Tensor], *, fused: bool = False) -> Tensors:
    """Names and shapes of flash-linear-attention; `fused`: the older `x_x`."""
    whole = {
        "emb.weight": "model.embeddings.weight",
        "head.weight": "lm_head.weight",
        "ln_out.weight": "model.norm.weight",
        "ln_out.bias": "model.norm.bias",
    }
    att = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
    made: Tensors = {}
    for name, tensor in tensors.items():
        plain = tensor.squeeze() if tensor.shape[:2] == (1, 1) else tensor
        if name in whole:
            made[whole[name]] = plain
            continue
        _, layer, part, *rest = name.split(".")
        block = f"model.layers.{layer}"
        if name.startswith("blocks.0.att.v") and len(rest[0]) == 2:
            continue
        if part in ("ln0", "ln1", "ln2"):
            norm = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}[part]
            made[f"{block}.{norm}.{rest[0]}"] = plain
        elif part == "ffn":
            made[f"{block}.ffn.{'.'.join(rest)}"] = plain
        elif rest[0] in att:
            made[f"{block}.attn.{att[rest[0]]}.{rest[1]}"] = plain
        elif rest[0][0] in "wavg" and rest[0][1:] in ("0", "1", "2"):
            place = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[rest[0][1]]
            made[f"{block}.attn.{rest[0][0]}_lora.lora.{place}"] = plain if rest[0][1] == "0" else plain.t()
        elif rest[0].startswith("x_") and fused:
            row = "rwkvag".index(rest[0][-1])
            made.setdefault(f"{block}.attn.x_x", torch.empty(6, plain.numel(), dtype=plain.dtype))[row] = plain
        else:
            made[f"{block}.attn.{rest[0]}"] = tensor if rest[0].startswith("x_") else plain
    return {name: tensor.contiguous() for name, tensor in made.items()}


def to_transformers(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Names of transformers' RWKV-4."""
    parts = {"att": "attention", "ffn": "feed_forward", "ln0": "pre_ln", "emb": "embeddings"}
    leaves = {"time_mix_k": "time_mix_key", "time_mix_v": "time_mix_value", "time_mix_r": "time_mix_receptance"}
    made: Tensors = {}
    for name, tensor in tensors.items():
        if name == "head.weight":
            made[name] = tensor
        else:
            made["rwkv." + ".".join(parts.get(p, leaves.get(p, p)) for p in name.split("."))] = tensor
    return made


def write_directory(
    folder: Path, tensors: Mapping[str, torch.Tensor], *, shards: int = 3, config: Mapping[str, object] | None = None
) -> Path:
    """A Hugging Face directory; with more than one shard an index."""
    folder.mkdir(exist_ok=True)
    names = list(tensors)
    places: dict[str, str] = {}
    for number in range(shards):
        part = names[number::shards]
        name = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file({each: tensors[each].contiguous() for each in part}, folder / name, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "rwkv7"}))
    return folder
