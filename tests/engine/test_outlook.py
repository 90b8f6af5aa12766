"""Looking ahead from a point of a dialogue, and keeping its state."""

from __future__ import annotations

import pytest
import torch

from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import Request
from rwkvbatch.model.base import State
from tests.engine.hash_model import HashModel


@pytest.mark.parametrize("tokens", [(5,), (5, 6), tuple(range(1, 90))])
@pytest.mark.parametrize("with_root", [False, True])
def test_looking_gives_what_the_model_gives(tokens: tuple[int, ...], with_root: bool) -> None:
    model = HashModel()
    engine = Engine(model)
    initial = State({"hash": torch.tensor([[1234]])}) if with_root else None
    root = engine.add_root(initial) if initial is not None else 0
    expected_logits, expected_state = model.forward([tokens], initial)
    for _ in range(2):
        outlook = engine.look(tokens, root)
        assert torch.equal(outlook.logits, expected_logits[0])
        assert torch.equal(outlook.state.tensors["hash"], expected_state.tensors["hash"])


def test_looking_reads_nothing_twice() -> None:
    model = HashModel()
    engine = Engine(model)
    engine.look(tuple(range(1, 200)))
    model.num_rows.clear()
    engine.look(tuple(range(1, 200)))
    assert sum(model.num_rows) <= 2


def test_looking_disturbs_nothing_under_way() -> None:
    request = Request(tokens=(1, 2, 3), max_tokens=20)
    alone = Engine(HashModel()).generate([request])[0]
    engine = Engine(HashModel())
    number = engine.submit(request)
    engine.step()
    engine.look((1, 2, 9))
    replies = dict(engine.step())
    while number not in replies:
        replies = dict(engine.step())
    assert replies[number] == alone or getattr(replies[number], "ids", None) == alone.ids


@pytest.mark.parametrize("tokens", [(), (400,), (1, 400)])
def test_looking_refuses_what_is_no_token(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="token"):
        Engine(HashModel()).look(tokens)


def num_read_again(engine: Engine, history: tuple[int, ...], holding: bool) -> int:
    hold = engine.places.hold(history) if holding else None
    for number in range(20):
        engine.generate([Request(tokens=(number + 1,) * 50, max_tokens=2)])
    if hold is not None:
        engine.places.release(hold)
    (reply,) = engine.generate([Request(tokens=(*history, 9, 9), max_tokens=1)])
    return reply.num_prompt - reply.num_cached


def test_a_held_state_outlives_others() -> None:
    for holding in (False, True):
        engine = Engine(HashModel(), state_memory=8 * 1024)
        (reply,) = engine.generate([Request(tokens=tuple(range(1, 100)), max_tokens=3)])
        num_read = num_read_again(engine, reply.history, holding)
        assert (num_read < 10) == holding


def test_holding_leaves_room_for_requests() -> None:
    engine = Engine(HashModel(), state_memory=6 * 1024)
    holds = [
        engine.places.hold(engine.generate([Request(tokens=(n + 1,) * 30, max_tokens=2)])[0].history) for n in range(6)
    ]
    assert sum(hold is not None for hold in holds) == 3
    assert engine.generate([Request(tokens=(99,) * 30, max_tokens=2)])[0].ids
    for hold in holds:
        if hold is not None:
            engine.places.release(hold)
    assert engine.places.hold(engine.generate([Request(tokens=(98,) * 30, max_tokens=2)])[0].history) is not None


def test_nothing_is_held_where_nothing_was_read() -> None:
    assert Engine(HashModel()).places.hold((1, 2, 3)) is None
