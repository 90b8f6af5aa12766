"""Records networks and batches for `replay`, which runs them without Python, see `replay/replay.cpp`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from rwkvbatch.model.base import RaggedBatch
from rwkvbatch.model.ops import (
    Activation,
    HeadRows,
    HeadWeights,
    MatrixKind,
    Product,
    Rounding,
    ShiftKind,
    matrix_rounding,
)

VECTOR, LAYER, TABLE, EMBED, SHIFT_MIX, LINEARS, TOKEN_MATRIX, WKV7, HEAD, STEP, CHOOSE = range(1, 12)
END = 0
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ROUNDINGS: dict[Rounding, int] = {"int8": 3, "w8a8": 4, "int4": 5}
ACTIVATIONS: tuple[Activation, ...] = ("none", "tanh", "sigmoid", "decay", "relu_squared")


class Recorder:
    """`Operations` that write weights and operations to a file, with registers instead of arrays.

    Args:
        file: the file; `end` writes its last record.
        rounding: the rounding of large matrices when the file is read.
    """

    def __init__(self, file: BinaryIO, rounding: Rounding | None) -> None:
        self._file, self._rounding = file, rounding
        self._counts = dict.fromkeys((VECTOR, LAYER, TABLE), 0)
        self._num_registers = 0
        self._num_rows: list[int] = []  # of each vector

    def _put(self, *fields: int | np.ndarray) -> None:
        for field in fields:
            if isinstance(field, np.ndarray):
                data = np.ascontiguousarray(field).tobytes()
                self._file.write(np.int64(len(data)).tobytes() + data)
            else:
                self._file.write(np.int64(field).tobytes())

    def _weight(self, kind: int, *fields: int | np.ndarray) -> int:
        self._put(kind, *fields)
        self._counts[kind] += 1
        return self._counts[kind] - 1

    def _registers(self, count: int) -> list[int]:
        self._num_registers += count
        return list(range(self._num_registers - count, self._num_registers))

    # Weights

    def vector(self, weight: Tensor) -> int:
        rows = weight.float().reshape(-1, weight.shape[-1])
        self._num_rows.append(len(rows))
        return self._weight(VECTOR, *rows.shape, rows.numpy())

    def linear_layer(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        *,
        kind: MatrixKind = "other",
        sparse_inputs: bool = False,
    ) -> int:
        stored = DTYPES[weight.dtype]
        rounding = matrix_rounding(self._rounding, kind)
        packed = stored if rounding is None else ROUNDINGS[rounding]
        values = np.empty(0, np.float32) if bias is None else bias.float().numpy()
        shape = int(sparse_inputs), *weight.shape
        return self._weight(LAYER, stored, packed, ACTIVATIONS.index(activation), *shape, words(weight), values)

    def table(self, weight: Tensor) -> int:
        return self._weight(TABLE, DTYPES[weight.dtype], *weight.shape, words(weight))

    # One step

    def embed(self, step: None, table: int, norm: tuple[int, int], *, as_input: bool = False) -> int:
        self._put(EMBED, table, *norm)
        return self._registers(1)[0]

    def shift_mix(
        self, step: None, kind: ShiftKind, layer: int, x: int, norm: tuple[int, int], mix: int
    ) -> Sequence[int]:
        self._put(SHIFT_MIX, int(kind == "ffn"), layer, x, *norm, mix)
        return self._registers(self._num_rows[mix])

    def linears(self, products: Sequence[Product]) -> Sequence[int]:
        self._put(LINEARS, len(products))
        for x, layer, add, blend, times in products:
            start, target = (-1, -1) if blend is None else blend
            self._put(x, layer, -1 if add is None else add, start, target, -1 if times is None else times)
        return self._registers(len(products))

    def token_matrix(self, step: None, table: int, offset: int, x: int) -> int:
        self._put(TOKEN_MATRIX, table, offset, x)
        return self._registers(1)[0]

    def wkv7(self, step: None, layer: int, rows: HeadRows, weights: HeadWeights) -> int:
        self._put(WKV7, layer, *rows, *weights)
        return self._registers(1)[0]

    def head(self, step: None, x: int, norm: tuple[int, int], layer: int) -> Tensor:
        self._put(HEAD, x, *norm, layer)
        return torch.empty(0)

    # Batches and logits

    def step(self, batch: RaggedBatch, shifts: np.ndarray, wkv: np.ndarray) -> None:
        """A batch over a pool: shifts [capacity, L, 2, C], wkv [capacity, L, H, N, N], keys before values."""
        self._put(STEP, *wkv.shape[:4], shifts, wkv, batch.tokens, batch.starts, batch.slots, batch.outputs)

    def choose(self, logits: np.ndarray, settings: Iterable[float], numbers: Iterable[int]) -> None:
        """A token from each row [P, vocab], by temperature, top_p, least score; top_k, orders, the first noise key."""
        arrays = np.array([*settings], np.float32), logits, np.array([*numbers], np.int64)
        self._put(CHOOSE, *logits.shape, *arrays)

    def end(self) -> None:
        self._put(END)


def words(weight: Tensor) -> np.ndarray[Any, Any]:
    """A weight [R, C] as a numpy array, with bf16 as int16."""
    dense = weight.contiguous()
    return (dense.view(torch.int16) if weight.dtype == torch.bfloat16 else dense).numpy()
