"""Checkpoints in the forms of other programs give the logits of the `.pth` of the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.checkpoints.checkpoint import open_checkpoint
from rwkvbatch.model.checkpoints.description import describe
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.ops import reference
from rwkvbatch.model.weights.safetensors import save_entries
from tests.model.made_forms import Tensors, to_fla, to_transformers, to_transformers_7, to_vllm, write_directory
from tests.model.older_generations import older_tensors


@pytest.fixture(scope="module")
def tiny_tensors() -> Tensors:
    """2 layers x 128, 2 heads of 64, for which all programs compute the same norm; vocabulary 97, bf16."""
    return random_tensors(2, 128, 97, seed=1)


@pytest.fixture(scope="module")
def tiny_file(tiny_tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forms") / "tiny.pth"
    torch.save(tiny_tensors, path)
    return path


def logits(path: Path, strategy: str = "cpu") -> torch.Tensor:
    return load_model(path, strategy, threads=1).forward([[1, 2, 3, 4, 5]], every_token=True)[0]


def assert_same_logits(path: Path, expected: Path) -> None:
    assert torch.equal(logits(path), logits(expected))


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def but_head(tensors: Tensors) -> Tensors:
    return {name if name == "head.weight" else f"model.{name}": tensor for name, tensor in tensors.items()}


def with_lm_head(tensors: Tensors) -> Tensors:
    return {
        "lm_head.weight" if name == "model.head.weight" else name: t for name, t in prefixed("model.")(tensors).items()
    }


FORMS: dict[str, Callable[[Tensors], Tensors]] = {
    **{prefix: prefixed(prefix) for prefix in ("_forward_module.", "module.", "model.", "_orig_mod.")},
    "nested": prefixed("module._orig_mod._forward_module.model."),
    "unknown-prefix": prefixed("my.own.net."),
    "but-head": but_head,
    "lm-head": with_lm_head,
    "fla": to_fla,
    "fla-fused": lambda tensors: to_fla(tensors, fused=True),
    "transformers-7": to_transformers_7,
    "transformers-7-key": lambda tensors: to_transformers_7(tensors, mlp=False),
    "transformers-7-prefixed": lambda tensors: prefixed("module.")(to_transformers_7(tensors)),
    "vllm": to_vllm,
    "fla-prefixed": lambda tensors: prefixed("_forward_module.")(to_fla(tensors)),
    "fla-compiled": lambda tensors: prefixed("_orig_mod.module.")(to_fla(tensors)),
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors", "/"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_logits_of_the_pth(
    form: str, ending: str, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    made = FORMS[form](tiny_tensors)
    path = tmp_path / f"made{ending.strip('/')}"
    if ending == "/":
        write_directory(path, made)
    elif ending == ".pth":
        torch.save(made, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in made.items()}, path)
    assert_same_logits(path, tiny_file)


@pytest.mark.parametrize("generation", ["4", "5.2"])
def test_names_of_transformers_give_the_logits_of_the_pth(generation: str, tmp_path: Path) -> None:
    tensors = older_tensors(generation)
    torch.save(tensors, tmp_path / "official.pth")
    write_directory(tmp_path / "hf", to_transformers(tensors), config={"model_type": "rwkv"})
    assert_same_logits(tmp_path / "hf", tmp_path / "official.pth")


def test_the_description_has_the_form_and_the_conversions(tiny_tensors: Tensors, tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "hf", prefixed("module.")(to_fla(tiny_tensors)))
    with open_checkpoint(folder) as checkpoint:
        actual = describe(checkpoint)
    assert (actual.form, actual.kind, actual.num_files) == ("flash-linear-attention", "safetensors", 3)
    assert actual.undone == (
        "the prefix 'module.' of all names",
        "the names of flash-linear-attention",
        "the transposition of the low-rank matrices",
    )
    with open_checkpoint(write_directory(tmp_path / "official", tiny_tensors, shards=1)) as checkpoint:
        assert (describe(checkpoint).form, describe(checkpoint).undone) == ("official", ())


def test_an_index_is_read_as_its_directory(tiny_tensors: Tensors, tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "hf", to_fla(tiny_tensors))
    index = folder / "model.safetensors.index.json"
    with open_checkpoint(folder) as from_folder, open_checkpoint(index) as from_index:
        assert from_folder.file.sha256() == from_index.file.sha256()
        assert list(from_folder) == list(from_index)


def test_two_networks_in_one_file_are_refused(tiny_tensors: Tensors, tmp_path: Path) -> None:
    torch.save(prefixed("model.")(tiny_tensors) | prefixed("ema.")(tiny_tensors), tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"more than one network: there are layers under 'ema\.' and 'model\.'"):
        load_model(tmp_path / "two.pth")


@pytest.mark.parametrize("key", ["norm_eps", "hidden_act", "norm_first", "embedding_layer_norm_fused"])
def test_a_configuration_that_asks_for_another_computation_is_refused(
    key: str, tiny_tensors: Tensors, tmp_path: Path
) -> None:
    config = {"model_type": "rwkv7", "norm_eps": 1e-5, "hidden_act": "sqrelu", "norm_first": True, "attn": None}
    wrong = {"norm_eps": 1e-6, "hidden_act": "gelu", "norm_first": False}.get(key, True)
    folder = write_directory(tmp_path / "hf", to_fla(tiny_tensors), config=config)
    load_model(folder)
    write_directory(folder, to_fla(tiny_tensors), config={**config, key: wrong})
    with pytest.raises(CheckpointError, match=f"its config.json has {key} = "):
        load_model(folder)


@pytest.mark.parametrize("number", [1, 3])
def test_a_configuration_of_other_layers_than_the_tensors_have_is_refused(
    number: int, tiny_tensors: Tensors, tmp_path: Path
) -> None:
    config: dict[str, object] = {"model_type": "rwkv7", "num_hidden_layers": 2}
    load_model(write_directory(tmp_path / "right", to_fla(tiny_tensors), config=config))
    wrong = write_directory(tmp_path / "hf", to_fla(tiny_tensors), config={**config, "num_hidden_layers": number})
    with pytest.raises(CheckpointError, match=f"num_hidden_layers = {number}, and its tensors have 2 layers"):
        load_model(wrong)


def test_a_tied_head_is_the_embedding(tiny_tensors: Tensors, tmp_path: Path) -> None:
    tied = {**tiny_tensors, "head.weight": tiny_tensors["emb.weight"]}
    torch.save(tied, tmp_path / "tied.pth")
    made = to_fla(tied)
    del made["lm_head.weight"]
    config = {"model_type": "rwkv7", "tie_word_embeddings": True}
    assert_same_logits(write_directory(tmp_path / "hf", made, config=config), tmp_path / "tied.pth")
    write_directory(tmp_path / "hf", made)
    with pytest.raises(CheckpointError, match=r"missing: 'head\.weight'"):
        load_model(tmp_path / "hf")


def test_a_directory_brings_its_vocabulary(tiny_tensors: Tensors, tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "hf", to_fla(tiny_tensors))
    assert load_model(folder).spec.vocabulary_file is None
    (folder / "rwkv_vocab_v20230424.txt").write_text("1 'a' 1\n")
    assert load_model(folder).spec.vocabulary_file == str(folder / "rwkv_vocab_v20230424.txt")


@pytest.mark.parametrize("head_size", [16, 32, 128])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_heads_of_other_sizes_are_normed_as_flash_linear_attention_does(
    head_size: int, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `head_dim * norm_eps` added to the variance, which the reference operations are made to do here."""
    tensors = random_tensors(3, 128, 97, head_size=head_size, seed=7)
    torch.save(tensors, tmp_path / "a.pth")
    folder = write_directory(tmp_path / "hf", to_fla(tensors))
    actual = load_model(folder, "cpu", backend).forward([[1, 2, 3, 4, 5]], every_token=True)[0]
    official = load_model(tmp_path / "a.pth", "cpu", "reference")
    other = official.forward([[1, 2, 3, 4, 5]], every_token=True)[0]
    monkeypatch.setattr(reference, "GROUP_NORM_EPS", head_size * 1e-5)
    expected = official.forward([[1, 2, 3, 4, 5]], every_token=True)[0]
    assert (expected - other).abs().max() > 20 * (actual - expected).abs().max()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_a_conversion_of_such_heads_is_the_same_network(tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "hf", to_fla(random_tensors(2, 64, 97, head_size=32)))
    with open_checkpoint(folder) as checkpoint:
        save_entries(tmp_path / "a.pth", checkpoint.rounded(None))
        assert any("the norm of heads of 32" in phrase for phrase in checkpoint.file.undone)
    assert_same_logits(tmp_path / "a.pth", folder)
    lora = {"blocks.0.att.key.lora_A": torch.zeros(2, 64), "blocks.0.att.key.lora_B": torch.zeros(64, 2)}
    torch.save(lora, tmp_path / "lora.pth")
    with pytest.raises(CheckpointError, match="an adapter cannot be merged into it"):
        load_model(folder, adapter=f"{tmp_path / 'lora.pth'} alpha=2")


def test_a_configuration_of_other_heads_than_the_tensors_have_is_refused(tmp_path: Path) -> None:
    tensors = to_fla(random_tensors(1, 64, 97, head_size=32))
    with pytest.raises(CheckpointError, match="head_dim = 64, and its heads have size 32"):
        load_model(write_directory(tmp_path / "hf", tensors, config={"model_type": "rwkv7", "head_dim": 64}))
    right = write_directory(tmp_path / "right", tensors, config={"model_type": "rwkv7", "head_dim": 32})
    assert load_model(right).spec.head_size == 32


@pytest.mark.parametrize("backend", ["cpu", "reference", "upstream"])
@pytest.mark.parametrize("what", ["absent", "partly", "lone v1", "empty", "misshapen", "nan", "whole numbers"])
def test_nothing_depends_on_the_unused_tensors_of_layer_0(
    what: str, backend: str, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    v0, v1, v2 = (f"blocks.0.att.v{number}" for number in range(3))
    tensors = dict(tiny_tensors)
    match what:
        case "absent":
            del tensors[v0], tensors[v1], tensors[v2]
        case "partly":
            del tensors[v1]
        case "lone v1":
            del tensors[v0], tensors[v2]
        case "empty":
            tensors |= dict.fromkeys((v0, v1, v2), torch.empty(0))
        case "misshapen":
            tensors |= {v0: torch.ones(3), v1: torch.ones(64, 5), v2: torch.ones(64, 7)}
        case "nan":
            tensors |= {name: torch.full_like(tensors[name], float("nan")) for name in (v0, v1, v2)}
        case _:
            tensors |= {v0: torch.ones(1, 1, 64, dtype=torch.int64), v1: torch.ones(64, 32, dtype=torch.float64)}
    path = tmp_path / "made.pth"
    torch.save(tensors, path)
    made, plain = (
        load_model(file, "cpu fp32", backend, threads=1).forward([[1, 2, 3]])[0] for file in (path, tiny_file)
    )
    assert torch.equal(made, plain)
    with open_checkpoint(path) as checkpoint:
        describe(checkpoint, read_values=True)
        save_entries(tmp_path / "out.safetensors", checkpoint.rounded(None))
    assert torch.equal(logits(tmp_path / "out.safetensors"), logits(tiny_file))
