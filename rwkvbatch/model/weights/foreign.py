"""Recognises files that this program cannot use, names them, and says what to do.

There are two tables: `KINDS`, by a file's first bytes, and `NETWORKS`, by the names of its tensors. Sources: the
formats' own magic numbers; ggml's old formats in rwkv.cpp's docs/FILE_FORMAT.md; RWKV-7b, RWKV-8 and ROSA in RWKV-LM,
RWKV-v7 and RWKV-v8 (rwkv_v7b_demo.py, rwkv_v8_rc00_demo.py, 260212_rosa1bitLM_L12.py); fla's names of RWKV-6 in its
convert_from_rwkv6.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvbatch.errors import CheckpointError

ORIGINAL = "give the .pth or .safetensors that it was made from"
DOWNLOAD = "download the file itself; servers send such a page for a wrong address, or one that needs a login"


@dataclass(frozen=True)
class ForeignKind:
    """A kind of file by its first bytes; `name` completes "this is ..."."""

    name: str
    pattern: re.Pattern[bytes]
    hint: str | None = None


def _kind(name: str, pattern: bytes, hint: str | None = None) -> ForeignKind:
    return ForeignKind(name, re.compile(pattern, re.DOTALL | re.IGNORECASE), hint)


KINDS = (
    _kind(
        "a Git LFS pointer, not the file itself",
        rb"version https?://\S*git-lfs",
        "fetch the file: git lfs pull, or hf download",
    ),
    _kind("a web page (HTML)", rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|!--)", DOWNLOAD),
    _kind("an XML document", rb"(?:\xef\xbb\xbf)?\s*<[?a-z]", DOWNLOAD),
    _kind("a ggml file of rwkv.cpp (an older format than GGUF)", rb"fmgg[\x64\x65]\0\0\0", ORIGINAL),
    _kind("a ggml file (an older format than GGUF)", rb"(?:lmgg|fmgg|tjgg|algg)", ORIGINAL),
    _kind("an ONNX model", rb"\x08[\x03-\x14](?:\x12|\x1a|:)[\x01-\x7f]", ORIGINAL),
    _kind("a NumPy file", rb"\x93NUMPY", "save the tensors with safetensors or torch.save"),
    _kind("an HDF5 file (Keras)", rb"\x89HDF\r\n", ORIGINAL),
    _kind("a TensorFlow Lite model", rb".{4}TFL3", ORIGINAL),
    _kind("a PyTorch Mobile model", rb".{4}PTMF", ORIGINAL),
    _kind("an ExecuTorch program", rb".{4}ET\d\d", ORIGINAL),
    _kind("a gzip archive", rb"\x1f\x8b", "unpack it"),
    _kind("a bzip2 archive", rb"BZh\d", "unpack it"),
    _kind("an xz archive", rb"\xfd7zXZ", "unpack it"),
    _kind("a Zstandard archive", rb"\x28\xb5\x2f\xfd", "unpack it"),
    _kind("a 7z archive", rb"7z\xbc\xaf", "unpack it"),
    _kind("a RAR archive", rb"Rar!", "unpack it"),
    _kind("a tar archive", rb".{100}(?:[0-7 ]{7}[\0 ]){3}", "unpack it"),
    _kind("a PNG picture", rb"\x89PNG"),
    _kind("a PDF document", rb"%PDF"),
    _kind("a GGUF file of the other byte order", rb"FUGG", ORIGINAL),
    # Protocol, from protocol 4 on a frame, then the long integer 0x1950a86a20f9469cfc6c.
    _kind(
        "a .pth file as PyTorch wrote it before version 1.6",
        rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\.",
        "load it with PyTorch, torch.load(FILE), and save it again with torch.save",
    ),
    _kind(
        "a pickle, but not one of torch.save", rb"\x80[\x02-\x05]", "save the tensors with safetensors or torch.save"
    ),
    _kind("JSON, not weights", rb"(?:\xef\xbb\xbf)?\s*[\[{]\s*[\]}\"\d]"),
    _kind(
        "text, not weights",
        rb"(?:\xef\xbb\xbf)?[\t\r\n\x20-\x7e]{8,}\Z",
        "is it the error message of a failed download? read it",
    ),
)


def refuse_kind(head: bytes, path: Path) -> None:
    """Raise `CheckpointError`, with the name of the format, if a file that begins with `head` is in `KINDS`."""
    for kind in KINDS:
        if kind.pattern.match(head):
            raise CheckpointError(f"not a checkpoint: this is {kind.name}", path=path, hint=kind.hint)


@dataclass(frozen=True)
class ForeignNetwork:
    """A network by the names of its tensors: one name must match `pattern`; `name` completes "this is ..."."""

    name: str
    pattern: re.Pattern[str]
    hint: str | None = None


def _network(name: str, pattern: str, hint: str | None = None) -> ForeignNetwork:
    return ForeignNetwork(name, re.compile(pattern), hint)


NOT_COMPUTED = "this program computes RWKV-4 to RWKV-7 and RWKV-7a"

VARIANTS = (
    _network("RWKV-8 with ROSA", r"(?:.*\.)?(?:emb_)?rosa\w*\..+", NOT_COMPUTED),
    _network("RWKV-8 (DeepEmbed `ffn.enn`)", r"blocks\.\d+\.ffn\.enn\..+", NOT_COMPUTED),
    _network(
        "RWKV-7b (DeepEmbed attention `qkv`), whose state grows with the text", r"blocks\.\d+\.qkv\..+", NOT_COMPUTED
    ),
    _network("RWKV-2 or RWKV-3", r"blocks\.\d+\.att\.time_(?:w|ww|curve|alpha|beta|gamma)", NOT_COMPUTED),
    _network(
        "a hybrid of RWKV-7 and softmax attention",
        r"blocks\.\d+\.att\.q_proj\..+",
        "this program computes layers of RWKV only",
    ),
)
"""Variants of RWKV. Without these entries, their official names would be reported as surplus tensors."""

NETWORKS = (
    _network(
        "RWKV-6 under the names of flash-linear-attention",
        r"(?:model\.)?layers\.\d+\.attn\.(?:bonus|x_proj\..+)",
        "give the official .pth of RWKV-6",
    ),
    _network(
        "RWKV-7 attention inside another model (ARWKV, QRWKV)",
        r"(?:model\.)?layers\.\d+\.self_attn\.(?:r_k|x_r|w0|time_\w+|receptance\..+)",
        "this program computes RWKV's own channel mix only",
    ),
    _network("a Mamba model", r"(?:.+\.)?layers\.\d+\.mixer\..+"),
    _network(
        "a transformer with softmax attention (Llama, Qwen, Mistral and the like)",
        r"(?:.+\.)?layers\.\d+\.self_attn\.(?:q_proj|k_proj|qkv_proj|o_proj|W_pack|query_key_value)\..+",
    ),
    _network("a transformer of Meta's Llama files", r"layers\.\d+\.attention\.w[qkvo]\.weight"),
    _network("GPT-NeoX", r"(?:.+\.)?layers\.\d+\.attention\.query_key_value\..+"),
    _network("GPT-2", r"(?:.+\.)?h\.\d+\.attn\.c_attn\..+"),
    _network(
        "a transformer (Falcon, BLOOM, MPT)", r"(?:.+\.)?(?:h|blocks)\.\d+\.(?:self_attention|attn)\.\w*[qQ]kv\w*\..+"
    ),
    _network("BERT or a relative", r"(?:.+\.)?layer\.\d+\.attention\.self\..+"),
    _network("T5", r"(?:encoder|decoder)\.block\.\d+\.layer\..+"),
    _network("a diffusion model", r"(?:model\.diffusion_model|down_blocks|first_stage_model|double_blocks)\..+"),
    _network("another linear attention model of flash-linear-attention", r"(?:model\.)?layers\.\d+\.attn\.q_proj\..+"),
    _network("an optimizer's state, not weights", r"(?:optimizer|exp_avg\w*|state)\..+"),
)

QUANTISED = re.compile(
    r".+\.(?:qweight|qzeros|weight_packed|weight_scale|weight_shape|SCB|absmax|quant_map|scales|weight\.quant_state\..+)"
)


def refuse_variant(names: Iterable[str], path: Path) -> None:
    """Raise `CheckpointError`, with the name of the network, for an unsupported variant of RWKV."""
    _refuse(VARIANTS, [*names], path)


def refuse_network(names: Iterable[str], config: Mapping[str, Any], path: Path) -> None:
    """Raise `CheckpointError`, with the name of the network, by its `config.json` or its tensors' names."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and not model_type.lower().startswith(("rwkv", "arwkv")):
        raise CheckpointError(
            f"not an RWKV checkpoint: this is {model_type[:60]!r}, says its config.json", path=path, hint=NOT_COMPUTED
        )
    _refuse(NETWORKS, [*names], path)


def refuse_quantised(names: Iterable[str], path: Path) -> None:
    """Raise `CheckpointError` if tensors are packed by a quantisation method."""
    name = next((name for name in names if QUANTISED.fullmatch(name)), None)
    if name is not None:
        raise CheckpointError(
            f"its weights are quantised by GPTQ, AWQ, bitsandbytes or compressed-tensors ({name[:80]!r}), "
            "which is not read",
            path=path,
            hint='give the unquantised checkpoint; --strategy "cpu int8" quantises while loading',
        )


def _refuse(networks: Iterable[ForeignNetwork], names: list[str], path: Path) -> None:
    for network in networks:
        name = next((name for name in names if network.pattern.fullmatch(name)), None)
        if name is not None:
            raise CheckpointError(
                f"this is {network.name}, by its tensor {name[:80]!r}", path=path, hint=network.hint or NOT_COMPUTED
            )
