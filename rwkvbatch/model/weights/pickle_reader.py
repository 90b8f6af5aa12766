"""`PickleReader`: reads pickle programs as data, for the lists of tensors that `torch.save` writes.

A pickle program of a hostile file can call any function. The reader never imports or calls anything that a file names.
It builds numbers, texts, tuples, lists and dicts, represents tensors by `StoredTensor` records and harmless objects of
training programs (arguments, numpy scalars, paths, dates) by `Opaque` records without content, and refuses everything
else by name. The numbers of bytes and of steps are bounded, and a step takes time and memory in proportion to its
bytes, so a file cannot make it use much time or memory.
"""

from __future__ import annotations

import io
import pickletools
import re
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rwkvbatch.errors import CheckpointError, shown_name

STORAGE_DTYPES = {
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

_OTHER_DTYPES = {
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "UntypedStorage": "bytes",
}
"""The types of storages whose tensors are not read."""

MAX_STEPS = 1_000_000
MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Global:
    """A name that the file refers to; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown_name(f"{self.module}.{self.name}", 120)


@dataclass(frozen=True)
class StorageRef:
    """A block of numbers in the file; `dtype` is the name of a type that is not read, or its class."""

    dtype: torch.dtype | str
    key: str
    num_elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; offset and strides in elements. `negative`: the tensor is the negative of the numbers."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    negative: bool = False


@dataclass(frozen=True)
class UnreadTensor:
    """A tensor of a type that is not read, such as `float8_e4m3fn`."""

    dtype: str


@dataclass(frozen=True)
class Opaque:
    """An object that is not needed, by the name of its class; its content is dropped."""

    name: str


_MARK = object()
_KEY_TYPES = (str, int, float, bytes, type(None), Global, Opaque)
_CONSTANTS = {"MARK": _MARK, "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_HARMLESS = re.compile(
    r"""
    argparse\.Namespace | types\.SimpleNamespace | uuid\.UUID | decimal\.Decimal | fractions\.Fraction
    | collections\.(?:OrderedDict|defaultdict|Counter|deque) | copyreg\._reconstructor | _codecs\.encode
    | (?:builtins|__builtin__)\.(?:set|frozenset|slice|complex|bytearray|range|xrange|object|list|dict|tuple)
    | (?:builtins|__builtin__)\.(?:bytes|str|int|float|bool)
    | pathlib\.(?:_local\.)?(?:Pure)?(?:Posix|Windows)?Path | datetime\.(?:date|datetime|time|timedelta|timezone)
    | numpy\.(?:dtype|ndarray|bool_?|u?int\d+|float\d+)
    | numpy\.(?:_core|core)\.(?:multiarray\.(?:scalar|_reconstruct)|numeric\._frombuffer)
    | torch\.(?:device|dtype|Generator|serialization\._get_layout|torch_version\.TorchVersion)
    """,
    re.VERBOSE,
)
"""Classes and functions of the standard library, numpy and torch whose objects training programs save with the
tensors. They are not called: the object becomes an `Opaque` record."""

_CLASS_NAME = re.compile(r"(?:\w+\.)*_*[A-Z]\w*")
_LIBRARY_MODULES = {*sys.stdlib_module_names, "__builtin__", "torch", "numpy"} - {"__main__"}
"""Modules of which only names in `_HARMLESS` are accepted. Instances of any class of other modules, such as a
trainer's, are accepted as `Opaque` records."""

_PARAMETER_TYPES = {"torch.nn.parameter.Parameter", "torch.Tensor", "torch._tensor.Tensor"}


_OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without values (of the meta device)",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "_rebuild_wrapper_subclass": "a tensor of a custom class",
    "_rebuild_qtensor": "a quantised tensor",
}


class PickleReader:
    """Reads a pickle program as data: `run` returns its value."""

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the program in the stream builds.

        Raises:
            CheckpointError: the program is damaged, too long, or asks for something that no checkpoint needs.
        """
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

    def _pop_to_mark(self) -> list[Any]:
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
            case (
                "BINBYTES" | "SHORT_BINBYTES" | "BINUNICODE8" | "BINBYTES8" | "BYTEARRAY8" | "SHORT_BINSTRING" | "LONG4"
            ):
                stack.append(argument)
            case "MARK" | "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(_CONSTANTS[name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_SET":
                stack.append(Opaque("set"))
            case "FROZENSET":
                self._pop_to_mark()
                stack.append(Opaque("frozenset"))
            case "ADDITEMS":
                self._pop_to_mark()
                if not isinstance(stack[-1], Opaque):
                    raise TypeError
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(name[-1]))))
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._pop_to_mark())
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
                # Attributes of a container (a state dict's `_metadata`) and of an opaque object are ignored.
                stack.pop()
                if not isinstance(stack[-1], dict | Opaque):
                    raise self._error("it sets attributes of an object that is not a dict; refused, nothing was run")
            case "NEWOBJ":
                kind, _ = self._pop(2)
                stack.append(self._opaque(kind, instance=True))
            case "NEWOBJ_EX" | "INST" | "OBJ":
                raise self._refused(next((item for item in reversed(stack) if isinstance(item, Global)), "an object"))
            case "PROTO" | "FRAME":
                pass
            case _:
                raise self._error(
                    f"its list of tensors has an instruction ({name}) that checkpoints do not need; refused"
                )

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Opaque):
            return
        if not isinstance(target, dict):
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            # No nested tuples as keys: hashing one can take exponential time.
            flat = key if isinstance(key, tuple) else (key,)
            if not all(isinstance(part, _KEY_TYPES) for part in flat):
                raise TypeError
            target[key] = value

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Opaque):
            return
        if not isinstance(target, list):
            raise TypeError
        target.extend(items)

    def _opaque(self, kind: Any, *, instance: bool = False) -> Opaque:
        """The record of an object of `kind`, if that is harmless.

        Args:
            instance: whether the object is created without calling a constructor (NEWOBJ).
        """
        if not isinstance(kind, Global):
            raise TypeError
        name = str(kind)
        is_foreign_class = instance and name.partition(".")[0] not in _LIBRARY_MODULES and _CLASS_NAME.fullmatch(name)
        if not is_foreign_class and not _HARMLESS.fullmatch(name):
            raise self._refused(kind)
        return Opaque(name)

    def _refused(self, target: object) -> CheckpointError:
        return self._error(
            f"it asks to run {target}, which no checkpoint needs; refused, nothing was run",
            hint="do not load this file elsewhere; a plain state dict saved with torch.save, or .safetensors, works",
        )

    def _storage(self, persistent_id: Any) -> StorageRef:
        tag, kind, key, _location, num_elements = persistent_id[:5]
        if persistent_id[5:] not in ((), (None,)):
            raise self._error("a tensor is a view as torch before 0.4 saved it, which is not supported")
        if tag != "storage" or not isinstance(kind, Global) or kind.module not in ("torch", "torch.storage"):
            raise self._error("a tensor refers to a storage of an unknown kind")
        if not isinstance(key, str) or not _is_size(num_elements):
            raise TypeError
        dtype = STORAGE_DTYPES.get(kind.name) or _OTHER_DTYPES.get(kind.name) or shown_name(kind.name)
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
                return self._tensor(*arguments)
            case "torch._utils._rebuild_tensor_v3":
                return UnreadTensor(_dtype_name(arguments[6]))
            case "torch._utils._rebuild_parameter" if isinstance(arguments[0], StoredTensor | UnreadTensor):
                return arguments[0]
            case "torch._tensor._rebuild_from_type_v2":
                inner, kind, inner_arguments = arguments[:3]
                plain = isinstance(kind, Global) and str(kind) in _PARAMETER_TYPES
                # Only one level deep: `inner` must not be this same function again.
                if plain and isinstance(inner, Global) and inner.module == "torch._utils":
                    return self._call(inner, inner_arguments)
        if function.module == "torch._utils" and function.name in _OTHER_TENSORS:
            kind = _OTHER_TENSORS[function.name]
            raise self._error(f"it contains {kind}, which is not supported", hint="save plain tensors")
        return self._opaque(function)

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *options: Any
    ) -> StoredTensor | UnreadTensor:
        """A tensor. `options` are `requires_grad`, the hooks and, since torch 1.13, its conj and neg bits."""
        if isinstance(storage, StorageRef) and isinstance(storage.dtype, str):
            return UnreadTensor(storage.dtype)
        bits = options[2] if len(options) > 2 else {}
        if not isinstance(bits, dict):
            raise TypeError
        if any(name != "neg" and is_set for name, is_set in bits.items()):
            raise self._error(f"a tensor has properties ({', '.join(map(repr, bits))[:80]}) that are not supported")
        tensor = StoredTensor(storage, offset, _sizes(shape), _sizes(strides), bits.get("neg") is True)
        if not isinstance(storage, StorageRef) or not _is_size(offset) or len(tensor.shape) != len(tensor.strides):
            raise TypeError
        return tensor


def _dtype_name(value: Any) -> str:
    """The name of the type of a tensor without its own storage class (`_rebuild_tensor_v3`)."""
    if not isinstance(value, Global) or value.module != "torch":
        raise TypeError
    return value.name[:80]


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > MAX_DIMENSIONS or not all(map(_is_size, values)):
        raise TypeError
    return tuple(values)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
