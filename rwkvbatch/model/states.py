"""Files of recurrent states: state-tuned initial states, and saved states."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rwkvbatch.arguments import ITERABLE, PATH, SWITCH, checks, instance_of, list_of, optional
from rwkvbatch.errors import CheckpointError
from rwkvbatch.files import user_path
from rwkvbatch.model.base import ModelSpec, State
from rwkvbatch.model.checkpoints.checkpoint import shape_text
from rwkvbatch.model.checkpoints.forms import official
from rwkvbatch.model.strategy import PRECISIONS
from rwkvbatch.model.upstream import PACKAGE_STATE, PACKAGE_STATE_4
from rwkvbatch.model.weights.containers import open_tensors
from rwkvbatch.model.weights.named_tensors import NamedTensors, check_finite
from rwkvbatch.model.weights.pth import LIST_PREFIX
from rwkvbatch.model.weights.safetensors import STATE, STATE_FORMAT, save_tensors
from rwkvbatch.targets import check_target

VERSION = "1"

_SIZES = ("generation", "num_layers", "width", "num_heads", "head_size", "vocab_size")
_TUNED = re.compile(r"blocks\.(\d{1,6})\.att\.time_state")


_SPEC = instance_of(ModelSpec, "a ModelSpec", "the attribute `spec` of an LLM or a model")


@checks(path=PATH, spec=_SPEC)
def load_state(path: str | Path, spec: ModelSpec) -> State:
    """Load a state for the model that `spec` describes.

    Three kinds of files are accepted:
    - state-tuned files, with `blocks.{i}.att.time_state` [H, N, N] for each layer, which give the state of one sequence
      with zero shifts. The matrices are used as stored for RWKV-7 and transposed for RWKV-5 and 6, as in the `rwkv`
      package's demo.
    - files that `save_state` wrote.
    - the list that the `rwkv` package's `forward` returns, written by `torch.save`.

    Raises:
        CheckpointError: the file is damaged, of none of these kinds, or for another model.
    """
    with open_tensors(user_path(path)) as tensors:
        file = official(tensors)
        if file.metadata.get("format") == STATE_FORMAT:
            return _from_saved(file, spec)
        if any(_TUNED.fullmatch(name) for name in file.entries):
            return _from_tuned(file, spec)
        if file.entries and all(name.startswith(LIST_PREFIX) for name in file.entries):
            return _from_package(file, spec)
        names = ", ".join(repr(name[:60]) for name in list(file.entries)[:4]) or "no tensors at all"
        raise CheckpointError(
            "not a state file: expected 'blocks.0.att.time_state' and so on, a state saved by rwkvbatch, or a list of "
            f"tensors of the `rwkv` package; found {names}",
            path=file.path,
        )


@checks(
    path=PATH,
    state=instance_of(State, "a State", "llm.state(PROMPT) makes one"),
    spec=_SPEC,
    tokens=optional(list_of(ITERABLE, "a list of lists of token ids")),
    replace=SWITCH,
    private=SWITCH,
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
    """Write `state` as `.safetensors`. It can be loaded only for the model that `spec` describes.

    Args:
        tokens: the tokens that each sequence has read, saved with its state.
        replace: whether an existing saved state may be replaced. Files of another kind are never replaced.
        private: whether only the owner may read the file, since a state reveals the text that was read.

    Raises:
        UsageError: the file exists and may not be replaced, or its directory is missing.
        StorageError: the file could not be written.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        target = target.with_name(target.name + ".safetensors")
    check_target(target, STATE, replace=replace, how="replace=True replaces it")
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.tensors.items()}
    metadata = {
        "format": STATE_FORMAT,
        "version": VERSION,
        "weights_sha256": spec.weights_sha256,
        "model": json.dumps({name: getattr(spec, name) for name in _SIZES}, sort_keys=True),
    }
    if tokens is not None:
        metadata["tokens"] = json.dumps([[int(token) for token in ids] for ids in tokens])
    metadata["checksum"] = _checksum(tensors, metadata)
    save_tensors(target, tensors, kind=STATE, metadata=metadata, replace=replace, private=private)


def _from_tuned(file: NamedTensors, spec: ModelSpec) -> State:
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
    for name in expected:
        if file.entries[name].shape != shape:
            raise CheckpointError(
                f"this state file is not for this model: the tensor {name!r} must be {shape_text(shape)} "
                f"(heads, head size, head size), it is {shape_text(file.entries[name].shape)}",
                path=file.path,
            )
    wkv = torch.stack([_values(file, name) for name in expected]).unsqueeze(0)
    if not spec.generation.startswith("7"):
        wkv = wkv.transpose(-2, -1).contiguous()
    shift = torch.zeros(1, spec.num_layers, spec.width)
    return State({"att_shift": shift, "ffn_shift": shift.clone(), "wkv": wkv})


def _from_package(file: NamedTensors, spec: ModelSpec) -> State:
    """A state of the `rwkv` package, written by `torch.save`: a list of 3 tensors per layer, for RWKV-4 of 5."""
    names = PACKAGE_STATE_4 if spec.generation == "4" else PACKAGE_STATE
    count = len(names) * spec.num_layers
    if len(file.entries) != count:
        raise CheckpointError(
            f"this state is not for this model: a list of {len(file.entries)} tensors, expected {count} "
            f"({len(names)} for each of {spec.num_layers} layers)",
            path=file.path,
        )
    vector, matrix = (spec.width,), (spec.num_heads, spec.head_size, spec.head_size)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for number in range(count):
        name = names[number % len(names)]
        entry, shape = file.entries[f"{LIST_PREFIX}{number}"], matrix if name == "wkv" else vector
        if entry.shape != shape:
            raise CheckpointError(
                f"this state is not for this model: tensor {number} of its list must be {shape_text(shape)} ({name}), "
                f"it is {shape_text(entry.shape)}",
                path=file.path,
            )
        parts[name].append(_values(file, f"{LIST_PREFIX}{number}"))
    return State({name: torch.stack(tensors).unsqueeze(0) for name, tensors in parts.items()})


def _values(file: NamedTensors, name: str) -> torch.Tensor:
    if file.entries[name].dtype not in PRECISIONS or file.entries[name].num_elements == 0:
        raise CheckpointError(f"the tensor {name[:80]!r} must contain bf16, fp16 or fp32 numbers", path=file.path)
    tensor = file.read(name)
    check_finite(tensor, name, file.path)
    return tensor.float()


def _from_saved(file: NamedTensors, spec: ModelSpec) -> State:
    metadata = file.metadata
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"a saved state of version {metadata.get('version')!r:.40}; this program reads version {VERSION!r}",
            path=file.path,
        )
    if metadata.get("weights_sha256") != spec.weights_sha256:
        raise CheckpointError(
            f"this state was saved from another model ({metadata.get('model', 'unknown')[:200]}) than {spec.path}; "
            "a state is valid for the weights that computed it only",
            path=file.path,
        )
    tensors = {name: _values(file, name) for name in file.entries}
    if metadata.get("checksum") != _checksum(tensors, metadata):
        raise CheckpointError("this saved state is damaged: its checksum is wrong", path=file.path)
    return State(tensors)


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(metadata.keys() - {"checksum"}):
        digest.update(f"{name}={metadata[name]}\n".encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
