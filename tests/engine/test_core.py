"""The engine over a model whose state is a hash of all it has read: any mistake about states changes the reply."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvbatch.config import Sampling
from rwkvbatch.engine.core import Engine
from rwkvbatch.engine.history import closed_history
from rwkvbatch.engine.request import NoiseKey, Reply, Request, Score
from rwkvbatch.errors import UsageError
from rwkvbatch.model.base import State
from rwkvbatch.text.tokenizer import world_tokenizer
from tests.engine.hash_model import HashModel

SAMPLING = Sampling(temperature=1.0, top_p=0.9, presence=0.3, frequency=0.2, ban=(0,))


def request(number: int, *, shared: int = 0, length: int = 20, max_tokens: int = 12) -> Request:
    tokens = [7] * shared + [1 + (number * 13 + place) % 250 for place in range(length)]
    return Request(
        tokens=tuple(tokens),
        sampling=SAMPLING,
        noise=NoiseKey(seed=1, conversation=f"c{number}", turn=number % 3),
        max_tokens=max_tokens,
        stop=("\n\n",),
    )


def contents(reply: Reply) -> tuple[object, ...]:
    return (reply.text, reply.ids, reply.history, reply.finish, reply.logprobs, reply.num_prompt)


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


def test_a_model_that_looks_at_its_neighbours_is_found_out() -> None:
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
    base = replace(request(0), sampling=Sampling(temperature=1.0, top_p=1.0, ban=(0,)))
    same = replace(base, sampling=Sampling(temperature=1.0, top_p=0.999, ban=(0,)))
    other = replace(base, noise=replace(base.noise, repeat=1))
    replies = Engine(HashModel()).generate([base, same, other])
    assert replies[0].ids[:3] == replies[1].ids[:3]
    assert replies[0].ids != replies[2].ids


@pytest.mark.parametrize("field", ["seed", "conversation", "repeat", "turn"])
def test_every_part_of_the_noise_key_matters(field: str) -> None:
    base = replace(request(0), sampling=Sampling(temperature=1.0, top_p=1.0, ban=(0,)))
    changed = replace(base, noise=replace(base.noise, **{field: "other" if field == "conversation" else 99}))
    first, second = Engine(HashModel()).generate([base, changed])
    assert first.ids != second.ids


def test_scores_are_those_of_the_tokens_read_one_by_one() -> None:
    model = HashModel()
    prefix, continuation = [5, 6, 7], [9, 10, 11, 12]
    score = Engine(model, step_rows=2).score(prefix, continuation)
    logits, _ = model.forward([prefix + continuation[:-1]], every_token=True)
    rows = logits[len(prefix) - 1 :].log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(rows, continuation, strict=True)]
    assert score.logprobs == pytest.approx(expected, abs=1e-5)
    assert score.nll == pytest.approx(-sum(expected) / 4, abs=1e-5)


def test_a_text_whose_state_is_known_already_gets_the_same_score() -> None:
    prefix, continuation = list(request(3).tokens), [9, 10, 11, 12]
    alone = Engine(HashModel()).score(prefix, continuation)
    engine = Engine(HashModel())
    # These leave states within and behind the text that is scored.
    for known in (prefix + continuation[:2], prefix + continuation, prefix + continuation + [1]):
        engine.score(known, [1])
    assert engine.score(prefix, continuation) == alone
    assert engine.score(prefix, continuation) == alone


def test_scoring_beside_a_reply_changes_neither() -> None:
    alone = contents(Engine(HashModel()).generate([request(3)])[0])
    score_alone = Engine(HashModel()).score(request(3).tokens, [1, 2, 3])
    engine = Engine(HashModel(), step_rows=5)
    reply_id = engine.submit(request(3))
    score_id = engine.submit_score(request(3).tokens, [1, 2, 3])
    results: dict[int, Reply | Score] = {}
    while engine.busy:
        results.update(engine.step())
    reply = results[reply_id]
    assert isinstance(reply, Reply)
    assert contents(reply) == alone
    assert results[score_id] == score_alone


@pytest.mark.parametrize("step_rows", [1, 6, 512])
def test_replies_and_texts_mixed_in_a_step_get_what_they_get_alone(step_rows: int) -> None:
    requests = [request(number, length=3 + number) for number in range(4)]
    texts = [(list(range(1, 4 + number)), list(range(40, 41 + 2 * number))) for number in range(5)]
    alone = [contents(Engine(HashModel()).generate([one])[0]) for one in requests]
    scores_alone = [Engine(HashModel()).score(*text) for text in texts]
    engine = Engine(HashModel(), step_rows=step_rows)
    score_ids = [engine.submit_score(*text) for text in texts[:3]]
    reply_ids = [engine.submit(one) for one in requests]
    results = dict(engine.step())
    score_ids += [engine.submit_score(*text) for text in texts[3:]]
    while engine.busy:
        results.update(engine.step())
    assert [contents(reply) for at in reply_ids if isinstance(reply := results[at], Reply)] == alone
    assert [results[at] for at in score_ids] == scores_alone


def test_the_tokens_that_are_likeliest_count_as_matched() -> None:
    greedy = Request((5, 6, 7), Sampling(temperature=0, ban=()), max_tokens=4)
    reply = Engine(HashModel()).generate([greedy])[0]
    other = (reply.ids[-1] + 1) % 300
    score = Engine(HashModel(), step_rows=2).score([5, 6, 7], [*reply.ids[:3], other])
    assert (len(reply.ids), score.num_matched) == (4, 3)


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


def test_a_reply_ends_at_end_of_text_unless_it_is_banned() -> None:
    class Ending(HashModel):
        def logits(self, value: int) -> torch.Tensor:
            logits = torch.zeros(self.vocab_size)
            logits[0] = 9.0
            logits[65] = 8.0
            return logits

    greedy = Sampling(temperature=0)
    base = replace(request(0), sampling=greedy, max_tokens=4)
    ended, banned = Engine(Ending()).generate([base, replace(base, sampling=greedy.replace(ban=(0,)))])
    assert (ended.finish, ended.ids) == ("eos", ())
    assert (banned.finish, banned.ids) == ("length", (65,) * 4)


def speaking_reply(text: str, *, stop: Sequence[str], max_tokens: int = 100) -> Reply:
    tokenizer = world_tokenizer(512)
    said = [*tokenizer.encode(text), 0]
    prompt = (1, 2, 3)
    hashes: dict[int, int] = {}
    model = HashModel(vocab_size=512)
    value = 1
    for token in prompt:
        value = (value * 48271 + token + 7) % (2**31 - 1)
    for token in said:
        hashes[value] = token
        value = (value * 48271 + token + 7) % (2**31 - 1)

    def logits(value: int) -> torch.Tensor:
        row = torch.zeros(512)
        row[hashes[value]] = 1.0
        return row

    model.logits = logits  # type: ignore[method-assign]
    engine = Engine(model, tokenizer=tokenizer)
    asked = Request(prompt, Sampling(temperature=0), stop=tuple(stop), max_tokens=max_tokens)
    return engine.generate([asked])[0]


def test_a_reply_stops_at_the_closing_text_which_stays_in_the_history() -> None:
    reply = speaking_reply(" yes.\n\nUser: and", stop=["\n\n"])
    assert (reply.text, reply.finish, reply.stopped_by) == (" yes.", "stop", "\n\n")
    assert world_tokenizer(512).decode(reply.history[3:]) == " yes.\n\n"
    assert reply.history == (1, 2, 3, *reply.ids)


def test_another_stop_text_is_left_out_of_the_history_and_the_turn_is_closed() -> None:
    reply = speaking_reply(" <think>\n\nhm</think>\nyes\n\nUser: and", stop=["\nUser:"])
    assert reply.text == " <think>\n\nhm</think>\nyes\n"
    assert world_tokenizer(512).decode(reply.history[3:]) == " <think>\n\nhm</think>\nyes\n\n"


def test_a_reply_that_was_cut_is_closed_for_the_next_turn() -> None:
    reply = speaking_reply(" a long story", stop=["\n\n"], max_tokens=4)
    assert reply.finish == "length"
    assert reply.history[3:] == (*reply.ids, *world_tokenizer(512).encode("\n\n"))


def test_end_of_text_closes_a_turn() -> None:
    reply = speaking_reply(" bye", stop=["\n\n"])
    assert reply.finish == "eos"
    assert world_tokenizer(512).decode(reply.history[3:]) == " bye\n\n"
    assert 0 not in reply.ids


def test_after_a_stop_text_that_is_left_out_the_history_is_not_read_again() -> None:
    tokenizer = world_tokenizer(512)
    asked = Request((1, 2, 3), Sampling(temperature=0.7, ban=(0,)), stop=("e",), max_tokens=200)
    engine = Engine(HashModel(vocab_size=400), tokenizer=tokenizer)
    reply = engine.generate([asked])[0]
    assert reply.finish == "stop"
    following = engine.generate([replace(asked, tokens=(*reply.history, 9))])[0]
    kept = len(reply.history) - len(tokenizer.encode("\n\n"))
    assert following.num_cached >= kept - 1


def test_streamed_pieces_join_to_the_reply() -> None:
    pieces: list[str] = []
    reply = Engine(HashModel()).generate([replace(request(4, max_tokens=60), on_text=pieces.append)])[0]
    assert "".join(pieces) == reply.text


def test_a_cancelled_reply_keeps_what_was_said_and_can_be_gone_on_from() -> None:
    engine = Engine(HashModel())
    request_id = engine.submit(request(0, max_tokens=50))
    for _ in range(6):
        assert engine.step() == []
    engine.cancel(request_id)
    ((finished_id, reply),) = engine.step()
    assert isinstance(reply, Reply)
    assert (finished_id, reply.finish, len(reply.ids)) == (request_id, "cancelled", 6)
    assert reply.ids == Engine(HashModel()).generate([request(0, max_tokens=50)])[0].ids[:6]
    assert not engine.busy


@pytest.mark.parametrize("max_tokens", [1, 12])
def test_a_reply_can_be_cancelled_by_whoever_gets_its_text(max_tokens: int) -> None:
    engine = Engine(HashModel())
    ids: list[int] = []
    one = replace(request(3, max_tokens=max_tokens), stop=(), on_text=lambda _: engine.cancel(ids[0]))
    ids.append(engine.submit(one))
    done = []
    while engine.busy:
        done += engine.step()
    ((finished_id, reply),) = done
    assert (finished_id, reply.finish) == (ids[0], "cancelled")
    assert engine.generate([request(4)])[0].ids


def test_a_waiting_request_can_be_cancelled() -> None:
    engine = Engine(HashModel(), max_batch=1)
    engine.submit(request(0))
    second = engine.submit(request(1))
    engine.step()
    engine.cancel(second)
    finished = {}
    while engine.busy:
        finished.update(engine.step())
    assert finished[second].finish == "cancelled"
    assert finished[second].ids == ()


def test_a_time_limit_ends_a_reply_with_what_it_has() -> None:
    now = iter(range(1000))
    engine = Engine(HashModel(), clock=lambda: float(next(now)))
    reply = engine.generate([replace(request(0, max_tokens=500), max_seconds=20.0)])[0]
    assert reply.finish == "time"
    assert 0 < len(reply.ids) < 500


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
    failed = [reply for reply in replies if reply.finish == "error"]
    assert failed
    assert len(failed) < len(replies)
    assert all("NaN" in (reply.error or "") for reply in failed)
    for reply, expected in zip(replies, sound, strict=True):
        assert reply.finish == "error" or contents(reply) == expected


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


def test_too_little_memory_for_states_is_said() -> None:
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
        asked = [
            Request(
                (*history, *(generator.randrange(1, 250) for _ in range(5))),
                SAMPLING,
                NoiseKey(conversation=str(number), turn=turn),
                max_tokens=generator.randrange(1, 9),
            )
            for number, history in enumerate(histories)
        ]
        warm = engine.generate(asked)
        cold = [Engine(HashModel()).generate([one])[0] for one in asked]
        assert [contents(reply) for reply in warm] == [contents(reply) for reply in cold]
        histories = [reply.history for reply in warm]


def test_the_rule_of_closing_needs_only_what_a_row_holds() -> None:
    reply = speaking_reply(" <think>\n\nhm</think>\nyes\n\nUser: and", stop=["\nUser:"])
    again = closed_history(world_tokenizer(512), (1, 2, 3), reply.ids, reply.finish, reply.stopped_by, "\n\n")
    assert again == reply.history
