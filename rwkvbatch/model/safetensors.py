"""The `.safetensors` format, and `save_tensors`, which writes tensor files of both formats atomically."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rwkvbatch.errors import CheckpointError, StorageError, UsageError
from rwkvbatch.files import FILE_MODE, PRIVATE_MODE, FileKind, check_target, replacing
from rwkvbatch.model.tensor_file import Contents, StoredBytes

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


def read_header(descriptor: int, path: Path) -> Contents:
    """The contents of a `.safetensors` file.

    Raises:
        CheckpointError: the header is damaged, or its sizes or offsets cannot be right.
    """
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"its header is said to have {length:,} bytes, at most {MAX_HEADER_BYTES:,} are read; damaged?", path=path
        )
    try:
        # The library checks that tensors fill the file without gaps or overlaps, and fit their shapes.
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
        # Contiguous: the last axis has stride 1, each other one the product of the sizes after it.
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        entry = StoredBytes(dtype, shape, strides, 8 + length + start, end - start)
        if entry.num_bytes != entry.span:
            raise CheckpointError(f"the tensor {name!r} has a size that does not fit its shape", path=path)
        entries[name] = entry
    return Contents(entries, metadata)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


SUFFIXES = (".pth", ".safetensors")


STATE_FORMAT = "rwkvbatch-state"
"""What the metadata key `format` of a saved state says."""


def _is_state(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == STATE_FORMAT
    except SafetensorError:
        return False


def _is_checkpoint(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(64)
    # A zip archive, or a pickle of protocol 2: what `torch.save` has written since and before version 1.6.
    return head.startswith((b"PK\x03\x04", b"\x80\x02")) or (is_safetensors(head) and not _is_state(path))


CHECKPOINT = FileKind("a checkpoint", _is_checkpoint)
STATE = FileKind("a saved state", _is_state)


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    kind: FileKind = CHECKPOINT,
    metadata: Mapping[str, str] | None = None,
    replace: bool = False,
    private: bool = False,
) -> None:
    """Write `.pth` or `.safetensors`, as the name ends, so that the file is there complete or not at all.

    Args:
        kind: of the file; one of another kind is never replaced.
        metadata: texts for the header of a `.safetensors` file.
        replace: whether an existing file of the same kind may be replaced.
        private: whether only the owner may read it, at no time anyone else.

    Raises:
        UsageError: the name ends otherwise, or the file is there and may not be replaced.
        StorageError: it could not be written.
    """
    check_tensor_target(path, kind=kind, replace=replace)
    try:
        with replacing(path, mode=PRIVATE_MODE if private else FILE_MODE) as temporary:
            mode = stat.S_IMODE(temporary.stat().st_mode)
            plain = _own_storages(tensors)
            if path.suffix == ".safetensors":
                save_file(plain, temporary, dict(metadata) if metadata else None)
            else:
                torch.save(plain, temporary)
            temporary.chmod(mode)  # safetensors makes a file of its own, for the owner only
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors report a full disk as errors of their own.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:200]
        raise StorageError(f"cannot write {str(path)!r}: {reason}", hint="is there room on the disk?") from error


def check_tensor_target(path: Path, *, kind: FileKind = CHECKPOINT, replace: bool) -> None:
    """Raise `UsageError` unless `path` may be written."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"the name of the file to write must end in {' or '.join(SUFFIXES)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {str(path.parent)!r} to write {path.name!r} in")
    check_target(path, kind, replace=replace, how="--force replaces it")


def _own_storages(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers, each tensor contiguous and with a storage of its own.

    `torch.save` writes the whole storage that a view looks at; `.safetensors` has neither views nor shared storage.
    """
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
        alone = whole and storage.data_ptr() not in seen
        plain[name] = tensor.detach() if alone else tensor.detach().clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
    return plain
