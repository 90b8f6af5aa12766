"""Writes checkpoints in the forms of other programs, from the name maps that these publish.

Sources: flash-linear-attention, utils/convert_from_rwkv7.py; transformers, convert_rwkv_checkpoint_to_hf.py; web-rwkv
and RWKV-Runner, convert_safetensors.py.
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
    model_names = {
        "emb.weight": "model.embeddings.weight",
        "head.weight": "lm_head.weight",
        "ln_out.weight": "model.norm.weight",
        "ln_out.bias": "model.norm.bias",
    }
    att = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
    converted: Tensors = {}
    for name, tensor in tensors.items():
        plain = tensor.squeeze() if tensor.shape[:2] == (1, 1) else tensor
        if name in model_names:
            converted[model_names[name]] = plain
            continue
        _, layer, part, *rest = name.split(".")
        block = f"model.layers.{layer}"
        if name.startswith("blocks.0.att.v") and len(rest[0]) == 2:
            continue
        if part in ("ln0", "ln1", "ln2"):
            norm = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}[part]
            converted[f"{block}.{norm}.{rest[0]}"] = plain
        elif part == "ffn":
            converted[f"{block}.ffn.{'.'.join(rest)}"] = plain
        elif rest[0] in att:
            converted[f"{block}.attn.{att[rest[0]]}.{rest[1]}"] = plain
        elif rest[0][0] in "wavg" and rest[0][1:] in ("0", "1", "2"):
            leaf = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[rest[0][1]]
            converted[f"{block}.attn.{rest[0][0]}_lora.lora.{leaf}"] = plain if rest[0][1] == "0" else plain.t()
        elif rest[0].startswith("x_") and fused:
            row = "rwkvag".index(rest[0][-1])
            converted.setdefault(f"{block}.attn.x_x", torch.empty(6, plain.numel(), dtype=plain.dtype))[row] = plain
        else:
            converted[f"{block}.attn.{rest[0]}"] = tensor if rest[0].startswith("x_") else plain
    return {name: tensor.contiguous() for name, tensor in converted.items()}


def to_transformers_7(tensors: Mapping[str, torch.Tensor], *, mlp: bool = True) -> Tensors:
    """Names of rwkv-rs's transformers for RWKV-7; `mlp`: the revision that renames the channel mix too."""
    model_names = {
        "emb": "model.embed_tokens",
        "ln_out": "model.norm",
        "head": "lm_head",
        "blocks.0.ln0": "model.embedding_norm",
    }
    att = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
    ffn = {"key": "up_proj", "value": "down_proj"} if mlp else {}
    converted: Tensors = {}
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if stem in model_names:
            converted[f"{model_names[stem]}.{leaf}"] = tensor
            continue
        _, layer, part, *rest = name.split(".")
        module = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm", "att": "linear_attn", "ffn": "mlp"}[part]
        renamed = {"att": att, "ffn": ffn}.get(part, {}).get(rest[0], rest[0])
        converted[".".join(["model.layers", layer, module, renamed, *rest[1:]])] = tensor
    return converted


def to_vllm(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Names and shapes of vllm-rwkv: low-rank matrices are linear layers."""
    converted: Tensors = {}
    for name, tensor in tensors.items():
        leaf = name.rpartition(".")[2]
        if name.startswith("blocks.0.att.v") and len(leaf) == 2:
            continue
        if name == "emb.weight":
            converted["model.embeddings.weight"] = tensor
        elif name == "head.weight":
            converted[name] = tensor
        elif len(leaf) == 2 and leaf[0] in "wavg" and leaf[1] in "12":
            converted[f"model.{name}.weight"] = tensor.t().contiguous()
        else:
            converted[f"model.{name}"] = tensor
    return converted


def to_transformers(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Names of transformers' RWKV-4."""
    parts = {"att": "attention", "ffn": "feed_forward", "ln0": "pre_ln", "emb": "embeddings"}
    leaves = {"time_mix_k": "time_mix_key", "time_mix_v": "time_mix_value", "time_mix_r": "time_mix_receptance"}
    converted: Tensors = {}
    for name, tensor in tensors.items():
        if name == "head.weight":
            converted[name] = tensor
        else:
            converted["rwkv." + ".".join(parts.get(p, leaves.get(p, p)) for p in name.split("."))] = tensor
    return converted


WEB_RWKV_TRANSPOSED = ("time_mix_w1", "time_mix_w2", "time_decay_w1", "time_decay_w2", "time_state")
WEB_RWKV_TRANSPOSED_7 = tuple(f".att.{chain}{number}" for chain in "wavg" for number in "12")


def to_web_rwkv(
    tensors: Mapping[str, torch.Tensor], *, transposed: tuple[str, ...] = (*WEB_RWKV_TRANSPOSED, *WEB_RWKV_TRANSPOSED_7)
) -> Tensors:
    """The results of web-rwkv's converters: fp16, other names, transposed low-rank matrices and states.

    RWKV-5.1's one number per head is repeated for each channel.
    """
    converted = dict(tensors)
    heads = converted.get("blocks.0.att.time_decay", torch.empty(0)).shape
    if "blocks.0.att.gate.weight" in converted and len(heads) == 1:
        width = converted["emb.weight"].shape[1]
        for name in converted:
            if "time_decay" in name or "time_faaaa" in name:
                converted[name] = converted[name].unsqueeze(1).repeat(1, width // len(converted[name]))
    renamed = {n.replace("time_faaaa", "time_first").replace("time_maa", "time_mix"): t for n, t in converted.items()}
    return {
        name: (t.transpose(-1, -2) if t.ndim > 1 and any(part in name for part in transposed) else t)
        .half()
        .contiguous()
        for name, t in renamed.items()
    }


def write_directory(
    folder: Path, tensors: Mapping[str, torch.Tensor], *, shards: int = 3, config: Mapping[str, object] | None = None
) -> Path:
    """Write a Hugging Face directory, with an index if there is more than one shard."""
    folder.mkdir(exist_ok=True)
    names = list(tensors)
    file_of: dict[str, str] = {}
    for number in range(shards):
        shard_names = names[number::shards]
        name = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file({key: tensors[key].contiguous() for key in shard_names}, folder / name, {"format": "pt"})
        file_of |= dict.fromkeys(shard_names, name)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": file_of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "rwkv7"}))
    return folder


def write_gguf(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    matrices: str = "F16",
    architecture: str = "rwkv7",
    eps: float = 1e-5,
    changes: Mapping[str, tuple[str, object]] | None = None,
) -> Path:
    """Write a GGUF file as llama.cpp's converter and quantizer do.

    Args:
        matrices: the number format of matrices.
        changes: further keys, each with a method of `GGUFWriter` and a value.
    """
    import gguf

    from benchmarks.gguf_file import gguf_tensors

    num_layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    heads, head_size = tensors["blocks.0.att.r_k"].shape
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(heads * head_size)
    writer.add_block_count(num_layers)
    writer.add_layer_norm_eps(eps)
    writer.add_wkv_head_size(head_size)
    writer.add_token_list([b"a", b"bc"])
    for key, (method, value) in (changes or {}).items():
        getattr(writer, method)(key, value)
    kind = gguf.GGMLQuantizationType[matrices]
    for tensor in gguf_tensors({name: tensor.float() for name, tensor in tensors.items()}, num_layers, torch.float32):
        values = tensor.values
        if values.ndim != 2 or values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] or "_w1" in tensor.name:
            writer.add_tensor(tensor.name, values)
        elif kind == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(tensor.name, values.astype("float16"))
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
