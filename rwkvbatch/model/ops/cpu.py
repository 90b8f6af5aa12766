"""The operations on the CPU: native kernels, and steps that run as one native call."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rwkvbatch import _native
from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import Choices, FloatArray, RaggedBatch, SampleBatch, State, StatePool
from rwkvbatch.model.ops import (
    Activation,
    HeadRows,
    HeadWeights,
    MatrixKind,
    Product,
    Rounding,
    ShiftKind,
    StoredRows,
    matrix_rounding,
)
from rwkvbatch.model.ops.reference import check_state

Isa = Literal["auto", "avx512amx", "avx512vnni", "avx512", "avxvnni", "avx2", "neoni8mm", "neondot", "neon", "portable"]
"""Instruction sets of the kernels. All compute the same bits."""

HUGE_PAGE = 2 << 20
"""Bytes of a huge page of Linux on x86-64 and most other processors."""

Vectors = tuple[_native.Vector, _native.Vector]

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class CpuPool:
    """State slots, fp32: shifts [capacity, L, 2, C] (att, ffn) and wkv [capacity, L, H, N, N], keys before values.

    `initial`: the wkv [L, H, N, N] of an empty sequence, keys before values; None for zeros.
    """

    shifts: Tensor
    wkv: Tensor
    native: _native.Pool
    initial: FloatArray | None = None

    @property
    def capacity(self) -> int:
        return self.wkv.shape[0]

    def clear(self, slot: int) -> None:
        self.shifts.numpy()[slot] = 0
        self.wkv.numpy()[slot] = 0 if self.initial is None else self.initial

    def with_initial(self, wkv: Tensor) -> CpuPool:
        """The same slots, which `clear` sets to `wkv` [L, H, N, N], values before keys."""
        return replace(self, initial=_fp32_array(wkv.transpose(-1, -2)))

    def copy(self, source: int, target: int) -> None:
        # With numpy: a state is too small to be worth torch's threads.
        shifts, wkv = self.shifts.numpy(), self.wkv.numpy()
        shifts[target] = shifts[source]
        wkv[target] = wkv[source]

    def read(self, slots: Sequence[int]) -> State:
        index = list(slots)
        shifts = self.shifts[index]
        return State(
            {
                "att_shift": shifts[:, :, 0].contiguous(),
                "ffn_shift": shifts[:, :, 1].contiguous(),
                "wkv": self.wkv[index].transpose(-1, -2).contiguous(),
            }
        )

    def as_value(self) -> State:
        """The states of all slots, without a copy. The pool must not be used afterwards."""
        shifts = self.shifts
        return State({"att_shift": shifts[:, :, 0], "ffn_shift": shifts[:, :, 1], "wkv": self.wkv.transpose(-1, -2)})

    def write_shifts(self, state: State) -> FloatArray | None:
        """Copy the shifts of `state` into all slots, in order.

        Returns:
            The matrices of `state`, keys before values, if they have the kernels' memory layout. Otherwise None, and
            nothing is copied.

        Raises:
            CheckpointError: as `write`.
        """
        self._check(state, self.capacity)
        wkv = state.tensors["wkv"].detach().transpose(-1, -2)
        if wkv.device.type != "cpu" or wkv.dtype != torch.float32 or not wkv.is_contiguous():
            return None
        self.shifts[:, :, 0] = state.tensors["att_shift"].detach()
        self.shifts[:, :, 1] = state.tensors["ffn_shift"].detach()
        return wkv.numpy()

    def _check(self, state: State, batch_size: int) -> None:
        num_layers, num_heads, head_size = self.wkv.shape[1:4]
        check_state(state, (num_layers, self.capacity, num_heads, head_size, head_size), batch_size)

    def write(self, slots: Sequence[int], state: State) -> None:
        self._check(state, len(slots))
        index = list(slots)
        self.shifts[index, :, 0] = state.tensors["att_shift"].to(self.shifts)
        self.shifts[index, :, 1] = state.tensors["ffn_shift"].to(self.shifts)
        self.wkv[index] = state.tensors["wkv"].transpose(-1, -2).to(self.wkv)


class CpuOps:
    """`Operations` as native kernels.

    Attributes:
        native: the kernels' context; tests and measurements use it directly.
        threads: the number of threads.
        isa: the instruction set in use, never `auto`.

    Args:
        threads: how many threads share an operation; None for the number of processors that this process may use.
        isa: instruction set, for tests and measurements; `auto` takes the best one of this machine.
        rounding: how matrices, and with `w8a8` and `int4` their inputs, are rounded, see `matrix_rounding`; None for no
            rounding.

    Raises:
        ImportError: on import of this module, if the package was installed without its native extension.
        UsageError: the machine does not have `isa`, or `threads` is not positive.
    """

    name = "cpu"
    bitwise = True
    in_torch = False
    device = "cpu"

    def __init__(self, threads: int | None = None, isa: Isa = "auto", *, rounding: Rounding | None = None) -> None:
        if threads is None:
            threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if threads < 1:
            raise UsageError(f"the number of threads must be at least 1, got {threads}")
        try:
            self.native = _native.Context(threads, isa)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self.threads: int = self.native.threads
        self.isa: Isa = self.native.isa
        self._rounding: Rounding | None = rounding
        self._table_bytes = 0
        self._state_memory, self._logits_memory = RecycledMemory(), RecycledMemory()
        self._logits = torch.empty(0)
        self._logits_views: dict[tuple[int, int], tuple[Tensor, FloatArray]] = {}

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that a step reads: all but the embedding, of which it reads one row per token."""
        return self.native.weight_bytes - self._table_bytes

    # For tests and measurements

    def array(self, values: Tensor) -> _native.Array:
        """Activations [R, C] from a tensor."""
        return self.native.array(values.to(torch.float32).contiguous().numpy())

    def values(self, array: _native.Array) -> Tensor:
        """A copy of activations."""
        return torch.from_numpy(array.numpy().copy())

    # Weights

    def vector(self, weight: Tensor) -> _native.Vector:
        rows = weight.detach().to("cpu", torch.float32).contiguous()
        return self.native.vector(rows.reshape(-1, rows.shape[-1]).numpy())

    def linear_layer(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        *,
        kind: MatrixKind = "other",
        sparse_inputs: bool = False,
    ) -> _native.LinearLayer:
        bias_values = None if bias is None else _fp32_array(bias)
        rounding = matrix_rounding(self._rounding, kind)
        if rounding is None or rounding == "int8":
            return self.native.linear_layer(*_weight_array(weight), bias_values, activation, rounding == "int8")
        return self.native.integer_layer(*_weight_array(weight), bias_values, activation, rounding, sparse_inputs)

    def table(self, weight: Tensor) -> _native.Table:
        self._table_bytes += weight.nbytes
        return self.native.table(*_weight_array(weight.contiguous()))

    def read_layer(
        self, stored: StoredRows, activation: Activation, *, sparse_inputs: bool = False
    ) -> _native.LinearLayer | None:
        """`linear_layer` of a large matrix, read and packed band by band by all threads.

        Returns None if the kernels have no such conversion, the file cannot be read, or a weight is NaN or infinite.
        """
        form = stored.rounding or _DTYPES[stored.dtype]
        if stored.rounding is not None and self._rounding is None:
            return None
        source = stored.descriptor, stored.start, form, stored.outputs, stored.inputs
        return self.native.read_layer(*source, activation, self._rounding or form, sparse_inputs)

    def read_table(self, stored: StoredRows) -> _native.Table | None:
        """`table` of a matrix in a file; None if it is quantised or cannot be read, or a number is NaN or infinite."""
        if stored.rounding is not None:
            return None
        source = stored.descriptor, stored.start, _DTYPES[stored.dtype], stored.outputs, stored.inputs
        table = self.native.read_table(*source)
        if table is not None:
            self._table_bytes += stored.outputs * stored.inputs * stored.dtype.itemsize
        return table

    def make_pool(self, capacity: int, num_layers: int, num_heads: int, head_size: int) -> CpuPool:
        wkv = _on_huge_pages(capacity * num_layers * num_heads * head_size**2)
        return self._pool_in(wkv.view(capacity, num_layers, num_heads, head_size, head_size))

    def make_step_pool(self, capacity: int, num_layers: int, num_heads: int, head_size: int) -> CpuPool:
        """A pool for one step, in memory that is reused when nothing refers to it any more."""
        wkv = self._state_memory.take(capacity * num_layers * num_heads * head_size**2)
        return self._pool_in(wkv.view(capacity, num_layers, num_heads, head_size, head_size))

    def _pool_in(self, wkv: Tensor) -> CpuPool:
        capacity, num_layers, num_heads, head_size, _ = wkv.shape
        shifts = torch.empty(capacity, num_layers, 2, num_heads * head_size)
        return CpuPool(shifts, wkv, self.native.pool(shifts.numpy(), wkv.numpy()))

    # One step

    def begin(self, batch: RaggedBatch, pool: StatePool) -> _native.Step:
        assert isinstance(pool, CpuPool)
        return self.native.begin(batch.tokens, batch.starts, batch.slots, batch.outputs, pool.native)

    def embed(
        self, step: _native.Step, table: _native.Table, norm: Vectors, *, as_input: bool = False
    ) -> _native.Array:
        return self.native.embed(step, table, *norm)

    def shift_mix(
        self, step: _native.Step, kind: ShiftKind, layer: int, x: _native.Array, norm: Vectors, mix: _native.Vector
    ) -> Sequence[_native.Array]:
        return self.native.shift_mix(step, kind, layer, x, *norm, mix)

    def linears(self, products: Sequence[Product]) -> Sequence[_native.Array]:
        return self.native.linears(products)

    def token_matrix(
        self, step: _native.Step, table: _native.Table, offset: _native.Array, x: _native.Array
    ) -> _native.Array:
        return self.native.token_matrix(step, table, offset, x)

    def wkv7(self, step: _native.Step, layer: int, rows: HeadRows, weights: HeadWeights) -> _native.Array:
        return self.native.wkv7(step, layer, *rows, *weights)

    def head(self, step: _native.Step, x: _native.Array, norm: Vectors, layer: _native.LinearLayer) -> Tensor:
        logits, memory = self._logits_of(step.num_outputs, layer.outputs)
        self.native.head(step, x, *norm, layer, memory)
        return logits

    def run(self, program: _native.Program, batch: RaggedBatch, pool: StatePool) -> Tensor:
        """Run a traced step; logits [P, vocab]."""
        assert isinstance(pool, CpuPool)
        logits, memory = self._logits_of(len(batch.outputs), program.num_logits)
        self.native.run(program, batch.tokens, batch.starts, batch.slots, batch.outputs, pool.native, memory)
        return logits

    def run_from(
        self, program: _native.Program, batch: RaggedBatch, pool: CpuPool, start_wkv: FloatArray | None
    ) -> Tensor:
        """`run` with new memory for the logits, which no later step overwrites.

        Args:
            pool: the shifts before the step, and memory for the state after it.
            start_wkv: the matrices before the step, [B, L, H, N, N], keys before values; not changed. None if `pool`
                holds them.
        """
        shape = len(batch.outputs), program.num_logits
        logits = self._logits_memory.take(math.prod(shape)).view(shape)
        starts = () if start_wkv is None else (start_wkv,)
        arguments = batch.tokens, batch.starts, batch.slots, batch.outputs, pool.native, logits.numpy()
        self.native.run(program, *arguments, *starts)
        return logits

    def _logits_of(self, num_outputs: int, vocab_size: int) -> tuple[Tensor, FloatArray]:
        """Memory for logits [P, vocab], reused by every step, as a tensor and as a numpy array."""
        size = num_outputs * vocab_size
        if self._logits.numel() < size:
            self._logits = torch.empty(size)
            self._logits_views.clear()
        shape = num_outputs, vocab_size
        if shape not in self._logits_views:
            logits = self._logits[:size].view(shape)
            self._logits_views[shape] = logits, logits.numpy()
        return self._logits_views[shape]

    # Choosing tokens

    def choose(self, logits: Tensor, batch: SampleBatch) -> Choices:
        tokens, logprobs = np.empty(batch.num_rows, np.int64), np.empty(batch.num_rows, np.float32)
        *settings, min_p_cutoffs, target_ids = batch.arrays
        cuts = (min_p_cutoffs,) if (min_p_cutoffs > -np.inf).any() else ()
        self.native.choose(_fp32_array(logits), *settings, target_ids, logprobs, tokens, *cuts)
        return Choices(tokens, logprobs)


def _on_huge_pages(count: int) -> Tensor:
    """Memory for `count` fp32 numbers, aligned to huge pages and not sharing its last page."""
    page = HUGE_PAGE // 4
    memory = torch.empty(count + 2 * page)
    start = -(memory.data_ptr() // 4) % page
    return memory[start : start + count]


class RecycledMemory:
    """Memory for results. It keeps the last block that became unused, for the next request of the same size.

    New memory is slower: the operating system clears each page first, which takes longer than writing results to it.
    """

    def __init__(self) -> None:
        self._unused: Tensor | None = None

    def take(self, count: int) -> Tensor:
        """Uninitialised memory, fp32 [count]. It is taken back when no tensor, view or array refers to it."""
        block, self._unused = self._unused, None
        if block is None or block.numel() != count:
            block = _on_huge_pages(count)
        array = block.numpy()[:]
        # Tensors of this memory keep `array` alive, and it keeps none of them: the finalizer runs after the last one.
        weakref.finalize(array, self._take_back, block).atexit = False
        return torch.from_numpy(array)

    def _take_back(self, block: Tensor) -> None:
        self._unused = block


def _fp32_array(values: Tensor) -> FloatArray:
    return values.detach().to("cpu", torch.float32).contiguous().numpy()


def _weight_array(weight: Tensor) -> tuple[np.ndarray, str]:
    """A weight as a numpy array, with bf16 as int16, and the name of its dtype."""
    weight = weight.detach().cpu()
    if weight.dtype not in _DTYPES:
        weight = weight.float()
    # numpy has no bf16.
    stored = weight.view(torch.int16) if weight.dtype == torch.bfloat16 else weight
    return stored.numpy(), _DTYPES[weight.dtype]
