"""`.pth` files, written by `torch.save`: zip archives.

Their list of tensors is a pickle program, which `PickleReader` reads as data.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rwkvbatch.errors import CheckpointError, shown_name
from rwkvbatch.model.weights.named_tensors import Entry, OnWritten, ignored
from rwkvbatch.model.weights.pickle_reader import STORAGE_DTYPES, Opaque, PickleReader, StoredTensor, UnreadTensor
from rwkvbatch.model.weights.tensor_file import Checksum, Contents, StoredBytes, unread_type

MAX_DIRECTORY_BYTES = 4 << 20
MAX_PICKLE_BYTES = 16 << 20

ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")

ZERO = "merge the checkpoint first: python -m deepspeed.utils.zero_to_fp32 DIRECTORY merged, then --model merged"
"""How DeepSpeed merges its ZeRO checkpoints; it also copies that script into their directories."""

# NotImplementedError: archives that are split, or need a newer version of zip.
_ZIP_ERRORS = (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, OSError, struct.error, NotImplementedError)


class _BoundedReads(io.FileIO):
    """A file that refuses large reads: `zipfile` reads a directory of any claimed size at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        limit = MAX_DIRECTORY_BYTES + 1
        data = super().read(limit if size is None or size < 0 else min(size, limit)) or b""
        if len(data) > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its directory is too large")
        return data


def read_zip(descriptor: int, path: Path) -> Contents:
    """The contents of a zip `.pth` file.

    Raises:
        CheckpointError: cut off, damaged, compressed, or not a dict of tensors.
    """
    try:
        with _BoundedReads(descriptor, closefd=False) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except _ZIP_ERRORS as error:
        raise CheckpointError(f"cut off or damaged .pth file ({error})", path=path) from error
    locations = _locations(descriptor, members, path)
    pickle = next((name for name in locations if name.endswith("/data.pkl")), None)
    if pickle is None:
        raise CheckpointError("a zip archive without data.pkl, so not written by torch.save", path=path)
    root = pickle.removesuffix("data.pkl")
    order = locations.get(root + "byteorder")
    if order is not None and os.pread(descriptor, min(order[1], 6), order[0]) != b"little":
        raise CheckpointError("written on a big-endian machine, which is not supported", path=path)
    start, length = locations[pickle]
    if length > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"its list of tensors has {length:,} bytes, at most {MAX_PICKLE_BYTES:,} are read", path=path
        )
    value = PickleReader(io.BytesIO(os.pread(descriptor, length, start)), path).run()
    entries: dict[str, StoredBytes] = {}
    tensors, undone, choice = unwrapped(value, path)
    for name, tensor in tensors.items():
        key = tensor.storage.key
        location = locations.get(f"{root}data/{key}")
        if location is None:
            raise CheckpointError(f"its tensors need a record data/{shown_name(key)}, which is missing", path=path)
        entries[name] = _stored(name, tensor, location, path)
    # torch.serialization.set_crc32_options(False) writes 0 in place of the checksums.
    checksums = {
        each.filename: Checksum(each.filename, *locations[each.filename], each.CRC) for each in members if each.CRC
    }
    return Contents(entries, undone=undone, choice=choice, checksums=tuple(checksums.values()))


def _locations(descriptor: int, members: list[zipfile.ZipInfo], path: Path) -> dict[str, tuple[int, int]]:
    """Start and length of each archive member's bytes."""
    file_size = os.fstat(descriptor).st_size
    locations: dict[str, tuple[int, int]] = {}
    total = 0
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise CheckpointError(
                f"its member {member.filename[:80]!r} is compressed, which torch.save never does", path=path
            )
        offset = member.header_offset
        header = os.pread(descriptor, _LOCAL_HEADER.size, offset) if 0 <= offset < file_size else b""
        if len(header) != _LOCAL_HEADER.size or not header.startswith(ZIP_MAGIC):
            raise CheckpointError(f"cut off or damaged at its member {member.filename[:80]!r}", path=path)
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = offset + _LOCAL_HEADER.size + name_length + extra_length
        total += member.file_size
        if start + member.file_size > file_size or total > file_size:
            raise CheckpointError(
                f"cut off: by its directory, its members have more bytes than the file's {file_size:,}", path=path
            )
        locations[member.filename] = (start, member.file_size)
    return locations


WRAPPERS = ("state_dict", "model", "module", "model_state_dict", "model_state", "weights")
"""Keys under which training programs store the tensors (Lightning: `state_dict`, DeepSpeed: `module`), in order of
preference."""

LIST_PREFIX = "list."
"""A list of tensors, such as a state of the `rwkv` package, is read as a dict with the names `list.0` and so on."""

MAX_WRAPPERS = 4


_TENSORS = (StoredTensor, UnreadTensor, torch.Tensor)


def unwrapped(value: Any, path: Path) -> tuple[dict[str, Any], tuple[str, ...], str]:
    """The dict of tensors in `value`, which may be wrapped in other dicts, `Contents.undone` and `Contents.choice`.

    The tensors are those of `PickleReader`, or torch's own.

    Raises:
        CheckpointError: there is none.
    """
    undone: tuple[str, ...] = ()
    choice = ""
    if isinstance(value, list) and value and all(isinstance(item, StoredTensor) for item in value):
        return {f"{LIST_PREFIX}{number}": item for number, item in enumerate(value)}, undone, choice
    for _ in range(MAX_WRAPPERS):
        if not isinstance(value, dict) or _is_state_dict(value):
            break
        state_dicts = [key for key, item in value.items() if isinstance(item, dict) and _is_state_dict(item)]
        wrappers = [key for key in WRAPPERS if isinstance(value.get(key), dict)]
        name = next((key for key in [*WRAPPERS, *state_dicts] if key in state_dicts), next(iter(wrappers), None))
        if name is None:
            break
        if "param_shapes" in value and any(0 in getattr(tensor, "shape", ()) for tensor in value[name].values()):
            raise CheckpointError(
                "a part of a DeepSpeed ZeRO-3 checkpoint, whose weights are in other files", path=path, hint=ZERO
            )
        others = ", ".join(repr(str(key)[:60]) for key in state_dicts if key != name)
        undone += (f"the wrapper {name!r}" + (f" (not read: {others})" if others else ""),)
        choice = f"{name!r} in it is read, and {others} in it is not" if others else choice
        value = value[name]
    if not isinstance(value, dict):
        hint = "a whole module was pickled: save its state_dict() instead" if isinstance(value, Opaque) else None
        raise CheckpointError(f"expected a dict of tensors, found one {_kind(value)}", path=path, hint=hint)
    hint = "save its dict of tensors alone" if any(isinstance(item, dict) for item in value.values()) else None
    for name, tensor in value.items():
        if isinstance(tensor, UnreadTensor):
            raise unread_type(str(name), tensor.dtype, path)
        if not isinstance(name, str) or not isinstance(tensor, _TENSORS):
            raise CheckpointError(
                f"expected a dict of tensors; its entry {str(name)[:80]!r} is of type {_kind(tensor)}",
                path=path,
                hint=hint,
            )
    return value, undone, choice


def _is_state_dict(value: dict[Any, Any]) -> bool:
    """Whether more than half of the entries are tensors."""
    tensors = sum(isinstance(item, _TENSORS) for item in value.values())
    return 2 * tensors > len(value)


def _kind(value: Any) -> str:
    if isinstance(value, _TENSORS):
        return "tensor"
    return value.name if isinstance(value, Opaque) else type(value).__name__


def _stored(name: str, tensor: StoredTensor, location: tuple[int, int], path: Path) -> StoredBytes:
    dtype = tensor.storage.dtype
    assert isinstance(dtype, torch.dtype)
    start, length = location
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    span = 0 if 0 in tensor.shape else last + 1  # number of elements from the first to the last one
    if (tensor.offset + span) * dtype.itemsize > length:
        raise CheckpointError(
            f"the tensor {name[:80]!r} of shape {tensor.shape} needs more bytes than its record has", path=path
        )
    return StoredBytes(
        dtype,
        tensor.shape,
        tensor.strides,
        start + tensor.offset * dtype.itemsize,
        span * dtype.itemsize,
        tensor.negative,
    )


_ALIGNMENT = 64
_LARGE = 1 << 31


_STORAGE_NAMES = {dtype: name for name, dtype in STORAGE_DTYPES.items()}


def _pickled(entries: Mapping[str, Entry]) -> bytes:
    """The pickle program that `torch.save` writes for a dict of contiguous tensors (opcodes: Python's pickletools)."""
    items = [_text(name) + _tensor(entry, str(number)) for number, (name, entry) in enumerate(entries.items())]
    return b"\x80\x02}(" + b"".join(items) + b"u."


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(number: int) -> bytes:
    data = number.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _integers(numbers: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"


def _tensor(entry: Entry, key: str) -> bytes:
    storage = (
        b"(" + _text("storage") + f"ctorch\n{_STORAGE_NAMES[entry.dtype]}\n".encode()
        + _text(key) + _text("cpu") + _integer(entry.num_elements) + b"tQ"
    )  # fmt: skip
    strides = (math.prod(entry.shape[axis + 1 :]) for axis in range(len(entry.shape)))
    view = storage + _integer(0) + _integers(entry.shape) + _integers(strides)
    # requires_grad is False, and there are no hooks.
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"\x89ccollections\nOrderedDict\n)RtR"


def write_zip(file: BinaryIO, entries: Mapping[str, Entry], on_written: OnWritten = ignored) -> None:
    """Write the file that `torch.save` writes for a dict of these tensors, with one tensor in memory at a time.

    Raises:
        OSError: the file could not be written. Errors of loading an entry are raised too.
    """
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(_member("data.pkl"), _pickled(entries))
        archive.writestr(_member("byteorder"), b"little")
        num_written = 0
        for number, entry in enumerate(entries.values()):
            member = _member(f"data/{number}")
            is_large = entry.num_bytes >= _LARGE
            # Tensors begin at multiples of 64 bytes, so that torch can memory-map them.
            begin = file.tell() + _LOCAL_HEADER.size + len(member.filename) + (20 if is_large else 0) + 4
            padding = -begin % _ALIGNMENT
            member.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            with archive.open(member, "w", force_zip64=is_large) as record:
                record.write(entry.bytes())
            num_written += entry.num_bytes
            on_written(num_written)
        archive.writestr(_member("version"), b"3\n")


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
