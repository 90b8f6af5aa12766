"""The operations on an NVIDIA GPU: cuBLAS for products of many rows, Triton kernels for everything else.

docs/design/gpu-operations.md describes the kernels. Only `choose` waits for the device, once. This module needs Triton
3.4 or newer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rwkvbatch.model.base import Choices, IntArray, RaggedBatch, SampleBatch, StatePool
from rwkvbatch.model.ops import Activation, HeadRows, HeadWeights, MatrixKind, Product, ShiftKind
from rwkvbatch.model.ops.batch import Indices, indices_of, upload
from rwkvbatch.model.ops.reference import LAYER_NORM_EPS, ReferencePool, TorchLinear, Vectors
from rwkvbatch.model.ops.triton import chunks, few, sample, scan

BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
"""Row counts of decode steps, each with its own graph."""

NO_SLOT = -1
"""The slot of a padding row: it starts from the zero state, and its state is not stored."""


def decode_rows(num_rows: int, fixed_rows: int | None) -> int | None:
    """The row count that a decode step of `num_rows` is padded to; None when it is too large for a graph.

    Args:
        fixed_rows: the row count of every matrix product, if that is fixed.
    """
    if fixed_rows is not None:
        return round_up(num_rows, fixed_rows) if num_rows <= max(BUCKETS[-1], fixed_rows) else None
    return next((size for size in BUCKETS if size >= num_rows), None)


def round_up(num_rows: int, block: int) -> int:
    """The smallest multiple of `block` that is at least `num_rows`."""
    return -(-num_rows // block) * block


def is_decode(batch: RaggedBatch) -> bool:
    """Whether every sequence has one row, and every row needs logits."""
    return len(batch.tokens) == len(batch.slots) == len(batch.outputs)


def pad_rows(batch: RaggedBatch, num_rows: int) -> RaggedBatch:
    """`batch` padded to `num_rows` with sequences of one token 0 that need no logits."""
    count = num_rows - len(batch.tokens)
    if count == 0:
        return batch
    return RaggedBatch(
        tokens=np.concatenate([batch.tokens, np.zeros(count, np.int64)]),
        starts=np.concatenate([batch.starts, batch.starts[-1] + np.arange(1, count + 1)]),
        slots=np.concatenate([batch.slots, np.full(count, NO_SLOT, np.int64)]),
        outputs=batch.outputs,
    )


def pad_outputs(outputs: IntArray, count: int) -> IntArray:
    """`outputs` padded to `count` with row 0."""
    return np.concatenate([outputs, np.zeros(count - len(outputs), np.int64)])


Result = TypeVar("Result")


def in_branches(
    work: Sequence[Callable[[], Result]],
    main: Any,
    side: Sequence[Any],
    use_stream: Callable[[Any], AbstractContextManager[object]],
) -> list[Result]:
    """Call each function of `work` on a stream of `side`, after all launches on `main` so far; `main` waits for all.

    Memory allocated on a side stream and then freed is reused only on that stream, after the next call, and so after
    all uses on `main`.

    Args:
        main, side: CUDA streams.
        use_stream: makes a stream the current one, as `torch.cuda.stream` does.
    """
    used = side[: len(work)]
    for stream in used:
        stream.wait_stream(main)
    results: list[Result] = []
    for index, launch in enumerate(work):
        with use_stream(used[index % len(used)]):
            results.append(launch())
    for stream in used:
        main.wait_stream(stream)
    return results


_MAX_BRANCHES = 7
"""The size of the largest group of linear layers."""


@dataclass(frozen=True)
class CudaStep:
    """One ragged batch on the device. The first `num_outputs` of `outputs` are the batch's, the others are padding."""

    pool: ReferencePool
    num_outputs: int
    tokens: Tensor
    outputs: Tensor
    first_slots: Tensor
    last_rows: Tensor
    short: scan.Sequences
    long: scan.Sequences
    chunk_rows: chunks.ChunkRows


class CudaOps:
    """`Operations` on an NVIDIA GPU.

    Args:
        device: `cuda` or `cuda:N`; for tests also `cpu`, with Triton's interpreter.
        dtype: dtype of weights and of the inputs of matrix products. States, sums and activations between layers are
            fp32.
        fixed_rows: pad or split every matrix product to exactly this many rows, and read prompts row by row, so that a
            row's result does not depend on the rest of the batch; see docs/design/reproducibility.md.
        few_rows: products of up to this many rows use `few.py`, larger ones cuBLAS, the reference implementation. With
            0, or with fixed rows, all use cuBLAS. The default is an estimate (docs/design/gpu-operations.md).

    Raises:
        ValueError: `few_rows` is not in 0 to `few.MAX_ROWS`.
    """

    name = "cuda"
    bitwise = False
    in_torch = True

    def __init__(
        self,
        device: str = "cuda",
        dtype: torch.dtype = torch.float16,
        fixed_rows: int | None = None,
        few_rows: int = few.MAX_ROWS,
    ) -> None:
        if not 0 <= few_rows <= few.MAX_ROWS:
            raise ValueError(f"few_rows must be in [0, {few.MAX_ROWS}], got {few_rows}")
        self.device = device
        self.dtype = dtype
        self.fixed_rows = fixed_rows
        self._few_rows = few_rows if fixed_rows is None else 0
        self._side_streams = [] if device == "cpu" else [torch.cuda.Stream(device) for _ in range(_MAX_BRANCHES)]
        self._has_wide_products = _has_wide_products(device, dtype)

    def active(self) -> AbstractContextManager[object]:
        """Make this device the current one, on which kernels are launched."""
        return nullcontext() if self.device == "cpu" else torch.cuda.device(self.device)

    # Weights

    def vector(self, weight: Tensor) -> Tensor:
        return weight.to(self.device, torch.float32).contiguous()

    def linear_layer(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        *,
        kind: MatrixKind = "other",
        sparse_inputs: bool = False,
    ) -> TorchLinear:
        packed = weight.to(self.device, self.dtype).contiguous()
        return TorchLinear(packed, None if bias is None else self.vector(bias), activation)

    def table(self, weight: Tensor) -> Tensor:
        return weight.to(self.device, self.dtype).contiguous()

    def make_pool(self, capacity: int, num_layers: int, num_heads: int, head_size: int) -> ReferencePool:
        return ReferencePool.zeros(self.device, capacity, num_layers, num_heads, head_size)

    # One step

    def begin(self, batch: RaggedBatch, pool: StatePool) -> CudaStep:
        """Prepare a step.

        Raises:
            ValueError: a slot outside the pool.
        """
        indices = self.indices(batch, pool)
        return self.step_of(upload(indices, self.device), pool, len(batch.outputs))

    def indices(self, batch: RaggedBatch, pool: StatePool) -> Indices:
        """The indices that `begin` uploads, on the host."""
        if len(batch.slots) and int(batch.slots.max()) >= pool.capacity:
            raise ValueError(f"slot {int(batch.slots.max())} is not in the pool of {pool.capacity}")
        outputs = batch.outputs
        if self.fixed_rows is not None:
            batch = pad_rows(batch, round_up(len(batch.tokens), self.fixed_rows))
            outputs = pad_outputs(outputs, round_up(len(outputs), self.fixed_rows))
        return indices_of(batch, outputs, chunks.CHUNK if self.fixed_rows is None else None)

    def step_of(self, arrays: Sequence[Tensor], pool: StatePool, num_outputs: int) -> CudaStep:
        """The step from `Indices` on the device."""
        assert isinstance(pool, ReferencePool)
        tokens, outputs, first_slots, last_rows, *bounds = arrays
        short, long = scan.Sequences(*bounds[:3]), scan.Sequences(*bounds[3:6])
        chunk_rows = chunks.ChunkRows(*bounds[6:])
        return CudaStep(pool, num_outputs, tokens, outputs, first_slots, last_rows, short, long, chunk_rows)

    def embed(self, step: CudaStep, table: Tensor, norm: Vectors, *, as_input: bool = False) -> Tensor:
        dtype = self.dtype if as_input else torch.float32
        x = torch.empty(len(step.tokens), table.shape[1], dtype=dtype, device=self.device)
        scan.gather_norm(table, step.tokens, norm, x, LAYER_NORM_EPS)
        return x

    def shift_mix(
        self, step: CudaStep, kind: ShiftKind, layer: int, x: Tensor, norm: Vectors, mix: Tensor
    ) -> Sequence[Tensor]:
        carried = step.pool.shifts[0 if kind == "att" else 1, layer]
        mixed = torch.empty(len(mix), *x.shape, dtype=self.dtype, device=self.device)
        scan.shift_mix(x, norm, mix, carried, step.first_slots, step.last_rows, mixed, LAYER_NORM_EPS)
        return mixed.unbind()

    def linears(self, products: Sequence[Product]) -> list[Tensor]:
        if len(products[0].x) <= self._few_rows:
            outs = [self._out(product) for product in products]
            few.linears(products, outs)
            return outs
        work = [partial(self._linear, product) for product in products]
        if len(work) > 1 and self._side_streams and torch.cuda.is_current_stream_capturing():
            main = torch.cuda.current_stream(self.device)
            return in_branches(work, main, self._side_streams, torch.cuda.stream)
        return [launch() for launch in work]

    def _linear(self, product: Product) -> Tensor:
        wide = product.layer.bias is not None or product.add is not None or product.blend is not None
        y = self._product(product.x, product.layer.weight, wide=wide)
        if not wide and product.layer.activation == "none" and product.times is None:
            return y
        out = y if y.dtype == self._out_dtype(product) else self._out(product)
        few.epilogue(y, product, out)
        return out

    def _out(self, product: Product) -> Tensor:
        """Memory for the result of a linear layer."""
        if product.add is not None:
            return product.add
        shape = len(product.x), len(product.layer.weight)
        return torch.empty(shape, dtype=self._out_dtype(product), device=self.device)

    def _out_dtype(self, product: Product) -> torch.dtype:
        """fp32 with a bias, an addition or a blend; else the dtype of inputs of matrix products."""
        narrow = product.times is not None or (
            product.layer.bias is None and product.add is None and product.blend is None
        )
        return self.dtype if narrow else torch.float32

    def _product(self, x: Tensor, weight: Tensor, *, wide: bool) -> Tensor:
        """x W^T, accumulated in fp32; with `wide` also returned in fp32 if the device's library supports it."""
        if self.fixed_rows is not None and len(x) > self.fixed_rows:
            return torch.cat([self._product(rows, weight, wide=wide) for rows in x.split(self.fixed_rows)])
        if wide and self._has_wide_products:
            return torch.mm(x, weight.t(), out_dtype=torch.float32)
        return F.linear(x, weight)

    def token_matrix(self, step: CudaStep, table: Tensor, offset: Tensor, x: Tensor) -> Tensor:
        y = torch.empty(x.shape, dtype=self.dtype, device=self.device)
        few.token_matrix(table, step.tokens, offset, x, y)
        return y

    def wkv7(self, step: CudaStep, layer: int, rows: HeadRows, weights: HeadWeights) -> Tensor:
        carried = step.pool.wkv[layer]
        y = torch.empty(rows.r.shape, dtype=self.dtype, device=self.device)
        if len(step.short.starts):
            scan.scan(rows, weights, step.short, carried, y)
        if len(step.long.starts):
            chunks.chunks(rows, weights, step.long, step.chunk_rows, carried, y)
        return y

    def head(self, step: CudaStep, x: Tensor, norm: Vectors, layer: TorchLinear) -> Tensor:
        if step.num_outputs == 0:
            return torch.empty(0, len(layer.weight), device=self.device)
        normed = torch.empty(len(step.outputs), x.shape[1], dtype=self.dtype, device=self.device)
        scan.gather_norm(x, step.outputs, norm, normed, LAYER_NORM_EPS)
        if len(normed) <= self._few_rows:
            logits = torch.empty(len(normed), len(layer.weight), device=self.device)
            few.linears([Product(normed, layer)], [logits])
            return logits
        return self._product(normed, layer.weight, wide=True).float()[: step.num_outputs]

    # Choosing tokens

    def choose(self, logits: Tensor, batch: SampleBatch) -> Choices:
        batch.check(*logits.shape)
        *settings, target_ids = upload(batch.arrays, self.device)
        logits = logits.detach().to(self.device, torch.float32).contiguous()
        num_sampled, num_targets = batch.num_sampled, len(batch.target_ids)
        # Tokens and the bits of log-probabilities, of sampled and of target rows, in one copy to the host. Results of
        # target rows start at an aligned column.
        first_target = round_up(num_sampled, 4)
        num_columns = first_target + round_up(num_targets, 4)
        results = torch.empty(2, num_columns, dtype=torch.int32, device=self.device)
        tokens, logprobs = results[0], results[1].view(torch.float32)
        with self.active():
            if num_sampled:
                work = torch.empty_like(logits[:num_sampled])
                sample.sample(logits[:num_sampled], settings, work, tokens, logprobs)
            if num_targets:
                sample.look_up(logits[num_sampled:], target_ids, tokens[first_target:], logprobs[first_target:])
        columns = np.concatenate([np.arange(num_sampled), first_target + np.arange(num_targets)])
        tokens, logprobs = results.cpu().numpy().take(columns, axis=1)
        return Choices(tokens.astype(np.int64), logprobs.view(np.float32))


def _has_wide_products(device: str, dtype: torch.dtype) -> bool:
    """Whether products of `dtype` can return their fp32 sums; needs torch 2.8 or newer and a GPU."""
    if device == "cpu" or dtype == torch.float32:
        return False
    tiny = torch.zeros(16, 16, dtype=dtype, device=device)
    try:
        torch.mm(tiny, tiny, out_dtype=torch.float32)
    except (TypeError, RuntimeError):
        return False
    return True
