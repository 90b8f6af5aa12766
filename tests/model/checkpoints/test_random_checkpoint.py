"""Random checkpoints: reproducible, with varied logits and without overflow in any precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from rwkvbatch.model.base import RaggedBatch
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.network.rwkv7 import Network
from rwkvbatch.model.ops import Product
from rwkvbatch.model.ops.reference import ReferenceOps


def test_seed_decides_everything() -> None:
    first, same, other = (random_tensors(1, 64, 65, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["emb.weight"], other["emb.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_are_lively_and_depend_on_the_past(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save(random_tensors(6, 192, 500, dtype=dtype), tmp_path / "a.pth")
    model = load_model(tmp_path / "a", "cpu", "reference")
    tokens = torch.randint(0, 500, (1, 300), generator=torch.Generator().manual_seed(0)).tolist()
    logits, state = model.forward(tokens, every_token=True)
    assert bool(torch.isfinite(logits).all())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.tensors.values())
    assert 1 < float(logits.std()) < 4
    assert len(set(logits.argmax(1).tolist())) > 100
    alone, _ = model.forward([tokens[0][-1:]])
    assert float((logits[-1] - alone[0]).abs().mean()) > 0.3


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.75, 0.9])
def test_sparsity_is_the_share_of_hidden_values_that_are_zero(sparsity: float) -> None:
    shares: list[float] = []

    class Counting(ReferenceOps):
        def linears(self, products: Sequence[Product]) -> list[torch.Tensor]:
            results = super().linears(products)
            if products[0].layer.activation == "relu_squared":
                shares.append(float((results[0] == 0).float().mean()))
            return results

    ops = Counting()
    network = Network.build(random_tensors(3, 192, 100, sparsity=sparsity), 3, ops)
    tokens = torch.randint(0, 100, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    network.step(ops, RaggedBatch.of([tokens], [0]), ops.make_pool(1, 3, 3, 64))
    assert len(shares) == 3
    assert sum(shares) / 3 == pytest.approx(sparsity, abs=0.06)


def test_sparsity_must_be_a_share() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1.0"):
        random_tensors(1, 64, 65, sparsity=1.0)


def test_width_must_be_a_multiple_of_the_head_size() -> None:
    with pytest.raises(ValueError, match="multiple of the head size 64, got 100"):
        random_tensors(1, 100)
