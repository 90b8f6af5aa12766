"""Asking, undoing, retrying and branching over a model whose state is a hash of all it has read."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from rwkvbatch.chat.session import Identity, Session
from rwkvbatch.chat.tree import Dialogue, dialogue_values, read_dialogue
from rwkvbatch.config import Sampling
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import NoiseKey, Request
from rwkvbatch.errors import NonFiniteLogitsError, UsageError
from rwkvbatch.model.base import State
from rwkvbatch.replay.settings import CellSettings
from tests.engine.hash_model import HashModel

SETTINGS = CellSettings(**{**dict(Sampling(temperature=1.0, top_p=0.9, banned_token_ids=(0,))), "max_tokens": 12})


def new_session(model: HashModel | None = None, *, prelude: str | None = "User: hi\n\nAssistant: Hi.\n\n") -> Session:
    session = Session(Engine(model or HashModel()), SETTINGS, Identity(seed=5))
    session.begin(prelude=prelude)
    return session


def test_a_reply_is_the_one_that_the_engine_gives_for_the_whole_text() -> None:
    session = new_session()
    session.ask("first")
    exchange = session.ask("second")
    encode = session.engine.tokenizer.encode
    first = session.dialogue.exchanges[0]
    tokens = (
        *encode("User: hi\n\nAssistant: Hi.\n\n"),
        *encode("User: first\n\nAssistant:"),
        *first.rest,
        *encode("User: second\n\nAssistant:"),
    )
    (expected,) = Engine(HashModel()).generate(
        [
            Request(
                tokens=tuple(tokens),
                sampling=SETTINGS.sampling,
                noise=NoiseKey(5, "chat", 0, 1),
                max_tokens=12,
            )
        ]
    )
    assert exchange.ids == expected.ids
    assert exchange.logprobs == expected.logprobs
    assert session.dialogue.history() == expected.history


def test_a_follow_up_reads_only_what_is_new() -> None:
    model = HashModel()
    session = new_session(model)
    for number in range(5):
        exchange = session.ask(f"message {number}")
        if number:
            assert exchange.num_read <= len(exchange.prompt) + 3


def num_calls(act: Callable[[], object]) -> int:
    """How many functions are called, generators resumed included."""
    events = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal events
        events += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
    return events


def test_a_turn_is_as_much_work_after_a_hundred_turns_as_after_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(Engine(HashModel(), state_memory=20 * 1024), SETTINGS.replace(stop=(), max_tokens=4))
    session.begin(system="Be brief.")
    monkeypatch.setattr(Dialogue, "history", None)
    monkeypatch.setattr(Dialogue, "path", None)
    sizes: list[int] = []
    submit = session.engine.submit
    session.engine.submit = lambda request: (sizes.append(len(request.tokens)), submit(request))[1]

    def turn() -> None:
        session.ask("hello")
        session.retry()
        session.dialogue.branch("side")
        session.ask("hello")
        session.dialogue.undo()
        session.dialogue.switch("main")
        del session.dialogue.branches["side"]
        session.look()

    calls = [num_calls(turn) for _ in range(100)]
    # Replies differ in their bytes, and so do the calls that decode them.
    assert max(calls[-20:]) < 1.1 * max(calls[5:25])
    assert max(sizes) == min(sizes)


def test_the_same_words_get_the_same_replies() -> None:
    replies = []
    for _ in range(2):
        session = new_session()
        replies.append([session.ask(text).ids for text in ("a", "b")])
    assert replies[0] == replies[1]


def move_undo(session: Session) -> None:
    session.dialogue.undo(2)


def move_switch(session: Session) -> None:
    session.dialogue.switch("main")


@pytest.mark.parametrize("move", [move_undo, move_switch])
def test_going_back_reads_nothing_again(move: Callable[[Session], None]) -> None:
    session = new_session()
    for number in range(4):
        session.ask(f"message {number}")
    if move is move_switch:
        session.dialogue.branch("other")
        for number in range(6):
            session.ask(f"other {number}")
    move(session)
    exchange = session.ask("again")
    assert exchange.num_read <= len(exchange.prompt) + 3


def test_branches_keep_their_state_whatever_else_is_read() -> None:
    model = HashModel()
    session = Session(Engine(model, state_memory=8 * 1024), SETTINGS)
    session.begin()
    for number in range(3):
        session.ask(f"message {number}")
    session.dialogue.branch("other")
    for number in range(30):
        session.ask(f"other {number}")
    session.dialogue.switch("main")
    exchange = session.ask("again")
    assert exchange.num_read <= len(exchange.prompt) + 3


def test_undo_then_the_same_words_gives_the_same_reply() -> None:
    session = new_session()
    session.ask("a")
    first = session.ask("b")
    session.dialogue.undo()
    assert session.ask("b").ids == first.ids


def test_retry_takes_another_seed_each_time_and_replaces_the_last_reply() -> None:
    session = new_session()
    first = session.ask("a")
    second, third = session.retry(), session.retry()
    assert [exchange.seed for exchange in (first, second, third)] == [5, 6, 7]
    assert len({first.ids, second.ids, third.ids}) == 3
    assert session.dialogue.path() == [third]


def test_again_gives_what_retries_would_have_given_and_changes_nothing_until_one_is_picked() -> None:
    session, other = new_session(), new_session()
    first = session.ask("a")
    other.ask("a")
    made = session.again(3)
    assert [exchange.ids for exchange in made] == [other.retry().ids for _ in range(3)]
    assert session.dialogue.last == first
    session.pick(2)
    assert session.dialogue.last == made[1]
    assert session.ask("b").parent == made[1].number


@pytest.mark.parametrize("number", [0, 4, -1])
def test_picking_what_is_not_there_is_refused(number: int) -> None:
    session = new_session()
    session.ask("a")
    session.again(3)
    with pytest.raises(UsageError, match="1 to 3"):
        session.pick(number)


def test_stopping_keeps_what_was_said_and_the_dialogue_goes_on_from_it() -> None:
    session = new_session()
    pieces: list[str] = []
    stopped = session.ask("a", on_text=pieces.append, go_on=lambda: len("".join(pieces)) < 5)
    assert stopped.finish_reason == "cancelled"
    assert 0 < len(stopped.ids) < 12
    assert stopped.rest == (*stopped.ids, *session.engine.tokenizer.encode("\n\n"))
    assert not session.engine.busy
    assert session.ask("b").turn == 1


def test_an_error_while_printing_leaves_nothing_under_way() -> None:
    session = new_session()

    def fail(_text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        session.ask("a", on_text=fail)
    assert session.dialogue.path() == []
    assert session.ask("a").ids == new_session().ask("a").ids


def test_a_model_without_a_reply_says_so_and_the_dialogue_stays() -> None:
    session = new_session(HashModel(not_finite_after=1))
    with pytest.raises(NonFiniteLogitsError):
        session.ask("a")
    assert session.dialogue.path() == []


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_an_empty_message_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        new_session().ask(text)


def test_an_initial_state_takes_the_place_of_what_would_be_read() -> None:
    state = State({"hash": torch.tensor([[4321]])})
    session = Session(Engine(HashModel()), SETTINGS)
    session.begin(state=state, state_path="x.pth", state_sha256="00")
    reply = session.ask("a")
    engine = Engine(HashModel())
    root = engine.add_root(state)
    tokens = tuple(engine.tokenizer.encode("User: a\n\nAssistant:"))
    (expected,) = engine.generate(
        [Request(tokens=tokens, sampling=SETTINGS.sampling, noise=NoiseKey(0, "chat"), max_tokens=12, root=root)]
    )
    assert reply.ids == expected.ids


def test_another_system_message_begins_a_new_dialogue_and_the_old_one_stays() -> None:
    session = new_session()
    session.ask("a")
    session.begin(system="Be brief.")
    assert session.dialogue.path() == []
    assert session.dialogue.history() == tuple(session.engine.tokenizer.encode("System: Be brief.\n\n"))
    session.dialogue.switch("main")
    assert len(session.dialogue.path()) == 1


def test_another_model_reads_the_dialogue_again() -> None:
    session = new_session()
    session.ask("a")
    session.dialogue.branch("b")
    session.ask("c")
    session.use_engine(Engine(HashModel()))
    exchange = session.ask("d")
    assert exchange.num_cached == 0
    assert exchange.num_read == len(session.dialogue.history()) - len(exchange.rest)


def test_another_vocabulary_is_refused() -> None:
    session = new_session()
    with pytest.raises(UsageError, match="vocabular"):
        session.use_engine(Engine(HashModel(vocab_size=400)))


def test_log_probabilities_that_are_not_known_are_computed() -> None:
    session = new_session()
    exchange = session.ask("a")
    from dataclasses import replace

    again = session.logprobs(replace(exchange, logprobs=()))
    assert again == pytest.approx(exchange.logprobs, abs=1e-5)


def test_looking_ahead_gives_the_next_tokens_logits() -> None:
    session = new_session()
    session.ask("a")
    model = HashModel()
    expected, _ = model.forward([session.dialogue.history()])
    assert torch.equal(session.look().logits, expected[0])
    with pytest.raises(UsageError, match="nothing"):
        new_session(prelude=None).look()


def test_a_dialogue_survives_being_written_and_read() -> None:
    session = new_session()
    session.ask("a")
    session.retry()
    session.dialogue.branch("b")
    session.ask("c")
    read = read_dialogue(dialogue_values(session.dialogue))
    assert read == session.dialogue
    assert read.history() == session.dialogue.history()


def test_a_dialogue_that_points_outside_itself_is_refused() -> None:
    session = new_session()
    session.ask("a")
    values = dialogue_values(session.dialogue)
    values["branches"]["main"]["exchange"] = 7
    with pytest.raises(ValueError, match="7"):
        read_dialogue(values)
    values = dialogue_values(session.dialogue)
    values["exchanges"][0]["parent"] = 0
    with pytest.raises(ValueError, match="out of place"):
        read_dialogue(values)
    values = dialogue_values(session.dialogue)
    values["exchanges"][0]["turn"] = 1
    with pytest.raises(ValueError, match="it is turn 1"):
        read_dialogue(values)
    session.ask("b")
    session.begin()
    values = dialogue_values(session.dialogue)
    values["exchanges"][1]["opening"] = 1
    with pytest.raises(ValueError, match="another opening"):
        read_dialogue(values)


@pytest.mark.parametrize("count", [0, 3, -1])
def test_undoing_more_than_was_said_is_refused(count: int) -> None:
    session = new_session()
    session.ask("a")
    session.ask("b")
    with pytest.raises(UsageError, match="1 to 2"):
        session.dialogue.undo(count)
    assert len(session.dialogue.path()) == 2
