"""Decode steps as CUDA graphs: one per pool and row count, which launches hundreds of kernels at once.

Only `Capture` needs a device; all else is tested without one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rwkvbatch.model.base import RaggedBatch, StatePool
from rwkvbatch.model.network.rwkv7 import Network
from rwkvbatch.model.ops.batch import pack, send, unpack
from rwkvbatch.model.ops.cuda import CudaOps, decode_rows, is_decode, pad_rows

Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor]], Replay]
"""Records what a function launches, without running it; the result launches it on the same memory."""

WARM_UPS = 2
"""Steps of a pool and row count before their graph is captured. They compile and load the kernels, and a single step
(`next_logits`, a short-lived pool) does not need a graph."""


class GraphWarning(UserWarning):
    """CUDA graphs cannot be used; decoding is slower."""


@dataclass(frozen=True)
class _Graph:
    indices: Tensor
    replay: Replay


class GraphedNetwork:
    """`Network.step` on a GPU, with graphs for decode steps.

    Args:
        capture: None for no graphs. Steps are padded all the same, so that logits do not depend on it.
    """

    def __init__(self, network: Network, capture: Capture | None) -> None:
        self._network = network
        self._capture = capture
        # By pool and row count: the graph, or the number of steps so far without one.
        self._graphs: WeakKeyDictionary[StatePool, dict[int, _Graph | int]] = WeakKeyDictionary()

    def step(self, ops: CudaOps, batch: RaggedBatch, pool: StatePool) -> Tensor:
        with ops.active():
            num_rows = decode_rows(len(batch.tokens), ops.fixed_rows) if is_decode(batch) else None
            if num_rows is None:
                return self._network.step(ops, batch, pool)
            padded = pad_rows(batch, num_rows)
            padded = RaggedBatch(padded.tokens, padded.starts, padded.slots, padded.starts[:-1])
            return self._decode(ops, padded, pool)[: len(batch.outputs)]

    def _decode(self, ops: CudaOps, batch: RaggedBatch, pool: StatePool) -> Tensor:
        graphs = self._graphs.setdefault(pool, {})
        size = len(batch.tokens)
        graph = graphs.get(size, 0)
        if isinstance(graph, int):
            if self._capture is None or graph < WARM_UPS:
                graphs[size] = graph + 1
                return self._network.step(ops, batch, pool)
            graph = self._captured(self._capture, ops, batch, pool)
            if graph is None:
                return self._network.step(ops, batch, pool)
            graphs[size] = graph
        send(pack(ops.indices(batch, pool)), graph.indices)
        return graph.replay()

    def _captured(self, capture: Capture, ops: CudaOps, batch: RaggedBatch, pool: StatePool) -> _Graph | None:
        layout = ops.indices(batch, pool)
        indices = torch.zeros_like(pack(layout), device=ops.device)
        step = ops.step_of(unpack(indices, layout), pool, len(batch.outputs))
        try:
            return _Graph(indices, capture(lambda: self._network.run(ops, step)))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._capture = None
            warnings.warn(f"CUDA graphs cannot be used, decoding is slower: {error}", GraphWarning, stacklevel=2)
            return None


def cuda_capture() -> Capture:
    """A `Capture` of CUDA graphs that share memory: replaying one overwrites the results of the others."""
    memory = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], Tensor]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory):
            logits = run()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    return capture
