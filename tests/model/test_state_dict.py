"""Tensors in memory as a model: the bits of the file, an identity of the tensors, and tensors that stay as they are."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rwkvbatch
from rwkvbatch import LLM, SamplingParams, load_model
from rwkvbatch.errors import ArgumentError, CheckpointError, RunMismatchError, UsageError
from rwkvbatch.model.model_files import BUNDLED_MODEL
from tests.model.made_adapters import RANK, lora
from tests.model.made_forms import to_fla

Tensors = dict[str, torch.Tensor]
TOKENS = [[1, 2, 3, 96, 5], [7]]


def logits(model: rwkvbatch.Model) -> torch.Tensor:
    return model.forward(TOKENS, every_token=True)[0]


def identity(tensors: Any) -> str:
    return load_model(tensors, "cpu fp32").spec.weights_sha256


@pytest.mark.parametrize("strategy", ["auto", "cpu fp32", "cpu bf16", "cpu fp16", "cpu int8", "cpu w8a8", "cpu int4"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_tensors_in_memory_are_computed_bit_for_bit_as_their_file(tiny_file: Path, strategy: str, backend: str) -> None:
    from_memory = load_model(torch.load(tiny_file), strategy, backend)
    from_file = load_model(tiny_file, strategy, backend)
    assert torch.equal(logits(from_memory), logits(from_file))
    assert (from_memory.spec.dtype, from_memory.spec.backend) == (from_file.spec.dtype, from_file.spec.backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_parameters_with_gradients_and_other_strides_are_computed_as_their_file(
    tiny_tensors: Tensors, tmp_path: Path, dtype: torch.dtype
) -> None:
    converted = {name: tensor.to(dtype) for name, tensor in tiny_tensors.items()}
    torch.save(converted, tmp_path / "model.pth")
    parameters = {
        name: torch.nn.Parameter(tensor.transpose(0, -1).contiguous().transpose(0, -1))
        for name, tensor in converted.items()
    }
    assert any(not parameter.is_contiguous() for parameter in parameters.values())
    assert torch.equal(logits(load_model(parameters)), logits(load_model(tmp_path / "model.pth")))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_model_does_not_follow_later_changes_of_the_tensors_nor_change_them(
    tiny_tensors: Tensors, backend: str
) -> None:
    trained = {name: torch.nn.Parameter(tensor.float()) for name, tensor in tiny_tensors.items()}
    model = load_model(trained, "cpu fp32", backend)
    before = logits(model).clone()
    assert all(torch.equal(trained[name], tiny_tensors[name].float()) for name in trained)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in trained.values())
    with torch.no_grad():
        for parameter in trained.values():
            parameter.mul_(1.5)
    assert torch.equal(logits(model), before)
    assert not torch.equal(logits(load_model(trained, "cpu fp32", backend)), before)


def test_the_upstream_backend_takes_tensors_in_memory(tiny_tensors: Tensors, tiny_file: Path) -> None:
    from_memory = load_model(tiny_tensors, "cpu fp32", "upstream")
    assert torch.equal(logits(from_memory), logits(load_model(tiny_file, "cpu fp32", "upstream")))


def prefixed(tensors: Tensors) -> Tensors:
    return {f"_forward_module.module.{name}": tensor for name, tensor in tensors.items()}


def wrapped(tensors: Tensors) -> dict[str, Any]:
    return {"model": tensors, "optimizer": {"lr": 0.1}, "step": 5}


def in_reverse(tensors: Tensors) -> Tensors:
    return dict(reversed(tensors.items()))


def with_gradients(tensors: Tensors) -> Tensors:
    return {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("change", [prefixed, wrapped, in_reverse, with_gradients])
def test_equal_weights_have_one_identity(tiny_tensors: Tensors, change: Callable[[Tensors], Any]) -> None:
    assert identity(change(tiny_tensors)) == identity(tiny_tensors)
    assert torch.equal(logits(load_model(change(tiny_tensors))), logits(load_model(tiny_tensors)))


def test_other_weights_have_another_identity(tiny_tensors: Tensors) -> None:
    changed = {**tiny_tensors, "blocks.1.att.x_r": tiny_tensors["blocks.1.att.x_r"].clone()}
    changed["blocks.1.att.x_r"].view(-1)[3] += 0.25
    wider = {name: tensor.float() for name, tensor in tiny_tensors.items()}
    assert len({identity(tensors) for tensors in (tiny_tensors, changed, wider)}) == 3


def test_the_identity_is_the_documented_hash_and_not_that_of_the_file(tiny_tensors: Tensors, tiny_file: Path) -> None:
    expected = hashlib.sha256()
    for name in sorted(tiny_tensors):
        tensor = tiny_tensors[name]
        expected.update(f"{name} bfloat16 {list(tensor.shape)}\n".encode())
        expected.update(tensor.contiguous().view(torch.int16).numpy().tobytes())
    assert identity(tiny_tensors) == expected.hexdigest() != load_model(tiny_file).spec.weights_sha256


def test_names_of_another_program_are_converted(tiny_tensors: Tensors) -> None:
    converted = to_fla({name: tensor.float() for name, tensor in tiny_tensors.items()})
    try:
        model = load_model(converted, "cpu fp32")
    except CheckpointError as error:
        pytest.fail(str(error))
    assert model.spec.num_layers == 2


def test_an_adapter_is_merged_into_tensors_in_memory(tiny_tensors: Tensors, tiny_file: Path, tmp_path: Path) -> None:
    torch.save(lora(tiny_tensors), tmp_path / "lora.pth")
    adapter = f"{tmp_path / 'lora.pth'} alpha={2 * RANK}"
    from_memory = load_model(tiny_tensors, adapter=adapter)
    assert torch.equal(logits(from_memory), logits(load_model(tiny_file, adapter=adapter)))
    assert from_memory.spec.adapter == adapter
    assert from_memory.spec.weights_sha256 != identity(tiny_tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emb.weight": None}, r"<state_dict>.*its entry 'emb.weight' is of type NoneType"),
        ({"emb.weight": torch.zeros(97, 64, device="meta")}, "'emb.weight' must be a whole, dense tensor.*'meta'"),
        ({"emb.weight": torch.zeros(97, 64).to_sparse()}, "'emb.weight' must be a whole, dense tensor.*sparse"),
        ({"emb.weight": torch.zeros(97, 64, dtype=torch.float64)}, "'emb.weight' must be bf16, fp16 or fp32"),
        ({"ln_out.bias": torch.full((64,), torch.nan)}, "'ln_out.bias' contains NaN"),
        ({"blocks.5.att.x_r": torch.zeros(64)}, "layer 2 is missing"),
    ],
)
def test_unusable_tensors_are_refused_by_name(tiny_tensors: Tensors, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model({**tiny_tensors, **change})


def test_other_objects_are_refused_with_the_way_out() -> None:
    with pytest.raises(ArgumentError, match="a path or a mapping of names to tensors") as caught:
        load_model(torch.nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
    assert "state_dict()" in str(caught.value.hint)
    with pytest.raises(CheckpointError, match="not an RWKV checkpoint"):
        load_model({})


def rows(result: Any) -> list[tuple[Any, ...]]:
    return [(row.conversation, row.turn, row.reply, row.reply_ids, row.logprob) for row in result.rows()]


def test_llm_and_run_take_tensors_in_memory(tmp_path: Path) -> None:
    bundled = load_file(BUNDLED_MODEL)
    params = SamplingParams(temperature=1.5, top_p=1.0, max_tokens=16)
    messages = [{"role": "user", "content": "My name is Ada."}]
    with LLM(bundled, strategy="cpu bf16") as memory, LLM(strategy="cpu bf16") as file:
        assert memory.chat(messages, params).outputs[0].token_ids == file.chat(messages, params).outputs[0].token_ids
        state = tmp_path / "state.safetensors"
        rwkvbatch.save_state(state, memory.state("User: Hi"), memory.spec)
    settings: dict[str, Any] = {"max_tokens": 16, "strategy": ["cpu bf16", "cpu int8"]}
    from_memory = rwkvbatch.run({"messages": messages}, model=bundled, **settings)
    assert rows(from_memory) == rows(rwkvbatch.run({"messages": messages}, **settings))
    with_state = rwkvbatch.run({"messages": messages}, model=bundled, state=str(state), max_tokens=4)
    assert with_state.summary.rows == 1


def test_a_run_directory_names_the_tensors_by_their_identity(tmp_path: Path) -> None:
    bundled = load_file(BUNDLED_MODEL)
    script = {"messages": [{"role": "user", "content": "Hi"}]}
    rwkvbatch.run(script, model=bundled, out=tmp_path / "run", max_tokens=4)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (model,) = manifest["about"]["models"]
    assert (model["path"], model["weights_sha256"]) == ("<state_dict>", load_model(bundled).spec.weights_sha256)
    rwkvbatch.run(script, model=bundled, out=tmp_path / "run", max_tokens=4)  # continues: nothing is left to do
    changed = {**bundled, "head.weight": bundled["head.weight"] * 2}
    with pytest.raises(RunMismatchError, match=r"weights_sha256 \(model\): existing run: <state_dict>"):
        rwkvbatch.run(script, model=changed, out=tmp_path / "run", max_tokens=4)


@pytest.mark.parametrize("settings", [{"workers": 2}, {"endpoint": "http://127.0.0.1:1"}])
def test_tensors_in_memory_are_for_this_process(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="a model in "):
        rwkvbatch.run({"text": "Hi"}, model=load_file(BUNDLED_MODEL), **settings)


_MEMORY = """
import json
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

load_model(random_tensors(2, 64, 97), "cpu bf16", "cpu").forward([[1, 2]])
tensors = random_tensors(4, 1024, 8192)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = resident("VmRSS")
model = load_model(tensors, "cpu bf16", "cpu")
largest = max(tensor.nbytes for tensor in tensors.values())
print(json.dumps({"peak": resident("VmHWM") - before, "packed": model.ops.native.weight_bytes, "largest": largest}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_holds_no_second_copy_of_the_tensors() -> None:
    done = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    # One copy of a tensor is in memory while it is packed, and another one while it is hashed.
    assert found["peak"] < found["packed"] + 2 * found["largest"] + (16 << 20), found
