"""Adapters (LoRA, PiSSA, DiSHA, Bone), merged into a checkpoint's matrices when these are read.

Supported files are those of RWKV-PEFT (github.com/JL-er/RWKV-PEFT; the formulas are in merge/merge.py, merge_disha.py
and merge_bone.py, the layers in rwkvt/peft/rwkvLinear.py), those of web-rwkv's converter (`lora.0`, `lora.1`), and LoRA
directories of Hugging Face's PEFT. For a matrix W [out, in]:

    LoRA    W + alpha / rank * B A, with lora_B [out, rank] and lora_A [rank, in]
    PiSSA   W - B0 A0 + B A, with B0 A0 from the file that training began with (init_lora_A, init_lora_B)
    Bone    W + W_ab bone_b + bone_b for each block [rank, rank] of W, with bone [in / rank, rank, rank]; DiSHA's `bat`
    DiSHA   W[o, i] + disha[i mod rank, o], with disha [rank, out]; later called MiSS

The tensors of LoRA do not show alpha, nor whether the adapter is PiSSA's, so `alpha=` or `init=` is required. Other
tensors of an adapter were trained as a whole and replace those of the checkpoint. Sums are computed in fp32 and rounded
once, to the type of the checkpoint.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkvbatch.config import NO_ADAPTER
from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.files import user_path
from rwkvbatch.model.checkpoints import peft_config
from rwkvbatch.model.checkpoints.forms import official
from rwkvbatch.model.strategy import PRECISIONS
from rwkvbatch.model.weights.containers import open_tensors
from rwkvbatch.model.weights.named_tensors import Entry, NamedTensors, check_finite

_OPTIONS = re.compile(r"(?P<path>.*?)(?: +alpha=(?P<alpha>\S+)| +init=(?P<init>.+))?", re.DOTALL)
_PART = re.compile(
    r"(.+)\.(?:(lora_A|lora_B|init_lora_A|init_lora_B)(?:\.default)?(?:\.weight)?|(bone|disha)|lora\.([01]))"
)


@dataclass(frozen=True)
class Adapter:
    """The parsed value of `--adapter`.

    Attributes:
        path: an adapter's file, or a directory of Hugging Face's PEFT.
        alpha: LoRA's alpha; the product is multiplied by alpha / rank.
        init: PiSSA's initial adapter, which was subtracted from the weights before training.
    """

    path: Path
    alpha: float | None = None
    init: Path | None = None

    def __str__(self) -> str:
        alpha = "" if self.alpha is None else f" alpha={self.alpha:g}"
        return f"{self.path}{alpha}" + ("" if self.init is None else f" init={self.init}")


def parse_adapter(text: str) -> Adapter | None:
    """Parse `FILE`, `FILE alpha=NUMBER` or `FILE init=FILE`; None for `none`.

    Raises:
        UsageError: there is no file name, or alpha is not a number above 0.
    """
    if text == NO_ADAPTER:
        return None
    if text and user_path(text).exists():
        return Adapter(user_path(text))
    match = _OPTIONS.fullmatch(text)
    assert match is not None
    path, alpha_text, init = match["path"], match["alpha"], match["init"]
    if not path:
        raise UsageError(f"--adapter must begin with a file, got {text!r}")
    try:
        alpha = None if alpha_text is None else float(alpha_text)
    except ValueError:
        alpha = math.nan
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise UsageError(f"--adapter: alpha must be a number above 0, got {alpha_text!r}")
    return Adapter(user_path(path), alpha, None if init is None else user_path(init))


def is_adapter_part(name: str) -> bool:
    """Whether a tensor of this name is a part of an adapter."""
    return _PART.fullmatch(name) is not None


@contextmanager
def adapted(base: NamedTensors, adapter: Adapter | None) -> Iterator[NamedTensors]:
    """`base` (official names) with an adapter merged: `adapter`, or one whose tensors are in the file of `base`.

    Without an adapter, `base` is unchanged.

    Raises:
        CheckpointError: an adapter is damaged, of an unknown kind or for another model, or LoRA's alpha is unknown.
        UsageError: an option does not apply to this kind of adapter.
    """
    own_parts = {name: entry for name, entry in base.entries.items() if is_adapter_part(name)}
    if base.is_rescaled and (adapter is not None or own_parts):
        raise CheckpointError(
            "an adapter cannot be merged into it: its matrices are rescaled, since flash-linear-attention's norm is "
            "different for heads of this size",
            path=base.path,
            hint="merge it with flash-linear-attention, and give the result",
        )
    plain = {name: entry for name, entry in base.entries.items() if name not in own_parts}
    with ExitStack() as stack:
        if adapter is None:
            if not own_parts or "emb.weight" not in plain:
                yield base
                return
            merged = _merged(base, plain, own_parts, Adapter(base.path), base, None)
        else:
            opened = stack.enter_context(_opened(adapter.path))
            is_own = opened.files[0].is_same_file(base.files[0])
            if own_parts and not is_own:
                raise CheckpointError("the file already contains an adapter; another cannot be merged", path=base.path)
            parts = own_parts if is_own else dict(opened.entries)
            init = None if adapter.init is None else stack.enter_context(_opened(adapter.init))
            merged = _merged(base, plain, parts, adapter, opened, init)
            added = ([] if is_own else [opened]) + ([] if init is None else [init])
            merged = replace(merged, files=(*base.files, *(file for tensors in added for file in tensors.files)))
        yield merged


@contextmanager
def _opened(path: Path) -> Iterator[NamedTensors]:
    with open_tensors(path) as tensors:
        yield official(tensors)


def _merged(
    base: NamedTensors,
    plain: Mapping[str, Entry],
    parts: Mapping[str, Entry],
    adapter: Adapter,
    source: NamedTensors,
    init: NamedTensors | None,
) -> NamedTensors:
    """`base` with adapter tensors merged.

    Args:
        plain: the tensors of the model.
        parts: the tensors of the adapter, from `source`.
        init: PiSSA's initial adapter.
    """
    groups: dict[str, dict[str, Entry]] = {}
    replacements: dict[str, Entry] = {}
    for name, entry in parts.items():
        if entry.dtype not in PRECISIONS:
            raise CheckpointError(f"the tensor {name[:80]!r} must contain bf16, fp16 or fp32 numbers", path=source.path)
        entry = _checked(name, entry, source.path)
        if match := _PART.fullmatch(name):
            groups.setdefault(match[1], {})[match[2] or match[3] or f"lora.{match[4]}"] = entry
        else:
            replacements[name] = entry
    if not groups:
        shown = ", ".join(repr(name[:60]) for name in list(parts)[:3]) or "no tensors at all"
        raise CheckpointError(f"not an adapter: expected tensors such as '...lora_A', found {shown}", path=source.path)
    kinds = {target: _kind(target, group, adapter, source.path) for target, group in groups.items()}
    scale = _scale(groups, adapter, source)
    initial = _initial(init)
    entries = dict(plain)
    for name, entry in replacements.items():
        entries[name] = _replaced(name, entry, plain, source.path)
    for target, group in groups.items():
        name = target if target in plain else f"{target}.weight"  # the low-rank matrices have no `.weight`
        if name not in plain:
            raise CheckpointError(
                f"this adapter is for another model: {str(base.path)!r} has no tensor {name[:80]!r}", path=source.path
            )
        entries[name] = _entry(kinds[target], name, entries[name], group, scale, initial, source.path)
    phrases = [
        f"the {kind} adapter {'in the file' if source is base else repr(source.path.name)} merged into {count} matrices"
        for kind, count in Counter(kinds.values()).items()
    ]
    if replacements:
        phrases.append(f"{len(replacements)} tensors replaced by those of {source.path.name!r}")
    factors = sorted({repr(factor) for factor in scale.values()})
    return replace(base.changed(entries, *phrases), recipe=(*base.recipe, "adapter", *factors))


def _checked(name: str, entry: Entry, path: Path) -> Entry:
    """The tensor, checked for NaN and infinity when it is read."""

    def load() -> Tensor:
        tensor = entry.load()
        check_finite(tensor, name, path)
        return tensor

    return Entry(entry.dtype, entry.shape, load)


def _kind(target: str, group: Mapping[str, Entry], adapter: Adapter, path: Path) -> str:
    """The kind of adapter, by the tensors for the matrix `target`."""
    names = set(group)
    if names in ({"lora_A", "lora_B"}, {"lora.0", "lora.1"}):
        return "LoRA" if adapter.init is None else "PiSSA"
    if names == {"bone"}:
        return "Bone"
    if names == {"disha"}:
        return "Bone" if len(group["disha"].shape) == 3 else "DiSHA"
    if names <= {"init_lora_A", "init_lora_B"}:
        hint = f"give the trained adapter, and this file as in --adapter 'FILE init={path}'"
        raise CheckpointError("this is the initial adapter of PiSSA, not a trained one", path=path, hint=hint)
    shown = ", ".join(sorted(names))
    raise CheckpointError(f"the adapter of {target[:80]!r} is incomplete: it has only {shown}", path=path)


def _scale(groups: Mapping[str, Mapping[str, Entry]], adapter: Adapter, source: NamedTensors) -> Mapping[str, float]:
    """The factor of B A for each matrix with a LoRA pair."""
    pairs = {target: group for target, group in groups.items() if {"lora_B", "lora.1"} & set(group)}
    if not pairs:
        if adapter.alpha is not None or adapter.init is not None:
            raise UsageError(f"--adapter: {adapter.path} is neither LoRA nor PiSSA, so alpha= and init= do not apply")
        return {}
    ranks = {target: (group.get("lora_B") or group["lora.1"]).shape[-1:] for target, group in pairs.items()}
    if any(not rank or rank[0] == 0 for rank in ranks.values()):
        raise CheckpointError("an adapter's matrix has no columns", path=source.path)
    if adapter.init is not None:
        return dict.fromkeys(pairs, 1.0)
    config = peft_config.read_config(adapter.path)
    if config:
        if adapter.alpha is not None:
            raise UsageError(f"--adapter: {peft_config.NAME} has LoRA's alpha, so alpha= does not apply")
        _warn_of_quantised_base(config, adapter.path)
        return {target: peft_config.factor(config, rank[0], adapter.path) for target, rank in ranks.items()}
    if adapter.alpha is None:
        raise CheckpointError(
            "this adapter is either LoRA or PiSSA; its tensors do not show which",
            path=adapter.path,
            hint=f"--adapter '{adapter.path} alpha=NUMBER' for LoRA, with the lora_alpha of the training; "
            f"--adapter '{adapter.path} init=init_lora.pth' for PiSSA",
        )
    return {target: adapter.alpha / rank[0] for target, rank in ranks.items()}


def _warn_of_quantised_base(config: Mapping[str, Any], path: Path) -> None:
    if (reason := peft_config.quantised_base(config, path)) is not None:
        warnings.warn(
            f"{path}: this adapter was trained over a quantised base (QLoRA): {reason}. It is merged into unquantised "
            "weights, so replies differ slightly from those in training; for the same replies, merge it with the tool "
            "that trained it, which quantises the base first, and give the result as --model",
            peft_config.QuantisedBaseWarning,
            stacklevel=2,
        )


def _initial(init: NamedTensors | None) -> Mapping[str, tuple[Entry, Entry]] | None:
    """PiSSA's initial pairs (B, A), by matrix."""
    if init is None:
        return None
    groups: dict[str, dict[str, Entry]] = {}
    for name, entry in init.entries.items():
        if match := _PART.fullmatch(name):
            groups.setdefault(match[1], {})[str(match[2])] = _checked(name, entry, init.path)
    pairs = {
        target: (group["init_lora_B"], group["init_lora_A"])
        for target, group in groups.items()
        if {"init_lora_A", "init_lora_B"} <= set(group)
    }
    if not pairs:
        raise CheckpointError("not an initial adapter of PiSSA: it has no '...init_lora_A'", path=init.path)
    return pairs


def _replaced(name: str, entry: Entry, plain: Mapping[str, Entry], path: Path) -> Entry:
    """A tensor of an adapter that replaces the checkpoint's, or adds a tuned state."""
    replaced = plain.get(name)
    if replaced is None and not name.endswith(".att.time_state"):
        raise CheckpointError(f"the tensor {name[:80]!r} belongs neither to an adapter nor to the model", path=path)
    if replaced is not None and _sizes(replaced.shape) != _sizes(entry.shape):
        raise CheckpointError(
            f"this adapter is for another model: {name[:80]!r} is {entry.shape}, the model's {replaced.shape}",
            path=path,
        )
    return entry if replaced is None else entry.reshaped(replaced.shape, path)


def _sizes(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _entry(
    kind: str,
    name: str,
    weight: Entry,
    group: Mapping[str, Entry],
    scale: Mapping[str, float],
    initial: Mapping[str, tuple[Entry, Entry]] | None,
    path: Path,
) -> Entry:
    """The merged matrix, computed when it is read."""

    def misshapen(parts: Iterable[Entry]) -> CheckpointError:
        shapes = " and ".join(str(part.shape) for part in parts)
        return CheckpointError(
            f"this adapter is for another model: its parts of {name[:80]!r} are {shapes}, the matrix is {weight.shape}",
            path=path,
        )

    if len(weight.shape) != 2:
        raise misshapen(group.values())
    out, width = weight.shape
    target = name.removesuffix(".weight")
    if kind in ("LoRA", "PiSSA"):
        products = [(*_pair(group), scale[target])]
        if initial is not None:
            if target not in initial:
                raise CheckpointError(f"the initial adapter has nothing for {target[:80]!r}", path=path)
            products.insert(0, (*initial[target], -1.0))
        for b, a, _ in products:
            if (
                len(a.shape) != 2
                or len(b.shape) != 2
                or (b.shape[0], a.shape[1]) != (out, width)
                or b.shape[1] != a.shape[0]
            ):
                raise misshapen((b, a))
        return Entry(weight.dtype, weight.shape, lambda: _add_products(weight, products))
    tensor = next(iter(group.values()))
    if kind == "DiSHA":
        if len(tensor.shape) != 2 or tensor.shape[1] != out or tensor.shape[0] == 0:
            raise misshapen([tensor])
        return Entry(weight.dtype, weight.shape, lambda: _add_shards(weight, tensor))
    if len(tensor.shape) != 3 or tensor.shape[1] != tensor.shape[2] or 0 in tensor.shape:
        raise misshapen([tensor])
    count, rank, _ = tensor.shape
    if count * rank != width or out % rank:
        # Older versions of Bone have a block for each block of outputs and another formula.
        raise misshapen([tensor])
    return Entry(weight.dtype, weight.shape, lambda: _add_blocks(weight, tensor))


def _pair(group: Mapping[str, Entry]) -> tuple[Entry, Entry]:
    """B [out, rank] and A [rank, in]. Some versions of web-rwkv's converter transpose A."""
    if "lora_B" in group:
        return group["lora_B"], group["lora_A"]
    b, a = group["lora.1"], group["lora.0"]
    is_transposed = len(a.shape) == 2 and len(b.shape) == 2 and a.shape[1] == b.shape[1] and a.shape[0] != b.shape[1]
    return b, a.transposed() if is_transposed else a


def _add_products(weight: Entry, products: Iterable[tuple[Entry, Entry, float]]) -> Tensor:
    total = weight.load().float()
    for b, a, factor in products:
        total = total + product(b.load().float() * factor, a.load().float())
    return total.to(weight.dtype)


def _add_shards(weight: Entry, shard: Entry) -> Tensor:
    width = weight.shape[1]
    rows = shard.load().float().t()
    repeated = rows.repeat(1, -(-width // rows.shape[1]))[:, :width]
    return (weight.load().float() + repeated).to(weight.dtype)


def _add_blocks(weight: Entry, blocks: Entry) -> Tensor:
    W, bones = weight.load().float(), blocks.load().float()
    rank = bones.shape[1]
    merged: list[Tensor] = []
    for columns, bone in zip(W.split(rank, dim=1), bones, strict=True):
        merged.append(columns + (product(columns, bone) + bone.repeat(len(W) // rank, 1)))
    return torch.cat(merged, dim=1).to(weight.dtype)


def product(x: Tensor, y: Tensor) -> Tensor:
    """The product x y of fp32 matrices, with the same bits on every processor and for every number of threads.

    Without the native kernels, torch computes it, and the bits depend on both.
    """
    try:
        from rwkvbatch.model.ops import Product
        from rwkvbatch.model.ops.cpu import CpuOps
    except ImportError:
        return x @ y
    ops = CpuOps()
    (result,) = ops.linears([Product(ops.array(x), ops.linear_layer(y.t()))])
    return ops.values(result)
