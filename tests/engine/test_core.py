"""The engine with a model whose state is a hash of all tokens read: any mistake with states changes a reply."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvbatch.config import Sampling
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import NoiseKey, Request
from rwkvbatch.engine.scheduler import Chunk
from rwkvbatch.errors import CheckpointError, UsageError
from rwkvbatch.model.base import RaggedBatch, State, StatePool
from tests.engine.hash_model import HashModel
from tests.engine.requests import SAMPLING, contents, request


@pytest.mark.parametrize("max_batch", [1, 2, 5, 64])
@pytest.mark.parametrize("step_rows", [1, 7, 512])
def test_replies_do_not_depend_on_the_batch(max_batch: int, step_rows: int) -> None:
    requests = [request(number, shared=40 * (number % 2), length=5 + number) for number in range(12)]
    alone = [contents(Engine(HashModel()).generate([one])[0]) for one in requests]
    together = Engine(HashModel(), max_batch=max_batch, step_rows=step_rows).generate(requests)
    assert [contents(reply) for reply in together] == alone


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_replies_do_not_depend_on_order_chunking_or_memory(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 10))
    requests = [
        request(number, shared=data.draw(st.sampled_from([0, 30, 60])), length=data.draw(st.integers(1, 40)))
        for number in range(count)
    ]
    order = data.draw(st.permutations(range(count)))
    alone = [contents(Engine(HashModel()).generate([one])[0]) for one in requests]
    engine = Engine(
        HashModel(),
        max_batch=data.draw(st.integers(1, 12)),
        step_rows=data.draw(st.integers(1, 80)),
        state_memory=1024 * data.draw(st.integers(2, 30)),
    )
    together = engine.generate([requests[number] for number in order])
    assert [contents(reply) for reply in together] == [alone[number] for number in order]


def test_logits_that_depend_on_the_batch_change_the_replies() -> None:
    class Leaky(HashModel):
        def step(self, batch, pool):  # type: ignore[no-untyped-def]
            return super().step(batch, pool) + len(batch.slots) * torch.arange(self.vocab_size) % 5

    requests = [request(number) for number in range(6)]
    alone = [contents(Engine(Leaky()).generate([one])[0]) for one in requests]
    assert [contents(reply) for reply in Engine(Leaky()).generate(requests)] != alone


def test_a_second_turn_reads_only_what_is_new() -> None:
    engine = Engine(HashModel())
    first = engine.generate([request(0, max_tokens=5)])[0]
    turn = (50, 51, 52)
    second = engine.generate([replace(request(1), tokens=first.history + turn)])[0]
    cold = Engine(HashModel()).generate([replace(request(1), tokens=first.history + turn)])[0]
    # The last token of the reply and the closing text had not been read yet.
    assert second.num_cached == first.num_prompt + len(first.ids) - 1
    assert contents(second) == contents(cold)


def test_the_same_prompt_under_many_settings_is_read_once() -> None:
    model = HashModel()
    engine = Engine(model)
    base = request(0, length=100, max_tokens=1)
    replies = engine.generate([replace(base, sampling=Sampling(temperature=t)) for t in (0.5, 1.0, 1.5, 2.0)])
    assert sum(model.num_rows) == 99 + 4
    assert sum(reply.num_cached for reply in replies) == 3 * 99
    assert engine.stats.num_prompt_cached == 3 * 99
    assert engine.stats.num_prompt_read == 99 + 4


def test_cells_see_the_same_noise_and_repeats_do_not() -> None:
    base = replace(request(0), sampling=Sampling(temperature=1.0, top_p=1.0, banned_token_ids=(0,)))
    same = replace(base, sampling=Sampling(temperature=1.0, top_p=0.999, banned_token_ids=(0,)))
    other = replace(base, noise=replace(base.noise, repeat=1))
    replies = Engine(HashModel()).generate([base, same, other])
    assert replies[0].ids[:3] == replies[1].ids[:3]
    assert replies[0].ids != replies[2].ids


@pytest.mark.parametrize("field", ["seed", "conversation", "repeat", "turn"])
def test_every_part_of_the_noise_key_matters(field: str) -> None:
    base = replace(request(0), sampling=Sampling(temperature=1.0, top_p=1.0, banned_token_ids=(0,)))
    changed = replace(base, noise=replace(base.noise, **{field: "other" if field == "conversation" else 99}))
    first, second = Engine(HashModel()).generate([base, changed])
    assert first.ids != second.ids


@pytest.mark.parametrize("step_rows", [4, 512])
def test_tokens_are_chosen_once_in_a_step_that_has_logits_and_not_in_others(step_rows: int) -> None:
    model = HashModel()
    engine = Engine(model, step_rows=step_rows)
    for number in range(3):
        engine.submit(request(number, max_tokens=3))
        engine.submit_score([number + 1] * 5, [8, 9])
    while engine.busy:
        logits_before, choices_before = model.num_logits, model.num_choices
        engine.step()
        assert model.num_choices - choices_before == (model.num_logits > logits_before)


def test_running_out_of_memory_makes_the_batch_smaller_and_changes_no_reply() -> None:
    requests = [request(number, length=10 + number) for number in range(9)]
    expected = [contents(reply) for reply in Engine(HashModel()).generate(requests)]
    engine = Engine(HashModel(fail_over=20), step_rows=100)
    replies = engine.generate(requests)
    assert [contents(reply) for reply in replies] == expected
    assert engine.stats.num_halvings >= 1


def test_running_out_of_memory_for_a_single_row_is_an_error() -> None:
    with pytest.raises(MemoryError):
        Engine(HashModel(fail_over=0)).generate([request(0)])


def test_logits_that_are_not_finite_end_only_their_own_reply() -> None:
    requests = [request(number, max_tokens=30) for number in range(12)]
    sound = [contents(reply) for reply in Engine(HashModel()).generate(requests)]
    replies = Engine(HashModel(not_finite_after=97)).generate(requests)
    failed = [reply for reply in replies if reply.finish_reason == "error"]
    assert failed
    assert len(failed) < len(replies)
    assert all("NaN" in (reply.error or "") for reply in failed)
    for reply, expected in zip(replies, sound, strict=True):
        assert reply.finish_reason == "error" or contents(reply) == expected


def test_replies_follow_their_initial_state() -> None:
    engine = Engine(HashModel())
    root = engine.add_root(State({"hash": torch.tensor([[12345]])}))
    plain, rooted = engine.generate([request(0), replace(request(0), root=root)])
    assert plain.ids != rooted.ids


def test_initial_states_cannot_take_all_memory() -> None:
    engine = Engine(HashModel(), state_memory=4 * 1024)
    state = State({"hash": torch.tensor([[5]])})
    engine.add_root(state)
    engine.add_root(state)
    with pytest.raises(UsageError, match="initial state"):
        engine.add_root(state)
    assert engine.generate([request(0)])


def test_initial_states_of_another_shape_take_no_memory() -> None:
    engine = Engine(HashModel(), state_memory=4 * 1024)
    for shape in ([[1, 2]], [[1], [2]]) * 4:
        with pytest.raises(CheckpointError):
            engine.add_root(State({"hash": torch.tensor(shape)}))
    assert len(engine._scheduler.free_slots) == 4
    root = engine.add_root(State({"hash": torch.tensor([[5]])}))
    assert engine.generate([replace(request(0), root=root)])


class Interruptible(HashModel):
    """A model whose next step is interrupted after it has changed the states, if `interrupt` is set."""

    interrupt = False

    def step(self, batch: RaggedBatch, pool: StatePool) -> torch.Tensor:
        logits = super().step(batch, pool)
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        return logits


@pytest.mark.parametrize("num_steps", [0, 1, 3, 6])
@pytest.mark.parametrize("cancelled", [True, False])
def test_an_interrupted_step_leaves_no_state_that_is_ahead_of_its_tokens(num_steps: int, cancelled: bool) -> None:
    model = Interruptible()
    engine = Engine(model, step_rows=16)
    requests = [request(number, shared=20, length=20) for number in range(3)]
    ids = [engine.submit(one) for one in requests]
    score_id = engine.submit_score([7] * 30, [8, 9, 10])
    results = dict(result for _ in range(num_steps) for result in engine.step())
    model.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    if cancelled:
        for number in (*ids, score_id):
            engine.cancel(number)
        engine.step()
        assert not engine.busy
        replies, score = engine.generate(requests), engine.score([7] * 30, [8, 9, 10])
    else:
        while engine.busy:
            results |= engine.step()
        replies, score = [results[number] for number in ids], results[score_id]
    cold = Engine(HashModel())
    assert [contents(reply) for reply in replies] == [contents(reply) for reply in cold.generate(requests)]
    assert score == cold.score([7] * 30, [8, 9, 10])
    assert len(engine._scheduler.free_slots) + engine.num_cached_states == engine._pool.capacity


def test_a_step_interrupted_while_its_progress_is_recorded_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(HashModel(), step_rows=16)
    requests = [request(number, shared=20, length=20) for number in range(3)]
    ids = [engine.submit(one) for one in requests]
    advance = engine._scheduler.advance

    def interrupted(chunks: Sequence[Chunk]) -> None:
        advance(chunks[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(engine._scheduler, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    engine.cancel(ids[0])
    results = dict(result for _ in range(100) for result in engine.step())
    expected = Engine(HashModel()).generate(requests[1:])
    assert [contents(results[number]) for number in ids[1:]] == [contents(reply) for reply in expected]
    assert contents(engine.generate(requests[:1])[0]) == contents(Engine(HashModel()).generate(requests[:1])[0])


@pytest.mark.parametrize(("max_batch", "step_rows"), [(0, 8), (8, 0)])
def test_batch_size_and_step_rows_below_1_are_refused(max_batch: int, step_rows: int) -> None:
    with pytest.raises(UsageError, match="must be a whole number, at least 1; got 0"):
        Engine(HashModel(), max_batch=max_batch, step_rows=step_rows)


def test_memory_for_fewer_than_two_states_is_refused() -> None:
    with pytest.raises(UsageError, match="two of 1,024 bytes"):
        Engine(HashModel(), state_memory=1500)


@pytest.mark.parametrize("tokens", [(), (-1,), (300,)])
def test_impossible_tokens_are_refused(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="token"):
        Engine(HashModel()).submit(replace(request(0), tokens=tokens))


def test_histories_of_many_turns_stay_equal_to_cold_ones() -> None:
    generator = random.Random(3)
    engine = Engine(HashModel(), max_batch=4, step_rows=50, state_memory=1024 * 12)
    histories: list[tuple[int, ...]] = [(5, 6, number) for number in range(8)]
    for turn in range(4):
        requests = [
            Request(
                (*history, *(generator.randrange(1, 250) for _ in range(5))),
                SAMPLING,
                NoiseKey(conversation=str(number), turn=turn),
                max_tokens=generator.randrange(1, 9),
            )
            for number, history in enumerate(histories)
        ]
        warm = engine.generate(requests)
        cold = [Engine(HashModel()).generate([one])[0] for one in requests]
        assert [contents(reply) for reply in warm] == [contents(reply) for reply in cold]
        histories = [reply.history for reply in warm]
