"""State tuning: trains only the state, lowers the loss, and writes the tensor names that readers expect."""

from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from tools.demo.corpus import silently_upper
from tools.demo.export import save_initial_state
from tools.demo.network import Network, Shape
from tools.demo.state_tuning import StateRecipe, as_states, held_out_upper, score, tune

_SMALL = Shape(layers=2, width=64, decay_rank=8, rate_rank=8, value_rank=8, gate_rank=8)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _disturbed() -> Network:
    torch.manual_seed(3)
    network = Network(_SMALL)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def test_only_the_state_is_learnt_and_the_loss_falls() -> None:
    network = _disturbed()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    losses: list[float] = []
    recipe = StateRecipe(steps=30, rows=2, length=96, learning_rate=0.2)
    learnt = tune(network, recipe, lambda step, loss, right: losses.append(loss))
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(float(state.abs().max()) > 0 for state in learnt)


def test_a_zero_state_changes_nothing() -> None:
    network = _disturbed()
    ids = torch.randint(0, 512, (2, 16))
    zero = [torch.zeros(1, 64, 64) for _ in range(_SMALL.layers)]
    with torch.no_grad():
        plain, _ = network(ids)
        given, _ = network(ids, as_states(network, zero, 2))
    assert torch.equal(plain, given)


def test_conversations_to_learn_from_answer_in_capitals_without_being_told() -> None:
    for seed in range(20):
        made = silently_upper(Random(seed), "train", 200)
        assert made.system is None
        assert all(exchange.reply == exchange.reply.upper() for exchange in made.exchanges)


def test_the_score_counts_replies_in_capitals() -> None:
    made = held_out_upper(2, 60)
    found = score(_disturbed(), None, made)
    assert 0.0 <= found.upper_share <= 1.0
    assert 0.0 <= found.right_share <= 1.0


def test_a_state_file_has_a_tensor_a_layer(tmp_path: Path) -> None:
    states = [torch.randn(2, 64, 64) for _ in range(3)]
    save_initial_state(states, tmp_path / "state.safetensors")
    read = load_file(tmp_path / "state.safetensors")
    assert sorted(read) == [f"blocks.{i}.att.time_state" for i in range(3)]
    torch.testing.assert_close(read["blocks.1.att.time_state"].float(), states[1], rtol=0, atol=0.02)
