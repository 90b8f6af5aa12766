"""`rwkvbatch model verify` with GPU operations: it uses every kernel, and they pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwkvbatch.bench import verify as verification
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.network.rwkv7 import Network
from rwkvbatch.model.network.rwkv7_model import Rwkv7Model
from rwkvbatch.model.weights.safetensors import save_tensors
from tests.model.ops.device import DEVICE, HAS_GPU

pytest.importorskip("triton")
from rwkvbatch.model.network.graphs import WARM_UPS, GraphedNetwork, Replay
from rwkvbatch.model.ops.cuda import CudaOps
from rwkvbatch.model.ops.triton import chunks, few, scan


@pytest.mark.slow
def test_verification_passes_through_every_kernel_and_through_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not HAS_GPU:  # less of everything: the interpreter is slow
        monkeypatch.setattr(verification, "PIECES", (1, 2, 16, 17))
        monkeypatch.setattr(verification, "UNCOMPARED", 2)
        monkeypatch.setattr(verification, "LENGTHS", (16, *[1] * 16))
        monkeypatch.setattr(verification, "DECODE_ROWS", (17, 2))
        monkeypatch.setattr(verification, "DECODE_STEPS", WARM_UPS + 1)
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

    actual = verification.verify(lambda: reference, load)
    assert actual.same
    assert passed.count("captured") == len(verification.DECODE_ROWS)
    # A piece of one row is a decode step too.
    assert passed.count("replayed") >= len(verification.DECODE_ROWS) * (verification.DECODE_STEPS - WARM_UPS)
    assert set(passed) == {"chunks", "scan", "linears", "_linear", "captured", "replayed"}
