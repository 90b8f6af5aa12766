"""The bundled weights are the same network for the trainer, this program and the `rwkv` package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rwkvbatch.model.load import load_model
from tools.demo.corpus import tokens_of
from tools.demo.evaluation import held_out
from tools.demo.export import load_weights
from tools.demo.network import Network, Shape

_DEMO = Path(__file__).resolve().parents[2] / "rwkvbatch" / "demo"
_MODEL = _DEMO / "rwkv7-demo.safetensors"
_UPSTREAM = """
import sys, torch
from rwkv.model import RWKV
model = RWKV(model=sys.argv[1], strategy="cpu fp32")
ids = torch.load(sys.argv[2], weights_only=True)
torch.save(model.forward(ids, None, full_output=True)[0], sys.argv[3])
"""


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return tokens_of(held_out(1, 200, "off")[0], closed=False).ids


@pytest.fixture(scope="module")
def trained_logits(ids: list[int]) -> torch.Tensor:
    torch.set_num_threads(1)
    network = Network(Shape())
    load_weights(network, _MODEL)
    with torch.no_grad():
        return network(torch.tensor([ids]))[0][0]


def test_the_rwkv_package_gives_the_logits_of_the_training_network(
    tmp_path: Path, ids: list[int], trained_logits: torch.Tensor
) -> None:
    torch.save({name: value.float() for name, value in load_file(_MODEL).items()}, tmp_path / "model.pth")
    torch.save(ids, tmp_path / "ids.pt")
    arguments = [str(tmp_path / name) for name in ("model", "ids.pt", "logits.pt")]
    environment = {**os.environ, "RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    subprocess.run(
        [sys.executable, "-c", _UPSTREAM, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    upstream = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(upstream, trained_logits, rtol=0, atol=1e-4)
    assert torch.equal(upstream.argmax(-1), trained_logits.argmax(-1))


def test_this_program_gives_the_logits_of_the_training_network(ids: list[int], trained_logits: torch.Tensor) -> None:
    model = load_model(_MODEL, "cpu fp32", "reference")
    logits, _ = model.forward([ids], every_token=True)
    torch.testing.assert_close(logits, trained_logits, rtol=0, atol=1e-4)


def test_the_weights_take_at_most_six_megabytes_and_three_million_parameters() -> None:
    assert _MODEL.stat().st_size <= 6_000_000
    tensors = load_file(_MODEL)
    assert sum(value.numel() for value in tensors.values()) <= 3_000_000
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert tensors["blocks.0.att.r_k"].shape == (2, 64)
