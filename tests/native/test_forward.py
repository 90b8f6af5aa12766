"""`CpuModel.forward`: the bits of pool steps, a pure function, and reuse of memory that nothing refers to."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.base import Model, RaggedBatch, State
from rwkvbatch.model.checkpoints.random_checkpoint import random_tensors
from rwkvbatch.model.load import load_model

pytest.importorskip("rwkvbatch._native")
from rwkvbatch.model.network.traced import CpuModel
from rwkvbatch.model.ops.cpu import RecycledMemory

LISTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("forward") / "random.pth"
    torch.save(random_tensors(2, 128, 97), path)
    model = load_model(path, "cpu", threads=2)
    assert isinstance(model, CpuModel)
    return model


def stepped(model: Model, lists: list[list[int]], state: State | None) -> tuple[torch.Tensor, State]:
    """The same by a pool whose states are written, advanced in place, and read."""
    pool = model.make_pool(len(lists))
    for slot in range(len(lists)):
        pool.clear(slot)
    if state is not None:
        pool.write(range(len(lists)), state)
    logits = model.step(RaggedBatch.of(lists, range(len(lists)), every_token=True), pool)
    return logits.clone(), pool.read(range(len(lists)))


def copied(state: State) -> State:
    return State({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.tensors.items()})


def assert_same_state(actual: State, expected: State) -> None:
    assert actual.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(actual.tensors[name], tensor), name


def test_forward_has_the_bits_of_steps_over_a_pool(model: Model) -> None:
    state = expected_state = None
    for _ in range(3):
        logits, state = model.forward(LISTS, state, every_token=True)
        expected, expected_state = stepped(model, LISTS, expected_state)
        assert torch.equal(logits, expected)
        assert_same_state(state, expected_state)
    last, _ = model.forward(LISTS, None)
    every, _ = model.forward(LISTS, None, every_token=True)
    assert torch.equal(last, every[np.cumsum([len(part) for part in LISTS]) - 1])


def test_forward_changes_no_argument_and_gives_the_same_again(model: Model) -> None:
    _, state = model.forward(LISTS)
    before = copied(state)
    first, after = model.forward([[5]] * 4, state)
    kept, kept_state = first.clone(), copied(after)
    for _ in range(3):
        again, again_state = model.forward([[5]] * 4, state)
        assert torch.equal(again, kept)
        assert_same_state(again_state, kept_state)
    assert_same_state(state, before)
    assert torch.equal(first, kept)
    assert_same_state(after, kept_state)


def test_a_state_in_any_layout_gives_the_same(model: Model) -> None:
    _, state = model.forward(LISTS)
    expected, _ = model.forward([[5]] * 4, state)
    halves = [state.select([0, 1]), state.select([2, 3])]
    in_double = State({name: tensor.double() for name, tensor in state.tensors.items()})
    unpickled = pickle.loads(pickle.dumps(state))
    for other in (copied(state), State.cat(halves), in_double, unpickled, copy.deepcopy(state)):
        assert torch.equal(model.forward([[5]] * 4, other)[0], expected)


def test_a_view_of_a_result_keeps_its_memory(model: Model) -> None:
    logits, state = model.forward(LISTS)
    view, array = state.tensors["wkv"][1:3, 0], logits[2].numpy()
    before, numbers = view.clone(), array.copy()
    del logits, state
    for _ in range(4):
        model.forward(LISTS, model.forward([[1]] * 4)[1])
    assert torch.equal(view, before)
    np.testing.assert_array_equal(array, numbers)


def test_memory_is_used_again_once_nothing_refers_to_it() -> None:
    memory = RecycledMemory()
    first = memory.take(100)
    second = memory.take(100)
    places = first.data_ptr(), second.data_ptr()
    assert places[0] != places[1]
    view = first.view(10, 10)[3]
    del first
    assert memory.take(100).data_ptr() != places[0]
    del view
    assert memory.take(100).data_ptr() == places[0]
    assert memory.take(101).data_ptr() != places[0]


def test_a_changed_tensor_of_a_state_counts(model: Model) -> None:
    _, state = model.forward(LISTS)
    expected_state = copied(state)
    for each in (state, expected_state):
        each.tensors["wkv"][:, 1] = 0
    assert torch.equal(model.forward([[5]] * 4, state)[0], model.forward([[5]] * 4, expected_state)[0])


def test_forward_refuses_states_of_another_shape(model: Model) -> None:
    _, state = model.forward(LISTS)
    with pytest.raises(ValueError, match="the state has 4 sequences, tokens has 2"):
        model.forward([[1], [2]], state)
    wrong = State({**state.tensors, "wkv": state.tensors["wkv"][:, :1]})
    with pytest.raises(CheckpointError, match="the state must have tensors"):
        model.forward([[5]] * 4, wrong)
    with pytest.raises(ValueError, match=r"tokens\[1\] must be a list of at least one token id"):
        model.forward([[1], []])
    with pytest.raises(ValueError, match="got 97"):
        model.forward([[1], [97]])
