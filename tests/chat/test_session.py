"""Chat sessions over a hash model: asking, undo, retry, branches, other models and states."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwkvbatch.chat.session import Session
from rwkvbatch.chat.tree import ConversationTree
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.request import NoiseKey, Request
from rwkvbatch.errors import NonFiniteLogitsError, UsageError
from rwkvbatch.model.base import State
from rwkvbatch.model.states import save_state
from tests.chat.sessions import SAMPLED, new_session
from tests.engine.hash_model import HashModel


def test_a_reply_equals_that_of_the_engine_for_the_whole_text() -> None:
    session = new_session()
    session.ask("first")
    exchange = session.ask("second")
    encode = session.engine.tokenizer.encode
    first = session.tree.exchanges[0]
    tokens = (
        *encode("User: hi\n\nAssistant: Hi.\n\n"),
        *encode("User: first\n\nAssistant:"),
        *first.rest,
        *encode("User: second\n\nAssistant:"),
    )
    (expected,) = Engine(HashModel()).generate(
        [Request(tokens=tuple(tokens), sampling=SAMPLED.sampling, noise=NoiseKey(5, "chat", 0, 1), max_tokens=12)]
    )
    assert exchange.ids == expected.ids
    assert exchange.logprobs == expected.logprobs
    assert session.tree.history() == expected.history


def test_a_later_turn_reads_only_its_own_tokens() -> None:
    model = HashModel()
    session = new_session(model)
    for number in range(5):
        exchange = session.ask(f"message {number}")
        if number:
            assert exchange.num_read <= len(exchange.prompt) + 3


def num_calls(act: Callable[[], object]) -> int:
    """The number of function calls, including resumed generators."""
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


def test_the_work_of_a_turn_does_not_grow_with_the_number_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(Engine(HashModel(), state_memory=20 * 1024), SAMPLED.replace(stop=(), max_tokens=4))
    session.begin(system="Be brief.")
    monkeypatch.setattr(ConversationTree, "history", None)
    monkeypatch.setattr(ConversationTree, "path", None)
    sizes: list[int] = []
    submit = session.engine.submit
    session.engine.submit = lambda request: (sizes.append(len(request.tokens)), submit(request))[1]

    def turn() -> None:
        session.ask("hello")
        session.retry()
        session.tree.branch("side")
        session.ask("hello")
        session.tree.undo()
        session.tree.switch("main")
        del session.tree.branches["side"]
        session.next_token()

    calls = [num_calls(turn) for _ in range(100)]
    # The calls that decode a reply depend on its bytes.
    assert max(calls[-20:]) < 1.1 * max(calls[5:25])
    assert max(sizes) == min(sizes)


def test_two_sessions_with_the_same_messages_have_the_same_replies() -> None:
    replies = []
    for _ in range(2):
        session = new_session()
        replies.append([session.ask(text).ids for text in ("a", "b")])
    assert replies[0] == replies[1]


def move_undo(session: Session) -> None:
    session.tree.undo(2)


def move_switch(session: Session) -> None:
    session.tree.switch("main")


@pytest.mark.parametrize("move", [move_undo, move_switch])
def test_undo_and_switch_read_no_token_again(move: Callable[[Session], None]) -> None:
    session = new_session()
    for number in range(4):
        session.ask(f"message {number}")
    if move is move_switch:
        session.tree.branch("other")
        for number in range(6):
            session.ask(f"other {number}")
    move(session)
    exchange = session.ask("again")
    assert exchange.num_read <= len(exchange.prompt) + 3


def test_a_branch_keeps_its_state_while_others_are_read() -> None:
    model = HashModel()
    session = Session(Engine(model, state_memory=8 * 1024), SAMPLED)
    session.begin()
    for number in range(3):
        session.ask(f"message {number}")
    session.tree.branch("other")
    for number in range(30):
        session.ask(f"other {number}")
    session.tree.switch("main")
    exchange = session.ask("again")
    assert exchange.num_read <= len(exchange.prompt) + 3


def test_undo_then_the_same_message_gives_the_same_reply() -> None:
    session = new_session()
    session.ask("a")
    first = session.ask("b")
    session.tree.undo()
    assert session.ask("b").ids == first.ids


def test_retry_uses_the_next_seed_and_replaces_the_last_reply() -> None:
    session = new_session()
    first = session.ask("a")
    second, third = session.retry(), session.retry()
    assert [exchange.seed for exchange in (first, second, third)] == [5, 6, 7]
    assert len({first.ids, second.ids, third.ids}) == 3
    assert session.tree.path() == [third]


def test_again_gives_the_replies_of_retries_and_pick_selects_one() -> None:
    session, retried = new_session(), new_session()
    first = session.ask("a")
    retried.ask("a")
    alternatives = session.again(3)
    assert [exchange.ids for exchange in alternatives] == [retried.retry().ids for _ in range(3)]
    assert session.tree.last == first
    session.pick(2)
    assert session.tree.last == alternatives[1]
    assert session.ask("b").parent == alternatives[1].number


@pytest.mark.parametrize("number", [0, 4, -1])
def test_picking_a_missing_alternative_is_refused(number: int) -> None:
    session = new_session()
    session.ask("a")
    session.again(3)
    with pytest.raises(UsageError, match="1 to 3"):
        session.pick(number)


def test_a_stopped_reply_is_kept_and_continued() -> None:
    session = new_session()
    pieces: list[str] = []
    stopped = session.ask("a", on_text=pieces.append, should_stop=lambda: len("".join(pieces)) >= 5)
    assert stopped.finish_reason == "cancelled"
    assert 0 < len(stopped.ids) < 12
    assert stopped.rest == (*stopped.ids, *session.engine.tokenizer.encode("\n\n"))
    assert not session.engine.busy
    assert session.ask("b").turn == 1


def test_an_error_while_printing_cancels_the_request() -> None:
    session = new_session()

    def fail(_text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        session.ask("a", on_text=fail)
    assert session.tree.path() == []
    assert session.ask("a").ids == new_session().ask("a").ids


def test_an_error_between_two_steps_cancels_the_request() -> None:
    session = new_session()

    def fail() -> bool:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        session.ask("a", should_stop=fail)
    assert session.tree.path() == []
    assert session.ask("a").ids == new_session().ask("a").ids


def test_a_failed_reply_leaves_the_tree_unchanged() -> None:
    session = new_session(HashModel(not_finite_after=1))
    with pytest.raises(NonFiniteLogitsError):
        session.ask("a")
    assert session.tree.path() == []


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_an_empty_message_is_refused(text: str) -> None:
    session = new_session()
    with pytest.raises(UsageError, match="the message is empty"):
        session.ask(text)
    exchange = session.ask("hello")
    with pytest.raises(UsageError, match="the message is empty"):
        session.edit(text)
    assert session.tree.path() == [exchange]


def test_a_reply_after_an_initial_state_equals_that_of_the_engine(tmp_path: Path) -> None:
    state, model = State({"hash": torch.tensor([[4321]])}), HashModel()
    save_state(tmp_path / "x.safetensors", state, model.spec)
    session = Session(Engine(model), SAMPLED)
    session.begin(state_file=tmp_path / "x.safetensors")
    reply = session.ask("a")
    engine = Engine(HashModel())
    root = engine.add_root(state)
    tokens = tuple(engine.tokenizer.encode("User: a\n\nAssistant:"))
    (expected,) = engine.generate(
        [Request(tokens=tokens, sampling=SAMPLED.sampling, noise=NoiseKey(0, "chat"), max_tokens=12, root=root)]
    )
    assert reply.ids == expected.ids


def test_another_system_message_starts_a_branch_and_keeps_the_former_one() -> None:
    session = new_session()
    session.ask("a")
    session.begin(system="Be brief.")
    assert session.tree.path() == []
    assert session.tree.history() == tuple(session.engine.tokenizer.encode("System: Be brief.\n\n"))
    session.tree.switch("main")
    assert len(session.tree.path()) == 1


def test_another_system_message_keeps_the_initial_state_and_the_prelude(tmp_path: Path) -> None:
    session = new_session()
    model = session.engine.model
    session.ask("a")
    save_state(tmp_path / "x.safetensors", session.next_token().state, model.spec)
    session.begin(prelude="User: hi", state_file=tmp_path / "x.safetensors")
    before = session.tree.opening
    session.begin_again("Be brief.")
    after = session.tree.opening
    assert (after.prelude, after.state, after.state_sha256) == (before.prelude, before.state, before.state_sha256)
    with_state = session.next_token().logits
    session.begin(system="Be brief.", prelude="User: hi")
    assert session.tree.opening.tokens == after.tokens
    assert (with_state != session.next_token().logits).any()


def test_another_model_reads_the_conversation_again() -> None:
    session = new_session()
    session.ask("a")
    session.tree.branch("b")
    session.ask("c")
    session.use_engine(Engine(HashModel()))
    exchange = session.ask("d")
    assert exchange.num_cached == 0
    assert exchange.num_read == len(session.tree.history()) - len(exchange.rest)


def test_another_vocabulary_is_refused() -> None:
    session = new_session()
    with pytest.raises(UsageError, match="vocabular"):
        session.use_engine(Engine(HashModel(vocab_size=400)))


def test_missing_log_probabilities_are_computed() -> None:
    session = new_session()
    exchange = session.ask("a")
    computed = session.logprobs(replace(exchange, logprobs=()))
    assert computed == pytest.approx(exchange.logprobs, abs=1e-5)


def test_next_token_logits_equal_those_of_the_model() -> None:
    session = new_session()
    session.ask("a")
    model = HashModel()
    expected, _ = model.forward([session.tree.history()])
    assert torch.equal(session.next_token().logits, expected[0])
    with pytest.raises(UsageError, match="empty"):
        new_session(prelude=None).next_token()
