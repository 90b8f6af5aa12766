"""Reading the object list of a `.pth` file without running it.

`torch.save` writes a program for a small stack machine; a hostile file uses it to call anything. Here the program
is read as data: numbers, texts, tuples, lists and dicts are built, tensors become `StoredTensor` records that say
where their bytes are, and whatever else a file asks for is refused by name. Each step costs constant time and
memory and the number of steps is bounded, so that no file can make it slow or large.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from rwkvbatch.errors import CheckpointError

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
    """A block of numbers in the file: its element type (`FloatStorage`, ...), key and element count."""

    kind: str
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
_PARAMETER_TYPES = {"torch.nn.parameter.Parameter", "torch.Tensor", "torch._tensor.Tensor"}


class Recipe:
    """One program in `data`, from `position` on; `run` gives its value and leaves `position` after it."""

    def __init__(self, data: bytes, position: int, path: str) -> None:
        self.position = position
        self._data = data
        self._path = path
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the program builds.

        Raises:
            CheckpointError: it is damaged, too long, or asks for something that a checkpoint does not need.
        """
        try:
            for _ in range(MAX_STEPS):
                code = self._take(1)
                if code == b".":
                    return self._stack.pop()
                self._step(code)
        except (IndexError, KeyError, struct.error, UnicodeDecodeError, TypeError, ValueError) as error:
            raise self._damaged("its list of tensors is damaged or cut off") from error
        raise self._damaged(f"its list of tensors takes more than {MAX_STEPS:,} steps")

    def _damaged(self, message: str) -> CheckpointError:
        return CheckpointError(message, path=self._path)

    def _take(self, count: int) -> bytes:
        piece = self._data[self.position : self.position + count]
        if len(piece) != count:
            raise IndexError
        self.position += count
        return piece

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self._data.index(b"\n", self.position, self.position + 1000)
        line = self._take(end - self.position).decode()
        self.position += 1
        return line

    def _since_mark(self) -> list[Any]:
        stack = self._stack
        mark = len(stack) - 1
        while stack[mark] is not _MARK:
            mark -= 1
            if mark < 0:
                raise IndexError
        items = stack[mark + 1 :]
        del stack[mark:]
        return items

    def _step(self, code: bytes) -> None:
        stack = self._stack
        match code:
            case b"\x80":
                self._take(1)
            case b"\x95":
                self._take(8)
            case b"(":
                stack.append(_MARK)
            case b"q":
                self._memo[self._number("<B")] = stack[-1]
            case b"r":
                self._memo[self._number("<I")] = stack[-1]
            case b"\x94":
                self._memo[len(self._memo)] = stack[-1]
            case b"h":
                stack.append(self._memo[self._number("<B")])
            case b"j":
                stack.append(self._memo[self._number("<I")])
            case b"N":
                stack.append(None)
            case b"\x88":
                stack.append(True)
            case b"\x89":
                stack.append(False)
            case b"K":
                stack.append(self._number("<B"))
            case b"M":
                stack.append(self._number("<H"))
            case b"J":
                stack.append(self._number("<i"))
            case b"G":
                stack.append(self._number(">d"))
            case b"\x8a":
                # Sizes fit 8 bytes; the legacy format's magic number has 10.
                length = self._number("<B")
                stack.append(int.from_bytes(self._take(length), "little", signed=True))
            case b"X":
                stack.append(self._take(self._number("<I")).decode("utf-8", "surrogatepass"))
            case b"\x8c":
                stack.append(self._take(self._number("<B")).decode("utf-8", "surrogatepass"))
            case b"}":
                stack.append({})
            case b"]":
                stack.append([])
            case b")":
                stack.append(())
            case b"t":
                stack.append(tuple(self._since_mark()))
            case b"\x85" | b"\x86" | b"\x87":
                count = code[0] - 0x84
                if len(stack) < count:
                    raise IndexError
                stack[-count:] = [tuple(stack[-count:])]
            case b"s":
                value, key = stack.pop(), stack.pop()
                self._set_items([key, value])
            case b"u":
                self._set_items(self._since_mark())
            case b"a":
                item = stack.pop()
                self._extend([item])
            case b"e":
                self._extend(self._since_mark())
            case b"c":
                module = self._line()
                stack.append(Global(module, self._line()))
            case b"\x93":
                name, module = stack.pop(), stack.pop()
                if not isinstance(name, str) or not isinstance(module, str):
                    raise TypeError
                stack.append(Global(module, name))
            case b"Q":
                stack.append(self._storage(stack.pop()))
            case b"R":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._call(function, arguments))
            case b"b":
                # Attributes of a container (a state dict's `_metadata`), of no use here.
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise self._damaged("it sets attributes of an object that is not a dict; refused, nothing was run")
            case b"\x81" | b"\x92" | b"i" | b"o":
                target = next((value for value in reversed(stack) if isinstance(value, Global)), "an object")
                raise self._refused(target)
            case _:
                raise self._damaged(
                    f"its list of tensors has an instruction (0x{code.hex()}) that checkpoints do not need; refused"
                )

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError
        keys, values = items[::2], items[1::2]
        for key, value in zip(keys, values, strict=True):
            # Only texts: hashing a nested tuple can take for ever.
            if not isinstance(key, str | int):
                raise TypeError
            target[key] = value

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(items)

    def _refused(self, target: object) -> CheckpointError:
        return CheckpointError(
            f"it asks to run {target}, which no checkpoint needs; refused, nothing was run",
            path=self._path,
            hint="do not load this file elsewhere; a plain state dict saved with torch.save, or .safetensors, works",
        )

    def _storage(self, persistent_id: Any) -> StorageRef:
        tag, kind, key, _location, num_elements = persistent_id[:5]
        if tag != "storage" or not isinstance(kind, Global) or kind.module not in ("torch", "torch.storage"):
            raise self._damaged("a tensor refers to a storage of an unknown kind")
        if not isinstance(key, str) or not _is_size(num_elements):
            raise TypeError
        return StorageRef(kind.name, key, num_elements)

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
