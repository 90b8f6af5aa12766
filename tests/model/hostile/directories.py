"""Hugging Face directories and indexes that lie, miss something, or hold something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from tests.model.hostile.case import Case, tiny
from tests.model.hostile.packing import pth

INDEX = "model.safetensors.index.json"


def _folder(files: Mapping[str, bytes | object]) -> Callable[[Path], None]:
    """Writes a directory; what is not bytes is written as JSON."""

    def write(path: Path) -> None:
        path.mkdir()
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (path / name).write_bytes(data)

    return write


def directories() -> Iterator[Case]:
    names = list(tiny())
    some = {name: torch.ones(2, 2) for name in names[:2]}
    weights = save(tiny())

    def index(places: object) -> dict[str, object]:
        return {"metadata": {}, "weight_map": places}

    made: dict[str, tuple[Mapping[str, bytes | object], str]] = {
        "index-leads-out": ({INDEX: index({"a": "../secret.safetensors"})}, "must name files in its own directory"),
        "index-absolute": ({INDEX: index({"a": "/etc/passwd"})}, "must name files in its own directory"),
        "index-itself": ({INDEX: index({"a": "."})}, "must name files in its own directory"),
        "index-number": ({INDEX: index({"a": 1})}, "must name files in its own directory"),
        "index-nul": ({INDEX: index({"a": "a\0b"})}, "are missing"),
        "index-long-name": ({INDEX: index({"a": "a" * 5000})}, "are missing"),
        "index-half-pair": ({INDEX: index({"a": "\ud800"})}, "are missing"),
        "index-list": ({INDEX: index(["a"])}, "no 'weight_map'"),
        "index-empty": ({INDEX: index({})}, "no 'weight_map'"),
        "index-no-json": ({INDEX: b"{" * 1000}, "not JSON"),
        "index-deep": ({INDEX: b"[" * 100_000}, "not JSON"),
        "index-not-text": ({INDEX: b"\xff\xfe\x00"}, "not JSON"),
        "index-of-nothing": ({INDEX: index({"a": "a.safetensors"})}, "1 of 1 shards that the index names are missing"),
        "index-wrong-shard": (
            {INDEX: index({"head.weight": "a.safetensors"}), "a.safetensors": save(some)},
            "is not in 'a.safetensors', as the index says",
        ),
        "index-shard-is-text": ({INDEX: index({"a": "a.bin"}), "a.bin": b"Entry not found!\n"}, "this is text"),
        "shards-missing": ({"model-00001-of-00003.safetensors": save(some)}, "expected 3 shards, found 1"),
        "two-files": ({"a.safetensors": weights, "b.safetensors": weights}, "2 weights files"),
        "shards-overlap": (
            {f"model-0000{number}-of-00002.safetensors": save(some) for number in (1, 2)},
            "and in another file too",
        ),
        "only-config": ({"config.json": {"model_type": "rwkv7"}}, "this directory has no weights"),
        "config-list": ({"config.json": [1], "model.safetensors": weights}, "expected a JSON object, found list"),
        "config-quantised": (
            {"config.json": {"model_type": "rwkv7", "quantization_config": {"bits": 4}}, "model.safetensors": weights},
            "quantization_config",
        ),
        "config-fused-norm": (
            {"config.json": {"model_type": "rwkv7", "embedding_layer_norm_fused": True}, "model.safetensors": weights},
            "embedding_layer_norm_fused",
        ),
        "config-qwen": (
            {
                "config.json": {"model_type": "qwen3"},
                "model.safetensors": save({"model.layers.0.self_attn.q_proj.weight": torch.ones(2, 2)}),
            },
            "this is 'qwen3', says its config.json",
        ),
        "zero-directory": (
            {"zero_to_fp32.py": b"import os\n", "latest": b"global_step1"},
            "a DeepSpeed ZeRO checkpoint",
        ),
        "dcp-directory": ({".metadata": b"x", "__0_0.distcp": b"x"}, "a torch.distributed checkpoint"),
        "prefix-collision": (
            {
                "pytorch_model.bin": pth(
                    {f"model.{name}": t for name, t in tiny().items()} | {"emb.weight": some[names[0]]}
                )
            },
            "with and without the prefix",
        ),
        "two-networks": (
            {"pytorch_model.bin": pth({f"{p}.{n}": t for p in ("a", "b") for n, t in tiny().items()})},
            "more than one network",
        ),
    }
    for label, (files, message) in made.items():
        yield Case(f"folder-{label}", _folder(files), message)
    yield Case("config.json", lambda path: path.write_text('{"model_type": "rwkv7"}'), "not an index of shards")
