"""Matrices that the kernels read and pack directly from the file have the bits of packed tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model import load
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors
from rwkvbatch.model.ops import Product, Rounding, StoredRows
from rwkvbatch.model.weights.quantised import LARGE, quantised
from rwkvbatch.model.weights.safetensors import save_entries
from rwkvbatch.model.weights.tensor_file import TensorFile

pytest.importorskip("rwkvbatch._native", reason="installed without the native kernels", exc_type=ImportError)
from rwkvbatch.model.ops.cpu import CpuOps, Isa

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ISAS: tuple[Isa, ...] = ("portable", "avx2", "neon", "auto")
ROUNDINGS: tuple[Rounding | None, ...] = (None, *get_args(Rounding))
VOCAB = 203

WEIGHTS = torch.randn(203, 330, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 1, 203).unsqueeze(1)


def ops_with(isa: Isa, rounding: Rounding | None = None) -> CpuOps:
    try:
        return CpuOps(2, isa, rounding=rounding)
    except UsageError:
        pytest.skip(f"this processor has no {isa}")


def products(ops: CpuOps, layer: Any, inputs: int) -> torch.Tensor:
    """What a layer makes of each input alone, [inputs, out]."""
    (result,) = ops.linears([Product(ops.array(torch.eye(inputs)), layer)])
    return ops.values(result)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_matrix_is_packed_alike_however_it_lies_in_memory(
    rounding: Rounding | None, dtype: torch.dtype, isa: Isa
) -> None:
    ops, plain = ops_with(isa, rounding), WEIGHTS.to(dtype)
    wide = torch.zeros(2 * 203, 3 * 330, dtype=dtype)
    wide[::2, ::3] = plain
    first = products(ops, ops.linear_layer(plain, kind="large"), 330)
    if rounding is None:
        assert torch.equal(first.t(), plain.float())
    for other in (plain.t().contiguous().t(), wide[::2, ::3], torch.cat([plain, plain], 1)[:, :330]):
        assert torch.equal(other, plain)
        assert torch.equal(products(ops, ops.linear_layer(other, kind="large"), 330), first)


@pytest.mark.parametrize("out", [1, 16, 64, 65, 80, 192])
@pytest.mark.parametrize("inputs", [1, 8, 31, 32, 130, 256])
def test_any_shape_is_packed(inputs: int, out: int) -> None:
    ops = CpuOps(2)
    for dtype in DTYPES.values():
        weight = WEIGHTS[:out, :inputs].to(dtype).contiguous()
        assert torch.equal(products(ops, ops.linear_layer(weight), inputs).t(), weight.float())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in each precision, `.pth` and `.safetensors`, and quantised."""
    made, ranks = tmp_path_factory.mktemp("files"), LowRankWidths(decay=24, rate=40, value=16, gate=56)
    for name, dtype in DTYPES.items():
        tensors = random_tensors(2, 160, VOCAB, 32, seed=3, hidden=488, ranks=ranks, dtype=dtype)
        torch.save(tensors, made / f"{name}.pth")
    with open_checkpoint(made / "bf16.pth") as checkpoint:
        save_entries(made / "bf16.safetensors", checkpoint.rounded(None))
        for rounding in ("w8a8", "int4"):
            entries, metadata = quantised(checkpoint.rounded(None), rounding)
            save_entries(made / f"{rounding}.safetensors", entries, metadata=metadata)
    tensors = torch.load(made / "bf16.pth")
    turned = {name: weight.t().contiguous().t() if weight.dim() == 2 else weight for name, weight in tensors.items()}
    torch.save(turned, made / "turned.pth")
    return made


def logits_of(path: Path, strategy: str) -> torch.Tensor:
    logits, _ = load.load_model(path, strategy, "cpu", threads=2).forward([[1, 2, 3], [4]], every_token=True)
    return logits


FILES = ("bf16.pth", "fp16.pth", "fp32.pth", "bf16.safetensors", "w8a8.safetensors", "int4.safetensors", "turned.pth")


@pytest.mark.parametrize("file", FILES)
def test_a_model_is_the_same_as_one_packed_from_tensors(
    file: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategies = ("cpu", "cpu fp32", "cpu bf16", "cpu int8", "cpu w8a8", "cpu int4")
    actual = {strategy: logits_of(folder / file, strategy) for strategy in strategies}
    monkeypatch.setattr(load, "_reader", lambda *_: None)
    for strategy, logits in actual.items():
        assert torch.equal(logits, logits_of(folder / file, strategy)), strategy


@pytest.mark.parametrize(
    ("file", "strategy", "num_read"),
    [
        ("bf16.pth", "cpu", 0),
        ("bf16.safetensors", "cpu int4", 0),
        ("fp32.pth", "cpu w8a8", 0),
        ("int4.safetensors", "cpu", 0),
        ("int4.safetensors", "cpu fp32", 13),  # multiplied out
        ("fp32.pth", "cpu bf16", 14),  # rounded
        ("turned.pth", "cpu", 14),
    ],
)
def test_large_matrices_are_never_in_memory_as_tensors(
    file: str, strategy: str, num_read: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    read = TensorFile.read

    def recorded(self: TensorFile, name: str) -> torch.Tensor:
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(TensorFile, "read", recorded)
    logits_of(folder / file, strategy)
    large = [name for name in names if name == "emb.weight" or LARGE.fullmatch(name)]
    assert len(large) == num_read


Writer = Callable[[torch.Tensor], StoredRows]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Writer]:
    """Writes rows to a file, which stays open until the test ends."""
    with ExitStack() as stack:

        def write(values: torch.Tensor) -> StoredRows:
            path = tmp_path / "rows"
            path.write_bytes(b"12345678" + values.contiguous().view(torch.uint8).numpy().tobytes())
            file = stack.enter_context(path.open("rb"))
            return StoredRows(file.fileno(), 8, values.dtype, None, *values.shape)

        yield write


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("place", [(0, 0), (202, 329), (64, 31), (130, 320)])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_matrix_with_a_number_that_is_none_is_not_read(
    number: float, place: tuple[int, int], dtype: torch.dtype, written: Writer
) -> None:
    weight = WEIGHTS.to(dtype, copy=True)
    stored = written(weight)
    ops, rounded = CpuOps(2), CpuOps(2, rounding="int4")
    assert ops.read_layer(stored, "none") is not None
    assert ops.read_table(stored) is not None
    weight[place] = number
    stored = written(weight)
    assert ops.read_layer(stored, "none") is None
    assert rounded.read_layer(stored, "none") is None
    assert ops.read_table(stored) is None


def test_a_file_that_is_cut_off_is_not_read(written: Writer, tmp_path: Path) -> None:
    stored, ops = written(WEIGHTS), CpuOps(2)
    os.truncate(tmp_path / "rows", 8 + WEIGHTS.nbytes - 1)
    assert ops.read_layer(stored, "none") is None
    assert ops.read_table(stored) is None


@pytest.mark.parametrize("rounding", ["w8a8", "int4"])
def test_a_scale_that_is_no_number_is_one_clear_error(rounding: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    data = bytearray((folder / f"{rounding}.safetensors").read_bytes())
    with open_checkpoint(folder / f"{rounding}.safetensors") as checkpoint:
        stored = checkpoint.rows("blocks.1.ffn.key.weight")
    assert stored is not None
    integers = stored.inputs if rounding == "w8a8" else stored.inputs // 2
    data[stored.start + integers : stored.start + integers + 4] = b"\xff\x7f\xff\x7f"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'blocks.1.ffn.key.weight' contains NaN or infinity"):
        logits_of(path, "cpu")
