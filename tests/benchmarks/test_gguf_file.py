from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gguf_file import GgufTensor, gguf_name, gguf_tensors, token_texts, write_gguf
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors
from rwkvbatch.model.weights.safetensors import save_tensors

RANKS = LowRankWidths(decay=32, rate=64, value=96, gate=160)
WIDTH, LAYERS = 128, 2


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, torch.Tensor]:
    return random_tensors(LAYERS, WIDTH, 300, ranks=RANKS)


@pytest.fixture(scope="module")
def written(checkpoint: dict[str, torch.Tensor]) -> dict[str, GgufTensor]:
    return {tensor.name: tensor for tensor in gguf_tensors(checkpoint, LAYERS)}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("emb.weight", "token_embd.weight"),
        ("blocks.0.ln0.bias", "token_embd_norm.bias"),
        ("head.weight", "output.weight"),
        ("blocks.11.ln2.weight", "blk.11.attn_norm_2.weight"),
        ("blocks.3.att.ln_x.bias", "blk.3.time_mix_ln.bias"),
        ("blocks.3.att.w0", "blk.3.time_mix_w0.weight"),
        ("blocks.3.att.r_k", "blk.3.time_mix_r_k.weight"),
        ("blocks.3.ffn.x_k", "blk.3.channel_mix_lerp_k.weight"),
        ("blocks.3.ffn.value.weight", "blk.3.channel_mix_value.weight"),
    ],
)
def test_a_tensor_has_its_name_in_gguf(ours: str, theirs: str) -> None:
    assert gguf_name(ours) == theirs


def test_matrices_keep_outputs_before_inputs_and_factors_are_turned_to_that(
    checkpoint: dict[str, torch.Tensor], written: dict[str, GgufTensor]
) -> None:
    assert written["blk.1.channel_mix_key.weight"].values.shape == (4 * WIDTH, WIDTH)
    for part, shape in (("1", (RANKS.gate, WIDTH)), ("2", (WIDTH, RANKS.gate))):
        factor = written[f"blk.1.time_mix_g{part}.weight"].values
        assert factor.shape == shape
        np.testing.assert_allclose(factor, checkpoint[f"blocks.1.att.g{part}"].float().T, atol=1e-6)


def test_mixes_are_one_tensor_in_the_order_r_w_k_v_a_g(
    checkpoint: dict[str, torch.Tensor], written: dict[str, GgufTensor]
) -> None:
    mixes = written["blk.1.time_mix_lerp_fused.weight"].values
    assert mixes.shape == (6, 1, 1, WIDTH)
    for mix, letter in zip(mixes, "rwkvag", strict=True):
        assert np.array_equal(mix[0, 0], checkpoint[f"blocks.1.att.x_{letter}"].float().flatten())


def test_the_first_layer_has_the_rate_in_place_of_its_unused_value_residual(written: dict[str, GgufTensor]) -> None:
    for part in "012":
        rate = written[f"blk.0.time_mix_a{part}.weight"].values
        assert np.array_equal(written[f"blk.0.time_mix_v{part}.weight"].values, rate)
    assert written["blk.1.time_mix_v1.weight"].values.shape == (RANKS.value, WIDTH)


def test_matrices_are_fp16_and_what_llama_cpp_keeps_in_fp32_is_fp32(written: dict[str, GgufTensor]) -> None:
    dtypes = {name: tensor.values.dtype for name, tensor in written.items() if name.startswith("blk.1.")}
    assert dtypes["blk.1.time_mix_key.weight"] == dtypes["blk.1.time_mix_a1.weight"] == np.float16
    for name in ("attn_norm.bias", "time_mix_w1.weight", "time_mix_lerp_fused.weight", "time_mix_r_k.weight"):
        assert dtypes[f"blk.1.{name}"] == np.float32


def test_no_number_of_the_checkpoint_is_lost_or_made_up(
    checkpoint: dict[str, torch.Tensor], written: dict[str, GgufTensor]
) -> None:
    unused = sum(checkpoint[f"blocks.0.att.v{part}"].numel() for part in "012")
    stand_in = sum(written[f"blk.0.time_mix_v{part}.weight"].values.size for part in "012")
    total = sum(tensor.numel() for tensor in checkpoint.values())
    assert sum(tensor.values.size for tensor in written.values()) == total - unused + stand_in


def test_tokens_are_spelt_as_bytes_literals_and_every_id_has_a_text() -> None:
    entries = [b"", b"a", b"\n\n", b"\xe2\x80", b"", b"it's"]
    assert token_texts(entries, 7) == [b"<s>", b"a", b"\\n\\n", b"\\xe2\\x80", b"[PAD4]", b"it's", b"[PAD6]"]


@pytest.fixture
def file(tmp_path: Path, checkpoint: dict[str, torch.Tensor]) -> Path:
    pytest.importorskip("gguf")
    save_tensors(tmp_path / "tiny.safetensors", checkpoint)
    with open_checkpoint(tmp_path / "tiny.safetensors") as opened:
        write_gguf(tmp_path / "tiny.gguf", opened)
    return tmp_path / "tiny.gguf"


def test_the_file_says_the_widths_that_llama_cpp_asks_for(file: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(file)
    said = {name.removeprefix("rwkv7."): field.contents() for name, field in reader.fields.items()}
    assert said["general.architecture"] == "rwkv7"
    assert (said["embedding_length"], said["block_count"], said["wkv.head_size"]) == (WIDTH, LAYERS, 64)
    assert said["feed_forward_length"] == 4 * WIDTH
    assert said["attention.decay_lora_rank"] == RANKS.decay
    assert said["attention.iclr_lora_rank"] == RANKS.rate
    assert said["attention.value_residual_mix_lora_rank"] == RANKS.value
    assert said["attention.gate_lora_rank"] == RANKS.gate
    assert len(said["tokenizer.ggml.tokens"]) == 300
