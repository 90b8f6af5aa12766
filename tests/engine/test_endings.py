"""The ends of replies, and the history for the next turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from rwkvbatch.config import Sampling
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import Reply, Request, closed_history
from rwkvbatch.prompt.tokenizer import world_tokenizer
from tests.engine.hash_model import HashModel
from tests.engine.requests import request


def test_a_reply_ends_at_end_of_text_unless_it_is_banned() -> None:
    class Ending(HashModel):
        def logits(self, value: int) -> torch.Tensor:
            logits = torch.zeros(self.vocab_size)
            logits[0] = 9.0
            logits[65] = 8.0
            return logits

    greedy = Sampling(temperature=0)
    base = replace(request(0), sampling=greedy, max_tokens=4)
    ended, banned = Engine(Ending()).generate([base, replace(base, sampling=greedy.replace(banned_token_ids=(0,)))])
    assert (ended.finish_reason, ended.ids) == ("eos", ())
    assert (banned.finish_reason, banned.ids) == ("length", (65,) * 4)


def reply_with_text(text: str, *, stop: Sequence[str], max_tokens: int = 100) -> Reply:
    """The reply of a model that generates `text` and then end of text."""
    tokenizer = world_tokenizer(512)
    reply_tokens = [*tokenizer.encode(text), 0]
    prompt = (1, 2, 3)
    hashes: dict[int, int] = {}
    model = HashModel(vocab_size=512)
    value = 1
    for token in prompt:
        value = (value * 48271 + token + 7) % (2**31 - 1)
    for token in reply_tokens:
        hashes[value] = token
        value = (value * 48271 + token + 7) % (2**31 - 1)

    def logits(value: int) -> torch.Tensor:
        row = torch.zeros(512)
        row[hashes[value]] = 1.0
        return row

    model.logits = logits  # type: ignore[method-assign]
    engine = Engine(model, tokenizer=tokenizer)
    request = Request(prompt, Sampling(temperature=0), stop=tuple(stop), max_tokens=max_tokens)
    return engine.generate([request])[0]


def test_a_reply_stops_at_the_closing_text_which_stays_in_the_history() -> None:
    reply = reply_with_text(" yes.\n\nUser: and", stop=["\n\n"])
    assert (reply.text, reply.finish_reason, reply.stopped_by) == (" yes.", "stop", "\n\n")
    assert world_tokenizer(512).decode(reply.history[3:]) == " yes.\n\n"
    assert reply.history == (1, 2, 3, *reply.ids)


def test_another_stop_text_is_left_out_of_the_history_and_the_turn_is_closed() -> None:
    reply = reply_with_text(" <think>\n\nhm</think>\nyes\n\nUser: and", stop=["\nUser:"])
    assert reply.text == " <think>\n\nhm</think>\nyes\n"
    assert world_tokenizer(512).decode(reply.history[3:]) == " <think>\n\nhm</think>\nyes\n\n"


def test_a_reply_that_was_cut_is_closed_for_the_next_turn() -> None:
    reply = reply_with_text(" a long story", stop=["\n\n"], max_tokens=4)
    assert reply.finish_reason == "length"
    assert reply.history[3:] == (*reply.ids, *world_tokenizer(512).encode("\n\n"))


def test_end_of_text_closes_a_turn() -> None:
    reply = reply_with_text(" bye", stop=["\n\n"])
    assert reply.finish_reason == "eos"
    assert world_tokenizer(512).decode(reply.history[3:]) == " bye\n\n"
    assert 0 not in reply.ids


def test_after_a_stop_text_that_is_left_out_the_history_is_not_read_again() -> None:
    tokenizer = world_tokenizer(512)
    asked = Request((1, 2, 3), Sampling(temperature=0.7, banned_token_ids=(0,)), stop=("e",), max_tokens=200)
    engine = Engine(HashModel(vocab_size=400), tokenizer=tokenizer)
    reply = engine.generate([asked])[0]
    assert reply.finish_reason == "stop"
    following = engine.generate([replace(asked, tokens=(*reply.history, 9))])[0]
    kept = len(reply.history) - len(tokenizer.encode("\n\n"))
    assert following.num_cached >= kept - 1


def test_streamed_pieces_join_to_the_reply() -> None:
    pieces: list[str] = []
    reply = Engine(HashModel()).generate([replace(request(4, max_tokens=60), on_text=pieces.append)])[0]
    assert "".join(pieces) == reply.text


def test_a_cancelled_reply_keeps_its_tokens_so_far() -> None:
    engine = Engine(HashModel())
    request_id = engine.submit(request(0, max_tokens=50))
    for _ in range(6):
        assert engine.step() == []
    engine.cancel(request_id)
    ((finished_id, reply),) = engine.step()
    assert isinstance(reply, Reply)
    assert (finished_id, reply.finish_reason, len(reply.ids)) == (request_id, "cancelled", 6)
    assert reply.ids == Engine(HashModel()).generate([request(0, max_tokens=50)])[0].ids[:6]
    assert not engine.busy


@pytest.mark.parametrize("max_tokens", [1, 12])
def test_the_on_text_callback_can_cancel_its_reply(max_tokens: int) -> None:
    engine = Engine(HashModel())
    ids: list[int] = []
    one = replace(request(3, max_tokens=max_tokens), stop=(), on_text=lambda _: engine.cancel(ids[0]))
    ids.append(engine.submit(one))
    done = []
    while engine.busy:
        done += engine.step()
    ((finished_id, reply),) = done
    assert (finished_id, reply.finish_reason) == (ids[0], "cancelled")
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
    assert finished[second].finish_reason == "cancelled"
    assert finished[second].ids == ()


def test_a_time_limit_ends_a_reply_after_its_tokens_so_far() -> None:
    now = iter(range(1000))
    engine = Engine(HashModel(), clock=lambda: float(next(now)))
    reply = engine.generate([replace(request(0, max_tokens=500), max_seconds=20.0)])[0]
    assert reply.finish_reason == "time"
    assert 0 < len(reply.ids) < 500


def test_the_history_follows_from_the_fields_of_a_row() -> None:
    reply = reply_with_text(" <think>\n\nhm</think>\nyes\n\nUser: and", stop=["\nUser:"])
    again = closed_history(world_tokenizer(512), (1, 2, 3), reply.ids, reply.finish_reason, reply.stopped_by, "\n\n")
    assert again == reply.history
