"""The table of contents of a `.safetensors` file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.stored_bytes import StoredBytes

MAX_HEADER_BYTES = 16 << 20

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def is_safetensors(head: bytes) -> bool:
    """Whether a file starts as `.safetensors` do: 8 bytes of length, then a JSON object."""
    return re.match(rb"\s*\{", head[8:]) is not None


def read_header(descriptor: int, path: Path) -> tuple[dict[str, StoredBytes], Mapping[str, str]]:
    """Where each tensor lies, and the file's metadata.

    Raises:
        CheckpointError: the header is damaged, or lies about sizes or places.
    """
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"its header is said to have {length:,} bytes, at most {MAX_HEADER_BYTES:,} are read; damaged?",
            path=path,
        )
    try:
        # The library checks that the tensors fill the file without gaps or overlaps, and fit their shapes.
        with safe_open(path, framework="pt"):
            pass
        header: dict[str, Any] = json.loads(os.pread(descriptor, length, 8))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"damaged or cut off safetensors file ({_reason(error)})", path=path) from error
    metadata = header.pop("__metadata__", None) or {}
    entries: dict[str, StoredBytes] = {}
    for name, info in header.items():
        dtype = _DTYPES.get(info["dtype"])
        if dtype is None:
            raise CheckpointError(f"the tensor {name!r} has the unsupported type {info['dtype']}", path=path)
        shape = tuple(info["shape"])
        start, end = info["data_offsets"]
        entry = StoredBytes(dtype, shape, _contiguous(shape), 8 + length + start, end - start)
        if entry.num_bytes != entry.span:
            raise CheckpointError(f"the tensor {name!r} has a size that does not fit its shape", path=path)
        entries[name] = entry
    return entries, metadata


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
