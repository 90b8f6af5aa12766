"""Triton kernels of layer norm, token shift and mixes, against the reference operations."""

from __future__ import annotations

import pytest
import torch

from rwkvbatch.model.base import RaggedBatch, State
from rwkvbatch.model.ops import ShiftKind
from rwkvbatch.model.ops.cuda import pad_rows
from rwkvbatch.model.ops.reference import LAYER_NORM_EPS, ReferenceOps
from tests.model.ops.device import DEVICE, guarded, normal, untouched

pytest.importorskip("triton")
from rwkvbatch.model.ops.cuda import CudaOps
from rwkvbatch.model.ops.triton import scan as shift

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize(
    ("width", "dtype", "out_dtype"),
    [(40, torch.float32, torch.float32), (64, torch.bfloat16, torch.float32), (24, torch.float32, torch.float16)],
)
def test_layer_norm_of_some_rows(width: int, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    x, norm = normal(5, width, mean=3.0).to(dtype), (normal(width, seed=1), normal(width, seed=2))
    rows = torch.tensor([4, 0, 4])
    out, memory = guarded(3, width, dtype=out_dtype)
    shift.gather_norm(
        x.to(DEVICE), rows.to(DEVICE, torch.int32), (norm[0].to(DEVICE), norm[1].to(DEVICE)), out, LAYER_NORM_EPS
    )
    expected = torch.nn.functional.layer_norm(x[rows].float(), (width,), *norm, eps=LAYER_NORM_EPS)
    torch.testing.assert_close(
        out.cpu(), expected.to(out_dtype), rtol=1e-3 if out_dtype != x.dtype else 1e-5, atol=1e-5
    )
    assert untouched(memory)


@pytest.mark.parametrize(
    ("kind", "mixes", "lists", "slots", "width", "dtype"),
    [
        ("att", 6, [[1, 2, 3], [4], [5, 0]], [3, 0, 1], 40, torch.float32),
        ("ffn", 1, [[1], [2], [3]], [1, 2, 0], 64, torch.float32),
        ("ffn", 1, [[1] * 7], [2], 24, torch.bfloat16),
    ],
)
def test_shift_and_mixes_and_the_state_that_they_leave(
    kind: ShiftKind, mixes: int, lists: list[list[int]], slots: list[int], width: int, dtype: torch.dtype
) -> None:
    ops, reference = CudaOps(DEVICE, dtype), ReferenceOps()
    batch = RaggedBatch.of(lists, slots)
    state = State(
        {
            "att_shift": normal(4, 2, width),
            "ffn_shift": normal(4, 2, width, seed=1),
            "wkv": torch.zeros(4, 2, 1, width, width),
        }
    )
    pools = [side.make_pool(4, 2, 1, width) for side in (ops, reference)]
    for pool in pools:
        pool.write(range(4), state)
    carried, memory = guarded(*pools[0].shifts.shape, values=pools[0].shifts)
    pools[0].shifts = carried
    x, norm, mix = (normal(len(batch.tokens), width), (normal(width), normal(width, seed=3)), normal(mixes, width))

    step = ops.begin(pad_rows(batch, len(batch.tokens) + 2), pools[0])
    padded = torch.cat([x, torch.full((2, width), float("nan"))]).to(DEVICE)
    actual = ops.shift_mix(step, kind, 1, padded, (ops.vector(norm[0]), ops.vector(norm[1])), ops.vector(mix))
    expected = reference.shift_mix(reference.begin(batch, pools[1]), kind, 1, x, norm, mix)
    assert len(actual) == mixes
    tolerance = CLOSE if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.01}
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine[: len(x)].float().cpu(), theirs, **tolerance)
    torch.testing.assert_close(pools[0].shifts.cpu(), pools[1].shifts, **CLOSE)
    assert untouched(memory)


def test_mixes_are_written_where_they_belong_and_nowhere_else() -> None:
    x, one = normal(3, 24).to(DEVICE), torch.ones(24, device=DEVICE)
    out, memory = guarded(2, 3, 24)
    none = torch.full((3,), -1, dtype=torch.int32, device=DEVICE)
    carried, _ = guarded(1, 24)
    shift.shift_mix(x, (one, one), torch.stack([one, 0 * one]), carried, none, none, out, LAYER_NORM_EPS)
    assert not bool(torch.isnan(out).any())
    torch.testing.assert_close(out[0, 1:], out[1, :-1], **CLOSE)
    assert untouched(memory)
    assert bool(torch.isnan(carried).all())
