"""The `rwkv` package as a backend: the logits of plain calls, and no change to the process."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.base import Model, RaggedBatch, State
from rwkvbatch.model.load import load_model
from tests.model.conftest import VOCAB_SIZE, greedy_batch
from tests.model.older_generations import GENERATIONS, older_tensors

LISTS = [[5, 6, 7, 8, 9, 10], [11], [12, 13]]


@pytest.fixture(scope="module", params=GENERATIONS)
def older_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("older") / f"rwkv-{request.param}.pth"
    torch.save(older_tensors(request.param), path)
    return path


@pytest.fixture(scope="module")
def older_model(older_file: Path) -> Model:
    return load_model(older_file, "cpu fp32")


@pytest.fixture(scope="module")
def tiny_model(tiny_file: Path) -> Model:
    return load_model(tiny_file, "cpu fp32", "upstream")


@pytest.fixture
def plain_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package as anyone would import it, with what it does to the process undone."""
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    monkeypatch.setenv("RWKV_V7_ON", "0")
    monkeypatch.setattr("gc.collect", int)  # once a layer, a third of a second each
    flags = (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    with contextlib.redirect_stdout(io.StringIO()):
        yield importlib.import_module("rwkv.model")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags
    for name in ("rwkv.model", "rwkv"):
        sys.modules.pop(name, None)


def test_older_generation_is_recognised_and_sent_here(older_model: Model, older_file: Path) -> None:
    assert older_model.spec.backend == "upstream"
    assert older_file.stem == f"rwkv-{older_model.spec.generation}"
    assert (older_model.spec.num_layers, older_model.spec.width, older_model.spec.vocab_size) == (2, 64, VOCAB_SIZE)


def test_logits_are_those_of_the_package_called_plainly(
    older_model: Model, older_file: Path, plain_package: Any
) -> None:
    plain = plain_package.RWKV(str(older_file.with_suffix("")), "cpu fp32", verbose=False)
    logits, state = older_model.forward(LISTS, every_token=True)
    row = 0
    for index, tokens in enumerate(LISTS):
        expected, after = plain.forward(tokens, None, full_output=True)
        assert torch.equal(logits[row : row + len(tokens)], expected.view(len(tokens), -1))
        row += len(tokens)
        for position, tensor in enumerate(after):
            name = list(state.tensors)[position % len(state.tensors)]
            assert torch.equal(state.tensors[name][index, position // len(state.tensors)], tensor.float())


def test_carried_state_equals_one_call(older_model: Model) -> None:
    whole, whole_state = older_model.forward([LISTS[0]])
    _, state = older_model.forward([LISTS[0][:2]])
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    split, split_state = older_model.forward([LISTS[0][2:]], state)
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-4)
    for name, tensor in whole_state.tensors.items():
        torch.testing.assert_close(split_state.tensors[name], tensor, rtol=1e-4, atol=1e-4)
        assert torch.equal(state.tensors[name], before[name])


def test_pool_slots_are_independent(older_model: Model) -> None:
    pool = older_model.make_pool(3)
    pool.clear(0)
    first = older_model.step(RaggedBatch.of([[5, 6]], [0]), pool).clone()
    pool.copy(0, 2)
    older_model.step(RaggedBatch.of([[7, 8]], [0]), pool)
    pool.clear(1)
    again = older_model.step(RaggedBatch.of([[5, 6], [7]], [1, 2]), pool)
    assert torch.equal(again[:1], first)
    expected, _ = older_model.forward([[5, 6, 7]])
    torch.testing.assert_close(again[1:], expected, rtol=0, atol=1e-4)
    pool.write([0], pool.read([2]))
    assert all(torch.equal(pool.read([0]).tensors[name], tensor) for name, tensor in pool.read([2]).tensors.items())


def test_pool_refuses_states_of_other_shape(older_model: Model) -> None:
    pool = older_model.make_pool(1)
    state = pool.read([0])
    with pytest.raises(CheckpointError, match="the state must have tensors"):
        pool.write([0], State({name: tensor[..., :1] for name, tensor in state.tensors.items()}))


def test_step_without_outputs_gives_none(older_model: Model) -> None:
    batch = RaggedBatch.of([[5, 6]], [0])
    logits = older_model.step(
        RaggedBatch(batch.tokens, batch.starts, batch.slots, batch.outputs[:0]), older_model.make_pool(1)
    )
    assert logits.shape == (0, VOCAB_SIZE)


@pytest.mark.parametrize("strategy", ["cpu bf16", "cpu fp32i8", "cpu fp32 *1 -> cpu bf16", "cpu fp32 *1+"])
def test_strategies_of_the_package_work(strategy: str, tmp_path: Path) -> None:
    torch.save(older_tensors("4"), tmp_path / "model.pth")
    exact, _ = load_model(tmp_path / "model", "cpu fp32").forward(LISTS)
    model = load_model(tmp_path / "model", strategy)
    assert model.spec.dtype == strategy
    logits, state = model.forward(LISTS)
    assert 0 < float((logits - exact).abs().mean()) < 0.3 or strategy == "cpu fp32 *1+"
    again, _ = model.forward([[3]] * 3, state)
    assert bool(torch.isfinite(again).all())


def test_package_and_reference_share_states_of_rwkv7(tiny_model: Model, tiny_file: Path) -> None:
    reference = load_model(tiny_file, "cpu fp32", "reference")
    _, state = tiny_model.forward(LISTS)
    _, expected_state = reference.forward(LISTS)
    for name, tensor in expected_state.tensors.items():
        torch.testing.assert_close(state.tensors[name], tensor, rtol=0, atol=1e-4)
    then = [[1], [2, 3], [4]]
    torch.testing.assert_close(
        tiny_model.forward(then, expected_state)[0], reference.forward(then, state)[0], rtol=0, atol=1e-4
    )


def test_second_model_of_other_precision_leaves_the_first_as_it_was(tiny_model: Model, tiny_file: Path) -> None:
    before, _ = tiny_model.forward(LISTS)
    load_model(tiny_file, "cpu bf16", "upstream").forward([[1, 2]])
    after, state = tiny_model.forward(LISTS)
    assert torch.equal(before, after)
    assert state.tensors["att_shift"].dtype == torch.float32


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_any_kind_of_file_reaches_the_package(
    suffix: str, tiny_model: Model, tiny_file: Path, tiny_tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"a model {suffix}"
    if suffix == ".safetensors":
        save_file(tiny_tensors, path)
    else:
        path.symlink_to(tiny_file)
    model = load_model(path, "cpu fp32", "upstream")
    assert torch.equal(model.forward(LISTS)[0], tiny_model.forward(LISTS)[0])
    assert model.spec.path == str(path)


def test_process_is_left_as_it_was(
    tiny_file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RWKV_JIT_ON", "untouched")
    monkeypatch.delenv("RWKV_V7_ON", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def process() -> tuple[object, ...]:
        flags = (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
        autocast = torch._C._jit_set_autocast_mode(True)
        torch._C._jit_set_autocast_mode(autocast)
        modules = sorted(name for name in sys.modules if "rwkv" in name and not name.startswith("rwkvbatch"))
        return dict(os.environ), flags, list(sys.path), modules, autocast, torch.get_num_threads()

    before = process()
    load_model(tiny_file, "cpu fp32", "upstream", threads=2).forward(LISTS)
    assert process() == before
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_vocabulary_is_never_evaluated(tiny_file: Path) -> None:
    """The package's tokenizer evaluates its file as code when it is imported; in a process of its own, it is not."""
    code = (
        "import sys\nfrom rwkvbatch.model.load import load_model\n"
        f"load_model({str(tiny_file)!r}, 'cpu fp32', 'upstream').forward([[1, 2]])\n"
        "assert not any(name.endswith('rwkv_tokenizer') or name == 'rwkv.utils' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_state_tuned_weights_inside_the_checkpoint_are_the_first_state(tmp_path: Path) -> None:
    tensors = older_tensors("6.0")
    tuned = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(3))
    for layer in range(2):
        tensors[f"blocks.{layer}.att.time_state"] = tuned * (layer + 1)
    torch.save(tensors, tmp_path / "model.pth")
    pool = load_model(tmp_path / "model", "cpu fp32").make_pool(1)
    pool.clear(0)
    assert torch.equal(pool.read([0]).tensors["wkv"][0, 1], 2 * tuned.transpose(1, 2))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("cpu fp33", "--strategy must be one of"),
        ("cpu fp32 -> gpu fp16", "--strategy must be one of"),
        ("cpu fp32i8", "for RWKV-7 must be one device and one precision"),
        ("cuda:99 fp16", "asks for the device 'cuda:99', but"),
    ],
)
def test_bad_strategy_is_a_usage_error(strategy: str, message: str, tiny_file: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(tiny_file, strategy, "upstream")


def test_older_generation_with_another_backend_is_a_usage_error(older_file: Path) -> None:
    with pytest.raises(UsageError, match="which only --backend upstream runs; got --backend reference"):
        load_model(older_file, backend="reference")


def test_nan_is_found_before_the_package_sees_it(tmp_path: Path) -> None:
    tensors = older_tensors("4")
    tensors["blocks.1.ffn.value.weight"][3, 3] = float("nan")
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"'blocks.1.ffn.value.weight' contains NaN or infinity \(1 of"):
        load_model(tmp_path / "model")


def test_checkpoint_that_the_package_cannot_run_is_refused(tmp_path: Path) -> None:
    from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors

    # The package squeezes tensors, so that an inner width of 1 loses an axis.
    torch.save(random_tensors(1, 64, 65, ranks=LowRankWidths(1, 1, 1, 1)), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="loads it but cannot run it"):
        load_model(tmp_path / "model", "cpu fp32", "upstream")


def test_incomplete_checkpoint_is_refused_by_the_package(tmp_path: Path) -> None:
    tensors = older_tensors("4")
    del tensors["blocks.1.att.time_mix_k"]
    del tensors["blocks.0.att.key.weight"]
    torch.save(tensors, tmp_path / "model.pth")
    # A strategy is named if it was given.
    with pytest.raises(CheckpointError, match=r"cannot load it with --strategy 'cpu fp32' \(KeyError"):
        load_model(tmp_path / "model", "cpu fp32")
    with pytest.raises(CheckpointError, match=r"cannot load it \(KeyError"):
        load_model(tmp_path / "model")


def test_absent_package_is_a_usage_error(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="needs the `rwkv` package"):
        load_model(tiny_file, "cpu fp32", "upstream")


def test_rescaling_of_the_package_may_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(older_tensors("4"), tmp_path / "model.pth")
    expected, _ = load_model(tmp_path / "model", "cpu fp32").forward([[1]])
    monkeypatch.setenv("RWKV_RESCALE_LAYER", "1")
    model = load_model(tmp_path / "model", "cpu fp32")
    assert model._package_model.RESCALE_LAYER == 1  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(model.forward([[1]])[0], expected, rtol=0, atol=1e-3)


def test_tokens_are_chosen_by_the_reference_operation(older_model: Model) -> None:
    logits, _ = older_model.forward(LISTS)
    expected = torch.log_softmax(logits.double(), 1)
    choices = older_model.choose(logits, replace(greedy_batch(1), target_ids=np.array([5, 6])))
    best = logits.argmax(1)
    assert choices.tokens.tolist() == best.tolist()
    np.testing.assert_allclose(choices.logprobs, expected[[0, 1, 2], [int(best[0]), 5, 6]].numpy(), rtol=1e-6)
