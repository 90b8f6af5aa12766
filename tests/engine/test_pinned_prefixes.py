"""Pinned prefixes: roots within a conversation, so that a request does not repeat the tokens before it."""

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
def test_a_request_after_a_pinned_prefix_equals_one_with_the_whole_history(capacity: int, max_batch: int) -> None:
    """A tree of turns, several asked at once, with so little memory that most states have to be computed again."""
    generator = random.Random(capacity)
    pinning = Engine(HashModel(), max_batch=max_batch, step_rows=16, state_memory=capacity * STATE_BYTES)
    whole = Engine(HashModel())
    initial = State({"hash": torch.tensor([[77]])})
    ends: list[tuple[int, tuple[int, ...], int]] = [
        (engine_root, (), engine_root) for engine_root in (pinning.add_root(initial), 0)
    ]
    assert whole.add_root(initial) == ends[0][0]
    for step in range(40):
        chosen = [generator.choice(ends) for _ in range(generator.randrange(1, 4))]
        said = [tuple(generator.choices(range(1, 300), k=generator.randrange(1, 30))) for _ in chosen]
        replies = pinning.generate(
            [request(new, prefix, step) for (prefix, _, _), new in zip(chosen, said, strict=True)]
        )
        expected = whole.generate(
            [request((*past, *new), root, step) for (_, past, root), new in zip(chosen, said, strict=True)]
        )
        for reply, other, (prefix, past, root) in zip(replies, expected, chosen, strict=True):
            assert (reply.ids, reply.logprobs, reply.finish_reason) == (other.ids, other.logprobs, other.finish_reason)
            assert (*past, *reply.history) == other.history
            assert reply.num_prompt == other.num_prompt
            ends.append((pinning.pin_prefix(reply.history, prefix), other.history, root))
    assert len(pinning._scheduler.free_slots) + pinning.num_cached_states + 1 == capacity, (
        "every slot is free, cached or the initial state's"
    )


def test_a_request_after_a_pinned_prefix_reads_its_own_tokens_and_those_the_reply_left_unread() -> None:
    engine = Engine(HashModel())
    prefix = 0
    for turn in range(10):
        (reply,) = engine.generate([request((5,) * 20, prefix, turn)])
        assert num_read(reply) <= 20 + (3 if turn else 0)
        assert reply.num_prompt > turn * 20
        prefix = engine.pin_prefix(reply.history, prefix)


def test_many_requests_after_a_pinned_prefix_whose_state_was_evicted_read_its_tokens_once() -> None:
    engine = Engine(HashModel(), state_memory=12 * STATE_BYTES)
    (reply,) = engine.generate([request((7,) * 100, 0, 0)])
    prefix = engine.pin_prefix(reply.history)
    for number in range(20):
        engine.generate([request((number + 1,) * 40, 0, number)])
    assert engine.next_logits((9,), prefix).logits is not None
    for number in range(20):
        engine.generate([request((number + 1,) * 40, 0, number)])
    replies = engine.generate([request((9, 10, number), prefix, number) for number in range(5)])
    assert sum(map(num_read, replies)) < len(reply.history) + 5 * 5


def test_a_state_that_is_evicted_while_a_request_waits_for_it_is_computed_again() -> None:
    engine = Engine(HashModel(), max_batch=1, state_memory=3 * STATE_BYTES)
    (first,) = engine.generate([request((7,) * 50, 0, 0)])
    prefix = engine.pin_prefix(first.history)
    others = [engine.submit(request((number + 1,) * 40, 0, number)) for number in range(5)]
    waiting = engine.submit(request((9, 9), prefix, 1))
    replies: dict[int, object] = {}
    while engine.busy:
        replies |= dict(engine.step())
    assert replies.keys() == {*others, waiting}
    reply = replies[waiting]
    assert isinstance(reply, Reply)
    (expected,) = Engine(HashModel()).generate([request((*first.history, 9, 9), 0, 1)])
    assert reply.ids == expected.ids
    assert num_read(reply) > 50


def test_a_prefix_may_be_unpinned_while_a_request_follows_it() -> None:
    engine = Engine(HashModel())
    prefix = engine.pin_prefix((1, 2, 3))
    later = engine.pin_prefix((4,), prefix)
    number = engine.submit(request((5, 6), later, 0))
    engine.unpin_prefix(prefix)
    engine.unpin_prefix(later)
    replies = dict(engine.step())
    while number not in replies:
        replies = dict(engine.step())
    (expected,) = Engine(HashModel()).generate([request((1, 2, 3, 4, 5, 6), 0, 0)])
    assert getattr(replies[number], "ids", None) == expected.ids
    with pytest.raises(ValueError, match="no initial state"):
        engine.submit(request((5,), later, 0))


def test_unpinned_prefixes_leave_nothing_in_the_tree() -> None:
    engine = Engine(HashModel())
    prefixes = [engine.pin_prefix((1, 2, 3))]
    prefixes += [engine.pin_prefix((number,), prefixes[0]) for number in range(4, 8)]
    for prefix in prefixes:
        engine.unpin_prefix(prefix)
    assert not engine._scheduler.tree.base(0).children


def test_logits_and_scores_after_a_pinned_prefix_equal_those_after_the_whole_history() -> None:
    engine, model = Engine(HashModel()), HashModel()
    prefix = engine.pin_prefix(tuple(range(1, 60)))
    for tokens in ((9,), (9, 10)):
        expected, state = model.forward([[*range(1, 60), *tokens]])
        actual = engine.next_logits(tokens, prefix)
        assert torch.equal(actual.logits, expected[0])
        assert torch.equal(actual.state.tensors["hash"], state.tensors["hash"])
    whole = Engine(HashModel()).score((*range(1, 60), 9), (8, 7))
    assert engine.score((9,), (8, 7), prefix) == whole


@pytest.mark.parametrize(("tokens", "root"), [((300,), 0), ((-1,), 0), ((1,), 5), ((1,), -1)])
def test_invalid_tokens_and_roots_are_not_pinned(tokens: tuple[int, ...], root: int) -> None:
    with pytest.raises(ValueError, match=r"token ids|no initial state"):
        Engine(HashModel()).pin_prefix(tokens, root)
