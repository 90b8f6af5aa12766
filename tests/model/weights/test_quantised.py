"""Quantised files: the same model as the strategy makes from the original, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rwkvbatch.bench.verify import verify
from rwkvbatch.cli.app import app
from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import RoundedAgainWarning, load_model
from rwkvbatch.model.ops.reference import ROUNDINGS
from rwkvbatch.model.weights.quantised import METADATA_KEY, settled
from rwkvbatch.model.weights.safetensors import read_header, save_tensors

TOKENS = [[1, 2, 3, 4], [5]]


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    save_tensors(path, random_tensors(2, 192, 97, hidden=3 * 192 + 7), metadata={"vocabulary": "world"})
    return path


def quantize(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["model", "quantize", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stderr


@pytest.mark.parametrize("rounding", ["w8a8", "int4"])
def test_the_file_is_what_the_strategy_makes_of_the_original(rounding: str, original: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.safetensors"
    assert f"{rounding}, " in quantize(original, out, "--to", rounding)
    expected, _ = load_model(original, f"cpu {rounding}").forward(TOKENS)
    original.unlink()
    model = load_model(out)
    assert model.spec.dtype == rounding
    assert model.spec.vocabulary == "world"
    actual, _ = model.forward(TOKENS)
    # A scale in fp32 may have moved by a unit in the last place.
    torch.testing.assert_close(actual, expected, rtol=0, atol=0 if rounding == "int4" else 1e-4)


@pytest.mark.parametrize("rounding", ["w8a8", "int4"])
def test_rows_that_are_rounded_in_pieces_are_those_of_the_whole_matrix(
    rounding: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = tmp_path / "whole.safetensors", tmp_path / "pieces.safetensors"
    quantize(original, whole, "--to", rounding)
    monkeypatch.setattr("rwkvbatch.model.ops.reference._PIECE", 5 * 192)
    quantize(original, pieces, "--to", rounding)
    assert pieces.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("rounding", ["w8a8", "int4"])
def test_a_quantised_file_is_verified(rounding: str, original: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.safetensors"
    quantize(original, out, "--to", rounding)
    found = verify(lambda: load_model(out, "cpu", "reference"), lambda: load_model(out, "cpu"))
    assert found.same


def test_writing_it_again_changes_nothing(original: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    for rounding in ("w8a8", "int4"):
        quantize(original, first, "--to", rounding, "--force")
        quantize(first, second, "--to", rounding, "--force")
        assert first.read_bytes() == second.read_bytes()


def test_a_quantised_file_is_not_rounded_to_something_else(original: Path, tmp_path: Path) -> None:
    quantize(original, tmp_path / "q.safetensors", "--to", "w8a8")
    result = CliRunner().invoke(app, ["model", "quantize", str(tmp_path / "q"), str(tmp_path / "r.safetensors")])
    assert isinstance(result.exception, UsageError)
    assert "is quantised already, to w8a8" in result.exception.message
    assert not (tmp_path / "r.safetensors").exists()


def test_it_is_small_and_says_what_it_is(original: Path, tmp_path: Path) -> None:
    quantize(original, tmp_path / "q.safetensors")
    described = CliRunner().invoke(app, ["model", "info", str(tmp_path / "q"), "--json"])
    values = json.loads(described.stdout)
    assert (values["quantised"], values["dtype"]) == ("int4", "int4")
    types = {group["name"]: group["dtype"] for group in values["tensors"]}
    assert (types["head.weight"], types["blocks.*.ffn.key.weight"]) == ("int4", "int4")
    assert "int4" not in (types["emb.weight"], types["blocks.*.att.w1"])
    assert "int4, the large matrices" in CliRunner().invoke(app, ["model", "info", str(tmp_path / "q")]).stdout
    large = 2 * (4 * 192 * 192 + 2 * 192 * 583) + 97 * 192
    small = sum(t.numel() for t in random_tensors(2, 192, 97, hidden=583).values()) - large
    assert (tmp_path / "q.safetensors").stat().st_size < large * 0.58 + 2 * small + 20_000


def test_it_converts_back_to_floating_point(original: Path, tmp_path: Path) -> None:
    quantize(original, tmp_path / "q.safetensors")
    arguments = ["model", "convert", str(tmp_path / "q"), str(tmp_path / "f.pth")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    with open_checkpoint(tmp_path / "f.pth") as back, open_checkpoint(original) as source:
        expected = ROUNDINGS["int4"].rounded(source["head.weight"])
        assert torch.equal(back["head.weight"], expected)
        assert torch.equal(back["emb.weight"], source["emb.weight"])


@pytest.mark.parametrize("rounding", ["w8a8", "int4"])
def test_settled_integers_stay(rounding: str) -> None:
    rule = ROUNDINGS[rounding]  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3000, 131, generator=generator) * 10 ** torch.randn(3000, 1, generator=generator)
    weight[0] = 0
    integers, scales = settled(weight, rule)
    again, scales_again = rule.quantize(rule.dequantize(integers, scales))
    assert torch.equal(again, integers)
    assert torch.equal(scales_again, scales)


@pytest.mark.parametrize(
    "description",
    [
        "",
        "{}",
        "[1]",
        '{"rounding": "int3", "inputs": {}}',
        '{"rounding": "int4", "inputs": {"none": 3}}',
        '{"rounding": "int4", "inputs": {"head.weight": 150}}',
        '{"rounding": "int4", "inputs": {"head.weight": -1}}',
        '{"rounding": "int4", "inputs": {"emb.weight": 64}}',
        '{"rounding": "int4", "inputs": 5}',
        '{"rounding": "int4", "inputs": {}, "fitted": 5}',
        '{"rounding": "int4", "inputs": {}, "fitted": {"tokens": "many", "texts_sha256": ""}}',
    ],
)
def test_a_damaged_description_is_refused(description: str, original: Path, tmp_path: Path) -> None:
    quantize(original, tmp_path / "q.safetensors")
    with (tmp_path / "q.safetensors").open("rb") as file:
        contents = read_header(file.fileno(), tmp_path / "q.safetensors")
        tensors = {}
        for name, entry in contents.entries.items():
            file.seek(entry.start)
            tensors[name] = torch.frombuffer(bytearray(file.read(entry.span)), dtype=entry.dtype).view(entry.shape)
    save_tensors(tmp_path / "bad.safetensors", tensors, metadata={METADATA_KEY: description})
    with pytest.raises(CheckpointError, match="rwkvbatch_quantised"):
        load_model(tmp_path / "bad")


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    torch.manual_seed(0)
    name = "blocks.0.att.key"
    torch.save(
        {f"{name}.lora_A": torch.randn(4, 192), f"{name}.lora_B": torch.randn(192, 4) * 0.01}, tmp_path / "lora.pth"
    )
    return f"{tmp_path / 'lora.pth'} alpha=8"


def test_an_adapter_over_a_quantised_file_is_rounded_only_with_a_warning(
    original: Path, tmp_path: Path, adapter: str, recwarn: pytest.WarningsRecorder
) -> None:
    quantize(original, tmp_path / "q.safetensors")
    load_model(original, "cpu int4", adapter=adapter)
    load_model(tmp_path / "q.safetensors", "cpu int4")
    load_model(tmp_path / "q.safetensors", "cpu fp32", adapter=adapter)
    assert not [each for each in recwarn if each.category is RoundedAgainWarning]
    for strategy in ("auto", "cpu int4", "cpu w8a8"):
        with pytest.warns(RoundedAgainWarning, match=r'quantised to int4: .* rounded again, .* --strategy "cpu fp32"'):
            load_model(tmp_path / "q.safetensors", strategy, adapter=adapter)


def test_an_adapter_cannot_be_merged_into_a_quantised_file_that_stays_quantised(
    original: Path, tmp_path: Path, adapter: str
) -> None:
    quantize(original, tmp_path / "q.safetensors")
    names = [str(tmp_path / "q"), str(tmp_path / "r.safetensors")]
    result = CliRunner().invoke(app, ["model", "quantize", *names, "--adapter", adapter])
    assert isinstance(result.exception, UsageError)
    assert "rounding it again with an adapter would add to the loss" in result.exception.message
    assert not (tmp_path / "r.safetensors").exists()
    quantize(original, tmp_path / "r.safetensors", "--adapter", adapter)
