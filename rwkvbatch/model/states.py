"""Files of recurrent states: state-tuned initial states, and saved states."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.base import ModelSpec, State
from rwkvbatch.model.checkpoint import check_finite, open_tensors
from rwkvbatch.model.safetensors import save_tensors
from rwkvbatch.model.strategy import PRECISIONS
from rwkvbatch.model.tensor_file import TensorFile

FORMAT = "rwkvbatch-state"
VERSION = "1"

_TUNED = re.compile(r"blocks\.(\d{1,6})\.att\.time_state")


@dataclass(frozen=True)
class SavedState:
    """A state, and the tokens that it has read if they are known (one list per sequence)."""

    state: State
    tokens: tuple[tuple[int, ...], ...] | None


def load_state(path: str | Path, spec: ModelSpec) -> State:
    """The state in a file, for the model that `spec` describes.

    Accepts state-tuned files (one `blocks.{i}.att.time_state` [H, N, N] per layer; used as stored for RWKV-7,
    transposed for RWKV-5 and 6, as the `rwkv` package's demo does), which give the state of one sequence with zero
    shifts, and files that `save_state` wrote.

    Raises:
        CheckpointError: it is damaged, neither of these, or of another model.
    """
    return load_saved_state(path, spec).state


def load_saved_state(path: str | Path, spec: ModelSpec) -> SavedState:
    """Like `load_state`, with the tokens that were saved with the state."""
    with open_tensors(Path(path)) as file:
        if file.metadata.get("format") == FORMAT:
            return _saved(file, spec)
        if any(_TUNED.fullmatch(name) for name in file.entries):
            return SavedState(_tuned(file, spec), None)
        found = ", ".join(repr(name[:60]) for name in list(file.entries)[:4]) or "no tensors at all"
        raise CheckpointError(
            "not a state file: expected 'blocks.0.att.time_state' and so on, or a state saved by rwkvbatch; "
            f"found {found}",
            path=file.path,
        )


def save_state(
    path: str | Path,
    state: State,
    spec: ModelSpec,
    *,
    tokens: Sequence[Sequence[int]] | None = None,
    replace: bool = False,
    private: bool = False,
) -> None:
    """Write `state` as `.safetensors`, for use with the model that `spec` describes only.

    Args:
        tokens: the tokens that each sequence has read, saved with its state.
        replace: whether an existing file may be replaced.
        private: whether only the owner may read it, since a state reveals what was read.

    Raises:
        UsageError: the name does not end in `.safetensors`, or the file is there and may not be replaced.
        StorageError: it could not be written.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        target = target.with_name(target.name + ".safetensors")
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.tensors.items()}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "weights_sha256": spec.weights_sha256,
        "model": json.dumps(_shape_of(spec), sort_keys=True),
    }
    if tokens is not None:
        metadata["tokens"] = json.dumps([[int(token) for token in part] for part in tokens])
    metadata["checksum"] = _checksum(tensors, metadata)
    save_tensors(target, tensors, metadata=metadata, replace=replace, private=private)


def _tuned(file: TensorFile, spec: ModelSpec) -> State:
    if spec.num_heads == 0:
        raise CheckpointError(f"RWKV-{spec.generation} has no state-tuned files", path=file.path)
    shape = (spec.num_heads, spec.head_size, spec.head_size)
    expected = [f"blocks.{layer}.att.time_state" for layer in range(spec.num_layers)]
    surplus = [name for name in file.entries if name not in set(expected)]
    missing = [name for name in expected if name not in file.entries]
    for names, word in ((surplus, "surplus"), (missing, "missing")):
        if names:
            raise CheckpointError(
                f"this state file is not for this model of {spec.num_layers} layers: "
                f"the tensor {names[0][:80]!r} is {word}",
                path=file.path,
            )
    layers = [_checked(file, name, shape) for name in expected]
    wkv = torch.stack(layers).unsqueeze(0)
    if not spec.generation.startswith("7"):
        wkv = wkv.transpose(-2, -1).contiguous()
    shift = torch.zeros(1, spec.num_layers, spec.width)
    return State({"att_shift": shift, "ffn_shift": shift.clone(), "wkv": wkv})


def _checked(file: TensorFile, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    entry = file.entries[name]
    if entry.shape != shape:
        raise CheckpointError(
            f"this state file is not for this model: the tensor {name!r} must be {_shown(shape)} "
            f"(heads, head size, head size), it is {_shown(entry.shape)}",
            path=file.path,
        )
    return _values(file, name)


def _values(file: TensorFile, name: str) -> torch.Tensor:
    if file.entries[name].dtype not in PRECISIONS or file.entries[name].num_elements == 0:
        raise CheckpointError(f"the tensor {name[:80]!r} must hold bf16, fp16 or fp32 numbers", path=file.path)
    tensor = file.read(name)
    check_finite(tensor, name, file.path)
    return tensor.float()


def _saved(file: TensorFile, spec: ModelSpec) -> SavedState:
    metadata = file.metadata
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"a saved state of version {metadata.get('version')!r:.40}; this program reads version {VERSION!r}",
            path=file.path,
        )
    if metadata.get("weights_sha256") != spec.weights_sha256:
        raise CheckpointError(
            f"this state was saved from another model ({metadata.get('model', 'unknown')[:200]}) than {spec.path}; "
            "a state means nothing to other weights",
            path=file.path,
        )
    tensors = {name: _values(file, name) for name in file.entries}
    if metadata.get("checksum") != _checksum(tensors, metadata):
        raise CheckpointError("this saved state is damaged: its checksum does not fit", path=file.path)
    try:
        tokens = json.loads(metadata["tokens"]) if "tokens" in metadata else None
    except (ValueError, RecursionError) as error:
        raise CheckpointError("the tokens of this saved state are damaged", path=file.path) from error
    return SavedState(State(tensors), None if tokens is None else tuple(tuple(part) for part in tokens))


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(metadata.keys() - {"checksum"}):
        digest.update(f"{name}={metadata[name]}\n".encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _shape_of(spec: ModelSpec) -> dict[str, str | int]:
    return {
        "generation": spec.generation,
        "num_layers": spec.num_layers,
        "width": spec.width,
        "num_heads": spec.num_heads,
        "head_size": spec.head_size,
        "vocab_size": spec.vocab_size,
    }


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
