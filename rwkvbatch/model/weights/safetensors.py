"""The `.safetensors` format, and `save_tensors`, which writes tensor files of both formats atomically."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor

from rwkvbatch.errors import CheckpointError, StorageError, UsageError, error_text
from rwkvbatch.files import FILE_MODE, PRIVATE_MODE, open_file, replacing, writing_hint
from rwkvbatch.model.weights import pth
from rwkvbatch.model.weights.named_tensors import Entry, OnWritten, ignored
from rwkvbatch.model.weights.tensor_file import Contents, StoredBytes, unread_type
from rwkvbatch.targets import FileKind, check_target

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
_UNSUPPORTED_TYPES = {
    "F8_E4M3",
    "F8_E5M2",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "F8_E8M0",
    "F6_E2M3",
    "F6_E3M2",
    "F4",
    "C64",
    "U16",
    "U32",
    "U64",
}
"""Types of the format that this program does not support."""


def is_safetensors(head: bytes) -> bool:
    """Whether a file starts as `.safetensors` do: 8 bytes of length, then a JSON object."""
    return re.match(rb"\s*\{", head[8:]) is not None


def read_header(descriptor: int, path: Path) -> Contents:
    """The contents of a `.safetensors` file. Only its header is read.

    By the format's rules (github.com/huggingface/safetensors, README) the tensors fill the file, in any order, without
    gaps or overlaps.

    Raises:
        CheckpointError: the header is damaged, or breaks the rules.
    """
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"its header is said to have {length:,} bytes, at most {MAX_HEADER_BYTES:,} are read; damaged?", path=path
        )
    try:
        text = os.pread(descriptor, length, 8)
        if len(text) < length:
            raise ValueError("its header is cut off")
        header: dict[str, Any] = json.loads(text, object_pairs_hook=_unique)
        metadata = _metadata(header.pop("__metadata__", None))
        entries = {name: _entry(name, info, 8 + length) for name, info in header.items()}
        _check_layout(entries, 8 + length, os.fstat(descriptor).st_size)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"damaged or cut off safetensors file ({error_text(error) or type(error).__name__})", path=path
        ) from error
    for name, entry in entries.items():
        if entry.dtype is None:
            raise unread_type(name, str(header[name]["dtype"]), path)
    return Contents({name: entry.stored() for name, entry in entries.items()}, metadata)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return unique


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in cast("dict[Any, Any]", value).values()):
        raise ValueError("its metadata must be texts")
    return cast("dict[str, str]", value)


class _Entry(NamedTuple):
    """A tensor in the header; `dtype` is None for unsupported types."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    start: int
    end: int

    def stored(self) -> StoredBytes:
        assert self.dtype is not None
        # Contiguous: the last axis has stride 1, each other one the product of the sizes after it.
        strides = tuple(math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        return StoredBytes(self.dtype, self.shape, strides, self.start, self.end - self.start)


def _entry(name: str, info: Any, data_start: int) -> _Entry:
    try:
        kind, shape, (start, end) = info["dtype"], tuple(info["shape"]), info["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"the entry {name[:80]!r} of its header does not describe a tensor") from None
    if not all(type(number) is int and 0 <= number < 2**62 for number in (*shape, start, end)):
        raise ValueError(f"the tensor {name[:80]!r} has impossible sizes or offsets")
    if not isinstance(kind, str) or (kind not in _DTYPES and kind not in _UNSUPPORTED_TYPES):
        raise ValueError(f"the tensor {name[:80]!r} has the unknown type {str(kind)[:40]!r}")
    dtype = _DTYPES.get(kind)
    if start > end or (dtype is not None and math.prod(shape) * dtype.itemsize != end - start):
        raise ValueError(f"the tensor {name[:80]!r} has a size that contradicts its shape")
    return _Entry(dtype, shape, data_start + start, data_start + end)


def _check_layout(entries: Mapping[str, _Entry], start: int, file_size: int) -> None:
    position = start
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != position:
            raise ValueError("its tensors overlap, or leave gaps")
        position = entry.end
    if position != file_size:
        raise ValueError(f"its tensors end at byte {position:,}, the file at {file_size:,}")


SUFFIXES = (".pth", ".safetensors")


STATE_FORMAT = "rwkvbatch-state"
"""The value of the metadata key `format` in a saved state."""


def _is_state(path: Path) -> bool:
    try:
        with open_file(path) as file:
            return read_header(file.fileno(), path).metadata.get("format") == STATE_FORMAT
    except CheckpointError:
        return False


def _is_checkpoint(path: Path) -> bool:
    with open_file(path) as file:
        head = file.read(64)
    # `torch.save` writes a zip archive since version 1.6, and wrote a pickle of protocol 2 before.
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
    """Write a `.pth` or `.safetensors` file, by the name's ending, atomically.

    Args:
        kind: the kind of the file; files of another kind are never replaced.
        metadata: texts for the header of a `.safetensors` file.
        replace: whether an existing file of the same kind may be replaced.
        private: whether only the owner may read the file, from its creation on.

    Raises:
        UsageError: the name has another ending, or the file exists and may not be replaced.
        StorageError: the file could not be written.
    """
    entries = {
        name: Entry(tensor.dtype, tuple(tensor.shape), partial(_itself, tensor)) for name, tensor in tensors.items()
    }
    save_entries(path, entries, kind=kind, metadata=metadata, replace=replace, private=private)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def save_entries(
    path: Path,
    entries: Mapping[str, Entry],
    *,
    kind: FileKind = CHECKPOINT,
    metadata: Mapping[str, str] | None = None,
    replace: bool = False,
    private: bool = False,
    on_written: OnWritten = ignored,
) -> None:
    """`save_tensors` with one tensor in memory at a time. Errors of loading an entry are raised too.

    Args:
        on_written: called after each tensor, see `OnWritten`.
    """
    check_tensor_target(path, kind=kind, replace=replace)
    try:
        mode = PRIVATE_MODE if private else FILE_MODE
        with replacing(path, mode=mode) as temporary, temporary.open("r+b") as file:
            if path.suffix == ".safetensors":
                _write(file, entries, metadata or {}, on_written)
            else:
                pth.write_zip(file, entries, on_written)
    except OSError as error:
        raise StorageError(
            f"cannot write {str(path)!r}: {error.strerror or error}", hint=writing_hint(error)
        ) from error


_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 8


def _write(file: BinaryIO, entries: Mapping[str, Entry], metadata: Mapping[str, str], on_written: OnWritten) -> None:
    # Wide types first, so that every tensor is aligned to its type.
    order = sorted(entries, key=lambda name: -entries[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        start, end = end, end + entries[name].num_bytes
        header[name] = {
            "dtype": _NAMES[entries[name].dtype],
            "shape": list(entries[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(entries[name].bytes())
        on_written(header[name]["data_offsets"][1])


def check_tensor_target(path: Path, *, kind: FileKind = CHECKPOINT, replace: bool) -> None:
    """Raise `UsageError` unless `path` may be written."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"the name of the file to write must end in {' or '.join(SUFFIXES)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {str(path.parent)!r} to write {path.name!r} in")
    check_target(path, kind, replace=replace, how="--force replaces it")
