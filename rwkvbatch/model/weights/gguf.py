"""GGUF files of RWKV-7, written by llama.cpp's converter: their table of contents and their official names.

The layout is that of ggml's docs/gguf.md: magic, version, two counts, key-value pairs, tensor infos, aligned data. This
module reads it without the `gguf` package (extra `gguf`), which maps the file into memory and trusts the counts of a
damaged file. The package provides the table of number formats and dequantises their blocks.

llama.cpp's conversion/rwkv.py (`Rwkv7Model`) changes a checkpoint as follows: it drops axes of size 1, transposes the
low-rank matrices, flattens `r_k`, stacks the six mixing vectors (`time_mix_lerp_fused`), and stores `a0`, `a1`, `a2` of
layer 0 also as its `v0`, `v1`, `v2`, which are unused.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwkvbatch.errors import CheckpointError, MissingExtraError
from rwkvbatch.model.weights.named_tensors import Entry, NamedTensors
from rwkvbatch.model.weights.tensor_file import Contents, StoredBytes

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ARCHITECTURE = "rwkv7"

MAX_TENSORS = 1 << 16
MAX_TEXTS = 1 << 19
"""Most elements of all lists of texts; a World vocabulary has 65,536."""
MAX_CONTENTS_BYTES = 64 << 20

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCKS = ("Q8_0",)
READ_FORMATS = (*_PLAIN, *_BLOCKS)

# The codes of value types: fixed sizes (as `struct` formats), text, list.
_SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_MAX_AXES = 4

HEAD_SIZE = f"{ARCHITECTURE}.wkv.head_size"
_READ_KEYS = ("general.architecture", "general.alignment", "split.count", "tokenizer.ggml.model")


def is_gguf(head: bytes) -> bool:
    return head.startswith(MAGIC)


class _Reader:
    """Reads the values of a table of contents in order; no read goes beyond the end of the file."""

    def __init__(self, data: bytes, path: Path) -> None:
        self._data = data
        self._path = path
        self._texts = 0
        self.position = 0

    def error(self, message: str, hint: str | None = None) -> CheckpointError:
        return CheckpointError(message, path=self._path, hint=hint)

    def _bytes(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        if self.position > len(self._data):
            raise self.error("cut off or damaged GGUF file: its table of contents continues after its end")
        return self._data[start : self.position]

    def number(self, code: str) -> int | float | bool:
        return struct.unpack(f"<{code}", self._bytes(struct.calcsize(f"<{code}")))[0]

    def size(self, code: str = "Q") -> int:
        return int(self.number(code))

    def text(self) -> str:
        return self._bytes(self.size()).decode("utf-8", "replace")

    def value(self) -> object:
        """A key's value; None for a list, which is skipped."""
        kind = self.size("I")
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            self._skip_list()
            return None
        return self.number(self._code(kind))

    def _code(self, kind: int) -> str:
        if kind not in _SIZES:
            raise self.error(f"damaged GGUF file: a value has the unknown type {kind}")
        return _SIZES[kind]

    def _skip_list(self) -> None:
        kind, count = self.size("I"), self.size()
        if kind != _TEXT:
            self._bytes(count * struct.calcsize(self._code(kind)))
            return
        self._texts += count
        if self._texts > MAX_TEXTS:
            raise self.error(f"its table of contents has more than {MAX_TEXTS:,} texts")
        for _ in range(count):
            self._bytes(self.size())


def read_contents(descriptor: int, path: Path) -> Contents:
    """The contents of a GGUF file of RWKV-7.

    Raises:
        CheckpointError: the file is damaged, of another architecture, a part of a split file, or has tensors in a
            number format other than F32, F16, BF16 and Q8_0.
        MissingExtraError: the `gguf` package is not installed.
    """
    size = os.fstat(descriptor).st_size
    reader = _Reader(os.pread(descriptor, min(size, MAX_CONTENTS_BYTES), 0), path)
    reader.position = len(MAGIC)
    version = reader.size("I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        kind = "a big-endian GGUF file" if swapped else f"a GGUF file of version {version}"
        raise reader.error(f"{kind}; versions 2 and 3, little-endian, are read")
    num_tensors, num_values = reader.size(), reader.size()
    if max(num_tensors, num_values) > MAX_TENSORS:
        raise reader.error(f"damaged GGUF file: it is said to have {num_tensors:,} tensors and {num_values:,} values")
    values: dict[str, object] = {}
    for _ in range(num_values):
        key = reader.text()
        value = reader.value()
        if key in _READ_KEYS or key.startswith(f"{ARCHITECTURE}."):
            values[key] = value
        if key == "general.architecture":
            _check_architecture(value, reader)  # before the rest: other architectures exceed MAX_TEXTS
    _check_values(values, reader)
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0:
        raise reader.error(f"damaged GGUF file: its alignment is {alignment!r:.40}")

    formats = _formats()
    infos = [_info(reader, formats) for _ in range(num_tensors)]
    start = -(-reader.position // alignment) * alignment
    entries: dict[str, StoredBytes] = {}
    for name, shape, kind, offset in infos:
        if name in entries:
            raise reader.error(f"damaged GGUF file: it has two tensors {name[:80]!r}")
        entries[name] = _stored(shape, kind, start + offset, formats)
    undone = ("GGUF's number formats",) if any(kind in _BLOCKS for _, _, kind, _ in infos) else ()
    return Contents(entries, {key: str(value) for key, value in values.items()}, undone)


def _check_architecture(architecture: object, reader: _Reader) -> None:
    if architecture != ARCHITECTURE:
        architecture = str(architecture)[:40]
        hint = "give the .pth or .safetensors of this checkpoint" if "rwkv" in architecture else None
        raise reader.error(
            f"a GGUF file of the architecture {architecture!r}; of GGUF files only {ARCHITECTURE!r} is read", hint
        )


def _check_values(values: Mapping[str, object], reader: _Reader) -> None:
    _check_architecture(values.get("general.architecture"), reader)
    if values.get("split.count", 1) not in (0, 1):
        raise reader.error(
            f"one of {values['split.count']!r:.20} parts of a GGUF file",
            "join them with llama.cpp: llama-gguf-split --merge FIRST_PART OUT.gguf",
        )
    eps = values.get(f"{ARCHITECTURE}.attention.layer_norm_epsilon", 1e-5)
    if not isinstance(eps, float) or not math.isclose(eps, 1e-5, rel_tol=1e-3):
        raise reader.error(
            f"its layer norms use the epsilon {eps!r:.40}; RWKV-7 has 1e-05, other values are not supported"
        )
    head_size = values.get(HEAD_SIZE)
    if type(head_size) is not int or head_size <= 0:
        raise reader.error(f"damaged GGUF file: {HEAD_SIZE} must be a positive whole number, it is {head_size!r:.40}")


def _formats() -> Any:
    """The `gguf` module."""
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise MissingExtraError("GGUF files need the `gguf` package", extra="gguf") from error


def _info(reader: _Reader, formats: Any) -> tuple[str, tuple[int, ...], str, int]:
    """A tensor's name, shape (the last axis varies fastest), number format and offset."""
    name = reader.text()
    num_axes = reader.size("I")
    if num_axes > _MAX_AXES:
        raise reader.error(f"damaged GGUF file: the tensor {name[:80]!r} has {num_axes:,} axes")
    shape = tuple(reader.size() for _ in range(num_axes))[::-1]
    number = reader.size("I")
    try:
        kind = formats.GGMLQuantizationType(number).name
    except ValueError:
        kind = f"unknown to the installed `gguf` package (number {number})"
    if kind not in READ_FORMATS:
        raise reader.error(
            f"the tensor {name[:80]!r} has the number format {kind}; {', '.join(READ_FORMATS)} are read",
            "convert the checkpoint to one of these, or give its .pth or .safetensors",
        )
    if kind in _BLOCKS and (not shape or shape[-1] % formats.GGML_QUANT_SIZES[formats.GGMLQuantizationType[kind]][0]):
        raise reader.error(f"damaged GGUF file: the tensor {name[:80]!r} is not a whole number of blocks of {kind}")
    return name, shape, kind, reader.size()


def _stored(shape: tuple[int, ...], kind: str, start: int, formats: Any) -> StoredBytes:
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if kind in _PLAIN:
        dtype = _PLAIN[kind]
        return StoredBytes(dtype, shape, strides, start, math.prod(shape) * dtype.itemsize)
    quantization = formats.GGMLQuantizationType[kind]
    per_block, block_bytes = formats.GGML_QUANT_SIZES[quantization]
    decode = partial(_decoded, formats, quantization, (*shape[:-1], shape[-1] // per_block * block_bytes))
    # fp32: a scale in fp16 times an integer of 8 bits fits in neither fp16 nor bf16.
    return StoredBytes(torch.float32, shape, strides, start, math.prod(shape) // per_block * block_bytes, decode=decode)


def _decoded(formats: Any, quantization: Any, byte_shape: tuple[int, ...], data: Tensor) -> Tensor:
    with np.errstate(all="ignore"):  # a scale may be NaN or infinite, which `check_finite` refuses later
        numbers = formats.quants.dequantize(data.numpy().reshape(byte_shape), quantization)
    return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32))


_MODEL_NAMES = {"token_embd": "emb", "token_embd_norm": "blocks.0.ln0", "output_norm": "ln_out", "output": "head"}
_LAYER_NAMES = {
    "attn_norm": "ln1",
    "attn_norm_2": "ln2",
    "time_mix_ln": "att.ln_x",
    "channel_mix_lerp_k": "ffn.x_k",
    "channel_mix_key": "ffn.key",
    "channel_mix_value": "ffn.value",
}
_PLAIN_NAMES = re.compile(r"[wav]0|k_k|k_a|r_k")
_FACTOR = re.compile(r"[wavg][12]")
_FUSED = "time_mix_lerp_fused"
_MIXES = "rwkvag"
_IN_LAYER = re.compile(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)")


def undo(tensors: NamedTensors) -> NamedTensors | None:
    """Convert llama.cpp's names and shapes to the official ones; None for files that are not GGUF."""
    if tensors.kind != "gguf":
        return None
    head_size = int(tensors.metadata[HEAD_SIZE])
    entries: dict[str, Entry] = {}
    for name, entry in tensors.entries.items():
        stem, _, ending = name.rpartition(".")
        match = _IN_LAYER.fullmatch(name)
        if stem in _MODEL_NAMES:
            entries[f"{_MODEL_NAMES[stem]}.{ending}"] = entry
        elif match is None:
            entries[name] = entry
        else:
            entries |= _in_layer(match[1], match[2], match[3], entry, head_size, tensors.path)
    return tensors.changed(
        entries,
        "names of llama.cpp",
        "the low-rank matrices' transposition",
        "the six mixing vectors stored as one",
        "the flattened r_k",
        form="llama.cpp",
    )


def _in_layer(layer: str, name: str, ending: str, entry: Entry, head_size: int, path: Path) -> dict[str, Entry]:
    block = f"blocks.{layer}"
    inner = name.removeprefix("time_mix_")
    if name in _LAYER_NAMES:
        official = f"{block}.{_LAYER_NAMES[name]}"
        return {official if name == "channel_mix_lerp_k" else f"{official}.{ending}": entry}
    if name == _FUSED:
        width = entry.num_elements // len(_MIXES)
        mixes = entry.reshaped((len(_MIXES), width), path)
        return {f"{block}.att.x_{letter}": mixes.select(index) for index, letter in enumerate(_MIXES)}
    if layer == "0" and inner in ("v0", "v1", "v2"):
        return {}
    if inner == "r_k":
        if entry.num_elements % head_size:
            raise CheckpointError(f"{HEAD_SIZE} {head_size} does not divide the width {entry.num_elements}", path=path)
        return {f"{block}.att.r_k": entry.reshaped((entry.num_elements // head_size, head_size), path)}
    if _PLAIN_NAMES.fullmatch(inner):
        return {f"{block}.att.{inner}": entry}
    if _FACTOR.fullmatch(inner):
        return {f"{block}.att.{inner}": entry.transposed() if len(entry.shape) == 2 else entry}
    return {f"{block}.att.{inner}.{ending}": entry}
