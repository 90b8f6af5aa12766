"""Files of quantised checkpoints: the large matrices as integers with their scales, all else as it was.

A `.safetensors` file with the official names. A large matrix is a U8 tensor with one row an output: its integers
(`w8a8`: a byte each; `int4`: two in a byte, the first one below, 8 more than they are), then its scales (fp32; `int4`:
bf16), little endian. The metadata key `rwkvbatch_quantised` holds the rounding and each matrix' number of inputs as
JSON, and, if the rounding was fitted to texts (`model/calibration.py`), `fitted` with `tokens` and `texts_sha256`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.ops.reference import ROUNDINGS, RoundingRule
from rwkvbatch.model.tensor_file import Contents, Entry, StoredBytes

FileRounding = Literal["w8a8", "int4"]
"""What matrices of a file are rounded to; `w8a8` has the weights of `int8` too."""

METADATA_KEY = "rwkvbatch_quantised"

LARGE = re.compile(r"(?:.*\.(?:receptance|key|value|output)|head)\.weight")
"""The matrices that are rounded, as `Network.build` packs them."""

_SCALES: dict[FileRounding, torch.dtype] = {"w8a8": torch.float32, "int4": torch.bfloat16}
_MAX_ROUNDS = 8


def rounding_of(metadata: Mapping[str, str]) -> FileRounding | None:
    """What the large matrices of a file are rounded to, by its checked metadata; None for no quantised file."""
    return None if METADATA_KEY not in metadata else json.loads(metadata[METADATA_KEY])["rounding"]


@dataclass(frozen=True)
class Fit:
    """What a rounding was fitted to: how many tokens, and the hash of their ids."""

    tokens: int
    texts_sha256: str


def fit_of(metadata: Mapping[str, str]) -> Fit | None:
    """What the rounding of a file was fitted to, by its checked metadata; None if it was rounded to the nearest."""
    found = None if METADATA_KEY not in metadata else json.loads(metadata[METADATA_KEY]).get("fitted")
    return None if found is None else Fit(found["tokens"], found["texts_sha256"])


def settled(weight: Tensor, rule: RoundingRule) -> tuple[Tensor, Tensor]:
    """Integers and scales that rounding what they multiply out to leaves as they are.

    Once is enough in 4 bits; a scale in fp32 may move by a unit in the last place.
    """
    integers, scales = rule.integers(weight)
    for _ in range(_MAX_ROUNDS):
        before = integers, scales
        integers, scales = rule.integers(rule.multiplied_out(*before))
        if torch.equal(before[0], integers) and torch.equal(before[1], scales):
            return before
    raise AssertionError("rounding does not settle")


def quantised(
    entries: Mapping[str, Entry],
    rounding: FileRounding,
    fitted: Mapping[str, Tensor] | None = None,
    fit: Fit | None = None,
) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a quantised file, rounded when they are loaded, and its metadata.

    Args:
        fitted: matrices that are rounded already, as `packed` returns them.
        fit: what the rounding was fitted to.
    """
    made, inputs = dict(entries), dict[str, int]()
    for name, entry in entries.items():
        if LARGE.fullmatch(name):
            out, inputs[name] = entry.shape
            shape = (out, _row_bytes(rounding, inputs[name]))
            load = partial(_settled, entry, rounding) if fitted is None else partial(fitted.__getitem__, name)
            made[name] = Entry(torch.uint8, shape, load)
    described = {"rounding": rounding, "inputs": inputs, **({} if fit is None else {"fitted": asdict(fit)})}
    return made, {METADATA_KEY: json.dumps(described)}


def _integer_bytes(rounding: FileRounding, inputs: int) -> int:
    return inputs if rounding == "w8a8" else (inputs + 1) // 2


def _row_bytes(rounding: FileRounding, inputs: int) -> int:
    groups = -(-inputs // ROUNDINGS[rounding].group)
    return _integer_bytes(rounding, inputs) + groups * _SCALES[rounding].itemsize


def _settled(entry: Entry, rounding: FileRounding) -> Tensor:
    return packed(*settled(entry.load(), ROUNDINGS[rounding]), rounding)


def packed(integers: Tensor, scales: Tensor, rounding: FileRounding) -> Tensor:
    """A matrix as the file has it: U8, one row an output."""
    if rounding == "w8a8":
        words = integers.to(torch.int8).view(torch.uint8)
    else:
        halves = torch.nn.functional.pad((integers + 8).to(torch.uint8), (0, integers.shape[1] % 2))
        words = halves[:, ::2] | halves[:, 1::2] << 4
    return torch.cat([words, scales.to(_SCALES[rounding]).contiguous().view(torch.uint8)], 1)


def _unpacked(rounding: FileRounding, inputs: int, flat: Tensor) -> Tensor:
    """The weight [out, in] in fp32 of the bytes of a tensor of the file."""
    rows, split = flat.view(-1, _row_bytes(rounding, inputs)), _integer_bytes(rounding, inputs)
    if rounding == "w8a8":
        integers = rows[:, :split].contiguous().view(torch.int8).float()
    else:
        halves = torch.stack([rows[:, :split] & 15, rows[:, :split] >> 4], 2).view(len(rows), -1)[:, :inputs]
        integers = halves.float() - 8
    scales = rows[:, split:].contiguous().view(_SCALES[rounding]).float()
    return ROUNDINGS[rounding].multiplied_out(integers, scales)


def unpacked(contents: Contents, path: Path) -> Contents:
    """The contents of a file, with the matrices of a quantised one as weights in fp32.

    Raises:
        CheckpointError: the metadata do not describe the tensors.
    """
    if METADATA_KEY not in contents.metadata:
        return contents
    try:
        described = json.loads(contents.metadata[METADATA_KEY])
        rounding, inputs = described["rounding"], cast("dict[str, Any]", described["inputs"])
        if rounding not in get_args(FileRounding):
            raise ValueError(f"the rounding {str(rounding)[:40]!r} is not known")
        match described.get("fitted"):
            case None | {"tokens": int(), "texts_sha256": str()}:
                pass
            case other:
                raise ValueError(f"it is said to be fitted to {str(other)[:40]!r}")
        made: dict[str, StoredBytes] = dict(contents.entries)
        for name, count in inputs.items():
            stored = made[name]
            if type(count) is not int or not 0 < count < 2**31:
                raise ValueError(f"{name[:80]!r} is said to have {str(count)[:40]} inputs")
            if stored.dtype != torch.uint8 or stored.shape[1:] != (_row_bytes(rounding, count),):
                raise ValueError(f"{name[:80]!r} is no matrix of {count} inputs in {rounding}")
            shape = (stored.shape[0], count)
            decode = partial(_unpacked, rounding, count)
            made[name] = replace(
                stored, dtype=torch.float32, shape=shape, strides=(count, 1), decode=decode, rounding=rounding
            )
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the description of its quantised matrices ({METADATA_KEY}) is damaged: {reason}",
            path=path,
            hint="write it again with rwkvbatch model quantize",
        ) from error
    return replace(contents, entries=made)
