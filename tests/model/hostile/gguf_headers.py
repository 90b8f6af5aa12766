"""GGUF files with tables of contents that lie."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.model.hostile.case import Case, from_bytes

F32, F16, Q8_0, Q4_K = 0, 1, 8, 12


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


SOUND = (
    pair("general.architecture", 8, text("rwkv7")),
    pair("rwkv7.wkv.head_size", 4, struct.pack("<I", 32)),
    pair("rwkv7.attention.layer_norm_epsilon", 6, struct.pack("<f", 1e-5)),
)


def tensor(name: str, shape: list[int], kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(
    *tensors: bytes,
    pairs: tuple[bytes, ...] = SOUND,
    version: int = 3,
    num_tensors: int | None = None,
    num_pairs: int | None = None,
    data: bytes = bytes(256),
) -> bytes:
    counts = (len(tensors) if num_tensors is None else num_tensors, len(pairs) if num_pairs is None else num_pairs)
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors) + data


def gguf() -> Iterator[Case]:
    beyond = "continues after its end"
    yield from_bytes("gguf-empty", b"GGUF", beyond)
    yield from_bytes("gguf-version", file(version=1), "version 1; versions 2 and 3")
    yield from_bytes("gguf-no-architecture", file(pairs=()), "architecture 'None'")
    yield from_bytes("gguf-many-tensors", file(num_tensors=1 << 62), "said to have")
    yield from_bytes("gguf-many-values", file(num_pairs=1 << 40), "said to have")
    yield from_bytes("gguf-few-values", file(num_pairs=60_000), "damaged")
    yield from_bytes("gguf-type", file(pairs=(*SOUND, pair("a", 77, b""))), "unknown type 77")
    huge = struct.pack("<IQ", 8, 1 << 60)
    yield from_bytes("gguf-texts-many", file(pairs=(*SOUND, pair("a", 9, huge))), "more than")
    yield from_bytes("gguf-numbers-many", file(pairs=(*SOUND, pair("a", 9, struct.pack("<IQ", 4, 1 << 62)))), beyond)
    yield from_bytes(
        "gguf-nested-list", file(pairs=(*SOUND, pair("a", 9, struct.pack("<IQ", 9, 1) * 4000))), "unknown type 9"
    )
    yield from_bytes(
        "gguf-texts-empty",
        lambda: file(pairs=(*SOUND, pair("a", 9, struct.pack("<IQ", 8, 1 << 19) + bytes(8 << 19)))),
        "'emb.weight'",
    )
    yield from_bytes("gguf-key-gigantic", file(pairs=(struct.pack("<Q", 1 << 62),)), beyond)
    yield from_bytes(
        "gguf-head-size-text", file(pairs=(SOUND[0], pair("rwkv7.wkv.head_size", 8, text("x")))), "head_size"
    )
    yield from_bytes(
        "gguf-head-size-zero", file(pairs=(SOUND[0], pair("rwkv7.wkv.head_size", 4, bytes(4)))), "head_size"
    )
    alignment = pair("general.alignment", 4, bytes(4))
    yield from_bytes("gguf-alignment", file(pairs=(*SOUND, alignment)), "alignment is 0")
    yield from_bytes("gguf-axes", file(text("a") + struct.pack("<I", 1 << 31)), "axes")
    yield from_bytes("gguf-format", file(tensor("a", [256], Q4_K)), "the number format Q4_K")
    yield from_bytes("gguf-format-unknown", file(tensor("a", [256], 9999)), "number 9999")
    yield from_bytes("gguf-block", file(tensor("a", [33], Q8_0)), "whole number of blocks")
    yield from_bytes("gguf-shape-gigantic", file(tensor("a", [1 << 60, 1 << 60])), "beyond the end")
    yield from_bytes("gguf-offset", file(tensor("a", [4], F32, 1 << 62)), "beyond the end")
    yield from_bytes("gguf-twice", file(tensor("a", [4]), tensor("a", [4])), "two tensors 'a'")
    yield from_bytes("gguf-overlap", file(*(tensor(f"t{n}", [60]) for n in range(100))), "times the bytes of the file")
    yield from_bytes("gguf-other-tensors", file(tensor("token_embd.weight", [4, 4])), "not an RWKV checkpoint")
    layer = [tensor("token_embd.weight", [4, 4]), tensor("blk.0.time_mix_r_k.weight", [33])]
    yield from_bytes("gguf-r-k", file(*layer), "does not divide")
    layer = [tensor("token_embd.weight", [4, 4]), tensor("blk.0.time_mix_lerp_fused.weight", [7])]
    yield from_bytes("gguf-fused", file(*layer), "does not have 6 numbers")
