"""`Checkpoint`: recognises the network, checks names, shapes and values; `describe` for `model info`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rwkvbatch.errors import CheckpointError, listed
from rwkvbatch.model.base import RWKV7, Dimensions, is_rwkv7
from rwkvbatch.model.checkpoints.adapters import Adapter, adapted, is_adapter_part
from rwkvbatch.model.checkpoints.forms import official
from rwkvbatch.model.ops import StoredRows
from rwkvbatch.model.strategy import PRECISIONS, Precision
from rwkvbatch.model.weights.containers import open_tensors
from rwkvbatch.model.weights.foreign import refuse_network, refuse_quantised, refuse_variant
from rwkvbatch.model.weights.named_tensors import Entry, NamedTensors, check_finite
from rwkvbatch.model.weights.pth import LIST_PREFIX
from rwkvbatch.model.weights.state_dict import hashed, named_tensors_of
from rwkvbatch.model.weights.tensor_file import unread_type

MAX_NAMES_SHOWN = 4

_LAYER = re.compile(r"blocks\.(\d{1,6})\.(.+)")


@dataclass(frozen=True)
class Architecture(Dimensions):
    """The network that the tensors of a checkpoint define. `precision` is the most common one of its weights."""

    precision: Precision


def inspect(file: NamedTensors) -> Architecture:
    """Recognise the network and check names, shapes and types of all tensors.

    Raises:
        CheckpointError: not an RWKV checkpoint, or a tensor is missing, unexpected, or of a wrong shape or type.
    """
    dims = _dimensions(file, _generation(file))
    if is_rwkv7(dims):
        _check_names(file, dims)
    sizes: Counter[torch.dtype] = Counter()
    for name, entry in file.entries.items():
        if entry.dtype not in PRECISIONS:
            kind = str(entry.dtype).removeprefix("torch.")
            raise unread_type(name, kind, file.path)
        if entry.num_elements == 0:
            raise CheckpointError(f"the tensor {name!r} is empty (shape {shape_text(entry.shape)})", path=file.path)
        sizes[entry.dtype] += entry.num_elements
    return Architecture(**vars(dims), precision=PRECISIONS[sizes.most_common(1)[0][0]])


def _generation(file: NamedTensors) -> str:
    """The generation, recognised by tensor names with the rules of the `rwkv` package, in the same order."""
    names = file.entries.keys()

    def has(substring: str) -> bool:
        return any(substring in name for name in names)

    if has(".att.time_state") and "emb.weight" not in names:
        raise CheckpointError(
            "this is a state-tuned file (initial states), not a model", path=file.path, hint="give it as --state FILE"
        )
    refuse_variant(names, file.path)
    if has(".att.r_k"):
        refuse_quantised(names, file.path)
        return "7a" if has(".ffn.s_emb.") else "7"
    if has("time_maa"):
        return "6.0"
    if has("ln_x"):
        decay = file.entries.get("blocks.0.att.time_decay")
        if decay is not None and len(decay.shape) > 1 and decay.shape[1] > 1:
            return "5.2"
        return "5.1" if has("gate.weight") else "5.0"
    if "blocks.0.att.time_decay" in names:
        return "4"
    if names and all(name.startswith(LIST_PREFIX) for name in names):
        raise CheckpointError(
            "a list of tensors, such as a state of the `rwkv` package, not an RWKV checkpoint",
            path=file.path,
            hint="give a state as --state FILE",
        )
    if any(map(is_adapter_part, names)):
        raise CheckpointError(
            "this is an adapter, not a model",
            path=file.path,
            hint=f"give the model it was trained on, and --adapter '{file.path}' (LoRA: '{file.path} alpha=NUMBER')",
        )
    refuse_network(names, file.config, file.path)
    refuse_quantised(names, file.path)
    shown = ", ".join(repr(name[:60]) for name in list(names)[:MAX_NAMES_SHOWN]) or "no tensors at all"
    raise CheckpointError(
        f"not an RWKV checkpoint: expected tensors such as 'blocks.0.att.r_k' and 'emb.weight', found {shown}",
        path=file.path,
    )


def _dimensions(file: NamedTensors, generation: str) -> Dimensions:
    vocab_size, width = _matrix(file, "emb.weight", "[vocabulary, width]")
    layers = {int(match[1]) for name in file.entries if (match := _LAYER.fullmatch(name))}
    num_layers = len(layers)
    if layers != set(range(num_layers)):
        gap = min(set(range(num_layers)) - layers)
        raise CheckpointError(
            f"layer {gap} is missing: there is no 'blocks.{gap}.*', but 'blocks.{max(layers)}.*'", path=file.path
        )
    num_heads = head_size = 0
    if generation in RWKV7:
        num_heads, head_size = _matrix(file, "blocks.0.att.r_k", "[heads, head size]")
        if num_heads * head_size != width:
            raise CheckpointError(
                f"heads times head size must be the width: 'blocks.0.att.r_k' is {num_heads} x {head_size}, "
                f"'emb.weight' is {vocab_size} x {width}",
                path=file.path,
            )
    elif generation != "4":
        name = "time_faaaa" if "blocks.0.att.time_faaaa" in file.entries else "time_decay"
        entry = file.entries.get(f"blocks.0.att.{name}")
        num_heads = entry.shape[0] if entry is not None and entry.shape else 1
        head_size = width // max(num_heads, 1)
    num_parameters = sum(entry.num_elements for entry in file.entries.values())
    return Dimensions(generation, num_layers, width, num_heads, head_size, vocab_size, num_parameters)


def _matrix(file: NamedTensors, name: str, meaning: str) -> tuple[int, int]:
    entry = file.entries.get(name)
    if entry is None:
        raise CheckpointError(f"the tensor {name!r} is missing", path=file.path)
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise CheckpointError(f"the tensor {name!r} must be {meaning}, it is {shape_text(entry.shape)}", path=file.path)
    return entry.shape[0], entry.shape[1]


def _check_names(file: NamedTensors, dims: Dimensions) -> None:
    expected, optional = _expected_shapes(file, dims)
    missing = [name for name in expected if name not in file.entries]
    states = [name for name in optional if name.endswith(".time_state")]
    if any(name in file.entries for name in states):
        missing += [name for name in states if name not in file.entries]
    surplus = [name for name in file.entries if name not in expected and name not in optional]
    if missing or surplus:
        parts = [
            f"{label}: {listed([repr(name[:80]) for name in names], MAX_NAMES_SHOWN)}"
            for label, names in (("missing", missing), ("surplus", surplus))
            if names
        ]
        raise CheckpointError(
            f"the tensors are not those of RWKV-{dims.generation}: {'; '.join(parts)}", path=file.path
        )
    for name, shape in {**expected, **optional}.items():
        entry = file.entries.get(name)
        if entry is None:
            continue
        # Vectors are stored as [C], [1, C] or [1, 1, C], depending on the tool.
        found_shape = tuple(size for size in entry.shape if size != 1) if len(shape) == 1 else entry.shape
        if found_shape != tuple(size for size in shape if size != 1 or len(shape) > 1):
            raise CheckpointError(
                f"the tensor {name!r} must be {shape_text(shape)}, it is {shape_text(entry.shape)}", path=file.path
            )


Shapes = dict[str, tuple[int, ...]]


def _expected_shapes(file: NamedTensors, dims: Dimensions) -> tuple[Shapes, Shapes]:
    """Names and shapes of required and of optional tensors.

    Optional tensors are `time_state` (a tuned initial state, merged into the checkpoint) and the unused v0, v1, v2 of
    layer 0.
    """
    width, square = (dims.width,), (dims.width, dims.width)

    def norm(name: str) -> Shapes:
        return {f"{name}.weight": width, f"{name}.bias": width}

    def free_size(name: str, axis: int) -> int:
        # The size is free. 1 for a wrong number of axes, which is then reported as a wrong shape.
        entry = file.entries.get(name)
        return entry.shape[axis] if entry is not None and len(entry.shape) == 2 else 1

    expected: Shapes = {"emb.weight": (dims.vocab_size, dims.width), "head.weight": (dims.vocab_size, dims.width)}
    expected |= norm("ln_out") | norm("blocks.0.ln0")
    optional: Shapes = {}
    for layer in range(dims.num_layers):
        block = f"blocks.{layer}"
        att, ffn = f"{block}.att", f"{block}.ffn"
        expected |= norm(f"{block}.ln1") | norm(f"{block}.ln2") | norm(f"{att}.ln_x")
        expected |= {f"{att}.x_{letter}": width for letter in "rwkvag"}
        expected |= {f"{att}.{name}.weight": square for name in ("receptance", "key", "value", "output")}
        expected |= {f"{att}.k_k": width, f"{att}.k_a": width, f"{att}.r_k": (dims.num_heads, dims.head_size)}
        for letter in "wavg":
            rank = free_size(f"{att}.{letter}1", 1)
            chain: Shapes = {f"{att}.{letter}1": (dims.width, rank), f"{att}.{letter}2": (rank, dims.width)}
            if letter != "g":
                chain[f"{att}.{letter}0"] = width
            if letter == "v" and layer == 0:
                optional |= chain
            else:
                expected |= chain
        hidden = free_size(f"{ffn}.key.weight", 0)
        expected |= {f"{ffn}.x_k": width}
        expected |= {f"{ffn}.key.weight": (hidden, dims.width), f"{ffn}.value.weight": (dims.width, hidden)}
        optional |= {f"{att}.time_state": (dims.num_heads, dims.head_size, dims.head_size)}
        if dims.generation == "7a":
            size = free_size(f"{ffn}.s1", 1)
            expected |= {f"{ffn}.s0": (hidden,), f"{ffn}.s1": (dims.width, size), f"{ffn}.s2": (size, hidden)}
            expected |= {f"{ffn}.s_emb.weight": (dims.vocab_size, size * size)}
            expected |= {f"{ffn}.s_emb_x.weight": (size * size, dims.width)}
    return expected, optional


def shape_text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if shape else "a single number"


UNUSED = ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")
"""Unused tensors of RWKV-7, which may be absent or hold any values."""


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint. Each is read from the file, and checked for NaN and infinity, on access.

    Args:
        architecture: the result of `inspect`.
        dtype: the type to which tensors are rounded; None does not round them.
        adapter: the merged adapter, as in `load_model`; None without one.
    """

    def __init__(
        self,
        file: NamedTensors,
        architecture: Architecture,
        dtype: torch.dtype | None = None,
        adapter: str | None = None,
    ) -> None:
        self.adapter = adapter
        self.file = file
        self.architecture = architecture
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self.file.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.entries)

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor `name`.

        Raises:
            KeyError: there is none.
            CheckpointError: it contains NaN or infinity, or would after rounding.
        """
        tensor = self.check(name)
        # fp32 represents every bf16 and fp16 number, so widening would only cost memory.
        if self.dtype is None or self.dtype == tensor.dtype or self.dtype == torch.float32:
            return tensor
        rounded = tensor.to(self.dtype)
        if self.dtype == torch.float16 and not bool(torch.isfinite(rounded).all()):
            raise CheckpointError(
                f"the tensor {name!r} has numbers too large for fp16",
                path=self.file.path,
                hint='use --strategy "cpu bf16", "cpu fp32" or "auto"',
            )
        return rounded

    def rows(self, name: str) -> StoredRows | None:
        """The location of the matrix `name`, unchecked, if a file holds the numbers of `self[name]`; else None."""
        entry = self.file.entries[name]
        return entry.rows if self.dtype in (None, entry.dtype, torch.float32) else None

    @property
    def vocabulary(self) -> str | None:
        """The vocabulary that the file's metadata declare: `world` or None.

        The bundled model is older than the metadata key and is recognised by other keys. Its file must not change,
        since the manifests of runs hold its hash.
        """
        metadata = self.file.metadata
        bundled = bool(metadata.get("licence")) and metadata.get("architecture") == "RWKV-7"
        declared = metadata.get("vocabulary") == "world" or metadata.get("tokenizer.ggml.model") == "rwkv"
        return "world" if declared or bundled else None

    def rounded(self, dtype: torch.dtype | None) -> dict[str, Entry]:
        """The tensors for a new file, checked when they are loaded.

        Unused tensors of layer 0 are left out if they hold NaN or infinity, which other programs would report as
        damage.

        Args:
            dtype: the type to which they are rounded; None keeps each tensor's type.
        """
        converted = Checkpoint(self.file, self.architecture, dtype)

        def entry(name: str, stored: Entry) -> Entry:
            target = dtype or stored.dtype
            return Entry(target, stored.shape, lambda: converted[name].to(target))

        return {
            name: entry(name, stored)
            for name, stored in self.file.entries.items()
            if name not in UNUSED or bool(torch.isfinite(self.file.read(name)).all())
        }

    def check(self, name: str) -> torch.Tensor:
        """The tensor `name`, not rounded; raises as `__getitem__`."""
        tensor = self.file.read(name)
        if name not in UNUSED:
            try:
                check_finite(tensor, name, self.file.path)
            except CheckpointError as error:
                if self.adapter is not None:
                    error.hint = (
                        f"this is after merging the adapter {self.adapter}: are its numbers and its alpha right?"
                    )
                raise
        return tensor


@contextmanager
def open_checkpoint(source: Path | Mapping[str, Any], adapter: Adapter | None = None) -> Iterator[Checkpoint]:
    """Open a checkpoint and check names and shapes. Reading a tensor merges the adapter and checks the values.

    Args:
        source: a file, a directory, or tensors by name.

    Raises:
        CheckpointError: as `inspect`, or the adapter does not fit.
        UsageError: see `adapters.adapted`.
    """
    with _opened(source) as tensors, adapted(tensors, adapter) as file:
        yield Checkpoint(file, inspect(file), adapter=None if adapter is None else str(adapter))


@contextmanager
def _opened(source: Path | Mapping[str, Any]) -> Iterator[NamedTensors]:
    """The tensors of `open_checkpoint` under the official names."""
    if isinstance(source, Path):
        with open_tensors(source) as tensors:
            yield official(tensors)
    else:
        with hashed(official(named_tensors_of(source))) as tensors:
            yield tensors


def initial_wkv(checkpoint: Checkpoint) -> torch.Tensor | None:
    """The tuned initial state that was merged into an RWKV-7 checkpoint, [L, H, N, N] fp32; None without one."""
    names = [f"blocks.{layer}.att.time_state" for layer in range(checkpoint.architecture.num_layers)]
    if names[0] not in checkpoint:
        return None
    return torch.stack([checkpoint.check(name).float() for name in names])
