"""Writes an RWKV-7 checkpoint as a GGUF file for llama.cpp. Needs the package `gguf`.

Tensors are stored as by llama.cpp's converter: matrices in fp16, everything else in fp32, including the
factors of the decay's low-rank chain and the mixes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rwkvbatch.errors import UsageError
from rwkvbatch.model.checkpoints.checkpoint import Checkpoint
from rwkvbatch.model.network.rwkv7 import MIX_NAMES
from rwkvbatch.prompt.tokenizer import load_entries

LAYER_NORM_EPS = 1e-5
CONTEXT_LENGTH = 1 << 20
"""The format requires a limit; RWKV has none."""

_OUTSIDE_BLOCKS = {"emb": "token_embd", "blocks.0.ln0": "token_embd_norm", "ln_out": "output_norm", "head": "output"}
_IN_BLOCKS = {
    "ln1": "attn_norm",
    "ln2": "attn_norm_2",
    "att.ln_x": "time_mix_ln",
    **{f"att.{name}": f"time_mix_{name}" for name in ("receptance", "key", "value", "output")},
    **{f"att.{name}": f"time_mix_{name}" for name in ("k_k", "k_a", "r_k")},
    **{f"att.{chain}{part}": f"time_mix_{chain}{part}" for chain in "wav" for part in "012"},
    **{f"att.g{part}": f"time_mix_g{part}" for part in "12"},
    "ffn.x_k": "channel_mix_lerp_k",
    "ffn.key": "channel_mix_key",
    "ffn.value": "channel_mix_value",
}
_FACTORS = tuple(f"att.{chain}{part}" for chain in "wavg" for part in "12")
_KEPT_IN_FP32 = ("time_mix_w1", "time_mix_w2", "time_mix_lerp_fused")


@dataclass(frozen=True)
class GgufTensor:
    """Attributes:
    values: fp16 or fp32; its last axis is the format's first.
    """

    name: str
    values: npt.NDArray[np.float16] | npt.NDArray[np.float32]


def gguf_name(name: str) -> str:
    """The GGUF name of a tensor of a checkpoint.

    Raises:
        KeyError: it has none: the mixes `att.x_*`, which are fused into one tensor.
    """
    ending = name.rpartition(".")[2]
    stem = name.removesuffix(f".{ending}") if ending in ("weight", "bias") else name
    ending = ending if ending == "bias" else "weight"
    if stem in _OUTSIDE_BLOCKS:
        return f"{_OUTSIDE_BLOCKS[stem]}.{ending}"
    _, layer, inner = stem.split(".", 2)
    return f"blk.{layer}.{_IN_BLOCKS[inner]}.{ending}"


def gguf_tensors(
    tensors: Mapping[str, torch.Tensor], num_layers: int, matrix_dtype: torch.dtype = torch.float16
) -> Iterator[GgufTensor]:
    """All tensors of an RWKV-7 checkpoint, renamed and laid out for llama.cpp."""
    unused = {f"blocks.0.att.v{part}" for part in "012"}
    for name in tensors:
        if name not in unused and ".att.x_" not in name:
            is_factor = name.partition(".")[2].partition(".")[2] in _FACTORS
            values = tensors[name].squeeze()
            yield _stored(gguf_name(name), values.T if is_factor else values, matrix_dtype)
    for layer in range(num_layers):
        mixes = torch.stack([tensors[f"blocks.{layer}.att.{name}"].reshape(1, 1, -1) for name in MIX_NAMES])
        yield _stored(f"blk.{layer}.time_mix_lerp_fused.weight", mixes, matrix_dtype)
    # llama.cpp requires the value residual of layer 0, in the shapes of the rate, and does not use it.
    for part in "012":
        rate = tensors[f"blocks.0.att.a{part}"].squeeze()
        yield _stored(f"blk.0.time_mix_v{part}.weight", rate.T if part != "0" else rate, matrix_dtype)


def _stored(name: str, values: torch.Tensor, matrix_dtype: torch.dtype) -> GgufTensor:
    if name.endswith("time_mix_r_k.weight"):
        values = values.reshape(-1)
    is_matrix = values.ndim > 1 and not any(kept in name for kept in _KEPT_IN_FP32)
    dtype = matrix_dtype if is_matrix else torch.float32
    return GgufTensor(name, values.to(dtype).contiguous().numpy())


def token_texts(entries: Sequence[bytes], vocab_size: int) -> list[bytes]:
    """The vocabulary in llama.cpp's form: each token as the inside of a Python bytes literal, no text empty."""
    texts = [repr(entry)[2:-1].encode() if entry else b"" for entry in entries[:vocab_size]]
    texts += [b""] * (vocab_size - len(texts))
    return [text or (b"[PAD%d]" % token if token else b"<s>") for token, text in enumerate(texts)]


def gguf_package() -> Any:
    """The module `gguf`, which reads and writes GGUF files.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise UsageError("GGUF files need the package `gguf`", hint="pip install 'rwkvbatch[gguf]'") from None


def write_gguf(path: Path, checkpoint: Checkpoint, matrix_dtype: torch.dtype = torch.float16) -> None:
    """Write an RWKV-7 checkpoint with the World vocabulary.

    Args:
        matrix_dtype: fp16, like llama.cpp's converter, or fp32.

    Raises:
        UsageError: `gguf` is not installed.
    """
    gguf = gguf_package()
    shape = checkpoint.architecture
    writer = gguf.GGUFWriter(path, "rwkv7")
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.num_layers)
    writer.add_layer_norm_eps(LAYER_NORM_EPS)
    writer.add_head_count(0)
    writer.add_wkv_head_size(shape.head_size)
    writer.add_feed_forward_length(_length(checkpoint, "blocks.0.ffn.key.weight", 0))
    writer.add_decay_lora_rank(_length(checkpoint, "blocks.0.att.w1", 1))
    writer.add_iclr_lora_rank(_length(checkpoint, "blocks.0.att.a1", 1))
    writer.add_gate_lora_rank(_length(checkpoint, "blocks.0.att.g1", 1))
    # The format requires a width of the value residual, which a model of one layer lacks.
    residual = "blocks.1.att.v1" if shape.num_layers > 1 else "blocks.0.att.a1"
    writer.add_value_residual_mix_lora_rank(_length(checkpoint, residual, 1))
    kind = gguf.LlamaFileType.ALL_F32 if matrix_dtype == torch.float32 else gguf.LlamaFileType.MOSTLY_F16
    writer.add_file_type(kind)
    texts = token_texts(load_entries(), shape.vocab_size)
    types = [gguf.TokenType.NORMAL] * len(texts)
    types[0] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    # Two passes over the checkpoint, so that one tensor is in memory at a time.
    for tensor in gguf_tensors(checkpoint, shape.num_layers, matrix_dtype):
        writer.add_tensor_info(tensor.name, tensor.values.shape, tensor.values.dtype, tensor.values.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in gguf_tensors(checkpoint, shape.num_layers, matrix_dtype):
        writer.write_tensor_data(tensor.values)
    writer.close()


def _length(checkpoint: Checkpoint, name: str, axis: int) -> int:
    return checkpoint[name].shape[axis]
