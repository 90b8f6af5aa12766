"""State files: tuned states are placed as by the `rwkv` package, saved ones are restored exactly or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.base import Model, State
from rwkvbatch.model.checkpoints.checkpoint import open_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.states import load_state, save_state
from tests.model.older_generations import older_tensors

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model(tiny_file: Path) -> Model:
    return load_model(tiny_file, "cpu fp32", "reference")


def tuned(num_layers: int = 2, heads: int = 2, size: int = 32, dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(5)
    return {
        f"blocks.{layer}.att.time_state": torch.randn(heads, size, size, generator=generator).to(dtype)
        for layer in range(num_layers)
    }


def assert_same(actual: State, expected: State) -> None:
    assert actual.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(actual.tensors[name], tensor) for name, tensor in expected.tensors.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tuned_state_is_used_as_stored_for_rwkv7(suffix: str, dtype: torch.dtype, model: Model, tmp_path: Path) -> None:
    tensors, path = tuned(dtype=dtype), tmp_path / f"state{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    state = load_state(path, model.spec)
    assert state.tensors["wkv"].dtype == torch.float32
    for layer in range(2):
        assert torch.equal(state.tensors["wkv"][0, layer], tensors[f"blocks.{layer}.att.time_state"].float())
    assert not state.tensors["att_shift"].any()
    assert not state.tensors["ffn_shift"].any()


def test_tuned_state_gives_the_logits_of_the_rwkv_package(model: Model, tiny_file: Path, tmp_path: Path) -> None:
    torch.save(tuned(), tmp_path / "state.pth")
    upstream = load_model(tiny_file, "cpu fp32", "upstream")
    state = load_state(tmp_path / "state.pth", model.spec)
    expected, _ = upstream.forward([[1, 2, 3]], load_state(tmp_path / "state.pth", upstream.spec))
    actual, _ = model.forward([[1, 2, 3]], state)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    turned = State({**state.tensors, "wkv": state.tensors["wkv"].transpose(-1, -2).contiguous()})
    assert float((model.forward([[1, 2, 3]], turned)[0] - expected).abs().max()) > 0.1


@pytest.mark.parametrize("generation", ["5.2", "6.0"])
def test_tuned_state_is_transposed_for_older_generations(generation: str, tmp_path: Path) -> None:
    torch.save(older_tensors(generation), tmp_path / "plain.pth")
    torch.save(older_tensors(generation) | tuned(), tmp_path / "with-state.pth")
    torch.save(tuned(), tmp_path / "state.pth")
    plain = load_model(tmp_path / "plain.pth", "cpu fp32")
    actual, _ = plain.forward([[1, 2, 3]], load_state(tmp_path / "state.pth", plain.spec))
    expected, _ = load_model(tmp_path / "with-state.pth", "cpu fp32").forward([[1, 2, 3]])
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (tuned(num_layers=3), "of 2 layers: the tensor 'blocks.2.att.time_state' is surplus"),
        (tuned(num_layers=1), "the tensor 'blocks.1.att.time_state' is missing"),
        (tuned(heads=4), r"must be 2 x 32 x 32 \(heads, head size, head size\), it is 4 x 32 x 32"),
        (tuned() | {"emb.weight": torch.ones(97, 64)}, "'emb.weight' is surplus"),
        ({name: tensor.long() for name, tensor in tuned().items()}, "must contain bf16, fp16 or fp32"),
        ({name: tensor * float("nan") for name, tensor in tuned().items()}, "contains NaN or infinity"),
        ({"something": torch.ones(2)}, "not a state file"),
        ({}, "no tensors at all"),
    ],
)
def test_tuned_state_of_another_model_is_refused(tensors: Tensors, message: str, model: Model, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match=message):
        load_state(tmp_path / "state.pth", model.spec)


def test_rwkv4_has_no_tuned_states(model: Model, tmp_path: Path) -> None:
    torch.save(tuned(), tmp_path / "state.pth")
    with pytest.raises(CheckpointError, match="RWKV-4 has no state-tuned files"):
        load_state(tmp_path / "state.pth", replace(model.spec, generation="4", num_heads=0, head_size=0))


def test_saved_state_comes_back_exactly(model: Model, tmp_path: Path) -> None:
    tokens = [[1, 2, 3], [4]]
    _, state = model.forward(tokens)
    save_state(tmp_path / "a.safetensors", state, model.spec, tokens=tokens)
    saved = load_state(tmp_path / "a.safetensors", model.spec)
    assert_same(saved, state)
    with open_tensors(tmp_path / "a.safetensors") as file:
        assert json.loads(file.metadata["tokens"]) == tokens
    assert torch.equal(model.forward([[5], [6]], saved)[0], model.forward([[5], [6]], state)[0])


def test_saved_state_needs_no_tokens_and_no_suffix(model: Model, tmp_path: Path) -> None:
    _, state = model.forward([[1]])
    save_state(tmp_path / "a", state, model.spec)
    with open_tensors(tmp_path / "a.safetensors") as file:
        assert "tokens" not in file.metadata
    assert_same(load_state(tmp_path / "a.safetensors", model.spec), state)


@pytest.mark.parametrize("generation", ["4", "6.0"])
def test_saved_state_works_for_older_generations(generation: str, tmp_path: Path) -> None:
    torch.save(older_tensors(generation), tmp_path / "model.pth")
    older = load_model(tmp_path / "model", "cpu fp32")
    _, state = older.forward([[1, 2]])
    save_state(tmp_path / "a.safetensors", state, older.spec)
    actual, _ = older.forward([[3]], load_state(tmp_path / "a.safetensors", older.spec))
    assert torch.equal(actual, older.forward([[3]], state)[0])


def test_saved_state_of_other_weights_is_refused(model: Model, tmp_path: Path) -> None:
    _, state = model.forward([[1]])
    save_state(tmp_path / "a.safetensors", state, model.spec)
    other = replace(model.spec, weights_sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"saved from another model.*valid for the weights that computed it only"):
        load_state(tmp_path / "a.safetensors", other)


def test_existing_file_is_replaced_only_on_request(model: Model, tmp_path: Path) -> None:
    _, state = model.forward([[1]])
    _, other = model.forward([[2]])
    save_state(tmp_path / "a.safetensors", state, model.spec)
    with pytest.raises(UsageError, match="already exists") as caught:
        save_state(tmp_path / "a.safetensors", other, model.spec)
    assert caught.value.hint == "replace=True replaces it"
    assert_same(load_state(tmp_path / "a.safetensors", model.spec), state)
    save_state(tmp_path / "a.safetensors", other, model.spec, replace=True)
    assert_same(load_state(tmp_path / "a.safetensors", model.spec), other)


@pytest.mark.parametrize("damage", ["number", "tokens", "version", "missing tensor"])
def test_damaged_saved_state_is_refused(damage: str, model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    _, state = model.forward([[1, 2]])
    save_state(path, state, model.spec, tokens=[[1, 2]])
    tensors = load_file(path)
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header["__metadata__"]
    if damage == "number":
        tensors["wkv"][0, 0, 0, 0, 0] += 1
    elif damage == "tokens":
        metadata["tokens"] = "[[1, 3]]"
    elif damage == "version":
        metadata["version"] = "99"
    else:
        del tensors["ffn_shift"]
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match="version '99'" if damage == "version" else "checksum is wrong"):
        load_state(path, model.spec)
