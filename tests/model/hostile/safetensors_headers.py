"""`.safetensors` files with headers that lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.model.hostile.case import Case, from_bytes


def _safe(header: object, data: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(shape: list[Any], start: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def safetensors() -> Iterator[Case]:
    damaged = "damaged or cut off"
    yield from_bytes("safe-header-gigantic", struct.pack("<Q", 1 << 62) + b'{"a":1}', "at most")
    yield from_bytes("safe-header-beyond", struct.pack("<Q", 1 << 20) + b'{"a":1}', damaged)
    yield from_bytes("safe-header-open", _safe(b'{"a": {"dtype"'), damaged)
    yield from_bytes("safe-header-deep", _safe(b'{"a":' * 100_000), damaged)
    yield from_bytes("safe-header-broken-text", _safe(b'{"\xff\xfe": 1}'), damaged)
    yield from_bytes("safe-header-list", _safe(b"{} "), "damaged or cut off")
    yield from_bytes("safe-header-wrong-kind", _safe({"a": [1, 2]}), damaged)
    yield from_bytes("safe-overlap", _safe({"a": _entry([16], 0, 64), "b": _entry([16], 0, 64)}), damaged)
    yield from_bytes("safe-gap", _safe({"a": _entry([4], 0, 16), "b": _entry([4], 48, 64)}), damaged)
    yield from_bytes("safe-beyond", _safe({"a": _entry([32], 0, 128)}), damaged)
    yield from_bytes("safe-tail", _safe({"a": _entry([8], 0, 32)}), damaged)
    yield from_bytes("safe-negative", _safe({"a": _entry([16], -64, 0)}), damaged)
    yield from_bytes("safe-negative-shape", _safe({"a": _entry([-16], 0, 64)}), damaged)
    yield from_bytes("safe-backwards", _safe({"a": _entry([16], 64, 0)}), damaged)
    yield from_bytes("safe-shape-overflow", _safe({"a": _entry([1 << 40, 1 << 40], 0, 64)}), damaged)
    yield from_bytes("safe-shape-lies", _safe({"a": _entry([15], 0, 64)}), damaged)
    yield from_bytes("safe-unknown-type", _safe({"a": _entry([16], 0, 64, "F33")}), damaged)
    yield from_bytes("safe-complex", _safe({"a": _entry([8], 0, 64, "C64")}), "must be bf16, fp16 or fp32, it is C64")
    yield from_bytes("safe-fraction", _safe({"a": _entry([16.5], 0, 64)}), damaged)
    yield from_bytes("safe-infinite", _safe(b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,64]}}'), damaged)
    yield from_bytes("safe-metadata-kind", _safe({"__metadata__": {"a": 1}, "a": _entry([16], 0, 64)}), damaged)
    yield Case("safe-header-of-gigabytes", _sparse_header, "at most")


def _sparse_header(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 3 << 30) + b"{")
        file.truncate((3 << 30) + 8)
