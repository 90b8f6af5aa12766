"""The training network and loop: the logits of the `rwkv` package, resumable, and the loss falls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.demo.curve import loss_curve
from tools.demo.evaluation import accuracy, held_out, replies_of
from tools.demo.export import load_weights, save_weights
from tools.demo.network import Network, Shape, parameter_count
from tools.demo.training import Recipe, Trainer, averaged

_SMALL = Shape(layers=2, width=64, decay_rank=8, rate_rank=8, value_rank=8, gate_rank=8)
_SHORT = Recipe(steps=4, warmup_steps=1, rows=2, length=64)

_UPSTREAM = """
import sys, torch
from rwkv.model import RWKV
model = RWKV(model=sys.argv[1], strategy="cpu fp32")
texts = torch.load(sys.argv[2], weights_only=True)
torch.save([model.forward(ids.tolist(), None, full_output=True)[0] for ids in texts], sys.argv[3])
"""

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is new in PyTorch 2.9")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _disturbed(shape: Shape) -> Network:
    torch.manual_seed(3)
    network = Network(shape)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


def test_logits_are_those_of_the_rwkv_package(tmp_path: Path) -> None:
    network = _disturbed(_SMALL)
    torch.save(network.state_dict(), tmp_path / "model.pth")
    texts = [torch.randint(0, 512, (length,)) for length in (16, 37)]
    torch.save(texts, tmp_path / "ids.pt")
    arguments = [str(tmp_path / name) for name in ("model", "ids.pt", "logits.pt")]
    environment = {**os.environ, "RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    subprocess.run(
        [sys.executable, "-c", _UPSTREAM, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    expected = torch.load(tmp_path / "logits.pt", weights_only=True)
    for ids, logits in zip(texts, expected, strict=True):
        with torch.no_grad():
            got, _ = network(ids[None])
        torch.testing.assert_close(got[0], logits, rtol=0, atol=1e-4)


def test_one_call_equals_split_calls_with_the_state_carried() -> None:
    network = _disturbed(_SMALL)
    ids = torch.randint(0, 512, (3, 48))
    with torch.no_grad():
        whole, _ = network(ids)
        head, state = network(ids[:, :32])
        middle, state = network(ids[:, 32:33], state)
        tail, _ = network(ids[:, 33:], state)
    torch.testing.assert_close(torch.cat([head, middle, tail], 1), whole, rtol=0, atol=1e-5)


@needs_muon
def test_a_run_that_was_interrupted_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    straight = Trainer(_SMALL, _SHORT, tmp_path / "straight.pt", "cpu")
    straight.run(lambda _: None)
    broken = Trainer(_SMALL, _SHORT, tmp_path / "broken.pt", "cpu")
    broken.one_step()
    broken.one_step()
    broken.save()
    resumed = Trainer(_SMALL, _SHORT, tmp_path / "broken.pt", "cpu")
    assert resumed.step == 2
    resumed.run(lambda _: None)
    for name, value in straight.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


@needs_muon
def test_training_lowers_the_loss(tmp_path: Path) -> None:
    trainer = Trainer(_SMALL, Recipe(steps=12, warmup_steps=2, rows=4, length=128), tmp_path / "c.pt", "cpu")
    trainer.run(lambda _: None, every=2)
    assert trainer.log[-1].loss < 0.9 * trainer.log[0].loss
    picture = loss_curve(trainer.log)
    assert picture.startswith("<svg")
    assert picture.count("<polyline") == 2


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    recipe = Recipe(steps=100, warmup_steps=10, decay_share=0.5, learning_rate=1.0, last_learning_rate=0.0)
    assert recipe.rate_at(0) == pytest.approx(0.1)
    assert recipe.rate_at(30) == 1.0
    assert recipe.rate_at(75) == pytest.approx(0.5)
    assert recipe.rate_at(100) == pytest.approx(0.0)


def test_exported_weights_come_back_at_bfloat16_precision(tmp_path: Path) -> None:
    network = _disturbed(_SMALL)
    save_weights(network, tmp_path / "model.safetensors")
    again = Network(_SMALL)
    load_weights(again, tmp_path / "model.safetensors")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value.bfloat16().float(), rtol=0, atol=0)


def test_a_conversation_gets_the_same_replies_alone_and_in_a_batch() -> None:
    network = _disturbed(_SMALL)
    made = held_out(3, 60, "off")
    together = replies_of(network, made)
    assert together == [replies_of(network, [one])[0] for one in made]
    assert accuracy(made, together)["all"].made > 0


def test_the_shipped_shape_is_within_three_million_parameters() -> None:
    assert parameter_count(Network(Shape())) <= 3_000_000


@needs_muon
def test_shipped_weights_are_the_mean_of_the_last_saves(tmp_path: Path) -> None:
    recipe = Recipe(steps=6, warmup_steps=1, rows=2, length=64, averaged=2)
    trainer = Trainer(_SMALL, recipe, tmp_path / "c.pt", "cpu")
    seen: list[torch.Tensor] = []
    for _ in range(3):
        trainer.one_step()
        trainer.save()
        seen.append(trainer.network.head.weight.detach().clone())
    assert [path.name for path in trainer.kept_weights()] == ["c-000002.weights", "c-000003.weights"]
    mean = averaged(trainer.kept_weights())["head.weight"]
    torch.testing.assert_close(mean, (seen[1] + seen[2]) / 2)
