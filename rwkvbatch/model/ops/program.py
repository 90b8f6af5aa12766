"""A step on the CPU as one native call: the network is run once to write down its operations, then without Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rwkvbatch import _native
from rwkvbatch.model.base import RaggedBatch, StatePool
from rwkvbatch.model.ops import Product, ShiftKind
from rwkvbatch.model.ops.cpu import CpuOps, Vectors
from rwkvbatch.model.rwkv7 import Network

Register = int
"""Stands for activations of a batch that is not known yet."""


class WrittenNetwork:
    """`Network.step` on the CPU, without Python between the operations. The network itself is its slow twin.

    Args:
        network: its weights packed by a `CpuOps`; lives on in what was written down.
    """

    def __init__(self, network: Network) -> None:
        writer = _Writer()
        network.run(writer, None)
        self._program = writer.program

    def step(self, ops: CpuOps, batch: RaggedBatch, pool: StatePool) -> torch.Tensor:
        """See `Network.step`."""
        return ops.run(self._program, batch, pool)


class _Writer:
    """`StepOperations` that only write themselves down, for registers instead of arrays."""

    def __init__(self) -> None:
        self.program = _native.Program()

    def embed(self, step: None, table: _native.Table, norm: Vectors) -> Register:
        return self.program.embed(table, *norm)

    def shift_mix(
        self, step: None, kind: ShiftKind, layer: int, x: Register, norm: Vectors, mix: _native.Vector
    ) -> Sequence[Register]:
        return self.program.shift_mix(kind, layer, x, *norm, mix)

    def linears(self, products: Sequence[Product]) -> Sequence[Register]:
        return self.program.linears(products)

    def wkv7(
        self,
        step: None,
        layer: int,
        r: Register,
        w: Register,
        k: Register,
        v: Register,
        a: Register,
        g: Register,
        k_k: _native.Vector,
        k_a: _native.Vector,
        r_k: _native.Vector,
        group_norm: Vectors,
    ) -> Register:
        return self.program.wkv7(layer, (r, w, k, v, a, g), k_k, k_a, r_k, *group_norm)

    def head(self, step: None, x: Register, norm: Vectors, layer: _native.LinearLayer) -> torch.Tensor:
        self.program.head(x, *norm, layer)
        return torch.empty(0, layer.outputs)
