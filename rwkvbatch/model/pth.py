"""The tensors of a `.pth` file, as `torch.save` writes it: a zip archive, or before torch 1.6 a plain stream.

The list of tensors is a pickle program, with which a hostile file can call anything. `PickleReader` reads the program
as data instead: it builds numbers, texts, tuples, lists and dicts, represents tensors by `StoredTensor` records, and
refuses by name whatever else a file asks for. The number of bytes and of steps is bounded, and a step takes time and
memory in proportion to its bytes, so no file can make it slow or large.
"""

from __future__ import annotations

import io
import os
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.tensor_file import Contents, StoredBytes

MAX_DIRECTORY_BYTES = 4 << 20
MAX_PICKLE_BYTES = 16 << 20

ZIP_MAGIC = b"PK\x03\x04"
# Protocol byte, then the long integer 0x1950a86a20f9469cfc6c.
LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
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

# NotImplementedError: of archives that are split or made for later versions.
_ZIP_ERRORS = (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, OSError, struct.error, NotImplementedError)


class _BoundedReads(io.FileIO):
    """A file that refuses large reads: `zipfile` reads a directory in one piece, of whatever size the file claims."""

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
    for name, tensor in _tensors(value, path).items():
        key = tensor.storage.key
        location = locations.get(f"{root}data/{key}")
        if location is None:
            raise CheckpointError(f"its tensors need a record data/{key[:80]} that is not there", path=path)
        entries[name] = _stored(name, tensor, location, path)
    return Contents(entries)


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
                f"cut off: its members are said to have more bytes than the file's {file_size:,}", path=path
            )
        locations[member.filename] = (start, member.file_size)
    return locations


def read_legacy(descriptor: int, path: Path) -> Contents:
    """The contents of a `.pth` file written by torch before 1.6.

    Raises:
        CheckpointError: cut off, damaged, or not a dict of tensors.
    """
    stream = io.BytesIO(os.pread(descriptor, MAX_PICKLE_BYTES, 0))
    reader = PickleReader(stream, path)
    _magic, _protocol, system, value, keys = (reader.run() for _ in range(5))
    position = stream.tell()
    if not isinstance(system, dict) or not isinstance(keys, list):
        raise CheckpointError("its preamble is damaged", path=path)
    if system.get("little_endian") is not True:
        raise CheckpointError("written on a big-endian machine, which is not supported", path=path)
    tensors = _tensors(value, path)
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    locations: dict[str, tuple[int, int]] = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise CheckpointError("its list of storages does not fit its tensors", path=path)
        count = os.pread(descriptor, 8, position)
        if int.from_bytes(count, "little") != storage.num_elements or len(count) != 8:
            raise CheckpointError(f"cut off or damaged at its storage {key[:80]!r}", path=path)
        length = storage.num_elements * storage.dtype.itemsize
        locations[key] = (position + 8, length)
        position += 8 + length
    missing = storages.keys() - locations.keys()
    if missing:
        raise CheckpointError(f"its tensors need storages that are not there, such as {min(missing)[:80]!r}", path=path)
    return Contents(
        {name: _stored(name, tensor, locations[tensor.storage.key], path) for name, tensor in tensors.items()}
    )


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


def _stored(name: str, tensor: StoredTensor, location: tuple[int, int], path: Path) -> StoredBytes:
    dtype = tensor.storage.dtype
    start, length = location
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    span = 0 if 0 in tensor.shape else last + 1  # elements from the first to the last one
    if (tensor.offset + span) * dtype.itemsize > length:
        raise CheckpointError(
            f"the tensor {name[:80]!r} of shape {tensor.shape} needs more bytes than its record holds", path=path
        )
    return StoredBytes(
        dtype, tensor.shape, tensor.strides, start + tensor.offset * dtype.itemsize, span * dtype.itemsize
    )


MAX_STEPS = 1_000_000
MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Global:
    """A name that the file refers to; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:120]


@dataclass(frozen=True)
class StorageRef:
    """A block of numbers in the file."""

    dtype: torch.dtype
    key: str
    num_elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; offset and strides in elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()
_CONSTANTS = {"MARK": _MARK, "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PARAMETER_TYPES = {"torch.nn.parameter.Parameter", "torch.Tensor", "torch._tensor.Tensor"}


class PickleReader:
    """Reads pickle programs as data: `run` returns the value of the next program in `stream`."""

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the program builds; `stream` is then behind it.

        Raises:
            CheckpointError: it is damaged, too long, or asks for something that no checkpoint needs.
        """
        self._stack, self._memo = [], {}
        try:
            for opcode, argument, _ in islice(pickletools.genops(self._stream), MAX_STEPS):
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            reason = str(error)[:80] or type(error).__name__
            raise self._error(f"its list of tensors is damaged or cut off ({reason})") from error
        raise self._error(f"its list of tensors takes more than {MAX_STEPS:,} steps")

    def _error(self, message: str, hint: str | None = None) -> CheckpointError:
        return CheckpointError(message, path=self._path, hint=hint)

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "MARK" | "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(_CONSTANTS[name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(name[-1]))))
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._set_items(self._since_mark())
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._since_mark())
            case "GLOBAL":
                stack.append(Global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                module, attribute = self._pop(2)
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise TypeError
                stack.append(Global(module, attribute))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                stack.append(self._call(*self._pop(2)))
            case "BUILD":
                # Attributes of a container (a state dict's `_metadata`) are ignored.
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise self._error("it sets attributes of an object that is not a dict; refused, nothing was run")
            case "NEWOBJ" | "NEWOBJ_EX" | "INST" | "OBJ":
                raise self._refused(next((item for item in reversed(stack) if isinstance(item, Global)), "an object"))
            case "PROTO" | "FRAME":
                pass
            case _:
                raise self._error(
                    f"its list of tensors has an instruction ({name}) that checkpoints do not need; refused"
                )

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            # No tuples: hashing a nested one can take exponential time.
            if not isinstance(key, str | int):
                raise TypeError
            target[key] = value

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(items)

    def _refused(self, target: object) -> CheckpointError:
        return self._error(
            f"it asks to run {target}, which no checkpoint needs; refused, nothing was run",
            hint="do not load this file elsewhere; a plain state dict saved with torch.save, or .safetensors, works",
        )

    def _storage(self, persistent_id: Any) -> StorageRef:
        tag, kind, key, _location, num_elements = persistent_id[:5]
        if tag != "storage" or not isinstance(kind, Global) or kind.module not in ("torch", "torch.storage"):
            raise self._error("a tensor refers to a storage of an unknown kind")
        if not isinstance(key, str) or not _is_size(num_elements):
            raise TypeError
        dtype = _STORAGE_DTYPES.get(kind.name)
        if dtype is None:
            raise self._error(f"a tensor has the unsupported type {kind.name[:80]}")
        return StorageRef(dtype, key, num_elements)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise TypeError
        match str(function):
            case "collections.OrderedDict" if arguments == ():
                return {}
            case "torch.Size":
                return _sizes(arguments[0])
            case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
                return _tensor(*arguments[:4])
            case "torch._utils._rebuild_parameter" if isinstance(arguments[0], StoredTensor):
                return arguments[0]
            case "torch._tensor._rebuild_from_type_v2":
                inner, kind, inner_arguments = arguments[:3]
                plain = isinstance(kind, Global) and str(kind) in _PARAMETER_TYPES
                # Only one level deep: `inner` must not be this same function again.
                if plain and isinstance(inner, Global) and inner.module == "torch._utils":
                    return self._call(inner, inner_arguments)
        raise self._refused(function)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> StoredTensor:
    tensor = StoredTensor(storage, offset, _sizes(shape), _sizes(strides))
    if not isinstance(storage, StorageRef) or not _is_size(offset) or len(tensor.shape) != len(tensor.strides):
        raise TypeError
    return tensor


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > MAX_DIMENSIONS or not all(map(_is_size, values)):
        raise TypeError
    return tuple(values)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
