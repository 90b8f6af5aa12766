"""Hostile files for readers of weights, vocabularies, adapters and states."""

from __future__ import annotations

import io
import json
import random
import struct
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save

from rwkvbatch.errors import RwkvBatchError
from rwkvbatch.model.base import ModelSpec, State
from rwkvbatch.model.checkpoints.adapters import Adapter
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors
from rwkvbatch.model.states import load_state, save_state
from rwkvbatch.model.weights.quantised import quantised
from rwkvbatch.model.weights.safetensors import save_entries
from rwkvbatch.prompt import vocabulary
from rwkvbatch.prompt.bpe import _byte_of_character
from tests.hostile.mutations import of_bytes, of_json, of_safetensors
from tests.hostile.reader import Reader
from tests.model.made_forms import to_fla, write_directory, write_gguf

VOCAB_SIZE = 300
WIDTH = 4


@cache
def tiny_tensors() -> dict[str, torch.Tensor]:
    return random_tensors(1, WIDTH, VOCAB_SIZE, head_size=2, hidden=2, ranks=LowRankWidths(1, 1, 1, 1), seed=1)


@cache
def tiny_spec() -> ModelSpec:
    sizes = {"num_layers": 1, "width": WIDTH, "num_heads": 2, "head_size": 2, "vocab_size": VOCAB_SIZE}
    rest = {"num_parameters": 1, "state_bytes": 64, "weights_sha256": "f" * 64, "path": "x", "dtype": "fp32"}
    return ModelSpec(generation="7", backend="cpu", device="cpu", bitwise=True, **sizes, **rest)  # type: ignore[arg-type]


def read_checkpoint(path: Path, adapter: Adapter | None = None) -> None:
    """Open weights and read every tensor."""
    with open_checkpoint(path, adapter) as checkpoint:
        for name in checkpoint:
            checkpoint.check(name)


def gguf_files() -> list[bytes]:
    tensors = random_tensors(1, 32, 33, head_size=32, hidden=32, ranks=LowRankWidths(2, 2, 2, 2), seed=1)
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_gguf(Path(folder) / kind, tensors, matrices=kind) for kind in ("F32", "BF16", "Q8_0")]
        return [path.read_bytes() for path in paths]


def hf_weights(folder: Path) -> None:
    write_directory(folder, to_fla(tiny_tensors()), shards=2)


def hf_configs() -> list[bytes]:
    values = {"model_type": "rwkv7", "architectures": ["RWKV7ForCausalLM"], "hidden_size": 4, "num_hidden_layers": 1}
    more = {"attn": None, "vocab_size": VOCAB_SIZE, "norm_eps": 1e-5, "head_dim": 2, "fuse_norm": False}
    return [json.dumps({**values, **more}).encode()]


def hf_indexes() -> list[bytes]:
    names = list(to_fla(tiny_tensors()))
    return [index_of({name: f"model-{1 + number % 2:05}-of-00002.safetensors" for number, name in enumerate(names)})]


def index_of(weight_map: object) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


def quantised_files() -> list[bytes]:
    files: list[bytes] = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "x.safetensors"
        source.write_bytes(save(tiny_tensors()))
        for rounding in ("int4", "w8a8"):
            out = Path(folder) / f"{rounding}.safetensors"
            with open_checkpoint(source) as checkpoint:
                entries, metadata = quantised(checkpoint.rounded(None), rounding)
                save_entries(out, entries, metadata=metadata)
            files.append(out.read_bytes())
    return files


def adapter_files() -> list[bytes]:
    lora = {"lora_A": torch.ones(2, WIDTH), "lora_B": torch.ones(WIDTH, 2)}
    kinds = [
        {f"blocks.0.att.output.{name}": part for name, part in lora.items()},
        {"blocks.0.att.key.bone": torch.ones(2, 2, 2), "blocks.0.att.value.bone": torch.ones(2, 2, 2)},
        {"blocks.0.att.key.disha": torch.ones(2, WIDTH), "ln_out.weight": torch.ones(WIDTH)},
    ]
    return [save(kind) for kind in kinds]


def base_beside(folder: Path) -> None:
    (folder / "base.safetensors").write_bytes(save(tiny_tensors()))


def read_adapter(path: Path) -> None:
    """Read the adapter without alpha, or else with it, which only LoRA accepts."""
    try:
        read_checkpoint(path.parent / "base.safetensors", Adapter(path))
    except RwkvBatchError:
        read_checkpoint(path.parent / "base.safetensors", Adapter(path, 2.0))


def peft_weights(folder: Path) -> None:
    name = "base_model.model.blocks.0.att.output"
    parts = {f"{name}.lora_A.weight": torch.ones(2, WIDTH), f"{name}.lora_B.weight": torch.ones(WIDTH, 2)}
    (folder / "adapter_model.safetensors").write_bytes(save(parts))
    base_beside(folder.parent)


def peft_configs() -> list[bytes]:
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_rslora": False, "rank_pattern": {}}
    more = {"alpha_pattern": {}, "target_modules": ["output"], "base_model_name_or_path": "x", "use_dora": False}
    return [json.dumps({**values, **more, "init_lora_weights": True, "fan_in_fan_out": False}).encode()]


def tokenizers() -> list[bytes]:
    entries = {"<|endoftext|>": 0, **{character: 1 + at for at, character in enumerate(_byte_of_character())}}
    entries |= {"ab": 257, "abc": 258}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 0, "content": "<|endoftext|>", **special}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": level,
        "post_processor": level,
        "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": entries, "merges": ["a b", "ab c"]},
    }
    return [json.dumps(whole).encode()]


def world_vocabularies() -> list[bytes]:
    return ["".join(f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)).encode() + b"257 'ab' 2\n"]


def read_vocabulary(path: Path) -> None:
    """Read the vocabulary, and encode and decode with it."""
    vocabulary._read.cache_clear()
    tokenizer = vocabulary.read_vocabulary(path, VOCAB_SIZE)
    tokenizer.decode(tokenizer.encode("User: abc über 你好\n\nAssistant:"))


def states() -> list[bytes]:
    tuned, state_list = io.BytesIO(), io.BytesIO()
    torch.save({"blocks.0.att.time_state": torch.ones(2, 2, 2)}, tuned)
    torch.save([torch.ones(WIDTH), torch.ones(2, 2, 2), torch.ones(WIDTH)], state_list)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.safetensors"
        shift = torch.ones(1, 1, WIDTH)
        state = State({"att_shift": shift, "ffn_shift": shift.clone(), "wkv": torch.ones(1, 1, 2, 2, 2)})
        save_state(path, state, tiny_spec())
        saved = path.read_bytes()
    return [saved, save({"blocks.0.att.time_state": torch.ones(2, 2, 2)}), tuned.getvalue(), state_list.getvalue()]


def read_state(path: Path) -> None:
    load_state(path, tiny_spec())


def of_state(data: bytes, generator: random.Random) -> bytes:
    """Change the header of a safetensors file, or bytes of other files."""
    return of_safetensors(data, generator) if data[8:9] == b"{" else of_bytes(data, generator)


def with_header(header: object, data: bytes = bytes(64)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


_F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
_QUANTISED = {"rwkvbatch_quantised": json.dumps({"rounding": "int4", "inputs": {"head.weight": 1 << 40}})}

READERS: Mapping[str, Reader] = {
    "gguf": Reader(
        "model.gguf", read_checkpoint, gguf_files, [of_bytes],
        {"head": b"GGUF", "endless counts": b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 1 << 62) + bytes(64)},
        words=("GGUF", "rwkv7.wkv.head_size", "general.alignment", "token_embd.weight", "\x08\0\0\0", "\x0c\0\0\0"),
    ),
    "safetensors": Reader(
        "model.safetensors", read_checkpoint, lambda: [save(tiny_tensors())], [of_safetensors, of_bytes],
        {
            "no header": bytes(8),
            "long header": struct.pack("<Q", 1 << 62) + b"{}",
            "overlap": with_header({"a": _F32, "b": _F32}),
            "negative": with_header({"a": {**_F32, "shape": [-4]}}),
            "type": with_header({"a": {**_F32, "dtype": {}}}),
            "backwards": with_header({"a": {**_F32, "data_offsets": [16, 0]}}),
            "deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
        },
        words=("data_offsets", "__metadata__", "BF16", "F32", "blocks.0.att.r_k", "shape"),
    ),
    "hf-config": Reader(
        "config.json", lambda path: read_checkpoint(path.parent), hf_configs, [of_json, of_bytes],
        {"list": b"[]", "deep": b'{"a":' * 50_000, "quantised": b'{"quantization_config": {"bits": 4}}', "empty": b""},
        hf_weights,
        words=('"model_type"', '"rwkv7"', '"norm_eps"', '"quantization_config"', '"head_dim"', '"fuse_norm"'),
    ),
    "hf-index": Reader(
        "model.safetensors.index.json", lambda path: read_checkpoint(path.parent), hf_indexes, [of_json, of_bytes],
        {"out": index_of({"a": "../x"}), "self": index_of({"a": "."}), "list": index_of([])},
        hf_weights,
        words=('"weight_map"', "model-00001-of-00002.safetensors", "../", "lm_head.weight"),
    ),
    "quantised": Reader(
        "model.safetensors", read_checkpoint, quantised_files, [of_safetensors, of_safetensors, of_bytes],
        {"inputs": with_header({"__metadata__": _QUANTISED, "head.weight": {**_F32, "dtype": "U8", "shape": [2, 8]}})},
        words=("rwkvbatch_quantised", "rounding", "inputs", "int4", "w8a8", "U8"),
    ),
    "adapter": Reader(
        "adapter.safetensors", read_adapter, adapter_files, [of_safetensors, of_bytes],
        {"half": with_header({"blocks.0.att.key.lora_A": _F32}), "of nothing": with_header({"a.lora_A": _F32})},
        base_beside,
        words=("lora_A", "lora_B", "disha", "bone", "blocks.0.att.key"),
    ),
    "peft-config": Reader(
        "adapter/adapter_config.json",
        lambda path: read_checkpoint(path.parent.parent / "base.safetensors", Adapter(path.parent)),
        peft_configs,
        [of_json, of_bytes],
        {"list": b"[]", "none": b"{}", "dora": b'{"peft_type": "LORA", "use_dora": true, "lora_alpha": 1}'},
        peft_weights,
        words=('"lora_alpha"', '"peft_type"', '"rank_pattern"', '"alpha_pattern"', '"use_rslora"', '"LORA"'),
    ),
    "tokenizer": Reader(
        "tokenizer.json", read_vocabulary, tokenizers, [of_json, of_json, of_bytes],
        {"list": b"[]", "object": b"{}", "deep": b'{"model":' * 9000, "unigram": b'{"model": {"type": "Unigram"}}'},
        words=('"ByteLevel"', '"added_tokens"', '"merges"', '"vocab"', '"decoders"', '"special"', '"id"'),
    ),
    "world-vocabulary": Reader(
        "vocab.txt", read_vocabulary, world_vocabularies, [of_bytes],
        {"program": b"1 __import__('os').getpid() 1\n", "huge id": b"99999999999 'a' 1\n", "length": b"1 'a' 7\n"},
        words=("b'\\x00'", "257", "\\u", "'''", "f'{"),
    ),
    "state": Reader(
        "state.st", read_state, states, [of_state, of_bytes],
        {f"layer {n}": with_header({f"blocks.{n}.att.time_state": _F32}) for n in (0, 1, 999_999)},
        words=("blocks.0.att.time_state", "rwkvbatch", "__metadata__", "wkv", "att_shift"),
    ),
}  # fmt: skip
