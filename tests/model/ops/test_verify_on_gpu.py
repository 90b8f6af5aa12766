"""`rwkvbatch model verify` over the operations of a GPU: what it passes through there, and that they pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwkvbatch.bench.verify import DECODE_ROWS, DECODE_STEPS, verify
from rwkvbatch.model.load import load_model
from rwkvbatch.model.random_checkpoint import random_tensors
from rwkvbatch.model.rwkv7 import Network
from rwkvbatch.model.rwkv7_model import Rwkv7Model
from rwkvbatch.model.tensor_write import save_tensors
from tests.model.ops.device import DEVICE

pytest.importorskip("triton")
from rwkvbatch.model.ops.cuda import CudaOps
from rwkvbatch.model.ops.graphs import WARM_UPS, GraphedNetwork, Replay
from rwkvbatch.model.ops.triton import chunks, few, scan


def test_verification_passes_through_every_kernel_and_through_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = random_tensors(1, 16, 40, head_size=16, seed=1)
    path = tmp_path / "model.safetensors"
    save_tensors(path, tensors)
    reference = load_model(path, "cpu", "reference")
    passed: list[str] = []

    def watched(module: object, name: str) -> None:
        function: Callable[..., object] = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: (passed.append(name), function(*args))[1])

    for module, name in ((chunks, "chunks"), (scan, "scan"), (few, "linears"), (CudaOps, "_linear")):
        watched(module, name)

    def capture(run: Callable[[], torch.Tensor]) -> Replay:
        """The function itself stands in for a graph of what it launches."""
        passed.append("captured")
        return lambda: (passed.append("replayed"), run())[1]

    def load() -> Rwkv7Model:
        ops = CudaOps(DEVICE, torch.float32)
        spec = replace(reference.spec, backend="cuda", dtype="fp32", device="cuda")
        return Rwkv7Model(GraphedNetwork(Network.build(tensors, 1, ops), capture), ops, spec)

    found = verify(lambda: reference, load)
    assert found.same
    assert passed.count("captured") == len(DECODE_ROWS)
    assert passed.count("replayed") == len(DECODE_ROWS) * (DECODE_STEPS - WARM_UPS)
    assert set(passed) == {"chunks", "scan", "linears", "_linear", "captured", "replayed"}
