"""The model on the CPU: `TracedProgram`, which runs a step as one native call, and `CpuModel`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from rwkvbatch import _native
from rwkvbatch.arguments import SWITCH, checks
from rwkvbatch.model.base import ModelSpec, RaggedBatch, State, StatePool
from rwkvbatch.model.network.rwkv7 import Network
from rwkvbatch.model.network.rwkv7_model import ROWS_PER_STEP, Rwkv7Model, token_lists
from rwkvbatch.model.ops import HeadRows, HeadWeights, Product, ShiftKind
from rwkvbatch.model.ops.cpu import CpuOps, Vectors

Register = int
"""Number of an array of activations in a traced program."""


class TracedProgram:
    """`Network.step` on the CPU without Python between the operations. `Network.step` is its reference implementation.

    Args:
        network: its weights packed by a `CpuOps`; the program keeps them alive.
    """

    def __init__(self, network: Network) -> None:
        tracer = _Tracer()
        network.run(tracer, None)
        self.native = tracer.program

    def step(self, ops: CpuOps, batch: RaggedBatch, pool: StatePool) -> Tensor:
        return ops.run(self.native, batch, pool)


class _Tracer:
    """`StepOperations` that add themselves to a program, with registers instead of arrays."""

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


class CpuModel(Rwkv7Model):
    """`Rwkv7Model` over the native kernels, whose `forward` copies no states.

    The kernels read the matrices of the caller's state in place. The returned state is made of views of the memory that
    they wrote.
    """

    def __init__(self, network: Network, ops: CpuOps, spec: ModelSpec, *, initial_wkv: Tensor | None = None) -> None:
        program = TracedProgram(network)
        super().__init__(program, ops, spec, initial_wkv=initial_wkv)
        self._cpu, self._program = ops, program.native

    @checks(every_token=SWITCH)
    def forward(
        self, tokens: Sequence[Sequence[int]], state: State | None = None, every_token: bool = False
    ) -> tuple[Tensor, State]:
        spec = self.spec
        lists = token_lists(tokens, state, spec.vocab_size)
        starts = np.array([0, *accumulate(len(part) for part in lists)])
        if starts[-1] > ROWS_PER_STEP:
            return super().forward(tokens, state, every_token)
        pool = self._cpu.make_step_pool(len(lists), spec.num_layers, spec.num_heads, spec.head_size)
        slots = np.arange(len(lists))
        start_wkv = None
        if state is None:
            if self._initial_wkv is not None:
                pool = pool.with_initial(self._initial_wkv)
            for slot in range(len(lists)):
                pool.clear(slot)
        elif (start_wkv := pool.write_shifts(state)) is None:
            pool.write(range(len(lists)), state)
        outputs = np.arange(starts[-1]) if every_token else starts[1:] - 1
        batch = RaggedBatch(np.concatenate(lists), starts, slots, outputs)
        return self._cpu.run_from(self._program, batch, pool, start_wkv), pool.as_value()
