"""The file format of quantised checkpoints.

A quantised checkpoint is a `.safetensors` file with the official names. The large matrices are quantised, all other
tensors are unchanged. A large matrix is a U8 tensor with one row per output: first its integers (`w8a8`: one byte each;
`int4`: two per byte, the first in the low bits, each with 8 added), then its scales (`w8a8`: fp32; `int4`: bf16),
little endian. The metadata key `rwkvbatch_quantised` holds JSON: the rounding, each matrix' number of inputs and, if
the rounding was fitted to texts (`model/checkpoints/calibration.py`), `fitted` with `tokens` and `texts_sha256`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.base import num_threads
from rwkvbatch.model.ops import MatrixKind
from rwkvbatch.model.ops.reference import ROUNDINGS, RoundingRule, row_pieces
from rwkvbatch.model.weights.named_tensors import Entry
from rwkvbatch.model.weights.tensor_file import Contents, StoredBytes

FileRounding = Literal["w8a8", "int4"]
"""The rounding of a file. `w8a8` has the same weights as `int8`."""

METADATA_KEY = "rwkvbatch_quantised"

LARGE = re.compile(r"(?:.*\.(?:receptance|key|value|output)|head)\.weight")
"""Names of the matrices that are quantised, those that `Network.build` packs as large."""

LOW_RANK = re.compile(r".*\.att\.[wavg][12]")
"""Names of the factors of low-rank chains, which keep their dtype in a file and are rounded when they are packed."""


def matrix_kind(name: str) -> MatrixKind:
    """The kind of a tensor, by its name."""
    return "large" if LARGE.fullmatch(name) else "low_rank" if LOW_RANK.fullmatch(name) else "other"


_SCALES: dict[FileRounding, torch.dtype] = {"w8a8": torch.float32, "int4": torch.bfloat16}
_MAX_ROUNDS = 8


def rounding_of(metadata: Mapping[str, str]) -> FileRounding | None:
    """The rounding of a file, from its checked metadata; None if it is not quantised."""
    return None if METADATA_KEY not in metadata else json.loads(metadata[METADATA_KEY])["rounding"]


def rounded_names(metadata: Mapping[str, str]) -> frozenset[str]:
    """The names of the quantised matrices of a file, from its checked metadata."""
    return frozenset(json.loads(metadata[METADATA_KEY])["inputs"] if METADATA_KEY in metadata else ())


@dataclass(frozen=True)
class Fit:
    """The texts that a rounding was fitted to: the number of tokens and the hash of their ids."""

    tokens: int
    texts_sha256: str


def fit_of(metadata: Mapping[str, str]) -> Fit | None:
    """The texts that the rounding of a file was fitted to, from its checked metadata; None if it was not fitted."""
    if METADATA_KEY not in metadata:
        return None
    fitted = json.loads(metadata[METADATA_KEY]).get("fitted")
    return None if fitted is None else Fit(fitted["tokens"], fitted["texts_sha256"])


def settled(weight: Tensor, rule: RoundingRule) -> tuple[Tensor, Tensor]:
    """Integers and scales that do not change when they are dequantised and quantised again.

    One pass is enough in 4 bits; in 8 bits a scale, in fp32, may change by a unit in the last place.
    """
    integers, scales = rule.quantize(weight)
    for _ in range(_MAX_ROUNDS):
        before = integers, scales
        integers, scales = rule.quantize(rule.dequantize(*before))
        if torch.equal(before[0], integers) and torch.equal(before[1], scales):
            return before
    raise AssertionError(f"rounding still changes after {_MAX_ROUNDS} passes")


def quantised(
    entries: Mapping[str, Entry],
    rounding: FileRounding,
    fitted: Mapping[str, Tensor] | None = None,
    fit: Fit | None = None,
) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a quantised file, which are rounded when they are loaded, and its metadata.

    Args:
        fitted: already rounded matrices, as `packed` returns them; None to round to the nearest.
        fit: the texts that `fitted` was fitted to.
    """
    stored, inputs = dict(entries), dict[str, int]()
    for name, entry in entries.items():
        if LARGE.fullmatch(name):
            out, inputs[name] = entry.shape
            shape = (out, _row_bytes(rounding, inputs[name]))
            load = partial(_settled, entry, rounding) if fitted is None else partial(fitted.__getitem__, name)
            stored[name] = Entry(torch.uint8, shape, load)
    description = {"rounding": rounding, "inputs": inputs, **({} if fit is None else {"fitted": asdict(fit)})}
    return stored, {METADATA_KEY: json.dumps(description)}


def _integer_bytes(rounding: FileRounding, inputs: int) -> int:
    return inputs if rounding == "w8a8" else (inputs + 1) // 2


def _row_bytes(rounding: FileRounding, inputs: int) -> int:
    groups = -(-inputs // ROUNDINGS[rounding].group)
    return _integer_bytes(rounding, inputs) + groups * _SCALES[rounding].itemsize


def _settled(entry: Entry, rounding: FileRounding) -> Tensor:
    """A matrix rounded to the nearest, in the format of the file; several threads round rows, torch one operation."""
    weight, rule = entry.load(), ROUNDINGS[rounding]
    out, inputs = weight.shape
    result = torch.empty(out, _row_bytes(rounding, inputs), dtype=torch.uint8)

    def round_rows(rows: slice) -> None:
        result[rows] = packed(*settled(weight[rows], rule), rounding)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool, num_threads(1):
        for _ in pool.map(round_rows, row_pieces(out, inputs)):
            pass
    return result


def packed(integers: Tensor, scales: Tensor, rounding: FileRounding) -> Tensor:
    """A matrix in the format of the file: U8, one row per output."""
    if rounding == "w8a8":
        data = integers.to(torch.int8).view(torch.uint8)
    else:
        halves = torch.nn.functional.pad((integers + 8).to(torch.uint8), (0, integers.shape[1] % 2))
        data = halves[:, ::2] | halves[:, 1::2] << 4
    return torch.cat([data, scales.to(_SCALES[rounding]).contiguous().view(torch.uint8)], 1)


def _unpacked(rounding: FileRounding, inputs: int, data: Tensor) -> Tensor:
    """The weight [out, in], fp32, of a tensor's bytes in the format of the file."""
    rows, split = data.view(-1, _row_bytes(rounding, inputs)), _integer_bytes(rounding, inputs)
    if rounding == "w8a8":
        integers = rows[:, :split].contiguous().view(torch.int8).float()
    else:
        halves = torch.stack([rows[:, :split] & 15, rows[:, :split] >> 4], 2).view(len(rows), -1)[:, :inputs]
        integers = halves.float() - 8
    scales = rows[:, split:].contiguous().view(_SCALES[rounding]).float()
    return ROUNDINGS[rounding].dequantize(integers, scales)


def unpacked(contents: Contents, path: Path) -> Contents:
    """The contents of a file in which quantised matrices are read as fp32 weights.

    Raises:
        CheckpointError: the metadata do not describe the tensors.
    """
    if METADATA_KEY not in contents.metadata:
        return contents
    try:
        description = json.loads(contents.metadata[METADATA_KEY])
        rounding, inputs = description["rounding"], cast("dict[str, Any]", description["inputs"])
        if rounding not in get_args(FileRounding):
            raise ValueError(f"unknown rounding {str(rounding)[:40]!r}")
        match description.get("fitted"):
            case None | {"tokens": int(), "texts_sha256": str()}:
                pass
            case other:
                raise ValueError(f"'fitted' must have the tokens and texts_sha256, got {str(other)[:40]!r}")
        entries: dict[str, StoredBytes] = dict(contents.entries)
        for name, count in inputs.items():
            stored = entries[name]
            if type(count) is not int or not 0 < count < 2**31:
                raise ValueError(f"the number of inputs of {name[:80]!r} must be in [1, 2**31), got {str(count)[:40]}")
            if stored.dtype != torch.uint8 or stored.shape[1:] != (_row_bytes(rounding, count),):
                raise ValueError(f"{name[:80]!r} does not have the shape of a matrix of {count} inputs in {rounding}")
            shape = (stored.shape[0], count)
            decode = partial(_unpacked, rounding, count)
            entries[name] = replace(
                stored, dtype=torch.float32, shape=shape, strides=(count, 1), decode=decode, rounding=rounding
            )
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the description of its quantised matrices ({METADATA_KEY}) is damaged: {reason}",
            path=path,
            hint="write it again with rwkvbatch model quantize",
        ) from error
    return replace(contents, entries=entries)
