"""The network with the reference operations gives the `rwkv` package's logits, for any grouping of the tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkvbatch.errors import CheckpointError
from rwkvbatch.model.base import Model, RaggedBatch, State
from rwkvbatch.model.checkpoints.random_checkpoint import LowRankWidths, random_tensors
from rwkvbatch.model.load import load_model
from rwkvbatch.model.network import rwkv7_model as forward
from tests.model.conftest import VOCAB_SIZE, greedy_batch

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Shape:
    num_layers: int
    width: int
    head_size: int
    vocab_size: int
    hidden: int | None = None
    ranks: LowRankWidths | None = None
    first_value_residual: bool = True


SHAPES = [
    Shape(1, 64, 64, 65),
    Shape(2, 64, 32, 97, ranks=LowRankWidths(5, 7, 3, 11)),
    Shape(3, 128, 64, 1001, first_value_residual=False),
    Shape(2, 192, 64, 300, hidden=333),
    Shape(5, 128, 32, 517, ranks=LowRankWidths(64, 16, 8, 128)),
    Shape(2, 320, 64, 131, hidden=1280),
    Shape(2, 96, 24, 78, hidden=100, ranks=LowRankWidths(2, 2, 2, 2)),
]


@pytest.fixture(scope="module")
def tiny_model(tiny_file: Path) -> Model:
    return load_model(tiny_file, "cpu fp32", "reference")


def token_lists(vocab_size: int, lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab_size, length).tolist() for length in lengths]


def largest_difference(left: State, right: State) -> float:
    assert left.tensors.keys() == right.tensors.keys()
    return max(float((left.tensors[name] - right.tensors[name]).abs().max()) for name in left.tensors)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.num_layers}x{shape.width}h{shape.head_size}")
def test_logits_and_states_are_those_of_the_rwkv_package(shape: Shape, tmp_path: Path) -> None:
    tensors = random_tensors(
        shape.num_layers,
        shape.width,
        shape.vocab_size,
        shape.head_size,
        hidden=shape.hidden,
        ranks=shape.ranks,
        first_value_residual=shape.first_value_residual,
        dtype=torch.float32,
    )
    torch.save(tensors, tmp_path / "model.pth")
    model = load_model(tmp_path / "model", "cpu fp32", "reference")
    package = load_model(tmp_path / "model", "cpu fp32", "upstream")

    prompts = token_lists(shape.vocab_size, [17, 1, 5])
    actual, state = model.forward(prompts, every_token=True)
    expected, expected_state = package.forward(prompts, every_token=True)
    assert actual.shape == expected.shape == (23, shape.vocab_size)
    assert float((actual - expected).abs().max()) < TOLERANCE
    assert largest_difference(state, expected_state) < TOLERANCE
    assert 0.5 < float(expected.std()) < 10

    continuations = token_lists(shape.vocab_size, [1, 9, 1], seed=1)
    actual, _ = model.forward(continuations, state)
    expected, _ = package.forward(continuations, expected_state)
    assert actual.shape == (3, shape.vocab_size)
    assert float((actual - expected).abs().max()) < TOLERANCE


def test_ragged_batch_equals_one_by_one(tiny_model: Model) -> None:
    lists = token_lists(VOCAB_SIZE, [3, 1, 40, 1, 8])
    logits, state = tiny_model.forward(lists)
    for index, tokens in enumerate(lists):
        alone, alone_state = tiny_model.forward([tokens])
        torch.testing.assert_close(logits[index], alone[0], rtol=0, atol=1e-5)
        assert largest_difference(state.select([index]), alone_state) < 1e-5


@pytest.mark.parametrize("cut", [1, 2, 10, 19])
def test_one_call_equals_two(tiny_model: Model, cut: int) -> None:
    (tokens,) = token_lists(VOCAB_SIZE, [20])
    whole, whole_state = tiny_model.forward([tokens], every_token=True)
    first, state = tiny_model.forward([tokens[:cut]], every_token=True)
    second, state = tiny_model.forward([tokens[cut:]], state, every_token=True)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=0, atol=1e-5)
    assert largest_difference(state, whole_state) < 1e-5


@pytest.mark.parametrize("every_token", [False, True])
def test_long_lists_are_read_in_pieces(tiny_model: Model, every_token: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = token_lists(VOCAB_SIZE, [30, 2, 11, 21])
    whole, whole_state = tiny_model.forward(lists, every_token=every_token)
    rows: list[int] = []
    step = tiny_model.step

    def counted(batch: RaggedBatch, pool: object) -> torch.Tensor:
        rows.append(len(batch.tokens))
        return step(batch, pool)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(forward, "ROWS_PER_STEP", 20)
    monkeypatch.setattr(tiny_model, "step", counted)
    pieces, state = tiny_model.forward(lists, every_token=every_token)
    assert len(rows) == 6
    assert max(rows) <= 20
    assert sum(rows) == 64
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)
    assert largest_difference(state, whole_state) < 1e-5


def test_forward_does_not_change_its_state_argument(tiny_model: Model) -> None:
    _, state = tiny_model.forward([[1, 2], [3]])
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    tiny_model.forward([[4], [5, 6]], state)
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in before.items())


def test_step_returns_logits_of_the_output_rows_only(tiny_model: Model) -> None:
    (tokens,) = token_lists(VOCAB_SIZE, [6])
    every, _ = tiny_model.forward([tokens], every_token=True)
    pool = tiny_model.make_pool(3)
    pool.clear(2)
    batch = RaggedBatch(np.array(tokens), np.array([0, 6]), np.array([2]), np.array([1, 4]))
    torch.testing.assert_close(tiny_model.step(batch, pool), every[[1, 4]], rtol=0, atol=1e-5)


def test_pool_copies_states_between_slots(tiny_model: Model) -> None:
    pool = tiny_model.make_pool(2)
    pool.clear(0)
    tiny_model.step(RaggedBatch.of([[5, 6, 7]], [0]), pool)
    pool.copy(0, 1)
    both = tiny_model.step(RaggedBatch.of([[8], [8]], [0, 1]), pool)
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "at least one list"),
        ([[1], []], r"tokens\[1\] must be a list of at least one"),
        ([[1, VOCAB_SIZE]], rf"must be in \[0, {VOCAB_SIZE}\), got {VOCAB_SIZE}"),
        ([[-1]], "got -1"),
    ],
)
def test_forward_refuses_bad_tokens(tiny_model: Model, tokens: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model.forward(tokens)


def test_forward_refuses_state_of_another_batch_size(tiny_model: Model) -> None:
    _, state = tiny_model.forward([[1]])
    with pytest.raises(ValueError, match="state has 1 sequence, tokens has 2"):
        tiny_model.forward([[1], [2]], state)


def test_forward_refuses_state_of_another_model(tiny_model: Model) -> None:
    _, state = tiny_model.forward([[1]])
    other = State({**state.tensors, "wkv": state.tensors["wkv"][:, :1]})
    with pytest.raises(CheckpointError, match="the state must have tensors"):
        tiny_model.forward([[1]], other)


def test_step_refuses_tokens_outside_the_vocabulary(tiny_model: Model) -> None:
    with pytest.raises(ValueError, match="token ids must be in"):
        tiny_model.step(RaggedBatch.of([[VOCAB_SIZE]], [0]), tiny_model.make_pool(1))


def test_thread_count_is_put_back(tiny_file: Path) -> None:
    model = load_model(tiny_file, "cpu fp32", "reference", threads=2)
    before = torch.get_num_threads()
    model.forward([[1, 2, 3]])
    assert torch.get_num_threads() == before == 1


def test_spec_says_what_the_model_is(tiny_model: Model, tiny_tensors: dict[str, torch.Tensor]) -> None:
    spec = tiny_model.spec
    assert (spec.generation, spec.num_layers, spec.width, spec.num_heads, spec.head_size) == ("7", 2, 64, 2, 32)
    assert spec.vocab_size == VOCAB_SIZE
    assert spec.num_parameters == sum(tensor.numel() for tensor in tiny_tensors.values())
    _, state = tiny_model.forward([[1]])
    assert spec.state_bytes == sum(tensor.numel() * 4 for tensor in state.tensors.values())


def test_tokens_are_chosen_by_the_operations(tiny_model: Model) -> None:
    logits, _ = tiny_model.forward([[1], [2]])
    expected = torch.log_softmax(logits.double(), 1)
    choices = tiny_model.choose(logits, replace(greedy_batch(1), target_ids=np.array([4])))
    best = logits.argmax(1)
    assert choices.tokens.tolist() == best.tolist()
    np.testing.assert_allclose(choices.logprobs, expected[[0, 1], [int(best[0]), 4]].numpy(), rtol=1e-6)
