"""Initial states in a model's file, and states that the `rwkv` package returned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.base import Model
from rwkvbatch.model.load import load_model
from rwkvbatch.model.states import load_state
from rwkvbatch.model.upstream import UpstreamModel
from tests.model.made_forms import Tensors
from tests.model.older_generations import older_tensors

TOKENS = [[5, 6, 7], [8]]


@pytest.fixture
def tuned() -> Tensors:
    generator = torch.Generator().manual_seed(3)
    return {
        f"blocks.{layer}.att.time_state": torch.randn(2, 32, 32, generator=generator).bfloat16() for layer in range(2)
    }


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def repeated(state_file: Path, model: Model) -> torch.Tensor:
    state = load_state(state_file, model.spec).select([0] * len(TOKENS))
    return model.forward(TOKENS, state, every_token=True)[0]


@pytest.mark.parametrize("backend", ["cpu", "reference", "upstream"])
def test_a_merged_state_is_the_initial_state(
    backend: str, tuned: Tensors, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path
) -> None:
    strategy = "cpu fp32" if backend == "upstream" else "cpu"
    state_file = saved(tmp_path / "state.pth", tuned)
    merged = load_model(saved(tmp_path / "merged.pth", {**tiny_tensors, **tuned}), strategy, backend)
    plain = load_model(tiny_file, strategy, backend)
    actual, _ = merged.forward(TOKENS, every_token=True)
    assert torch.equal(actual, repeated(state_file, plain))
    assert not torch.equal(actual, plain.forward(TOKENS, every_token=True)[0])
    # A state that is given replaces it, zeros too.
    _, zero = plain.forward([[1], [1]])
    zeros = type(zero)({name: torch.zeros_like(tensor) for name, tensor in zero.tensors.items()})
    assert torch.equal(merged.forward(TOKENS, zeros)[0], plain.forward(TOKENS)[0])


def test_it_is_a_part_of_the_weights(tuned: Tensors, tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    merged = load_model(saved(tmp_path / "merged.pth", {**tiny_tensors, **tuned}), "cpu")
    assert merged.spec.weights_sha256 != load_model(tiny_file, "cpu").spec.weights_sha256


def test_layers_without_a_state_and_wrong_shapes_are_refused(
    tuned: Tensors, tiny_tensors: Tensors, tmp_path: Path
) -> None:
    one = {"blocks.0.att.time_state": tuned["blocks.0.att.time_state"]}
    with pytest.raises(CheckpointError, match=r"missing: 'blocks\.1\.att\.time_state'"):
        load_model(saved(tmp_path / "one.pth", {**tiny_tensors, **one}))
    wrong = {name: tensor[:, :, :16] for name, tensor in tuned.items()}
    with pytest.raises(CheckpointError, match="must be 2 x 32 x 32"):
        load_model(saved(tmp_path / "wrong.pth", {**tiny_tensors, **wrong}))


@pytest.mark.parametrize("generation", ["4", "5.2", "6.0", "7"])
def test_a_state_of_the_package_goes_on_where_it_ended(generation: str, tiny_file: Path, tmp_path: Path) -> None:
    path = tiny_file if generation == "7" else saved(tmp_path / "model.pth", older_tensors(generation))
    model = load_model(path, "cpu fp32", "upstream")
    assert isinstance(model, UpstreamModel)
    _, state = model._package_model.forward([5, 6, 7], None)
    state_file = saved(tmp_path / "state.pth", state)
    expected, _ = model.forward([[5, 6, 7, 8]])
    actual, _ = model.forward([[8]], load_state(state_file, model.spec))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    if generation == "7":
        native = load_model(path, "cpu")
        actual, _ = native.forward([[8]], load_state(state_file, native.spec))
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)


def test_a_list_of_another_model_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    spec = load_model(tiny_file, "cpu").spec
    layer = [torch.zeros(64), torch.zeros(2, 32, 32), torch.zeros(64)]
    assert load_state(saved(tmp_path / "right.pth", layer * 2), spec).batch_size == 1
    with pytest.raises(CheckpointError, match=r"a list of 9 tensors, expected 6 \(3 for each of 2 layers\)"):
        load_state(saved(tmp_path / "long.pth", layer * 3), spec)
    with pytest.raises(CheckpointError, match=r"tensor 1 of its list must be 2 x 32 x 32 \(wkv\), it is 64"):
        load_state(saved(tmp_path / "wrong.pth", [torch.zeros(64)] * 6), spec)
    with pytest.raises(CheckpointError, match="not an RWKV checkpoint"):
        load_model(tmp_path / "right.pth")
