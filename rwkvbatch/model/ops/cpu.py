"""The operations on the CPU: native kernels, and `TracedProgram`, a whole step as one native call."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rwkvbatch import _native
from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import Choices, FloatArray, RaggedBatch, SampleBatch, State, StatePool
from rwkvbatch.model.ops import Activation, HeadRows, HeadWeights, Product, Rounding, ShiftKind
from rwkvbatch.model.ops.reference import check_state
from rwkvbatch.model.rwkv7 import Network

Isa = Literal["auto", "avx512vnni", "avx512", "avxvnni", "avx2", "portable"]
"""Instruction set of the kernels; all of them give the same bits."""

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
        return replace(self, initial=_plain(wkv.transpose(-1, -2)))

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

    def write(self, slots: Sequence[int], state: State) -> None:
        num_layers, num_heads, head_size = self.wkv.shape[1:4]
        check_state(state, (num_layers, self.capacity, num_heads, head_size, head_size), len(slots))
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
        threads: how many threads share an operation; None for as many processors as this process may use.
        isa: instruction set, for tests and measurements; `auto` takes the best that the machine has.
        rounding: what large matrices, and with `w8a8` and `int4` their inputs, are rounded to, see
            `reference.ROUNDINGS`; None for nothing.

    Raises:
        ImportError: on import of this module, when the package was installed without its native extension.
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
        self._logits = torch.empty(0)
        self._views: dict[tuple[int, int], tuple[Tensor, FloatArray]] = {}

    @property
    def step_bytes(self) -> int:
        """Weights that a step reads: all but the embedding, of which each token reads one row."""
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
        self, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none", *, large: bool = False
    ) -> _native.LinearLayer:
        bias_values = None if bias is None else _plain(bias)
        rounding = self._rounding if large else None
        if rounding is None or rounding == "int8":
            return self.native.linear_layer(*_words(weight), bias_values, activation, rounding == "int8")
        return self.native.integer_layer(*_words(weight), bias_values, activation, rounding)

    def table(self, weight: Tensor) -> _native.Table:
        self._table_bytes += weight.nbytes
        return self.native.table(*_words(weight.contiguous()))

    def make_pool(self, capacity: int, num_layers: int, num_heads: int, head_size: int) -> CpuPool:
        shifts = torch.empty(capacity, num_layers, 2, num_heads * head_size)
        wkv = _on_huge_pages(capacity, num_layers, num_heads, head_size, head_size)
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

    def _logits_of(self, num_outputs: int, vocab_size: int) -> tuple[Tensor, FloatArray]:
        """Memory for logits [P, vocab], reused by every step, as a tensor and as a numpy array."""
        size = num_outputs * vocab_size
        if self._logits.numel() < size:
            self._logits = torch.empty(size)
            self._views.clear()
        shape = num_outputs, vocab_size
        if shape not in self._views:
            logits = self._logits[:size].view(shape)
            self._views[shape] = logits, logits.numpy()
        return self._views[shape]

    # Choosing tokens

    def choose(self, logits: Tensor, batch: SampleBatch) -> Choices:
        tokens, logprobs = np.empty(batch.num_rows, np.int64), np.empty(batch.num_rows, np.float32)
        *settings, least_scores, given = batch.arrays
        cuts = (least_scores,) if (least_scores > -np.inf).any() else ()
        self.native.choose(_plain(logits), *settings, given, logprobs, tokens, *cuts)
        return Choices(tokens, logprobs)


def _on_huge_pages(*shape: int) -> Tensor:
    """Memory aligned to huge pages whose last page is not shared."""
    count, page = math.prod(shape), HUGE_PAGE // 4
    memory = torch.empty(count + 2 * page)
    start = -(memory.data_ptr() // 4) % page
    return memory[start : start + count].view(shape)


def _plain(values: Tensor) -> FloatArray:
    return values.detach().to("cpu", torch.float32).contiguous().numpy()


def _words(weight: Tensor) -> tuple[np.ndarray, str]:
    """A weight as a numpy array, with bf16 as int16, and the name of its dtype."""
    weight = weight.detach().cpu()
    if weight.dtype not in _DTYPES:
        weight = weight.float()
    words = weight.view(torch.int16) if weight.dtype == torch.bfloat16 else weight
    return words.numpy(), _DTYPES[weight.dtype]


Register = int
"""Names the activations of a batch that is not known while tracing."""


class TracedProgram:
    """`Network.step` on the CPU without Python between the operations. `Network.step` is its reference implementation.

    Args:
        network: its weights packed by a `CpuOps`; the program keeps them alive.
    """

    def __init__(self, network: Network) -> None:
        tracer = _Tracer()
        network.run(tracer, None)
        self._program = tracer.program

    def step(self, ops: CpuOps, batch: RaggedBatch, pool: StatePool) -> Tensor:
        return ops.run(self._program, batch, pool)


class _Tracer:
    """`StepOperations` that record themselves, with registers instead of arrays."""

    def __init__(self) -> None:
        self.program = _native.Program()

    def embed(self, step: None, table: _native.Table, norm: Vectors, *, as_input: bool = False) -> Register:
        return self.program.embed(table, *norm)

    def shift_mix(
        self, step: None, kind: ShiftKind, layer: int, x: Register, norm: Vectors, mix: _native.Vector
    ) -> Sequence[Register]:
        return self.program.shift_mix(kind, layer, x, *norm, mix)

    def linears(self, products: Sequence[Product]) -> Sequence[Register]:
        return self.program.linears(products)

    def token_matrix(self, step: None, table: _native.Table, offset: Register, x: Register) -> Register:
        return self.program.token_matrix(table, offset, x)

    def wkv7(self, step: None, layer: int, rows: HeadRows, weights: HeadWeights) -> Register:
        return self.program.wkv7(layer, tuple(rows), *weights)

    def head(self, step: None, x: Register, norm: Vectors, layer: _native.LinearLayer) -> Tensor:
        self.program.head(x, *norm, layer)
        return torch.empty(0, layer.outputs)
