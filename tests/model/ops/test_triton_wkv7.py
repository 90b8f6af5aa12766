"""Triton kernels of the recurrence, row by row and in chunks, against the reference operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rwkvbatch.model.base import RaggedBatch, State
from rwkvbatch.model.ops.batch import chunk_rows
from rwkvbatch.model.ops.reference import ReferenceOps
from tests.model.ops.device import DEVICE, guarded, normal, untouched

pytest.importorskip("triton")
from rwkvbatch.model.ops import HeadRows, HeadWeights
from rwkvbatch.model.ops.triton import chunks
from rwkvbatch.model.ops.triton.scan import Sequences, scan

Kernel = Callable[[HeadRows, HeadWeights, Sequences, torch.Tensor, torch.Tensor], None]
LAYER = 1


def on_device(array: npt.ArrayLike) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.int32, device=DEVICE)


def in_chunks(
    rows: HeadRows, weights: HeadWeights, sequences: Sequences, carried: torch.Tensor, out: torch.Tensor
) -> None:
    bounds = (side.cpu().numpy().astype(np.int64) for side in sequences[:2])
    numbered = chunks.ChunkRows(*[on_device(part) for part in chunk_rows(*bounds, chunks.CHUNK)])
    chunks.chunks(rows, weights, sequences, numbered, carried, out)


def compare(
    kernel: Kernel,
    lengths: list[int],
    heads: int,
    size: int,
    *,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 2e-5,
    decay: float | None = None,
) -> None:
    """`kernel` on random rows from random states, between guard bands, against `ReferenceOps.wkv7`."""
    width, num_rows, slots = heads * size, sum(lengths), list(range(len(lengths), 0, -1))
    values = [normal(num_rows, width, seed=seed) for seed in range(6)]
    values[1] = torch.exp(-0.6065 * torch.sigmoid(2 * values[1]))
    if decay is not None:
        values[1] = torch.full_like(values[1], decay)
    values[4] = torch.sigmoid(values[4])
    values = [value.to(dtype) if index not in (1, 4) else value for index, value in enumerate(values)]
    small = [normal(width, seed=10 + index, mean=1.0) for index in range(5)]

    reference = ReferenceOps()
    pool = reference.make_pool(len(lengths) + 1, 2, heads, size)
    shifts = torch.zeros(len(lengths), 2, width)
    wkv = normal(len(lengths), 2, heads, size, size, seed=20)
    pool.write(slots, State({"att_shift": shifts, "ffn_shift": shifts, "wkv": wkv}))
    carried, carried_memory = guarded(*pool.wkv[LAYER].shape, values=pool.wkv[LAYER])
    out, out_memory = guarded(num_rows, width)
    batch = RaggedBatch.of([[0] * length for length in lengths], slots)
    expected = reference.wkv7(
        reference.begin(batch, pool), LAYER, HeadRows(*[value.float() for value in values]), HeadWeights(*small)
    )

    kernel(
        HeadRows(*[value.to(DEVICE) for value in values]),
        HeadWeights(*[value.to(DEVICE) for value in small]),
        Sequences(on_device(batch.starts[:-1]), on_device(batch.starts[1:]), on_device(batch.slots)),
        carried,
        out,
    )
    torch.testing.assert_close(out.cpu(), expected, rtol=tolerance, atol=10 * tolerance)
    torch.testing.assert_close(carried.cpu(), pool.wkv[LAYER], rtol=tolerance, atol=tolerance)
    assert untouched(out_memory)
    assert untouched(carried_memory)


@pytest.mark.parametrize(("lengths", "heads", "size"), [([1], 1, 64), ([3, 1, 2], 2, 16), ([2], 1, 24), ([5], 1, 8)])
def test_row_by_row_from_a_state(lengths: list[int], heads: int, size: int) -> None:
    compare(scan, lengths, heads, size)


@pytest.mark.parametrize(
    ("lengths", "heads", "size"), [([1], 1, 64), ([16], 1, 32), ([33, 1, 15], 1, 16), ([17], 2, 24), ([20], 1, 8)]
)
def test_in_chunks_from_a_state(lengths: list[int], heads: int, size: int) -> None:
    compare(in_chunks, lengths, heads, size)


@pytest.mark.parametrize(("lengths", "size"), [([37, 16, 5], 24), ([18], 80)])
def test_in_chunks_nothing_is_read_that_was_not_written_before(
    lengths: list[int], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories: list[torch.Tensor] = []
    new_empty = torch.Tensor.new_empty

    def full_of_nan(tensor: torch.Tensor, *shape: int, **options: Any) -> torch.Tensor:
        if options:  # Triton's interpreter's own
            return new_empty(tensor, *shape, **options)
        inner, memory = guarded(*shape)
        memories.append(memory)
        return inner

    monkeypatch.setattr(torch.Tensor, "new_empty", full_of_nan)
    compare(in_chunks, lengths, 2, size)
    assert len(memories) == len(chunks._Prepared._fields)
    assert all(untouched(memory) for memory in memories)


def test_in_chunks_the_bits_of_a_sequence_do_not_depend_on_the_others() -> None:
    lengths, size = [21, 35, 16], 16
    rows = HeadRows(*[torch.sigmoid(normal(sum(lengths), size, seed=seed)).to(DEVICE) for seed in range(6)])
    weights = HeadWeights(*[normal(size, seed=10 + index, mean=1.0).to(DEVICE) for index in range(5)])
    own = slice(lengths[0], lengths[0] + lengths[1])
    actual: list[tuple[torch.Tensor, torch.Tensor]] = []
    for starts, stops, slots in (([21], [56], [1]), ([0, 21, 56], [21, 56, 72], [0, 1, 2])):
        carried, out = normal(3, 1, size, size).to(DEVICE), torch.zeros_like(rows.r)
        in_chunks(rows, weights, Sequences(*map(on_device, (starts, stops, slots))), carried, out)
        actual.append((out[own], carried[1]))
    assert all(torch.equal(alone, together) for alone, together in zip(*actual, strict=True))


@pytest.mark.parametrize("decay", [0.5454, 1.0])
def test_in_chunks_with_the_strongest_decay_and_with_none(decay: float) -> None:
    compare(in_chunks, [35], 1, 16, decay=decay, tolerance=1e-4)


@pytest.mark.parametrize("kernel", [scan, in_chunks])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_half_precision_are_taken_as_they_are(kernel: Kernel, dtype: torch.dtype) -> None:
    compare(kernel, [18] if kernel is in_chunks else [2], 1, 16, dtype=dtype)


@pytest.mark.parametrize("kernel", [scan, in_chunks])
def test_a_sequence_without_a_slot_starts_from_nothing_and_leaves_nothing(kernel: Kernel) -> None:
    one = torch.full((1, 16), 0.5, device=DEVICE)
    outs: list[torch.Tensor] = []
    for slot in (0, -1):
        carried, memory = guarded(1, 1, 16, 16, values=torch.zeros(1, 1, 16, 16))
        out, _ = guarded(1, 16)
        index = [torch.tensor([value], dtype=torch.int32, device=DEVICE) for value in (0, 1, slot)]
        kernel(HeadRows(*[one] * 6), HeadWeights(*[one[0]] * 5), Sequences(*index), carried, out)
        outs.append(out)
        assert untouched(memory)
        assert bool(carried.any()) == (slot == 0)
    assert torch.equal(*outs)
