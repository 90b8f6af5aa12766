"""Marks: roots within a dialogue, after which a request need not name what came before."""

from __future__ import annotations

import random

import pytest
import torch

from rwkvbatch.config import Sampling
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import NoiseKey, Reply, Request
from rwkvbatch.model.base import State
from tests.engine.hash_model import HashModel

STATE_BYTES = 1024


def request(tokens: tuple[int, ...], root: int, seed: int) -> Request:
    return Request(tokens, Sampling(temperature=1.0), NoiseKey(seed), max_tokens=6, root=root)


def num_read(reply: Reply) -> int:
    return reply.num_prompt - reply.num_cached


@pytest.mark.parametrize("capacity", [4, 6, 40])
@pytest.mark.parametrize("max_batch", [1, 3])
def test_a_request_after_a_mark_is_one_that_names_the_whole_history(capacity: int, max_batch: int) -> None:
    """A tree of turns, several asked at once, with so little memory that most states have to be made again."""
    generator = random.Random(capacity)
    marked = Engine(HashModel(), max_batch=max_batch, step_rows=16, state_memory=capacity * STATE_BYTES)
    whole = Engine(HashModel())
    initial = State({"hash": torch.tensor([[77]])})
    ends = [(engine_root, (), engine_root) for engine_root in (marked.add_root(initial), 0)]
    assert whole.add_root(initial) == ends[0][0]
    for step in range(40):
        chosen = [generator.choice(ends) for _ in range(generator.randrange(1, 4))]
        said = [tuple(generator.choices(range(1, 300), k=generator.randrange(1, 30))) for _ in chosen]
        replies = marked.generate([request(new, mark, step) for (mark, _, _), new in zip(chosen, said, strict=True)])
        expected = whole.generate(
            [request((*past, *new), root, step) for (_, past, root), new in zip(chosen, said, strict=True)]
        )
        for reply, other, (mark, past, root) in zip(replies, expected, chosen, strict=True):
            assert (reply.ids, reply.logprobs, reply.finish_reason) == (other.ids, other.logprobs, other.finish_reason)
            assert (*past, *reply.history) == other.history
            assert reply.num_prompt == other.num_prompt
            ends.append((marked.places.mark(reply.history, mark), other.history, root))
    slots = marked._scheduler.slots
    assert slots.num_free + marked.num_states_kept + 1 == capacity, "every state is somebody's"


def test_a_request_after_a_mark_reads_its_own_tokens_and_those_the_reply_left_unread() -> None:
    engine = Engine(HashModel())
    mark = 0
    for turn in range(10):
        (reply,) = engine.generate([request((5,) * 20, mark, turn)])
        assert num_read(reply) <= 20 + (3 if turn else 0)
        assert reply.num_prompt > turn * 20
        mark = engine.places.mark(reply.history, mark)


def test_many_requests_after_a_mark_whose_state_was_dropped_read_its_tokens_once() -> None:
    engine = Engine(HashModel(), state_memory=12 * STATE_BYTES)
    (reply,) = engine.generate([request((7,) * 100, 0, 0)])
    mark = engine.places.mark(reply.history)
    for number in range(20):
        engine.generate([request((number + 1,) * 40, 0, number)])
    assert engine.look((9,), mark).logits is not None
    for number in range(20):
        engine.generate([request((number + 1,) * 40, 0, number)])
    replies = engine.generate([request((9, 10, number), mark, number) for number in range(5)])
    assert sum(map(num_read, replies)) < len(reply.history) + 5 * 5


def test_a_state_that_is_dropped_while_a_request_waits_for_it_is_made_again() -> None:
    engine = Engine(HashModel(), max_batch=1, state_memory=3 * STATE_BYTES)
    (first,) = engine.generate([request((7,) * 50, 0, 0)])
    mark = engine.places.mark(first.history)
    others = [engine.submit(request((number + 1,) * 40, 0, number)) for number in range(5)]
    waiting = engine.submit(request((9, 9), mark, 1))
    replies: dict[int, object] = {}
    while engine.busy:
        replies |= dict(engine.step())
    assert replies.keys() == {*others, waiting}
    reply = replies[waiting]
    assert isinstance(reply, Reply)
    (expected,) = Engine(HashModel()).generate([request((*first.history, 9, 9), 0, 1)])
    assert reply.ids == expected.ids
    assert num_read(reply) > 50


def test_a_mark_may_be_forgotten_while_a_request_follows_it() -> None:
    engine = Engine(HashModel())
    mark = engine.places.mark((1, 2, 3))
    later = engine.places.mark((4,), mark)
    number = engine.submit(request((5, 6), later, 0))
    engine.places.unmark(mark)
    engine.places.unmark(later)
    replies = dict(engine.step())
    while number not in replies:
        replies = dict(engine.step())
    (expected,) = Engine(HashModel()).generate([request((1, 2, 3, 4, 5, 6), 0, 0)])
    assert getattr(replies[number], "ids", None) == expected.ids
    with pytest.raises(ValueError, match="no initial state"):
        engine.submit(request((5,), later, 0))


def test_forgotten_marks_leave_nothing_in_the_tree() -> None:
    engine = Engine(HashModel())
    marks = [engine.places.mark((1, 2, 3))]
    marks += [engine.places.mark((number,), marks[0]) for number in range(4, 8)]
    for mark in marks:
        engine.places.unmark(mark)
    assert not engine._scheduler.tree.base(0).children


def test_looking_and_scoring_after_a_mark_are_as_after_the_whole_history() -> None:
    engine, model = Engine(HashModel()), HashModel()
    mark = engine.places.mark(tuple(range(1, 60)))
    for tokens in ((9,), (9, 10)):
        expected, state = model.forward([[*range(1, 60), *tokens]])
        outlook = engine.look(tokens, mark)
        assert torch.equal(outlook.logits, expected[0])
        assert torch.equal(outlook.state.tensors["hash"], state.tensors["hash"])
    whole = Engine(HashModel()).score((*range(1, 60), 9), (8, 7))
    assert engine.score((9,), (8, 7), mark) == whole


@pytest.mark.parametrize(("tokens", "root"), [((300,), 0), ((-1,), 0), ((1,), 5), ((1,), -1)])
def test_a_mark_is_refused_where_there_can_be_none(tokens: tuple[int, ...], root: int) -> None:
    with pytest.raises(ValueError, match=r"token ids|no initial state"):
        Engine(HashModel()).places.mark(tokens, root)
