"""Adapters in directories of PEFT: their settings, names, bases and tensors that were trained whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.checkpoints.peft_config import QuantisedBaseWarning
from tests.model.made_adapters import RANK, assert_merged, logits, lora, normal, peft_directory, saved, with_lora
from tests.model.made_forms import Tensors


@pytest.mark.parametrize(("config", "factor"), [({}, 4.0), ({"use_rslora": True}, 32 / RANK**0.5)])
def test_a_directory_of_peft_has_its_alpha(
    config: dict[str, object], factor: float, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    folder = peft_directory(tmp_path / "peft", tiny_tensors, **config)
    assert_merged(tiny_file, str(folder), with_lora(tiny_tensors, lora(tiny_tensors), factor), tmp_path)
    with pytest.raises(UsageError, match="alpha= does not apply"):
        logits(tiny_file, f"{folder} alpha=3")


FLA_NAMES = {
    "blocks.0.att.receptance": "layers.0.attn.r_proj",
    "blocks.1.att.key": "layers.1.attn.k_proj",
    "blocks.1.ffn.key": "layers.1.ffn.key",
    "blocks.0.ffn.value": "layers.0.ffn.value",
}
TRANSFORMERS_NAMES = {
    "blocks.0.att.receptance": "layers.0.linear_attn.r_proj",
    "blocks.1.att.key": "layers.1.linear_attn.k_proj",
    "blocks.1.ffn.key": "layers.1.mlp.up_proj",
    "blocks.0.ffn.value": "layers.0.mlp.down_proj",
}


@pytest.mark.parametrize("names", [FLA_NAMES, TRANSFORMERS_NAMES], ids=["fla", "transformers"])
@pytest.mark.parametrize("part", ["", "ffn"])
def test_a_directory_of_peft_with_the_names_of_other_programs(
    names: dict[str, str], part: str, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    folder = peft_directory(tmp_path / "peft", tiny_tensors)
    chosen = {target: theirs for target, theirs in names.items() if part in target}
    parts = {name: tensor for name, tensor in lora(tiny_tensors).items() if name.rpartition(".")[0] in chosen}
    for name in list(parts):
        target, _, letter = name.rpartition(".")
        parts[f"base_model.model.model.{chosen[target]}.{letter}.weight"] = parts.pop(name)
    save_file(parts, folder / "adapter_model.safetensors")
    expected = dict(tiny_tensors)
    for target in chosen:
        expected[f"{target}.weight"] = with_lora(tiny_tensors, lora(tiny_tensors), 4.0)[f"{target}.weight"]
    assert_merged(tiny_file, str(folder), expected, tmp_path)


def test_an_adapter_of_all_linear_layers_of_flash_linear_attention_is_merged(
    tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    """There the low-rank matrices are linear layers, whose weights are the transposed official ones."""
    folder = peft_directory(tmp_path / "peft", tiny_tensors)
    chains = {f"w_lora.lora.{n}": f"w{m}" for n, m in ((0, 1), (2, 2))} | {"v_lora.lora.2": "v2", "g_lora.lora.0": "g1"}
    parts: Tensors = {}
    expected = dict(tiny_tensors)
    for number, (theirs, ours) in enumerate(chains.items()):
        matrix = tiny_tensors[f"blocks.1.att.{ours}"]
        rows, columns = matrix.T.shape
        a, b = normal(RANK, columns, seed=number), normal(rows, RANK, seed=number + 10)
        parts[f"base_model.model.model.layers.1.attn.{theirs}.lora_A.weight"] = a
        parts[f"base_model.model.model.layers.1.attn.{theirs}.lora_B.weight"] = b
        expected[f"blocks.1.att.{ours}"] = (matrix.float() + 4.0 * (b.float() @ a.float()).T).to(matrix.dtype)
    save_file(parts, folder / "adapter_model.safetensors")
    assert_merged(tiny_file, str(folder), expected, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "PEFT's type 'IA3'"),
        ({"use_dora": True}, "use_dora = True"),
        ({"rank_pattern": {"key": 4}}, "rank_pattern"),
        ({"lora_alpha": "much"}, "lora_alpha = 'much'"),
        ({"use_qalora": True}, "use_qalora = True"),
        ({"alora_invocation_tokens": [1, 2]}, r"alora_invocation_tokens = \[1, 2\]"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "it changes the base's weights"),
        ({"init_lora_weights": "olora"}, "it changes the base's weights"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "it changes the base's weights"),
    ],
)
def test_unsupported_settings_of_peft_are_refused(
    config: dict[str, object], message: str, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    folder = peft_directory(tmp_path / "peft", tiny_tensors, **config)
    with pytest.raises(CheckpointError, match=message):
        logits(tiny_file, str(folder))


@pytest.mark.parametrize(
    ("config", "card", "named"),
    [
        ({"base_model_name_or_path": "unsloth/rwkv7-g1-bnb-4bit"}, "", "names the base 'unsloth/rwkv7-g1-bnb-4bit'"),
        ({"quantization_config": {"load_in_4bit": True}}, "", "quantization_config = {'load_in_4bit': True}"),
        ({"load_in_8bit": True}, "", "load_in_8bit = True"),
        ({}, "- load_in_8bit: False\n- load_in_4bit: True\n- bnb_4bit_quant_type: nf4\n", "load_in_4bit: True"),
    ],
)
def test_an_adapter_of_a_quantised_base_is_merged_with_a_warning(
    config: dict[str, object], card: str, named: str, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    folder = peft_directory(tmp_path / "peft", tiny_tensors, **config)
    (folder / "README.md").write_text(card)
    with pytest.warns(QuantisedBaseWarning, match=f"peft: .*QLoRA.*{re.escape(named)}"):
        assert_merged(tiny_file, str(folder), with_lora(tiny_tensors, lora(tiny_tensors), 4.0), tmp_path)


def test_other_adapters_of_peft_are_merged_without_a_warning(
    tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    plain = {"init_lora_weights": "gaussian", "base_model_name_or_path": "fla-hub/rwkv7-g1k-1.5b", "use_dora": False}
    folder = peft_directory(tmp_path / "peft", tiny_tensors, **plain, alora_invocation_tokens=None)
    (folder / "README.md").write_text("- load_in_4bit: False\n")
    assert_merged(tiny_file, str(folder), with_lora(tiny_tensors, lora(tiny_tensors), 4.0), tmp_path)
    assert [warning for warning in recwarn if issubclass(warning.category, QuantisedBaseWarning)] == []


def test_tensors_that_were_trained_whole_replace_those_of_the_model(
    tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    whole = {"blocks.0.ln1.weight": normal(64, seed=9, scale=1.0), "blocks.1.att.x_r": normal(64, seed=8)}
    path = saved(tmp_path / "lora.pth", {**lora(tiny_tensors), **whole})
    expected = {**with_lora(tiny_tensors, lora(tiny_tensors), 1.0), **whole}
    assert_merged(tiny_file, f"{path} alpha={RANK}", expected, tmp_path)
