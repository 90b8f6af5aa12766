"""GGUF files of RWKV-7 give the logits of the `.pth` of the same weights."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from rwkvbatch.cli.app import invoke
from rwkvbatch.errors import CheckpointError, MissingExtraError
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.checkpoints.description import describe
from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors
from rwkvbatch.model.load import load_model
from tests.model.checkpoints.test_forms import assert_same_logits
from tests.model.made_forms import Tensors, write_gguf


def rounded(tensors: Tensors, matrices: str) -> Tensors:
    """fp32 weights with those matrices rounded that `write_gguf` rounds, as the `gguf` package rounds them."""
    made = {name: tensor.float() for name, tensor in tensors.items()}
    kind = gguf.GGMLQuantizationType[matrices]
    for name, tensor in made.items():
        factor = name.rpartition(".")[2] in ("a1", "a2", "v1", "v2", "g1", "g2", "w2")
        large = name.endswith(".weight") and tensor.ndim == 2
        if factor or large:
            stored = tensor.t().contiguous() if factor else tensor
            numbers = gguf.quants.dequantize(gguf.quants.quantize(stored.numpy(), kind), kind)
            back = torch.from_numpy(np.array(numbers, dtype=np.float32)).view(stored.shape)
            made[name] = back.t().contiguous() if factor else back
    return made


@pytest.mark.parametrize("matrices", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("width", [64, 96])
def test_logits_are_those_of_the_pth(matrices: str, width: int, tmp_path: Path) -> None:
    ranks = LowRankWidths(decay=32, rate=64, value=96, gate=160)
    tensors = random_tensors(3, width, 67, head_size=32, seed=4, ranks=ranks)
    torch.save(rounded(tensors, matrices), tmp_path / "plain.pth")
    path = write_gguf(tmp_path / "model.gguf", tensors, matrices=matrices)
    assert_same_logits(path, tmp_path / "plain.pth")


def test_info_and_convert_name_it(tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    from rwkvbatch.model.weights.safetensors import save_tensors

    path = write_gguf(tmp_path / "model.gguf", tiny_tensors, matrices="BF16")
    with open_checkpoint(path) as checkpoint:
        actual = describe(checkpoint, read_values=True)
        save_tensors(tmp_path / "back.safetensors", dict(checkpoint))
    assert (actual.kind, actual.form) == ("gguf", "llama.cpp")
    assert "the flattened r_k" in actual.undone
    assert_same_logits(tmp_path / "back.safetensors", tiny_file)
    assert invoke(["model", "convert", str(tmp_path / "model"), str(tmp_path / "made.pth"), "--quiet"]) == 0
    assert_same_logits(tmp_path / "made.pth", tiny_file)


def test_another_head_size_of_the_same_width_is_kept(tmp_path: Path) -> None:
    for head_size in (16, 64):
        tensors = random_tensors(1, 64, 31, head_size=head_size)
        path = write_gguf(tmp_path / f"{head_size}.gguf", tensors, matrices="BF16")
        assert load_model(path, "cpu").spec.head_size == head_size


@pytest.mark.parametrize("architecture", ["rwkv6", "arwkv7", "llama", "qwen3"])
def test_another_architecture_is_refused_by_name(architecture: str, tiny_tensors: Tensors, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny_tensors, architecture=architecture)
    with pytest.raises(CheckpointError, match=f"a GGUF file of the architecture '{architecture}'; .*only 'rwkv7'"):
        load_model(path)


@pytest.mark.parametrize("matrices", ["Q4_0", "Q5_1"])
def test_another_number_format_is_refused_by_name(matrices: str, tiny_tensors: Tensors, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny_tensors, matrices=matrices)
    with pytest.raises(CheckpointError, match=f"has the number format {matrices}; F32, F16, BF16, Q8_0 are read"):
        load_model(path)


def test_a_split_file_is_refused_with_the_way_to_join_it(tiny_tensors: Tensors, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny_tensors, changes={"split.count": ("add_uint16", 3)})
    with pytest.raises(CheckpointError, match="one of 3 parts") as refusal:
        load_model(path)
    assert "--merge" in str(refusal.value.hint)


def test_another_epsilon_is_refused(tiny_tensors: Tensors, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny_tensors, eps=1e-6)
    with pytest.raises(CheckpointError, match="epsilon"):
        load_model(path)


def test_without_the_package_the_extra_is_named(
    tiny_tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny_tensors)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError) as error:
        load_model(path)
    assert "rwkvbatch[gguf]" in str(error.value.hint)


def test_a_vocabulary_of_usual_size_is_skipped(tiny_tensors: Tensors, tmp_path: Path) -> None:
    texts = [f"token {number}" for number in range(65536)]
    path = write_gguf(tmp_path / "model.gguf", tiny_tensors, changes={"some.texts": ("add_array", texts)})
    assert load_model(path, "cpu").spec.vocab_size == len(tiny_tensors["emb.weight"])


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "big") + bytes(64))
    with pytest.raises(CheckpointError, match="big-endian"):
        load_model(path)


def test_the_world_vocabulary_is_declared_by_llama_cpps_name_for_it(tiny_tensors: Tensors, tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.model": ("add_string", "rwkv")}
    with open_checkpoint(write_gguf(tmp_path / "world.gguf", tiny_tensors, changes=changes)) as checkpoint:
        assert checkpoint.vocabulary == "world"
    with open_checkpoint(write_gguf(tmp_path / "none.gguf", tiny_tensors)) as checkpoint:
        assert checkpoint.vocabulary is None


@pytest.mark.filterwarnings("error")
def test_an_infinite_scale_is_refused_without_a_warning_of_the_gguf_package(
    tiny_tensors: Tensors, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny_tensors, matrices="Q8_0")
    data = bytearray(path.read_bytes())
    (place,) = [
        each.data_offset for each in gguf.GGUFReader(path).tensors if each.name == "blk.0.channel_mix_key.weight"
    ]
    data[place : place + 2] = b"\0\x7c"  # the first block's scale: infinite
    data[place + 2] = 0
    path.write_bytes(data)
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match="NaN or infinity"):
        dict(checkpoint)
