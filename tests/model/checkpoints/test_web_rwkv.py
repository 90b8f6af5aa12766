"""Checkpoints and states that web-rwkv's converters wrote give the logits of the `.pth` of the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.checkpoints.description import describe
from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.states import load_state
from tests.model.checkpoints.test_forms import logits
from tests.model.made_forms import WEB_RWKV_TRANSPOSED, Tensors, to_web_rwkv
from tests.model.older_generations import older_tensors

GENERATIONS = ("4", "5.1", "5.1 with time_faaaa", "5.2", "6.0", "7", "7a")


def tensors_of(generation: str) -> Tensors:
    if generation.startswith("7"):
        return random_tensors(2, 64, 97, head_size=32, seed=1, deep_embed=32 if generation == "7a" else None)
    tensors = older_tensors(generation.partition(" ")[0])
    if "faaaa" in generation:
        tensors = {name.replace("time_first", "time_faaaa"): tensor for name, tensor in tensors.items()}
    return tensors


def written(path: Path, tensors: Tensors) -> Path:
    if path.suffix == ".pth":
        torch.save({name: tensor.half() for name, tensor in tensors.items()}, path)
    else:
        save_file(tensors, path, {"format": "pt"})
    return path


@pytest.mark.parametrize("ending", [".st", ".safetensors"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_logits_are_those_of_the_pth_in_fp16(generation: str, ending: str, tmp_path: Path) -> None:
    tensors = tensors_of(generation)
    path = written(tmp_path / f"made{ending}", to_web_rwkv(tensors))
    plain = written(tmp_path / "plain.pth", tensors)
    with open_checkpoint(path) as checkpoint, open_checkpoint(plain) as expected:
        assert checkpoint.architecture == expected.architecture
        assert set(checkpoint) == set(expected)
        assert (describe(checkpoint).form == "web-rwkv") == (generation != "4")
    strategy = "cpu" if generation.startswith("7") else "cpu fp32"
    assert torch.equal(logits(path, strategy), logits(plain, strategy))


def test_version_6_with_matrices_turned_twice(tmp_path: Path) -> None:
    tensors = tensors_of("6.0")
    path = written(tmp_path / "made.st", to_web_rwkv(tensors, transposed=()))
    plain = written(tmp_path / "plain.pth", tensors)
    assert torch.equal(logits(path, "cpu fp32"), logits(plain, "cpu fp32"))


def test_version_5_2_with_different_channels_stays_5_2(tmp_path: Path) -> None:
    path = written(tmp_path / "made.st", to_web_rwkv(tensors_of("5.2")))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.architecture.generation == "5.2"
        assert describe(checkpoint).undone == ("the names time_first",)


def test_version_5_0_is_refused_since_its_names_are_ambiguous(tmp_path: Path) -> None:
    path = written(tmp_path / "made.st", to_web_rwkv(tensors_of("5.0")))
    with pytest.raises(CheckpointError, match=r"RWKV-5\.0 checkpoint of web-rwkv.*time_faaaa"):
        load_model(path)
    plain = written(tmp_path / "plain.pth", tensors_of("5.0"))
    save_file({name: t.half().contiguous() for name, t in tensors_of("5.0").items()}, tmp_path / "own.safetensors")
    assert torch.equal(logits(tmp_path / "own.safetensors", "cpu fp32"), logits(plain, "cpu fp32"))


def test_square_matrices_follow_the_others(tmp_path: Path) -> None:
    tensors = random_tensors(2, 64, 97, head_size=32, ranks=LowRankWidths(decay=64, rate=64, value=32, gate=40))
    path = written(tmp_path / "made.st", to_web_rwkv(tensors))
    assert torch.equal(logits(path), logits(written(tmp_path / "plain.pth", tensors)))


def test_square_matrices_alone_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(2, 64, 97, head_size=32, ranks=LowRankWidths(decay=64, rate=64, value=64, gate=64))
    with pytest.raises(CheckpointError, match="is square"):
        load_model(written(tmp_path / "made.st", to_web_rwkv(tensors)))
    # Without the ending nothing hints at web-rwkv: official names and shapes.
    half = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(half, tmp_path / "own.safetensors")
    assert torch.equal(logits(tmp_path / "own.safetensors"), logits(written(tmp_path / "plain.pth", tensors)))


def test_a_state_is_turned_back(tiny_file: Path, tmp_path: Path) -> None:
    spec = load_model(tiny_file, "cpu").spec
    generator = torch.Generator().manual_seed(2)
    tensors = {f"blocks.{layer}.att.time_state": torch.randn(2, 32, 32, generator=generator) for layer in range(2)}
    plain = load_state(written(tmp_path / "plain.pth", tensors), spec)
    made = to_web_rwkv(tensors, transposed=WEB_RWKV_TRANSPOSED)
    for ending in (".st", ".state"):
        actual = load_state(written(tmp_path / f"made{ending}", made), spec)
        assert torch.equal(actual.tensors["wkv"], plain.tensors["wkv"])
    # A plain .safetensors is what everyone else writes: as it is.
    actual = load_state(written(tmp_path / "own.safetensors", {n: t.half() for n, t in tensors.items()}), spec)
    assert torch.equal(actual.tensors["wkv"], plain.tensors["wkv"])


def test_old_and_new_names_together_are_refused(tmp_path: Path) -> None:
    made = to_web_rwkv(tensors_of("6.0"))
    made["blocks.0.att.time_faaaa"] = made["blocks.0.att.time_first"].clone()
    with pytest.raises(CheckpointError, match="old and new names"):
        load_model(written(tmp_path / "made.st", made))
