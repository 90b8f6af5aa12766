"""The table of contents of a `.pth` file, as `torch.save` writes it: a zip archive, or of old a plain stream."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.pickle_recipe import Recipe, StorageRef, StoredTensor
from rwkvbatch.model.stored_bytes import StoredBytes, span_of

MAX_DIRECTORY_BYTES = 4 << 20
MAX_RECIPE_BYTES = 16 << 20

_ZIP_MAGIC = b"PK\x03\x04"
# Protocol byte, then the long integer 0x1950a86a20f9469cfc6c.
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_LOCAL_HEADER = struct.Struct("<4s22xHH")

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_zip(head: bytes) -> bool:
    return head.startswith(_ZIP_MAGIC)


def is_legacy(head: bytes) -> bool:
    return head[2:].startswith(_LEGACY_MAGIC)


class _BoundedReads(io.FileIO):
    """A file of which no single read may be large: a zip directory is read in one piece, as large as it says."""

    def read(self, size: int | None = -1, /) -> bytes:
        limit = MAX_DIRECTORY_BYTES + 1
        data = super().read(limit if size is None or size < 0 else min(size, limit)) or b""
        if len(data) > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its directory is too large")
        return data


def zip_entries(descriptor: int, path: Path) -> dict[str, StoredBytes]:
    """Where each tensor of a zip `.pth` file lies.

    Raises:
        CheckpointError: cut off, damaged, compressed, or not a dict of tensors.
    """
    try:
        with _BoundedReads(descriptor, closefd=False) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        ValueError,
        OSError,
        struct.error,
        NotImplementedError,  # zipfile, of archives that are split or made for later versions
    ) as error:
        raise CheckpointError(f"cut off or damaged .pth file ({error})", path=path) from error
    places = _places(descriptor, members, path)
    recipe = next((name for name in places if name.endswith("/data.pkl")), None)
    if recipe is None:
        raise CheckpointError("a zip archive without data.pkl, so not written by torch.save", path=path)
    root = recipe.removesuffix("data.pkl")
    if places.get(root + "byteorder", (0, 6)) != (0, 6):
        start, length = places[root + "byteorder"]
        if os.pread(descriptor, min(length, 6), start) != b"little":
            raise CheckpointError("written on a big-endian machine, which is not supported", path=path)
    start, length = places[recipe]
    if length > MAX_RECIPE_BYTES:
        raise CheckpointError(
            f"its list of tensors has {length:,} bytes, at most {MAX_RECIPE_BYTES:,} are read", path=path
        )
    value = Recipe(os.pread(descriptor, length, start), 0, str(path)).run()

    def place(storage: StorageRef) -> tuple[int, int]:
        found = places.get(f"{root}data/{storage.key}")
        if found is None:
            raise CheckpointError(f"its tensors need a record data/{storage.key[:80]} that is not there", path=path)
        return found

    return {name: _stored(name, tensor, place(tensor.storage), path) for name, tensor in _tensors(value, path).items()}


def _places(descriptor: int, members: list[zipfile.ZipInfo], path: Path) -> dict[str, tuple[int, int]]:
    """Start and length of each archive member's bytes."""
    file_size = os.fstat(descriptor).st_size
    places: dict[str, tuple[int, int]] = {}
    total = 0
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise CheckpointError(
                f"its member {member.filename[:80]!r} is compressed, which torch.save never does", path=path
            )
        offset = member.header_offset
        header = os.pread(descriptor, _LOCAL_HEADER.size, offset) if 0 <= offset < file_size else b""
        if len(header) != _LOCAL_HEADER.size or not header.startswith(_ZIP_MAGIC):
            raise CheckpointError(f"cut off or damaged at its member {member.filename[:80]!r}", path=path)
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = offset + _LOCAL_HEADER.size + name_length + extra_length
        total += member.file_size
        if start + member.file_size > file_size or total > file_size:
            raise CheckpointError(
                f"cut off: its members are said to have more bytes than the file's {file_size:,}", path=path
            )
        places[member.filename] = (start, member.file_size)
    return places


def legacy_entries(descriptor: int, path: Path) -> dict[str, StoredBytes]:
    """Where each tensor of a `.pth` file from before torch 1.6 lies.

    Raises:
        CheckpointError: cut off, damaged, or not a dict of tensors.
    """
    head = os.pread(descriptor, MAX_RECIPE_BYTES, 0)
    position = 0
    values: list[Any] = []
    for _ in range(5):
        recipe = Recipe(head, position, str(path))
        values.append(recipe.run())
        position = recipe.position
    _magic, _protocol, system, value, keys = values
    if not isinstance(system, dict) or not isinstance(keys, list):
        raise CheckpointError("its preamble is damaged", path=path)
    if system.get("little_endian") is not True:
        raise CheckpointError("written on a big-endian machine, which is not supported", path=path)
    tensors = _tensors(value, path)
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise CheckpointError("its list of storages does not fit its tensors", path=path)
        count = os.pread(descriptor, 8, position)
        if int.from_bytes(count, "little") != storage.num_elements or len(count) != 8:
            raise CheckpointError(f"cut off or damaged at its storage {key[:80]!r}", path=path)
        length = storage.num_elements * _dtype(storage, path).itemsize
        places[key] = (position + 8, length)
        position += 8 + length
    missing = storages.keys() - places.keys()
    if missing:
        raise CheckpointError(f"its tensors need storages that are not there, such as {min(missing)[:80]!r}", path=path)
    return {name: _stored(name, tensor, places[tensor.storage.key], path) for name, tensor in tensors.items()}


def _tensors(value: Any, path: Path) -> dict[str, StoredTensor]:
    if not isinstance(value, dict):
        raise CheckpointError(f"expected a dict of tensors, found one {type(value).__name__}", path=path)
    hint = None
    inner = next((key for key in ("state_dict", "model", "module") if isinstance(value.get(key), dict)), None)
    if inner is not None:
        hint = f"save its entry {inner!r} alone"
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            raise CheckpointError(
                f"expected a dict of tensors; its entry {str(name)[:80]!r} is of type {type(tensor).__name__}",
                path=path,
                hint=hint,
            )
    return value


def _dtype(storage: StorageRef, path: Path) -> torch.dtype:
    dtype = _STORAGE_DTYPES.get(storage.kind)
    if dtype is None:
        raise CheckpointError(f"a tensor has the unsupported type {storage.kind[:80]}", path=path)
    return dtype


def _stored(name: str, tensor: StoredTensor, place: tuple[int, int], path: Path) -> StoredBytes:
    dtype = _dtype(tensor.storage, path)
    start, length = place
    span = span_of(tensor.shape, tensor.strides)
    if (tensor.offset + span) * dtype.itemsize > length:
        raise CheckpointError(
            f"the tensor {name[:80]!r} of shape {tensor.shape} needs more bytes than its record holds",
            path=path,
        )
    return StoredBytes(
        dtype, tensor.shape, tensor.strides, start + tensor.offset * dtype.itemsize, span * dtype.itemsize
    )
