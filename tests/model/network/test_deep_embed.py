"""RWKV-7a (DeepEmbed) on every backend, against the `rwkv` package with `RWKV_DE_VERSION=1`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.base import RaggedBatch
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.checkpoints.description import describe
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.network.rwkv7 import Network
from rwkvbatch.model.ops.reference import ReferenceOps
from tests.model.conftest import VOCAB_SIZE
from tests.model.ops.device import DEVICE, normal

LISTS = [[5, 6, 7, 8, 9, 10], [11], [12, 13]]
SIZE = 32
"""The size of a token's matrix in the package."""


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return random_tensors(2, 64, VOCAB_SIZE, head_size=32, seed=3, deep_embed=SIZE)


@pytest.fixture(scope="module")
def file(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("7a") / "7a.pth"
    torch.save(tensors, path)
    return path


@pytest.fixture(scope="module")
def expected(file: Path) -> torch.Tensor:
    model = load_model(file, "cpu fp32", "upstream")
    assert model.spec.generation == "7a"
    return model.forward(LISTS, every_token=True)[0]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_logits_are_those_of_the_package(file: Path, expected: torch.Tensor, backend: str) -> None:
    logits, _ = load_model(file, "cpu", backend, threads=2).forward(LISTS, every_token=True)
    torch.testing.assert_close(logits, expected, rtol=2e-4, atol=2e-4)


def test_the_factor_matters(tensors: dict[str, torch.Tensor], file: Path, expected: torch.Tensor) -> None:
    for name in ("s0", "s1", "s2", "s_emb.weight", "s_emb_x.weight"):
        changed = {**tensors, f"blocks.1.ffn.{name}": tensors[f"blocks.1.ffn.{name}"] * 1.5}
        network = Network.build(changed, 2, ReferenceOps())
        ops = ReferenceOps()
        batch = RaggedBatch.of(LISTS, range(3), every_token=True)
        logits = network.step(ops, batch, ops.make_pool(3, 2, 2, 32))
        assert (logits - expected).abs().max() > 1e-2, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logits_of_the_gpu_kernels(
    tensors: dict[str, torch.Tensor], expected: torch.Tensor, dtype: torch.dtype
) -> None:
    pytest.importorskip("triton")
    from rwkvbatch.model.ops.cuda import CudaOps

    for few_rows in (16, 0):
        ops = CudaOps(DEVICE, dtype, few_rows=few_rows)
        network = Network.build(tensors, 2, ops)
        batch = RaggedBatch.of(LISTS, range(3), every_token=True)
        logits = network.step(ops, batch, ops.make_pool(3, 2, 2, 32)).float().cpu()
        limit = 2e-3 if dtype == torch.float32 else 0.1
        assert (logits - expected).abs().max() < limit


@pytest.mark.parametrize("size", [1, 5, 16, 32, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_native_and_triton_token_matrices_are_the_reference(size: int, dtype: torch.dtype) -> None:
    from rwkvbatch.model.ops.cpu import CpuOps

    table = normal(11, size * size, seed=1).to(dtype)
    offset, x = normal(6, size * size, seed=2), normal(6, size, seed=3)
    batch = RaggedBatch.of([[3, 10, 0], [7], [9, 9]], range(3))
    reference, cpu = ReferenceOps(), CpuOps(threads=2)
    cpu.native.set_guard(True)
    expected = reference.token_matrix(
        reference.begin(batch, reference.make_pool(3, 1, 1, 16)), reference.table(table), offset, x
    )
    step = cpu.begin(batch, cpu.make_pool(3, 1, 1, 16))
    actual = cpu.values(cpu.token_matrix(step, cpu.table(table), cpu.array(offset), cpu.array(x)))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
    assert cpu.native.take_damage() == 0

    few = pytest.importorskip("rwkvbatch.model.ops.triton.few")
    out = torch.full((6, size), float("nan"), device=DEVICE)
    tokens = torch.from_numpy(batch.tokens).to(DEVICE, torch.int32)
    few.token_matrix(table.to(DEVICE), tokens, offset.to(DEVICE), x.to(DEVICE), out)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-4)


def test_token_matrices_of_wrong_shapes_are_refused() -> None:
    from rwkvbatch.model.ops.cpu import CpuOps

    cpu = CpuOps(threads=1)
    step = cpu.begin(RaggedBatch.of([[1]], [0]), cpu.make_pool(1, 1, 1, 16))
    table = cpu.table(normal(4, 16))
    with pytest.raises(ValueError, match="have different sizes"):
        cpu.token_matrix(step, table, cpu.array(normal(1, 16)), cpu.array(normal(1, 5)))
    beyond = cpu.begin(RaggedBatch.of([[4]], [0]), cpu.make_pool(1, 1, 1, 16))
    with pytest.raises(ValueError, match=r"must be in \[0, 4\), got 4"):
        cpu.token_matrix(beyond, table, cpu.array(normal(1, 16)), cpu.array(normal(1, 4)))


def test_int8_rounds_the_same_matrices_on_both_backends(file: Path) -> None:
    actual = [
        load_model(file, "cpu int8", backend).forward(LISTS, every_token=True)[0] for backend in ("cpu", "reference")
    ]
    torch.testing.assert_close(*actual, rtol=2e-4, atol=2e-4)


def test_a_carried_state_equals_one_call(file: Path) -> None:
    model = load_model(file, "cpu")
    whole, _ = model.forward([LISTS[0]])
    _, state = model.forward([LISTS[0][:3]])
    again, _ = model.forward([LISTS[0][3:]], state)
    assert np.array_equal(whole.numpy().view(np.int32), again.numpy().view(np.int32))


def test_it_is_described_as_what_it_is(file: Path) -> None:
    with open_checkpoint(file) as checkpoint:
        actual = asdict(describe(checkpoint))
    assert actual["generation"] == "7a"
    assert actual["state_bytes"] == 4 * 2 * 64 * (2 + 32)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("s0", (255,)),
        ("s1", (63, SIZE)),
        ("s2", (SIZE, 255)),
        ("s_emb.weight", (VOCAB_SIZE, 1023)),
        ("s_emb_x.weight", (1024, 63)),
    ],
)
def test_a_misshapen_tensor_is_named(
    tensors: dict[str, torch.Tensor], tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "bad.pth"
    torch.save({**tensors, f"blocks.1.ffn.{name}": torch.zeros(*shape, dtype=torch.bfloat16)}, path)
    with pytest.raises(CheckpointError, match=rf"blocks.1.ffn.{name}"), open_checkpoint(path):
        pass


def test_a_missing_tensor_is_named(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    torch.save({name: tensor for name, tensor in tensors.items() if name != "blocks.1.ffn.s_emb_x.weight"}, path)
    with pytest.raises(CheckpointError, match=r"not those of RWKV-7a: missing: 'blocks.1.ffn.s_emb_x.weight'"):
        load_model(path)
