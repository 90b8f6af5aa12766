"""Next-token logits and state after a prefix, and pinned states."""

from __future__ import annotations

import pytest
import torch

from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import Request
from rwkvbatch.model.base import State
from tests.engine.hash_model import HashModel


@pytest.mark.parametrize("tokens", [(5,), (5, 6), tuple(range(1, 90))])
@pytest.mark.parametrize("with_root", [False, True])
def test_next_logits_are_those_of_the_model(tokens: tuple[int, ...], with_root: bool) -> None:
    model = HashModel()
    engine = Engine(model)
    initial = State({"hash": torch.tensor([[1234]])}) if with_root else None
    root = engine.add_root(initial) if initial is not None else 0
    expected_logits, expected_state = model.forward([tokens], initial)
    for _ in range(2):
        actual = engine.next_logits(tokens, root)
        assert torch.equal(actual.logits, expected_logits[0])
        assert torch.equal(actual.state.tensors["hash"], expected_state.tensors["hash"])


def test_next_logits_read_nothing_twice() -> None:
    model = HashModel()
    engine = Engine(model)
    engine.next_logits(tuple(range(1, 200)))
    model.num_rows.clear()
    engine.next_logits(tuple(range(1, 200)))
    assert sum(model.num_rows) <= 2


def test_next_logits_do_not_affect_active_requests() -> None:
    request = Request(tokens=(1, 2, 3), max_tokens=20)
    alone = Engine(HashModel()).generate([request])[0]
    engine = Engine(HashModel())
    number = engine.submit(request)
    engine.step()
    engine.next_logits((1, 2, 9))
    replies = dict(engine.step())
    while number not in replies:
        replies = dict(engine.step())
    assert replies[number] == alone or getattr(replies[number], "ids", None) == alone.ids


@pytest.mark.parametrize("tokens", [(), (400,), (1, 400)])
def test_next_logits_refuse_invalid_tokens(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="token"):
        Engine(HashModel()).next_logits(tokens)


def num_read_again(engine: Engine, history: tuple[int, ...], pinning: bool) -> int:
    pin = engine.pin_state(history) if pinning else None
    for number in range(20):
        engine.generate([Request(tokens=(number + 1,) * 50, max_tokens=2)])
    if pin is not None:
        engine.unpin_state(pin)
    (reply,) = engine.generate([Request(tokens=(*history, 9, 9), max_tokens=1)])
    return reply.num_prompt - reply.num_cached


def test_a_pinned_state_is_not_evicted() -> None:
    for pinning in (False, True):
        engine = Engine(HashModel(), state_memory=8 * 1024)
        (reply,) = engine.generate([Request(tokens=tuple(range(1, 100)), max_tokens=3)])
        num_read = num_read_again(engine, reply.history, pinning)
        assert (num_read < 10) == pinning


def test_pinned_states_leave_room_for_requests() -> None:
    engine = Engine(HashModel(), state_memory=6 * 1024)
    pinned = [
        engine.pin_state(engine.generate([Request(tokens=(n + 1,) * 30, max_tokens=2)])[0].history) for n in range(6)
    ]
    assert sum(pin is not None for pin in pinned) == 3
    assert engine.generate([Request(tokens=(99,) * 30, max_tokens=2)])[0].ids
    for pin in pinned:
        if pin is not None:
            engine.unpin_state(pin)
    assert engine.pin_state(engine.generate([Request(tokens=(98,) * 30, max_tokens=2)])[0].history) is not None


def test_no_state_is_pinned_where_none_is_cached() -> None:
    assert Engine(HashModel()).pin_state((1, 2, 3)) is None
